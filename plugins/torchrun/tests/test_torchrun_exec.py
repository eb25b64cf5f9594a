"""``quorate exec``: real commands whose calls of torch's launchers go to quorate, with torch's files as they are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

#: Prints what tells quorate's workers from torchrun's, and what is left of the hook.
WORKER = """\
import os, sys
# In one piece, for the other worker writes too.
sys.stdout.write(f"{os.environ['RANK']} {os.environ['WORLD_SIZE']} {'QUORATE_ROUND' in os.environ} {sys.argv[1:]}\\n")
assert not os.environ.get("QUORATE_EXEC") and "_shim" not in os.environ["PATH"] + os.environ.get("PYTHONPATH", "")
"""
NOTE = "quorate: note: torch's launchers are run by quorate in this command and what it starts"


@pytest.fixture
def worker(tmp_path: Path) -> str:
    path = tmp_path / "worker.py"
    path.write_text(WORKER)
    return str(path)


def execute(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "quorate", "exec", "--", *command],
        capture_output=True,
        text=True,
        timeout=150,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize(
    "launcher",
    [
        ["torchrun"],
        ["sh", "-c", 'exec torchrun "$@"', "sh"],
        [str(Path(sys.executable).parent / "torchrun")],
        [sys.executable, "-m", "torch.distributed.run"],
        [sys.executable, "-c", "import sys, torch.distributed.run as r; r.main(sys.argv[1:])"],
        [sys.executable, "-c", "import torch.distributed.run as r; r.run(r.parse_args(None))"],
        [sys.executable, "-c", "import os, sys; os.execvp('torchrun', ['torchrun', *sys.argv[1:]])"],
    ],
    ids=["torchrun", "shell", "console script", "module", "main", "run", "child"],
)
def test_every_way_to_torchrun_leads_to_quorate(launcher: list[str], worker: str) -> None:
    # A flag that only quorate has, so that torch's own parser would refuse it.
    done = execute(*launcher, "--nproc_per_node", "2", "--exit-barrier-timeout=5", worker, "a")
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["0 2 True ['a']", "1 2 True ['a']"]
    assert done.stderr.count(NOTE) == 1


LAUNCH = """\
import os, sys

def function(word):
    assert not os.environ.get("QUORATE_EXEC"), "unset for the workers"
    if word == "bad":
        raise ValueError("no luck")
    return os.environ["RANK"], "QUORATE_ROUND" in os.environ, word

if __name__ == "__main__":
    # Not for the workers: what they do needs no torch, and to import it takes each one seconds.
    import torch.distributed.launcher as package
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for launch in (elastic_launch, package.elastic_launch):
        config = LaunchConfig(1, 1, 2, rdzv_backend="c10d", rdzv_endpoint="localhost:0", run_id="job",
                              start_method=sys.argv[1], max_restarts=0)
        print(launch(config, function)("good"))
    try:
        elastic_launch(config, function)("bad")
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        print(failure.exitcode, failure.message["message"])
"""


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_elastic_launch_of_a_program_leads_to_quorate(tmp_path: Path, start_method: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(LAUNCH)
    done = execute(sys.executable, str(program), start_method)
    assert done.returncode == 0, done.stderr
    values = "{0: ('0', True, 'good'), 1: ('1', True, 'good')}\n"
    assert done.stdout == f"{values}{values}1 ValueError: no luck\n"


def test_the_exit_code_is_quorates(tmp_path: Path) -> None:
    assert execute("torchrun", "--no-python", "false").returncode == 1
    assert execute("torchrun", "--nonsense", "x").returncode == 2
    assert execute("sh", "-c", "exit 7").returncode == 7


def test_the_sitecustomize_that_was_there_still_runs(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.was_here = __file__\n")
    code = (
        "import sys, sitecustomize; print(sys.was_here == sitecustomize.__file__, any('_shim' in p for p in sys.path))"
    )
    done = execute(sys.executable, "-c", code, PYTHONPATH=str(tmp_path))
    assert done.stdout == "True False\n", done.stderr
    (tmp_path / "sitecustomize.py").write_text("import there_is_no_such_module\n")
    done = execute(sys.executable, "-c", "print('on')", PYTHONPATH=str(tmp_path))
    assert "there_is_no_such_module" in done.stderr


def test_python_of_another_environment_is_left_alone(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "other")], check=True, timeout=120)
    done = execute(str(tmp_path / "other/bin/python"), "-c", "print('on')")
    assert (done.stdout, done.returncode) == ("on\n", 0), done.stderr
    assert done.stderr.strip() == NOTE


def test_torch_is_not_loaded_where_the_command_does_not_load_it() -> None:
    done = execute(sys.executable, "-c", "import sys; print('torch' in sys.modules, 'quorate' in sys.modules)")
    assert done.stdout == "False True\n"


def test_outside_of_exec_torchrun_is_torchs(worker: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=1", worker],
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.stdout == "0 1 False []\n", done.stderr


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ([], "a command is missing"),
        (["--"], "a command is missing"),
        (["--flag", "x"], "no flag --flag"),
        (["there-is-no-such-program"], "not an executable"),
    ],
)
def test_what_cannot_be_run_is_said(line: list[str], sentence: str) -> None:
    done = subprocess.run([sys.executable, "-m", "quorate", "exec", *line], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert sentence in done.stderr


def test_a_console_that_takes_nothing_changes_no_exit_code() -> None:
    command = [sys.executable, "-m", "quorate", "exec"]
    for arguments, code in ((["--help"], 0), (["sh", "-c", "exit 7"], 7)):
        with open("/dev/full", "w") as full:
            done = subprocess.run([*command, *arguments], stdout=full, stderr=full, timeout=60)
        assert done.returncode == code
