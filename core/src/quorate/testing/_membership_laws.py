"""Laws about rounds: who is in, when, and how everyone learns the end.  Real handlers on the backend under test.

What does not live here: members that crash or pause (``_crash_laws``), and ranks of unequal nodes (``_rank_laws``).
"""

from __future__ import annotations

import threading

from ..clock import monotonic
from ..errors import RendezvousClosedError, RendezvousTimeoutError
from ..records import Cause, RoundEnd
from ..records import Verdict as RoundVerdict
from ..rendezvous import RendezvousInfo
from ._law import Ability, LawBrokenError, Tier, law
from ._subject import Member, Subject, join_all, require, result_of, settle, start

#: Longer than the last call of the members: whoever could have sealed a round has done so.
_A_WHILE_SECONDS = 0.6


def require_one_world(infos: list[RendezvousInfo]) -> None:
    """Raise LawBrokenError unless ``infos`` are the whole of one round."""
    size = len(infos)
    ranks = sorted(info.rank for info in infos)
    require(ranks == list(range(size)), f"{size} nodes have the group ranks {ranks}")
    sizes = {info.world_size for info in infos}
    require(sizes == {size}, f"{size} nodes are told that they are {sorted(sizes)}")
    places = {
        (info.bootstrap_store_info.master_addr, info.bootstrap_store_info.master_port)
        for info in infos
        if info.bootstrap_store_info is not None
    }
    require(len(places) <= 1, f"members of one round are to meet at different places: {sorted(places)}")
    rounds = {info.assignment.round_number for info in infos if info.assignment is not None}
    require(len(rounds) <= 1, f"nodes of rounds {sorted(rounds)} are taken for one world")


def _end(member: Member, reason: str, cause: Cause, verdict: RoundVerdict) -> RoundEnd:
    return RoundEnd(0, cause, verdict, reason, member.node.node_id, member.node.host)


@law(Tier.MEMBERSHIP)
def single_node_meets_itself(subject: Subject) -> None:
    """A job of one node is sealed at once, with rank 0 of 1 and a place where its workers can meet.

    next_rendezvous must return, within the last call, whether or not anybody else comes.
    """
    member = subject.job().member(1, 1)
    info = member.join()
    require_one_world([info])
    require(not member.handler.is_closed(), "a job that has just begun is closed")
    require(member.handler.num_nodes_waiting() == 0, "nodes wait at a job of one node")


@law(Tier.MEMBERSHIP, Ability.SEVERAL_NODES)
def everyone_agrees_on_the_round(subject: Subject) -> None:
    """All members of a round are told the same size and meeting place, and the ranks 0 to size - 1, each once.

    One node decides and commits with a single create; everyone else reads what it has decided.
    """
    job = subject.job()
    require_one_world(join_all(job.members(4, 4, 4), subject.patience))


@law(Tier.MEMBERSHIP, Ability.SEVERAL_NODES)
def minimum_is_honoured(subject: Subject) -> None:
    """No round begins with fewer nodes than the minimum, however long it takes; with the last one missing it does.

    Count live members, not arrivals.
    """
    job = subject.job()
    first, second = job.members(2, 2, 2)
    joining = first.joining()
    settle(joining, _A_WHILE_SECONDS)
    require(not joining.done(), "a round that needs 2 nodes began, or failed, with 1")
    info = second.join()
    require_one_world([info, result_of(joining, subject.patience, "next_rendezvous of the first node")])


@law(Tier.MEMBERSHIP, Ability.SEVERAL_NODES)
def too_few_nodes_end_in_time(subject: Subject) -> None:
    """If the minimum is not met within `join_timeout`, next_rendezvous raises RendezvousTimeoutError.

    The deadline counts from the call, over all retries.
    """
    began = monotonic()
    joining = subject.job().member(2, 2, join_timeout=0.5, connect_timeout=0.5).joining()
    settle(joining, subject.patience)
    require(joining.done(), "with join_timeout=0.5 a node waits for a second one without end")
    error = joining.exception()
    require(
        isinstance(error, RendezvousTimeoutError),
        f"too few nodes should raise RendezvousTimeoutError, but it was {type(error).__name__}: {error}",
    )
    require(monotonic() - began >= 0.45, "a node gave up before join_timeout had passed")


@law(Tier.MEMBERSHIP, Ability.SEVERAL_NODES)
def surplus_node_stands_by(subject: Subject) -> None:
    """A round never has more nodes than the maximum; a surplus node waits, without an error, and is in line next.

    Count it in num_nodes_waiting, and let it in when a member has left.
    """
    job = subject.job()
    members = job.members(3, 1, 2, last_call_timeout=subject.patience)  # two are sealed as soon as they are there
    joining = [member.joining() for member in members]
    deadline = monotonic() + subject.patience
    while sum(future.done() for future in joining) < 2 and monotonic() < deadline:
        threading.Event().wait(0.02)
    settle(start(threading.Event().wait, 0.3), 1.0)
    inside = [index for index, future in enumerate(joining) if future.done()]
    require(len(inside) == 2, f"{len(inside)} of 3 nodes got into a round of at most 2")
    require_one_world([joining[index].result() for index in inside])
    (outside,) = set(range(3)) - set(inside)
    stayer, leaver = (members[index] for index in inside)
    require(stayer.handler.num_nodes_waiting() == 1, "the surplus node is not counted as waiting")
    leaver.handler.shutdown()
    stayer.await_change()
    infos = [stayer.join(), result_of(joining[outside], subject.patience, "next_rendezvous of the surplus node")]
    require_one_world(infos)


