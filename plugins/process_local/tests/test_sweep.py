"""Nothing outlives its worker's group, and nothing its agent."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from quorate.files import read_bytes
from quorate.proc import children_of, is_alive
from quorate_process_local._leftovers import MARKER_VARIABLE, find_leftovers, marker_of

from .conftest import Ear, Group, Start, launch, polite, wait_for_end

Shell = Callable[..., Group]

#: Each starts a grandchild that says its pid into the ear and sleeps.
KINDS = {
    "same session": "sh {tell} & ",
    "ignores the signal": "sh -c \"trap '' TERM; . {tell}\" & ",
    "new session": "setsid sh {tell} & ",
    "daemon": "(setsid sh -c 'sh {tell} &' &); ",
    "no marker, same session": "env -i sh {tell} & ",
}


def _script(kind: str, ear: Ear) -> str:
    tell = ear.path.with_name("tell.sh")
    tell.write_text(f"echo $$ >'{ear.path}'; exec sleep 1000")
    return KINDS[kind].format(tell=tell)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_worker_left_is_swept_when_the_group_ends(start: Start, ear: Ear, kind: str) -> None:
    script = _script(kind, ear) + f"read -r _ <'{ear.path}.go'; exit 0"
    os.mkfifo(f"{ear.path}.go")
    group = start("exec", [launch(0, "sh", "-c", script)], 0.2)
    (pid,) = map(int, ear.words(1))
    Path(f"{ear.path}.go").write_text("go\n")
    group.run()
    assert [event.exit_code for event in group.exits] == [0]
    assert not is_alive(pid)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_worker_left_is_swept_by_a_stop_though_another_runs(sh: Shell, ear: Ear, kind: str) -> None:
    group = sh(_script(kind, ear) + f"echo ready >'{ear.path}'; exit 1", "sleep 1000")
    (pid,) = (int(word) for word in ear.words(2) if word != "ready")
    group.run_until(lambda: len(group.exits) == 1)
    group.stop(grace_seconds=0.2)
    group.run()
    assert not is_alive(pid)


#: Passes itself on from process to process, each in a session of its own, for some ten seconds; all hold the pipe.
_CHAIN = """
import os, sys, time
pipe = os.open(sys.argv[1], os.O_WRONLY)
if os.fork() == 0:
    for _ in range(5000):
        if os.fork():
            os._exit(0)
        os.setsid()
        time.sleep(0.002)
"""


def test_what_passes_on_from_process_to_process_is_swept_too(start: Start, tmp_path: Path) -> None:
    """Each is gone before its turn comes in a list of all processes; the ones that are new since then are looked at."""
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        start("exec", [launch(0, sys.executable, "-S", "-c", _CHAIN, str(tmp_path / "pipe"))], 0.2).run()
        assert select.select([reader], [], [], 1.0)[0]
        assert not os.read(reader, 1)  # the end: no process holds it
    finally:
        os.close(reader)


@pytest.mark.parametrize("kind", KINDS)
def test_close_alone_sweeps(sh: Shell, ear: Ear, kind: str) -> None:
    group = sh(_script(kind, ear) + "sleep 1000")
    (pid,) = map(int, ear.words(1))
    group.close()
    assert not is_alive(pid)


def test_a_leftover_is_asked_before_it_is_killed(sh: Shell, ear: Ear) -> None:
    """Its grace is the stop's: a leftover that needs a moment to write something gets it."""
    group = sh(f"setsid {polite(ear)} &")
    ear.words(1)
    group.run()
    assert ear.words(1) == ["asked"]


def test_a_daemon_of_a_running_worker_is_spared_until_the_worker_has_ended(sh: Shell, ear: Ear) -> None:
    door = f"{ear.path}.door"
    os.mkfifo(door)
    group = sh(f"setsid {polite(ear)} & exec {polite(ear, door)}")
    ear.words(2)
    group.stop()
    assert ear.words(1) == ["asked"]  # the worker; its daemon would have been heard as well, now or below
    Path(door).write_text("")
    assert group.run()[0].exit_code == 3
    assert ear.words(1) == ["asked"]


