"""Laws about nodes that crash, pause or have a wrong clock: the other nodes continue, and no second world runs."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import IO, final

from ..clock import sleep
from ..errors import RendezvousClosedError
from ..records import Cause, Verdict as RoundVerdict
from ._abilities import Ability
from ._gate import Gate
from ._law import Tier, law
from ._membership_laws import require_one_world
from ._subject import Job, Member, Subject, join_all, require, result_of, settle, start

_LEASE_SECONDS = 1.0
#: Within this time a node writes a heartbeat, so that the others have seen one.
_HEARTBEAT_SECONDS = 0.4
#: Above the number of calls that a node makes from its first one until its round has ended.
_MOST_CALLS = 24


@law(Tier.MEMBERSHIP, Ability.STORE, Ability.SEVERAL_NODES)
def dead_member_is_superseded(subject: Subject) -> None:
    """A member whose heartbeat stops is lost after its lease, and the others form the next round without it.

    The other nodes must see that its heartbeat does not change. A store that returns old values, or none, hides it.
    """
    job, gate = subject.job(), Gate()
    last_call = subject.timeout  # a round of two is full, and sealed at once
    alive = job.member(1, 2, last_call_timeout=last_call)
    dead = job.member(1, 2, last_call_timeout=last_call, gate=gate)
    join_all([alive, dead], subject.timeout)
    sleep(_HEARTBEAT_SECONDS)
    gate.shut()
    end = alive.await_change()
    require(end is not None and end.cause is Cause.NODE_LOST, f"the round should have ended for a lost node, not {end}")
    require_one_world([alive.join()])


@law(Tier.MEMBERSHIP, Ability.STORE, Ability.SEVERAL_NODES)
def returning_member_learns_its_loss(subject: Subject) -> None:
    """A member that was declared lost and continues learns that its round has ended, and joins again.

    Its wait must return the key that was written in the meantime. Otherwise two worlds run at once.
    """
    job, gate = subject.job(), Gate()
    last_call = subject.timeout  # a round of two is full, and sealed at once
    alive = job.member(1, 2, last_call_timeout=last_call)
    away = job.member(1, 2, last_call_timeout=last_call, gate=gate)
    join_all([alive, away], subject.timeout)
    gate.shut()
    alive.await_change()
    require_one_world([alive.join()])
    gate.open()
    away.await_change()
    joining = away.joining()
    alive.await_change()
    require_one_world([alive.join(), result_of(joining, subject.timeout, "next_rendezvous of the node that was away")])


@law(Tier.MEMBERSHIP, Ability.STORE, Ability.SEVERAL_NODES)
def crash_at_any_call_is_survived(subject: Subject) -> None:
    """A node may crash after any of its store calls: the other node still gets its round, and the job ends.

    The message says after how many calls the node crashed. The protocol is the core's, so look for a store whose writes
    are half done when a client disappears, or for locks that stay when their owner is gone.
    """
    if subject.is_hosted and not subject.has_fresh_endpoints:  # one endpoint, one job at a time
        for number in range(0, _MOST_CALLS, 4):
            with subject:
                _survive_crash(subject, number)
        return
    surviving = {number: start(_survive_crash, subject, number) for number in range(_MOST_CALLS)}
    for number, future in surviving.items():
        result_of(future, 2 * subject.timeout, f"the node that survives a crash after {number} calls")


def _survive_crash(subject: Subject, number: int) -> None:
    job, gate = subject.job(), Gate(number)
    doomed, survivor = job.member(1, 2, gate=gate), job.member(1, 2)
    doing = start(_do_work, doomed)
    if number % 2:
        settle(doing, 0.1)  # in every other case it comes first, else both come at once
    working = start(_do_work, survivor)
    settle(working, subject.timeout)
    require(
        working.done(), f"after a node has died at call {number + 1} of the store, the other one's job does not end"
    )
    verdict = working.result()
    require(
        verdict is RoundVerdict.SUCCEEDED,
        f"after a node has died at call {number + 1}, the other one's job ended as {verdict.value}",
    )
    gate.open()
    settle(doing, subject.timeout)


def _do_work(member: Member) -> RoundVerdict:
    """Run rounds whose work is done at once until the job has ended; returns how it ended."""
    while True:
        try:
            member.join()
        except RendezvousClosedError as error:
            return RoundVerdict.SUCCEEDED if error.succeeded else RoundVerdict.STOPPED
        member.handler.report_done()
        end = member.await_change()
        if end is not None and end.verdict.is_terminal:
            return end.verdict


# --- real processes ---------------------------------------------------------------------------------------------------


@final
class _NodeProcess:
    """A node of the job in a process of its own (``_member``), for faults that a thread cannot have."""

    def __init__(self, job: Job, skew_seconds: float = 0.0) -> None:
        parameters = job.parameters()
        settings = ",".join(f"{name}={value}" for name, value in parameters.config.items())
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        command = [sys.executable, "-m", "quorate.testing._member", parameters.backend, parameters.endpoint]
        self._process = subprocess.Popen(
            [*command, parameters.run_id, settings, str(skew_seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        job.subject.cleanup(self.close)
        self._timeout = job.subject.timeout

    def joined(self) -> str:
        """Wait until it has joined; returns ``"rank of size"``."""
        assert self._process.stdout is not None
        pipe: IO[bytes] = self._process.stdout
        line = result_of(start(pipe.readline), 2 * self._timeout, "a node in another process").decode().strip()
        require(line, "a node in another process ended without joining; see its traceback")
        return line

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """End it, and wait until it is gone."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(self._timeout)
        except (OSError, subprocess.TimeoutExpired):
            pass
        self.kill()
        self._process.stdout.close()


