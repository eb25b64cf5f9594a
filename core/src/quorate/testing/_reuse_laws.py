"""Laws about jobs that use one run id one after the other, in a store that outlives them.

They bind no store that the nodes of the job serve: it ends with its job.  What does not live here: how the core tells
the jobs apart (``quorate.rendezvous._incarnation``).
"""

from __future__ import annotations

from ..errors import RendezvousError
from ..records import Cause, RoundEnd, Verdict as RoundVerdict
from ._abilities import Ability
from ._gate import Gate
from ._law import Tier, law
from ._membership_laws import require_one_world
from ._subject import Member, Subject, join_all, require, result_of, settle, start

_RUNS = 4
#: Longer than the lease of the members.
_LONGER_THAN_A_LEASE_SECONDS = 1.6


def _first_round(members: list[Member], subject: Subject) -> None:
    infos = join_all(members, subject.timeout)
    require_one_world(infos)
    rounds = {info.assignment.round_number for info in infos if info.assignment is not None}
    require(rounds == {0}, f"a new job begins with round {sorted(rounds)}, not with round 0")


def _leave(members: list[Member], subject: Subject) -> None:
    for leaving in [start(member.handler.shutdown) for member in members]:
        result_of(leaving, subject.timeout, "shutdown")


@law(Tier.MEMBERSHIP, Ability.STORE, Ability.SEVERAL_NODES)
def run_id_can_be_used_again(subject: Subject) -> None:
    """Once all nodes of a job have left, the next job with its run id begins at once, however the last one ended.

    The keys of each job have a prefix of their own, so look for keys of several parts that are taken for one another.
    """
    if subject.backend.hosted_by_job or subject.is_hosted:
        return
    first = subject.job()
    for run in range(_RUNS):
        members = subject.job(first.run_id, first.endpoint).members(2, 2, 2)
        _first_round(members, subject)
        if run % 2:
            members[0].handler.set_closed()
        else:
            for member in members:
                member.handler.report_done()
        verdict = RoundVerdict.STOPPED if run % 2 else RoundVerdict.SUCCEEDED
        for member in members:
            end = member.await_change()
            require(end is not None and end.verdict is verdict, f"the job should have {verdict}, not {end}")
        _leave(members, subject)


@law(Tier.MEMBERSHIP, Ability.STORE, Ability.SEVERAL_NODES)
def next_job_waits_for_the_last(subject: Subject) -> None:
    """A job whose run id is in use begins when the nodes of the last job have left, and not before.

    A node that has not left writes heartbeats; the next job must see them change.
    """
    if subject.backend.hosted_by_job or subject.is_hosted:
        return
    last = subject.job()
    old = last.members(2, 2, 2)
    _first_round(old, subject)
    old[0].handler.set_closed()
    for member in old:
        member.await_change()
    new = subject.job(last.run_id, last.endpoint).members(2, 2, 2)
    joining = [member.joining() for member in new]
    settle(joining[0], _LONGER_THAN_A_LEASE_SECONDS)
    begun = [future for future in joining if future.done()]
    require(not begun, "a job began, or failed, while nodes of the last job with its run id were still there")
    _leave(old, subject)
    require_one_world([result_of(future, subject.timeout, "next_rendezvous of the next job") for future in joining])


@law(Tier.MEMBERSHIP, Ability.STORE, Ability.SEVERAL_NODES)
def old_node_cannot_disturb_the_next_job(subject: Subject) -> None:
    """A node that stood still while its job ended and the next one began changes nothing in it, and learns of it.

    The next job begins a lease after the last change of the old one. The old node then ends its round; the new round
    must go on.
    """
    if subject.backend.hosted_by_job or subject.is_hosted:
        return
    gate, last = Gate(), subject.job()
    alive, still = last.member(2, 2), last.member(2, 2, gate=gate)
    _first_round([alive, still], subject)
    gate.shut()
    alive.handler.set_closed()
    alive.await_change()
    alive.handler.shutdown()
    new = subject.job(last.run_id, last.endpoint).members(2, 2, 2)
    _first_round(new, subject)
    watching = start(new[0].handler.wait_for_change, _LONGER_THAN_A_LEASE_SECONDS)
    failed = RoundEnd(0, Cause.EXIT_CODE, RoundVerdict.FAILED, "by the old job", still.node.node_id, still.node.host)
    still.handler.end_round(failed)
    gate.open()
    learning = start(still.handler.wait_for_change, subject.timeout)
    end = result_of(watching, subject.timeout, "wait_for_change")
    require(end is None, f"a node of the last job has ended the next one: {end.reason if end is not None else ''}")
    settle(learning, subject.timeout)
    error = learning.exception() if learning.done() else None
    gone = isinstance(error, RendezvousError) or (error is None and learning.done() and learning.result() is not None)
    require(gone, "a node whose job is over, and whose run id is in use again, does not learn of it")
