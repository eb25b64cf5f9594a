"""A function worker imports torch without collections, and is otherwise what it would have been."""

from __future__ import annotations

import gc
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from quorate_process_local._torch_import import PROLOGUE

from .conftest import Start, launch

FROM_MODULE = """
import importlib.util, sys
{prologue}
spec = importlib.util.find_spec("{name}")
asked = (spec.loader.__class__.__name__, spec.origin) if spec else None
{action}
print(asked)
print([type(finder).__name__ for finder in sys.meta_path if type(finder).__name__ == "_TorchFinder"])
"""


def _run(prologue: str, name: str, action: str, folder: Path) -> list[str]:
    program = FROM_MODULE.format(prologue=prologue, name=name, action=action)
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("files", "action"),
    [
        ({"torch/__init__.py": "value = 1"}, "import torch; print(torch.value, vars(torch.__spec__.loader).keys())"),
        ({"torch.py": "import gc; print(gc.isenabled())"}, "import torch"),
        ({"torch.py": "raise RuntimeError('broken')"}, "try: import torch\nexcept RuntimeError as error: print(error)"),
        ({"torch.py": "import other", "other.py": "import torch; print(torch)"}, "import torch"),
        ({"torch.py": ""}, "import torch, importlib; importlib.reload(torch); print(torch.__name__)"),
        ({}, "try: import torch_of_nobody\nexcept ImportError as error: print(error.name)"),
    ],
    ids=["package", "collector", "broken", "circular", "reload", "none"],
)
def test_an_import_gives_what_it_would_without(tmp_path: Path, files: dict[str, str], action: str) -> None:
    """But for the collector, which rests while the module runs."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    name = "torch" if files else "torch_of_nobody"
    *plain, _ = _run("", name, action, tmp_path)
    *spared, finders = _run(PROLOGUE, name, action, tmp_path)
    assert spared == [line.replace("True", "False") if line == "True" else line for line in plain]
    assert finders == ("[]" if files else "['_TorchFinder']")


def test_an_interpreter_without_quorate_runs_the_prologue(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", PROLOGUE + "print('on')"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("on\n", "")


def test_a_collector_that_was_off_stays_off(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("")
    action = "import gc; gc.disable(); import torch; print(gc.isenabled(), gc.get_freeze_count())"
    assert _run(PROLOGUE, "torch", action, tmp_path)[0] == "False 0"


def test_what_was_imported_before_torch_is_not_frozen_by_asking_for_its_spec(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("")
    assert _run(PROLOGUE, "torch", "import gc; print(gc.get_freeze_count())", tmp_path)[0] == "0"


@pytest.mark.slow  # imports torch in the workers
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_worker_froze_torch_and_collects_as_ever(start: Start, tmp_path: Path, method: str) -> None:
    from . import torch_functions

    usual = gc.get_threshold()
    (event,) = start(method, [launch(0, torch_functions.collector)]).run()
    assert event.exit_code == 0, event.stderr_tail
    is_enabled, threshold, frozen, loader, finders = event.return_value
    assert (is_enabled, threshold) == (True, usual)
    assert frozen > 50_000
    assert "exec_module" not in loader
    assert "_TorchFinder" not in finders


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_what_a_class_of_the_program_holds_is_still_let_go_at_the_end(start: Start, tmp_path: Path) -> None:
    """Where the interpreter ends as programs do; a forked worker leaves without, as those of multiprocessing do."""
    from . import torch_functions

    path = tmp_path / "notes"
    (event,) = start("spawn", [launch(0, torch_functions.take_notes, str(path))]).run()
    assert event.exit_code == 0, event.stderr_tail
    assert path.read_text() == "noted"
