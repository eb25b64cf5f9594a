"""What the start method warm refuses before anything starts."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from quorate.errors import UsageError
from quorate.records import WorkerLaunch
from quorate_process_local._template_site.quorate_template import why_not_forkable

from .conftest import Make, launch
from .warm_workers import python, refused, run, write_module

# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["sh", "-c", "true"], "runs Python programs"),
        ([sys.executable], "standard input"),
        ([sys.executable, "-u", "-"], "standard input"),
        ([sys.executable, "-i", "script.py"], "-i"),
        ([sys.executable, "-uS", "script.py"], "option -S"),
        ([sys.executable, "-I", "script.py"], "option -I"),
        ([sys.executable, "--version"], "--version"),
        (["no-such-python"], "not found"),
    ],
    ids=lambda it: " ".join(it)[-16:] if isinstance(it, list) else "",
)
def test_what_is_no_python_program_is_refused_before_anything_starts(
    make: Make, command: list[str], words: str
) -> None:
    """One clear sentence, and it is the caller's mistake."""
    starter = make()
    with pytest.raises(UsageError, match=words):
        starter.prepare(command[0], command[1:], dict(os.environ))
    assert words in refused(make(), launch(0, *command))


def test_a_working_folder_that_was_removed_is_named(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert "the working folder of this process has been removed" in refused(make(), launch(0, os.getpid))


def test_an_import_that_fails_says_why(make: Make) -> None:
    assert "importing no_such_module failed: ModuleNotFoundError" in refused(make("json", "no_such_module"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import threading, time\nthreading.Thread(target=time.sleep, args=(1000,), name='mine', daemon=True).start()",
         "1 thread(s) running (mine)"),
        ("import os\nos._exit(3)", "ended by exit code 3 before it had imported troubled"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "ended by signal 9"),
        ("import os\nos.closerange(3, 100)\nimport signal\nsignal.pause()", "closed its channel to the agent"),
        ("raise SystemExit('no')", "importing troubled failed: SystemExit: no"),
        ("import sys, types\nsys.modules['torch'] = torch = types.ModuleType('torch')\n"
         "torch.cuda = types.SimpleNamespace(is_initialized=lambda: True)", "initialised CUDA"),
    ],
    ids=["thread", "exit", "killed", "closed", "system-exit", "cuda"],
)  # fmt: skip
def test_an_import_that_leaves_what_cannot_be_copied_is_refused(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: str
) -> None:
    write_module(tmp_path, monkeypatch, "troubled", text)
    assert words in refused(make("troubled"))


def test_an_open_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "readlink", lambda path: "/dev/nvidia0")
    assert "/dev/nvidia0" in why_not_forkable()


def test_an_import_that_hangs_is_given_up(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_module(tmp_path, monkeypatch, "hanging", "import signal\nsignal.pause()")
    assert "importing hanging took longer than 1 s" in refused(make("hanging", import_timeout_seconds=1))


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (python("pass", rank=1, environment={"OMP_NUM_THREADS": "7"}), "another value of OMP_NUM_THREADS"),
        (python("other", rank=1), "another command, code other"),
    ],
    ids=["variable", "program"],
)
def test_workers_that_cannot_be_copies_of_one_process_are_refused(make: Make, second: WorkerLaunch, words: str) -> None:
    assert words in refused(make(), python("pass"), second)


def test_a_template_that_no_longer_fits_is_replaced(make: Make, tmp_path: Path) -> None:
    starter = make()
    code = "import os, sys; print(os.environ['OMP_NUM_THREADS'], sys.flags.hash_randomization)"
    out = tmp_path / "out"
    for threads, seed in (("3", "0"), ("4", "random")):
        out.unlink(missing_ok=True)
        surroundings = {"OMP_NUM_THREADS": threads, "PYTHONHASHSEED": seed}
        run(starter, [python(code, stdout=str(out), environment=surroundings)])
        assert out.read_text() == f"{threads} {int(seed == 'random')}\n"
