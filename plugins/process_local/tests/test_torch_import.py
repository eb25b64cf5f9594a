"""A function worker imports torch without collections, and is otherwise what it would have been."""

from __future__ import annotations

import gc
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from quorate_process_local._torch_import import PROLOGUE

from .conftest import Start, launch

FROM_MODULE = """
import importlib.util, sys
{prologue}
sys.path[:] = [folder for folder in sys.path if "site-packages" not in folder]  # where the real torch is
spec = importlib.util.find_spec("{name}")
asked = (spec.loader.__class__.__name__, spec.origin) if spec else None
{action}
print(asked)
print([type(finder).__name__ for finder in sys.meta_path if type(finder).__name__ == "_TorchFinder"])
"""

#: Finders and loaders of others, as far behind as where a program puts its own.
OTHERS = """
import importlib, importlib.util, sys
from importlib.machinery import ModuleSpec
class Loader:
    @staticmethod
    def create_module(spec): pass
    @staticmethod
    def exec_module(module): module.value = getattr(module, "value", 0) + 1
class ReadOnly(Loader):
    def __setattr__(self, name, value): raise AttributeError(f"{name} is read-only")
class OfInstance(Loader):
    def __init__(self): self.exec_module = Loader.exec_module
class Finder:
    loader = Loader()
    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self.loader) if name in ("torch", "other") else None
class Asks:
    def find_spec(self, name, path=None, target=None):
        found = (finder.find_spec(name, path) for finder in sys.meta_path if finder is not self)
        return next(filter(None, found), None)
class Old:
    def find_module(self, name, path=None): pass
def use(finder):
    sys.meta_path.insert(1, finder)
    importlib.util.find_spec("torch")
    import torch, other
    importlib.reload(torch), importlib.reload(other)
    print(torch.value, other.value)
"""

#: Another thread asks the last but one finder while torch is imported, and what it imports is the last one's.
THREADS = (
    OTHERS
    + """
import threading
is_asking, is_imported = threading.Event(), threading.Event()
class Waits(Loader):
    def create_module(self, spec):
        thread.start(), is_asking.wait()
    def exec_module(self, module):
        is_imported.set()
class TorchFinder(Finder):
    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, Waits()) if name == "torch" else None
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "other":
            is_asking.set(), is_imported.wait()
def import_other():
    import other
    print(other.value)
sys.meta_path.insert(1, TorchFinder())
sys.meta_path += [Slow(), Finder()]
thread = threading.Thread(target=import_other)
import torch
thread.join()
"""
)

#: Each is there before torch is imported, and has a file written out by the last collection only.
HELD = {
    "class": "class Holder: pass\nimport torch\nholder = Holder",
    "instance": "class Holder: pass\nholder = Holder()\nholder.itself = holder\nimport torch",
    "closure": """
def make():
    notes = []
    def holder(): return holder, notes
    return holder
holder = make()
import torch
notes = holder()[1]
class holder: pass
notes.append(holder)
""",
    "module": "import before, torch\nholder = before.Holder",
}


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
        ({"torch/value.py": "value = 3"}, "import torch.value; print(torch.value.value, torch.__file__)"),
        (
            {"torch.py": "value = 4", "other.py": "value = 5"},
            "import zipfile, os\n"
            "with zipfile.ZipFile('all.zip', 'w') as file: file.write('torch.py'), file.write('other.py')\n"
            "os.rename('torch.py', '1'), os.rename('other.py', '2')\nsys.path.insert(0, 'all.zip')\n"
            "importlib.util.find_spec('torch'), importlib.util.find_spec('torch')\n"
            "import other, torch, importlib\nimportlib.reload(other), print(torch.value, other.value)\n"
            "os.rename('1', 'torch.py'), os.rename('2', 'other.py')",
        ),
        ({"torch.py": "value = 6", "other.py": "value = 7"}, OTHERS + "use(Old())"),
        ({"torch.py": "value = 6", "other.py": "value = 7"}, OTHERS + "use(Asks())"),
        ({"torch.py": ""}, OTHERS + "use(Finder())"),
        ({"torch.py": ""}, OTHERS + "Finder.loader = Loader\nuse(Finder())"),
        ({"torch.py": ""}, OTHERS + "Finder.loader = ReadOnly()\nuse(Finder())"),
        ({"torch.py": ""}, OTHERS + "Finder.loader = OfInstance()\nuse(Finder())"),
        ({"torch.py": ""}, THREADS),
        ({}, "try: import torch_of_nobody\nexcept ImportError as error: print(error.name)"),
    ],
    ids=[
        *("package", "collector", "broken", "circular", "reload", "namespace", "zip", "old finder", "finder that asks"),
        *("one loader", "class as loader", "read-only loader", "loader with its own method", "threads", "none"),
    ],
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
    assert finders == "['_TorchFinder']"


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


def test_the_prologue_imports_what_every_spawned_worker_does(tmp_path: Path) -> None:
    """The folders of the program come into ``sys.path`` later; the working folder, which is there, may not be one."""
    show = "import json, sys; print(json.dumps([sorted(sys.modules), sorted(vars())]))\n"
    (before, _), (_, names), (after, names_after) = (
        json.loads(
            subprocess.run([sys.executable, "-c", code + show], cwd=tmp_path, capture_output=True, check=True).stdout
        )
        for code in ("from multiprocessing import spawn\n", "", PROLOGUE)
    )
    assert set(after) <= {*before, "__future__", *sys.builtin_module_names}
    assert names_after == names


@pytest.mark.parametrize("held", HELD)
def test_what_a_program_has_made_before_is_let_go_at_the_end(tmp_path: Path, held: str) -> None:
    (tmp_path / "torch.py").write_text("")
    (tmp_path / "before.py").write_text("class Holder: pass")
    program = f"{PROLOGUE}\n{HELD[held]}\nholder.file = open('early', 'w')\nholder.file.write('early')"
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=60)
    assert (tmp_path / "early").read_text() == "early"


def test_torch_is_frozen_with_what_python_and_libraries_have_made(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("")
    folder = tmp_path / "site-packages"
    folder.mkdir()
    (folder / "installed.py").write_text("class Holder: pass\nholder = Holder()")
    action = (
        f"sys.path.append({str(folder)!r}); import gc, installed, logging, multiprocessing, tempfile; import torch\n"
        "print(gc.get_freeze_count() > 1000)"
    )
    assert _run(PROLOGUE, "torch", action, tmp_path)[0] == "True"


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
    assert finders.count("_TorchFinder") == 1


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_what_a_class_of_the_program_holds_is_still_let_go_at_the_end(start: Start, tmp_path: Path) -> None:
    """Where the interpreter ends as programs do; a forked worker leaves without, as those of multiprocessing do."""
    from . import torch_functions

    path = tmp_path / "notes"
    (event,) = start("spawn", [launch(0, torch_functions.take_notes, str(path))]).run()
    assert event.exit_code == 0, event.stderr_tail
    assert path.read_text() == "noted"