def test_other_groups_and_strangers_are_never_touched(start: Start, ear: Ear) -> None:
    tell = f"setsid sh -c 'echo $$ >{ear.path}; exec sleep 1000' & wait"
    stranger = subprocess.Popen(["sleep", "1000"], env={**os.environ, "QUORATE_AGENT_TOKEN": "token-of-the-agent"})
    try:
        first = start("exec", [launch(0, "sh", "-c", tell)])
        second = start("exec", [launch(0, "sh", "-c", tell)])
        pids = [int(word) for word in ear.words(2)]
        first.stop(grace_seconds=0.0)
        first.run()
        assert sorted(is_alive(pid) for pid in pids) == [False, True]
        assert stranger.poll() is None
        second.close()
        assert not any(is_alive(pid) for pid in pids)
    finally:
        stranger.kill()
        stranger.wait()


def test_a_group_inside_a_group_goes_with_it(start: Start, ear: Ear) -> None:
    """The markers of enclosing contexts stay in the environment."""
    marker = {"QUORATE_CONTEXT": "outer.0."}
    group = start("exec", [launch(0, "sh", "-c", f"echo $QUORATE_CONTEXT >'{ear.path}'", environment=marker)])
    (value,) = ear.words(1)
    assert value.startswith("outer.0.")
    assert value.endswith(".0.")
    group.run()


_DRIVER = """
import select, sys, time
from quorate.records import WorkerLaunch
from quorate.starter import StarterRequest
from quorate_process_local import plugin
import os

def work(script):
    os.execvp("sh", ["sh", "-c", script])

if __name__ == "__main__":
    method = sys.argv[1]
    backend = {backend.name: backend for backend in plugin.quorate_register_starter()}[method]
    call = lambda rank, script: ("sh", ("-c", script)) if method == "exec" else (work, (script,))
    context = backend.create(StarterRequest(method, "token")).start(
        [WorkerLaunch(rank, rank, "t", *call(rank, script), dict(os.environ), "")
         for rank, script in enumerate(sys.argv[3:])])
    print("started", file=open(sys.argv[2], "w"), flush=True)
    while not context.is_gone():
        wake_at = context.wake_at()
        select.select([context], [], [], None if wake_at is None else max(0.0, wake_at - time.monotonic()))
        context.advance(time.monotonic())
    context.close()
"""


@pytest.mark.parametrize("method", ["exec", "spawn", "fork", "forkserver"])
def test_an_agent_that_is_killed_takes_everything_with_it(tmp_path: Path, ear: Ear, method: str) -> None:
    """Workers, their children, their daemons: all gone within a second of the agent's SIGKILL."""
    driver = tmp_path / "driver.py"
    driver.write_text(_DRIVER)
    ignoring = f"trap '' TERM HUP; echo $$ >'{ear.path}'; while :; do sleep 1000; done"
    scripts = [_script(kind, ear) + ignoring for kind in KINDS]
    agent = subprocess.Popen([sys.executable, str(driver), method, str(ear.path), *scripts])
    try:
        # Not before the agent has started them all: it can only put under guard what it has got back from the kernel.
        words = ear.words(2 * len(KINDS) + 1)
        pids = [int(word) for word in words if word != "started"]
        pids += children_of(agent.pid)
    finally:
        agent.send_signal(signal.SIGKILL)
        agent.wait()
    # The promise is one second; the machines that run the tests may be busy.
    wait_for_end(pids, 5.0)


def test_the_guardian_is_quiet_clean_and_gone_at_the_end(sh: Shell, ear: Ear) -> None:
    group = sh(f"echo ready >'{ear.path}'; sleep 1000")
    ear.words(1)
    mine = children_of(os.getpid()) - set(group.context.pids().values())
    (guardian,) = (pid for pid in mine if b"quorate-guardian" in read_bytes(f"/proc/{pid}/cmdline"))
    assert os.getsid(guardian) == guardian
    assert b"QUORATE_CONTEXT" not in Path(f"/proc/{guardian}/environ").read_bytes()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(guardian, number)
    assert is_alive(guardian)
    group.close()
    assert not is_alive(guardian)