@law(Tier.MEMBERSHIP, Ability.SEVERAL_NODES)
def late_joiner_is_in_the_next_round(subject: Subject) -> None:
    """A node that comes while a round with room runs makes the members end it, and is in the next one with them.

    Tell waiting nodes in num_nodes_waiting or wait_for_change; never let a newcomer into a sealed round.
    """
    job = subject.job()
    first = job.member(1, 2)
    require_one_world([first.join()])
    late = job.member(1, 2)
    joining = late.joining()
    first.await_change()
    info = first.join()
    require_one_world([info, result_of(joining, subject.patience, "next_rendezvous of the late node")])


@law(Tier.MEMBERSHIP, Ability.SEVERAL_NODES)
def closing_is_final(subject: Subject) -> None:
    """Once one member closes the job, every member learns it, whoever comes later is refused, and no round begins.

    Raise RendezvousClosedError from next_rendezvous, with the reason that was recorded; closing again changes nothing.
    """
    job = subject.job()
    members = job.members(2, 2, 3)
    join_all(members, subject.patience)
    members[0].handler.set_closed()
    ends = [member.await_change() for member in members]
    members[1].handler.set_closed()
    late = job.member(2, 3)
    reasons = set()
    for member in [*members, late]:
        joining = member.joining()
        settle(joining, subject.patience)
        error = joining.exception() if joining.done() else None
        if not isinstance(error, RendezvousClosedError):
            raise LawBrokenError(f"joining a closed job should raise RendezvousClosedError, but {error!r}")
        require(member.handler.is_closed(), "is_closed is false although the job is closed")
        reasons.add(error.reason)
    reasons |= {end.reason for end in ends if end is not None}
    require(len(reasons) == 1, f"the reason for closing is told differently: {sorted(reasons)}")


@law(Tier.MEMBERSHIP, Ability.STORE, Ability.SEVERAL_NODES)
def first_reason_wins(subject: Subject) -> None:
    """If several members end a round at once, each with its own reason, all are told the same one: the first.

    The reason is written by create; a store whose create can be won twice shows it here.
    """
    job = subject.job()
    members = job.members(3, 3, 3)
    join_all(members, subject.patience)
    for index, member in enumerate(members):
        member.handler.end_round(_end(member, f"reason {index}", Cause.EXIT_CODE, RoundVerdict.RESTART))
    ends = [member.await_change() for member in members]
    reasons = {end.reason for end in ends if end is not None}
    require(len(reasons) == 1, f"members of one round are told different reasons: {sorted(reasons)}")
    require_one_world(join_all(members, subject.patience))


@law(Tier.MEMBERSHIP, Ability.STORE, Ability.SEVERAL_NODES)
def job_ends_when_all_are_done(subject: Subject) -> None:
    """When the workers of all nodes have succeeded, every node learns that the job is over and succeeded; not before.

    Each node counts itself in with add, and the last one ends the job with create.
    """
    job = subject.job()
    members = job.members(2, 2, 2)
    infos = join_all(members, subject.patience)
    # The first node judges the others' heartbeats: if it finishes first, only the heartbeat of the last one counts.
    first, last = sorted(members, key=lambda member: infos[members.index(member)].rank)
    first.handler.report_done()
    early = start(last.handler.wait_for_change, 0.5)
    require(result_of(early, subject.patience, "wait_for_change") is None, "the job ended while a node still worked")
    last.handler.report_done()
    for member in members:
        end = member.await_change()
        require(end is not None and end.verdict is RoundVerdict.SUCCEEDED, f"the job should have succeeded, not {end}")


@law(Tier.MEMBERSHIP, Ability.PARTITION, Ability.STORE, Ability.SEVERAL_NODES)
def short_outage_ends_no_round(subject: Subject) -> None:
    """A server that is cut off for a while, longer than a lease, costs nobody its place in the round.

    The store must raise StoreUnavailableError during the outage and work again after it, in every thread.
    """
    job = subject.job()
    members = job.members(2, 1, 2, last_call_timeout=subject.patience, operation_timeout=0.5)
    join_all(members, subject.patience)
    with subject.server.partition():
        threading.Event().wait(1.4)
    watching = start(members[0].handler.wait_for_change, 1.2)
    end = result_of(watching, subject.patience, "wait_for_change")
    require(end is None, f"the round ended because of a short outage: {end.reason if end is not None else ''}")
    members[0].handler.set_closed()
    for member in members:
        member.await_change()
