"""The worker that is forked ahead where workers are live: when there is one, and what it becomes."""

from __future__ import annotations

import fcntl
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quorate.proc import is_alive
from quorate.records import WorkerLaunch
from quorate.starter import StarterRequest
from quorate_process_local import _warm
from quorate_process_local._template_site import quorate_template

from .conftest import DEADLINE_SECONDS, Ear, Group, children, launch, wait_for_end

#: One program, since all workers of a template run the same.  ``live`` becomes live, as quorate-live's half does, and
#: stays until it is stopped; ``show`` shows what a worker finds; a number is the exit code.
PROGRAM = """
import json, os, signal, socket, sys
if sys.argv[1] == "live":
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel.connect("\\0" + os.environ["QUORATE_LIVE"][1:])
    channel.send(json.dumps({"live": 1}).encode())
    channel.recv(1000)
    signal.pause()
elif sys.argv[1] == "show":
    marker = os.environ["QUORATE_CONTEXT"].encode().rstrip(b"-")
    print(os.getpid(), os.getppid(), os.getsid(0), os.getcwd(), os.environ["MINE"], sys.argv[1:])
    print(marker in open("/proc/self/environ", "rb").read(), open("/proc/self/comm").read().strip() != "quorate-warm")
else:
    sys.exit(int(sys.argv[1]))
"""


@pytest.fixture
def starter() -> Iterator[_warm.WarmStarter]:
    before = children()
    request = StarterRequest("warm", "token", DEADLINE_SECONDS, {"preload": ("json",)})
    starter = _warm.WarmStarter(request, rest_seconds=0.0)
    starter.prepare(sys.executable, ["-u", "-c", PROGRAM], dict(os.environ))
    yield starter
    starter.close()
    assert children() == before


@pytest.fixture
def live(starter: _warm.WarmStarter) -> Iterator[Group]:
    """A live worker; the agent has heard so."""
    group = Group(starter.start([worker("live")]))
    (first,) = group.context._workers  # type: ignore[attr-defined]
    group.run_until(lambda: first.channel is not None and first.channel.is_open)
    yield group
    group.close()


def worker(*arguments: str, rank: int = 0, **others: Any) -> WorkerLaunch:
    return launch(rank, sys.executable, "-u", "-c", PROGRAM, *arguments, **others)


def wait_for_spare(starter: _warm.WarmStarter) -> int:
    """Wait as the agent does; return the spare's pid."""
    end = time.monotonic() + DEADLINE_SECONDS
    while starter._spare is None:
        assert select.select([starter], [], [], max(0.0, end - time.monotonic()))[0], "there is no spare"
        assert starter.is_ready()
    return starter._spare.pid


def run(starter: _warm.WarmStarter, *launches: WorkerLaunch) -> tuple[dict[int, int], dict[int, int]]:
    """Run a group to its end; return the pids and the exit codes."""
    group = Group(starter.start(launches))
    try:
        pids = dict(group.context.pids())
        return pids, {exit.local_rank: exit.exit_code for exit in group.run()}
    finally:
        group.close()


