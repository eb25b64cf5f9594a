"""Installs the hook of ``quorate exec`` when Python starts, then runs the ``sitecustomize`` that this one hides."""

import importlib
import os
import sys

_FOLDER = os.path.dirname(os.path.abspath(__file__))

if os.environ.get("QUORATE_EXEC"):
    try:
        from quorate_torchrun._hook import install
    except ImportError:
        pass  # the Python of another environment, which has no quorate
    else:
        install()

_rest = [folder for folder in sys.path if os.path.abspath(folder) != _FOLDER]
_own = sys.modules.pop("sitecustomize", None)
sys.path[:] = _rest
try:
    importlib.import_module("sitecustomize")  # the one that this one hides
except ImportError as error:
    if error.name != "sitecustomize":
        raise
    if _own is not None:
        sys.modules["sitecustomize"] = _own
