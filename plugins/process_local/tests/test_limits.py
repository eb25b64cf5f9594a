"""What happens at the limits of the system: open files, processes, and space for temporary files."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from quorate_process_local import _memory_file
from quorate_process_local._live import Live

from .conftest import children

#: Starts two workers with the method argv[1], and says what became of it in one line.
_DRIVER = """
import os, resource, select, sys, time
from quorate.errors import StartError
from quorate.records import WorkerLaunch, WorkerLogs
from quorate.starter import StarterRequest
from quorate_process_local import plugin
import quorate_process_local._context
from process_local_functions import nothing

if __name__ == "__main__":
    method, which, limit = sys.argv[1], getattr(resource, sys.argv[2]), int(sys.argv[3])
    backend = {backend.name: backend for backend in plugin.quorate_register_starter()}[method]
    entrypoint = ("true", ()) if method == "exec" else (nothing, ())
    launches = [WorkerLaunch(rank, rank, "t", *entrypoint, dict(os.environ), "", WorkerLogs(prefix=f"{rank}: "))
                for rank in range(2)]
    starter = backend.create(StarterRequest(method, "token"))
    if method in ("spawn", "forkserver"):
        import multiprocessing.forkserver, multiprocessing.spawn
    before = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(which, (limit, resource.getrlimit(which)[1]))
    try:
        context = starter.start(launches)
    except StartError as error:
        # Nothing of the failed start is left.
        resource.setrlimit(which, (resource.getrlimit(which)[1],) * 2)
        left = len(os.listdir("/proc/self/fd")) - before
        running = open(f"/proc/self/task/{os.getpid()}/children").read().split() if method != "forkserver" else []
        print(f"refused, {left} left, {len(running)} running: {error}")
        sys.exit()
    while not context.is_gone():
        wake_at = context.wake_at()
        select.select([context], [], [], None if wake_at is None else max(0.0, wake_at - time.monotonic()))
        context.advance(time.monotonic())
    context.close()
    print("ran")
"""


@pytest.fixture
def driver(tmp_path: Path) -> Path:
    path = tmp_path / "driver.py"
    path.write_text(_DRIVER)
    return path


def _outcome(command: Sequence[str]) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize("method", ["exec", "fork", "spawn"])
def test_too_few_open_files_are_refused_with_a_remedy_and_nothing_is_left(driver: Path, method: str) -> None:
    """Wherever in the start the limit is reached."""
    outcomes = [
        _outcome([sys.executable, str(driver), method, "RLIMIT_NOFILE", str(limit)]) for limit in range(4, 40, 3)
    ]
    refused = [outcome for outcome in outcomes if outcome != "ran"]
    assert 3 < len(refused) < len(outcomes)
    for outcome in refused:
        assert outcome.startswith("refused, 0 left, 0 running: ")
        assert "raise the limit on open files (ulimit -n)" in outcome


def _as_limited_user() -> list[str]:
    """Return the words before a command that run it as a user whom the limit on processes binds."""
    if os.geteuid() != 0:
        return []
    keep = "+dac_read_search"  # so that the user can read these very files
    return [
        *("setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups"),
        *("--inh-caps", f"-all,{keep}", "--ambient-caps", f"-all,{keep}", "--bounding-set", f"-all,{keep}"),
    ]


@pytest.mark.parametrize("method", ["exec", "fork"])
def test_too_few_processes_are_refused_with_a_remedy(driver: Path, method: str) -> None:
    """The guardian, the first worker, the second, the thread that reads: each may be the one too many."""
    user = _as_limited_user()
    outcomes = [
        _outcome([*user, sys.executable, str(driver), method, "RLIMIT_NPROC", str(limit)]) for limit in range(1, 6)
    ]
    refused = [outcome for outcome in outcomes if outcome != "ran"]
    assert len(refused) == 4
    for outcome in refused:
        assert outcome.startswith("refused, 0 left, 0 running: ")
        assert "(ulimit -u, cgroup limits)" in outcome


@pytest.mark.parametrize("kind", ["missing", "file", "full"])
def test_an_unusable_folder_for_temporary_files_is_replaced_with_a_word(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "tmp"
    prepare = ""
    if kind == "file":
        folder.write_text("")
    elif kind == "full":
        folder.mkdir()
        prepare = f"mount -t tmpfs -o size=4k tmpfs '{folder}' && {{ yes > '{folder}/all' 2>/dev/null || :; }} && "
    # A kernel or sandbox without memfd_create(2).
    script = (
        "import os; del os.memfd_create\n"
        "from quorate_process_local._memory_file import memory_file, read_all\n"
        "descriptor = memory_file('quorate-test', b'x' * 100000)\n"
        "print(len(read_all(descriptor)), os.readlink(f'/proc/self/fd/{descriptor}'))"
    )
    command = ["sh", "-c", f'{prepare}exec "$@"', "sh", sys.executable, "-c", script]
    if kind == "full":
        if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode != 0:
            pytest.skip("mounting a full file system is not permitted here")
        command = ["unshare", "--mount", *command]
    done = subprocess.run(
        command, env={**os.environ, "TMPDIR": str(folder)}, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    size, path = done.stdout.split()[:2]
    assert size == "100000"
    assert not path.startswith(str(folder))
    assert f"{folder} cannot be used for temporary files" in done.stderr


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_call_that_does_not_fit_on_the_disk_names_the_disk(tmp_path: Path, method: str) -> None:
    """Without memfd_create(2) it goes through TMPDIR, which takes a byte and not all; a forked worker needs no file."""
    driver, folder = tmp_path / "driver.py", tmp_path / "small"
    call = "(bytes(1_000_000).count, (b'x',))"
    driver.write_text("import os; del os.memfd_create\n" + _DRIVER.replace("(nothing, ())", call))
    folder.mkdir()
    mount = f"mount -t tmpfs -o size=64k tmpfs '{folder}' || exit 77; export TMPDIR='{folder}'; exec \"$@\""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a file system is not permitted here")
    words = [sys.executable, str(driver), method, "RLIMIT_NOFILE", "1000"]
    outcome = _outcome(["unshare", "--mount", "sh", "-c", mount, "sh", *words])
    if method == "fork":
        assert outcome == "ran"
        return
    assert outcome.startswith("refused, 0 left, 0 running: the worker of local rank 0 cannot be started: No space left")
    assert f" bytes for a worker do not fit into {folder}; set TMPDIR to a folder with more space" in outcome


def test_a_usable_folder_for_temporary_files_is_used_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    before = children()
    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    descriptor = _memory_file.memory_file("quorate-test", b"data")
    try:
        assert os.readlink(f"/proc/self/fd/{descriptor}").startswith(str(tmp_path))
        assert _memory_file.read_all(descriptor) == b"data"
    finally:
        os.close(descriptor)
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr().err == ""
    assert children() == before


def test_a_live_worker_that_connects_when_no_descriptor_is_left_does_not_wake_the_agent_again_and_again() -> None:
    watched: dict[int, Callable[[], None]] = {}

    def unwatch(descriptor: int) -> None:
        watched.pop(descriptor, None)

    live = Live([], watched.__setitem__, unwatch, 1.0, lambda worker: True)
    (listener,) = watched
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.connect("\0" + live.address[1:])
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            watched[listener]()
            assert watched == {}, "the connection still waits, and epoll would report it at once"
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        live.ask_to_leave(0.0, ())
        assert list(watched) == [listener]
        assert client.recv(1) == b"", "accepted, and closed as a stranger"
        live.close()
    assert watched == {}