def _looks_of(process: subprocess.Popen[bytes]) -> str:
    """Say what a process looks like that was not found."""
    folder = Path(f"/proc/{process.pid}")
    environment = (folder / "environ").read_bytes() if folder.exists() else b""
    facts = [(folder / name).read_text() if folder.exists() else "gone" for name in ("stat", "cmdline", "wchan")]
    return f"ended: {process.poll()}; {len(environment)} bytes, marked: {b'exec-test.' in environment}; {facts}"


def test_a_process_is_known_even_in_the_midst_of_an_exec() -> None:
    """An exec leaves a process without an environment for a moment; a sweep that looked but once missed 1 in 12."""
    environment = {**os.environ, MARKER_VARIABLE: marker_of("exec-test", 0, {})}
    missed = []
    for _ in range(100):
        chain = ["env", "sh", "-c", "exec sh -c 'exec sh -c \"exec sleep 1000\"'"]
        with subprocess.Popen(chain, env=environment, start_new_session=True) as process:
            for _ in range(3):
                found = list(find_leftovers("exec-test", {}, set()))
                if all(leftover.pid != process.pid for leftover in found):
                    missed.append(_looks_of(process))
                for leftover in found:
                    os.close(leftover.pidfd)
            process.kill()
    assert not missed, "\n".join(missed)


_TWO_WORKERS = """
import os, select, sys, time
from quorate.records import WorkerLaunch
from quorate.starter import StarterRequest
from quorate_process_local import plugin

def work(number, door):
    if number:
        time.sleep(1000)
    open(door).read()
    os._exit(3)  # a worker that returns waits for the other

if __name__ == "__main__":
    method, path, door = sys.argv[1:]
    backend = {backend.name: backend for backend in plugin.quorate_register_starter()}[method]
    script = f"exec cat {door}", "exec sleep 1000"
    call = lambda rank: ("sh", ("-c", script[rank])) if method == "exec" else (work, (rank, door))
    context = backend.create(StarterRequest(method, "token")).start(
        [WorkerLaunch(rank, rank, "t", *call(rank), dict(os.environ), "") for rank in range(2)])
    pids = context.pids()
    print(pids[0], pids[1], file=open(path, "w"), flush=True)
    steal = method == "exec"
    exits = []
    while not exits:
        select.select([context], [], [], 0.05)
        if steal and os.waitid(os.P_PID, pids[0], os.WEXITED | os.WNOHANG):
            steal = False  # a program around the agent has reaped it
        exits += context.advance(time.monotonic()) if not steal or method != "exec" else []
    print("reaped", file=open(path, "w"), flush=True)
    time.sleep(1000)
"""


@pytest.mark.parametrize("method", ["exec", "forkserver"])
def test_the_guardian_forgets_a_worker_whose_number_is_free_again(tmp_path: Path, ear: Ear, method: str) -> None:
    """A process that gets the number later is not killed with the agent, and the other workers are."""
    last = Path("/proc/sys/kernel/ns_last_pid")
    if os.geteuid() != 0 or not os.access(last, os.W_OK):
        pytest.skip("a process id can be chosen by root only")
    driver, door = tmp_path / "driver.py", tmp_path / "door"
    driver.write_text(_TWO_WORKERS)
    os.mkfifo(door)
    agent = subprocess.Popen([sys.executable, str(driver), method, str(ear.path), str(door)])
    strangers: list[subprocess.Popen[bytes]] = []
    try:
        first, second = map(int, ear.words(2))
        door.write_text("")
        assert ear.words(1) == ["reaped"]
        (guardian,) = (
            pid for pid in children_of(agent.pid) if b"quorate-guardian" in read_bytes(f"/proc/{pid}/cmdline")
        )
        # Other programs of the machine may take the number first, so it is asked for until it comes.
        while not strangers or strangers[-1].pid != first:
            assert len(strangers) < 200
            last.write_text(str(first - 1))
            strangers.append(subprocess.Popen(["sleep", "1000"], start_new_session=True))
        agent.kill()
        agent.wait()
        wait_for_end([guardian, second])
        assert is_alive(first)
    finally:
        agent.kill()
        agent.wait()
        for stranger in strangers:
            stranger.kill()
            stranger.wait()