@law(Tier.MEMBERSHIP, Ability.ENTRY_POINT, Ability.SEVERAL_NODES)
def killed_process_is_superseded(subject: Subject) -> None:
    """A node whose process is killed with SIGKILL is lost like any other: the other nodes form the next round.

    What the client library keeps in the server for a member must end with its process, without a message from it.
    """
    job = subject.job()
    alive = job.member(1, 2)
    size = alive.join().world_size
    process = _NodeProcess(job)
    _meet(alive, process, size)
    sleep(_HEARTBEAT_SECONDS)
    process.kill()
    alive.await_change()
    require_one_world([alive.join()])


@law(Tier.MEMBERSHIP, Ability.ENTRY_POINT, Ability.SEVERAL_NODES)
def clock_skew_changes_nothing(subject: Subject) -> None:
    """Nodes whose clocks differ by an hour form a round, keep it for longer than a lease, and close the job.

    Do not compare times of different hosts, such as an expiry that one node computes and another node checks. Let the
    server count down, or have each node count on its own monotonic clock.
    """
    job = subject.job()
    alive = job.member(1, 2)
    size = alive.join().world_size
    process = _NodeProcess(job, skew_seconds=3600.0)
    _meet(alive, process, size)
    watching = start(alive.handler.wait_for_change, 1.5 * _LEASE_SECONDS)
    end = result_of(watching, subject.timeout, "wait_for_change")
    require(end is None, f"a round with a node whose clock is an hour ahead ended: {end.reason if end else ''}")
    require(alive.handler.num_nodes_waiting() == 0, "a member whose clock is an hour ahead was taken for lost")
    alive.handler.set_closed()
    alive.await_change()


def _meet(alive: Member, process: _NodeProcess, world_size: int) -> None:
    """Go through rounds until both nodes are in one."""
    if world_size < 2:
        alive.await_change()
        size = alive.join().world_size
        require(size == 2, f"the round after a node has come has {size} nodes, not 2")
    words = process.joined()
    require(words.endswith(" of 2"), f"two nodes form a round, but one of them reports {words}")
