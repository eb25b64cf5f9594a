"""What is missing or short where the command runs: standard input, descriptors, ``/proc``.  One sentence, a known code.

Real limits and namespaces.  What becomes of output is in ``test_unwritable_output``.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from core.tests.cli_runs import clean_environment, runs_a_job

from quorate import HealthCheck, LaunchConfig, PluginHost, RendezvousError, hookimpl, launch
from quorate.cli import ExitCode
from quorate.errors import UnhealthyNodeError
from quorate.testing import free_port

SECONDS = 60.0


def run_in(shell: str, *argv: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``quorate run ARGV`` by a shell command that ends with ``exec "$@"``."""
    command = [str(Path(sys.executable).with_name("quorate")), "run", *argv]
    return subprocess.run(
        ["/bin/sh", "-c", shell, "sh", *command],
        cwd=cwd,
        env=clean_environment(TMPDIR=str(cwd), **environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )


def test_a_script_on_a_stdin_that_is_closed_is_refused(tmp_path: Path) -> None:
    done = run_in('exec "$@" <&-', "-", cwd=tmp_path)
    assert done.returncode == ExitCode.USAGE, done.stderr
    assert "read from standard input, which is closed" in done.stderr


@runs_a_job
def test_a_script_whose_name_looks_like_a_flag_is_a_script(tmp_path: Path) -> None:
    (tmp_path / "-v.py").write_text("import sys\nprint(sys.argv[1:])\n")
    done = run_in('exec "$@"', "--", "-v.py", "-x", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "['-x']\n"), done.stderr


@runs_a_job
@pytest.mark.parametrize("limit", [7, 9, 12])
def test_too_few_descriptors_are_a_sentence_with_the_remedy_wherever_they_run_out(tmp_path: Path, limit: int) -> None:
    (tmp_path / "train.py").write_text("")
    done = run_in(f'ulimit -n {limit}; exec "$@"', "train.py", cwd=tmp_path, QUORATE_DISABLE_PLUGINS="health")
    assert done.returncode in (ExitCode.WORKER_FAILED, ExitCode.RENDEZVOUS, ExitCode.UNHEALTHY), done.stderr
    last_word = done.stderr.partition("quorate: error:")[2]
    assert "raise the limit on open files (ulimit -n)" in last_word, done.stderr
    assert "Traceback" not in done.stderr


class _Checks:
    @hookimpl
    def quorate_register_health_check(self) -> Iterable[HealthCheck]:
        return [HealthCheck("well", "never ill", lambda view: None)]


@runs_a_job
@pytest.mark.parametrize(
    ("name", "most_nodes"),
    [("check", 1), ("rendezvous", 1), ("check", 2), ("rendezvous", 2), ("store", 2), ("wait", 2)],
)
def test_a_thread_that_cannot_be_started_is_a_sentence_with_the_remedy(
    name: str, most_nodes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A limit of the system would have to be met at this very thread, and is another one in each process.
    start = threading.Thread.start

    def start_but_one(thread: threading.Thread) -> None:
        if thread.name == f"quorate-{name}":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_but_one)
    meeting: dict[str, Any] = {}
    if most_nodes > 1:
        soon = {"last_call_timeout": 0.1, "linger_timeout": 0.1, "close_timeout": 0.1}
        meeting = {"rdzv_backend": "tcp", "rdzv_endpoint": f"127.0.0.1:{free_port()}", "rdzv_configs": soon}
    made = LaunchConfig(1, most_nodes, 1, run_id="job", max_restarts=0, **meeting)
    with pytest.raises((UnhealthyNodeError, RendezvousError), match=r"raise the limit on processes \(ulimit -u,"):
        launch(made, "true", host=PluginHost(extra=[("checks", _Checks())]))()


@runs_a_job
def test_the_exit_codes_of_workers_arrive_where_the_signal_of_a_childs_end_is_ignored(tmp_path: Path) -> None:
    # A shell or supervisor passes that on: the kernel would reap the workers and throw their exit codes away.
    script = "import os\nraise SystemExit(3 * (os.environ['TORCHELASTIC_RESTART_COUNT'] == '0'))"
    (tmp_path / "train.py").write_text(script)
    done = run_in("trap '' CHLD; exec \"$@\"", "--max-restarts=1", "train.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "exit code 3" in done.stderr


@runs_a_job
def test_a_missing_proc_is_named(tmp_path: Path) -> None:
    private = ["unshare", "--user", "--map-root-user", "--mount"]
    without_proc = "mount -t tmpfs none /proc"
    if subprocess.run([*private, "sh", "-c", without_proc], capture_output=True).returncode:
        pytest.skip("needs a mount namespace, which this system does not permit")
    (tmp_path / "train.py").write_text("")
    in_private = " ".join(private)
    done = run_in(f'exec {in_private} sh -c \'{without_proc} && exec "$@"\' sh "$@"', "train.py", cwd=tmp_path)
    assert done.returncode == ExitCode.WORKER_FAILED, done.stderr
    assert "No such file or directory; mount /proc, which is missing here" in done.stderr