def test_the_next_worker_is_the_spare_and_finds_what_every_worker_finds(
    starter: _warm.WarmStarter, live: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spare, out = wait_for_spare(starter), tmp_path / "out"
    monkeypatch.chdir(tmp_path)
    pids, codes = run(starter, worker("show", "a", "b", stdout=str(out), environment={"MINE": "7"}))
    assert (pids, codes) == ({0: spare}, {0: 0})
    assert out.read_text() == f"{spare} {os.getpid()} {spare} {tmp_path} 7 ['show', 'a', 'b']\nTrue True\n"
    assert starter._spare is None


def test_only_the_first_of_several_workers_is_the_spare(starter: _warm.WarmStarter, live: Group) -> None:
    spare = wait_for_spare(starter)
    pids, codes = run(starter, *(worker(str(rank), rank=rank) for rank in range(3)))
    assert pids[0] == spare
    assert len(set(pids.values())) == 3
    assert codes == {0: 0, 1: 1, 2: 2}


def test_there_is_no_spare_where_no_worker_is_live(starter: _warm.WarmStarter) -> None:
    before = children()
    run(starter, worker("0"))
    assert starter.is_ready()
    assert starter._spare is None
    assert starter._template is not None
    assert children() - before <= {starter._template.pid}


def test_a_spare_that_has_ended_is_not_used(starter: _warm.WarmStarter, live: Group) -> None:
    spare = wait_for_spare(starter)
    os.kill(spare, signal.SIGKILL)
    wait_for_end([spare])
    pids, codes = run(starter, worker("4"))
    assert pids[0] != spare
    assert codes == {0: 4}
    assert spare not in children(), "it is reaped"


def test_a_template_that_becomes_idle_as_it_is_asked_to_fork_does_so(starter: _warm.WarmStarter, live: Group) -> None:
    template = starter._template
    assert template is not None
    assert select.select([template.channel], [], [], DEADLINE_SECONDS)[0], "it has said that it is idle"
    with template.fork_workers():
        pass
    assert not template.problem
    assert run(starter, worker("5"))[1] == {0: 5}


def test_a_template_rests_whatever_number_its_channel_has() -> None:
    """An agent that serves many nodes has more than a thousand descriptors, and its template keeps the number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(2048, hard)), hard))
    ours, its = socket.socketpair()
    with ours, its:
        high = fcntl.fcntl(its.fileno(), fcntl.F_DUPFD_CLOEXEC, 1024)  # the first that select() does not take
        with socket.socket(fileno=high) as channel:
            quorate_template.send(ours, {"rest": 0.0})
            quorate_template.send(ours, {"group": True})
            assert quorate_template._next_request(channel) == ({"group": True}, [])
            quorate_template.send(ours, {"rest": 0.0})
            ours.shutdown(socket.SHUT_WR)
            assert quorate_template._next_request(channel) is None
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_start_that_fails_leaves_no_spare(starter: _warm.WarmStarter, live: Group, tmp_path: Path) -> None:
    spare = wait_for_spare(starter)
    with pytest.raises(Exception, match="cannot be opened"):
        starter.start([worker("0", stdout=str(tmp_path / "none" / "out"))])
    wait_for_end([spare])
    assert spare not in children()


def test_a_spare_ends_with_its_starter(starter: _warm.WarmStarter, live: Group) -> None:
    spare = wait_for_spare(starter)
    live.close()
    starter.close()
    wait_for_end([spare])
    assert spare not in children()


def test_a_spare_ends_with_its_agent(ear: Ear) -> None:
    agent = subprocess.Popen(
        [sys.executable, "-c", _AGENT, PROGRAM], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    )
    try:
        assert agent.stdout is not None
        pids = [int(word) for word in agent.stdout.readline().split()]
        assert len(pids) == 3
        assert all(map(is_alive, pids))
        agent.kill()
        agent.wait()
        wait_for_end(pids)
    finally:
        agent.kill()
        agent.communicate()


_AGENT = """
import os, select, sys, time
from quorate.records import WorkerLaunch
from quorate.starter import StarterRequest
from quorate_process_local import _warm
_warm._REST_SECONDS = 0.0
starter = _warm.WarmStarter(StarterRequest("warm", "inner", 30.0, {"preload": ["json"]}))
words = ("-c", sys.argv[1], "live")
starter.prepare(sys.executable, words, dict(os.environ))
context = starter.start([WorkerLaunch(0, 0, "t", sys.executable, words, dict(os.environ), "")])
while starter._spare is None:
    select.select([starter, context], [], [])
    context.advance(time.monotonic())
    starter.is_ready()
print(starter._template.pid, starter._spare.pid, *context.pids().values(), flush=True)
select.select([], [], [])
"""
