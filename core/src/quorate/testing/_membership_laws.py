"""Laws about rounds: who is a member, when a round begins, and how all nodes learn its end.

The members are real handlers on the backend under test.

What does not live here: members that crash or pause (``_crash_laws``), and ranks of unequal nodes (``_rank_laws``).
"""

from __future__ import annotations

from ..clock import monotonic, sleep
from ..errors import RendezvousClosedError, RendezvousTimeoutError
from ..records import Cause, RoundEnd, Verdict as RoundVerdict
from ..rendezvous import RendezvousInfo
from ._abilities import Ability, LawBrokenError
from ._law import Tier, law
from ._subject import Member, Subject, join_all, require, result_of, settle, start

#: Longer than the last call of the members: a round that could be sealed is sealed by then.
_A_WHILE_SECONDS = 0.6


def require_one_world(infos: list[RendezvousInfo]) -> None:
    """Raise LawBrokenError unless ``infos`` are the whole of one round."""
    size = len(infos)
    ranks = sorted(info.rank for info in infos)
    require(ranks == list(range(size)), f"{size} nodes have the group ranks {ranks}")
    sizes = {info.world_size for info in infos}
    require(sizes == {size}, f"{size} nodes report the sizes {sorted(sizes)}")
    places = {
        (info.bootstrap_store_info.master_addr, info.bootstrap_store_info.master_port)
        for info in infos
        if info.bootstrap_store_info is not None
    }
    require(len(places) <= 1, f"members of one round have different master addresses: {sorted(places)}")
    rounds = {info.assignment.round_number for info in infos if info.assignment is not None}
    require(len(rounds) <= 1, f"nodes of rounds {sorted(rounds)} are in one world")


def _end(member: Member, reason: str, cause: Cause, verdict: RoundVerdict) -> RoundEnd:
    return RoundEnd(0, cause, verdict, reason, member.node.node_id, member.node.host)


@law(Tier.MEMBERSHIP)
def single_node_meets_itself(subject: Subject) -> None:
    """A job of one node is sealed at once, with rank 0 of 1 and a master address for its workers.

    next_rendezvous must return within the last call, whether or not another node comes.
    """
    member = subject.job().member(1, 1)
    info = member.join()
    require_one_world([info])
    require(not member.handler.is_closed(), "a job that has just begun is closed")
    require(member.handler.num_nodes_waiting() == 0, "nodes wait at a job of one node")


@law(Tier.MEMBERSHIP, Ability.SEVERAL_NODES)
def everyone_agrees_on_the_round(subject: Subject) -> None:
    """All members of a round get the same size and master address, and the ranks 0 to size - 1, each once.

    One node decides and commits with a single create; all other nodes read its decision.
    """
    job = subject.job()
    require_one_world(join_all(job.members(4, 4, 4), subject.timeout))


@law(Tier.MEMBERSHIP, Ability.SEVERAL_NODES)
def minimum_is_honoured(subject: Subject) -> None:
    """No round begins with fewer nodes than the minimum, however long it takes; it begins when the last one comes.

    Count live members, not arrivals.
    """
    job = subject.job()
    first, second = job.members(2, 2, 2)
    joining = first.joining()
    settle(joining, _A_WHILE_SECONDS)
    require(not joining.done(), "a round that needs 2 nodes began, or failed, with 1")
    info = second.join()
    require_one_world([info, result_of(joining, subject.timeout, "next_rendezvous of the first node")])


@law(Tier.MEMBERSHIP, Ability.SEVERAL_NODES)
def too_few_nodes_end_in_time(subject: Subject) -> None:
    """If the minimum is not met within `join_timeout`, next_rendezvous raises RendezvousTimeoutError.

    The deadline counts from the call, over all retries.
    """
    started_at = monotonic()
    joining = subject.job().member(2, 2, join_timeout=0.5, connect_timeout=0.5).joining()
    settle(joining, subject.timeout)
    require(joining.done(), "with join_timeout=0.5 a node waits for a second one without end")
    error = joining.exception()
    require(
        isinstance(error, RendezvousTimeoutError),
        f"too few nodes should raise RendezvousTimeoutError, but it was {type(error).__name__}: {error}",
    )
    require(monotonic() - started_at >= 0.45, "a node gave up before join_timeout had passed")


@law(Tier.MEMBERSHIP, Ability.SEVERAL_NODES)
def surplus_node_stands_by(subject: Subject) -> None:
    """A round never has more nodes than the maximum; a further node waits as a standby, and joins the next round.

    Count it in num_nodes_waiting, and let it in when a member has left.
    """
    job = subject.job()
    members = job.members(3, 1, 2, last_call_timeout=subject.timeout)  # two are full, and sealed at once
    joining = [member.joining() for member in members]
    deadline = monotonic() + subject.timeout
    while sum(future.done() for future in joining) < 2 and monotonic() < deadline:
        sleep(0.02)
    settle(start(sleep, 0.3), 1.0)
    inside = [index for index, future in enumerate(joining) if future.done()]
    require(len(inside) == 2, f"{len(inside)} of 3 nodes got into a round of at most 2")
    require_one_world([joining[index].result() for index in inside])
    (outside,) = set(range(3)) - set(inside)
    stayer, leaver = (members[index] for index in inside)
    require(stayer.handler.num_nodes_waiting() == 1, "the standby is not counted as waiting")
    leaver.handler.shutdown()
    stayer.await_change()
    infos = [stayer.join(), result_of(joining[outside], subject.timeout, "next_rendezvous of the standby")]
    require_one_world(infos)


@law(Tier.MEMBERSHIP, Ability.SEVERAL_NODES)
def late_joiner_is_in_the_next_round(subject: Subject) -> None:
    """If a node comes while a round with room runs, the members end that round, and the node is in the next one.

    Report waiting nodes in num_nodes_waiting or wait_for_change; never let a newcomer into a sealed round.
    """
    job = subject.job()
    first = job.member(1, 2)
    require_one_world([first.join()])
    late = job.member(1, 2)
    joining = late.joining()
    first.await_change()
    info = first.join()
    require_one_world([info, result_of(joining, subject.timeout, "next_rendezvous of the late node")])


@law(Tier.MEMBERSHIP, Ability.SEVERAL_NODES)
def closing_is_final(subject: Subject) -> None:
    """Once one member closes the job, every member learns it, later nodes are refused, and no round begins.

    Raise RendezvousClosedError from next_rendezvous, with the recorded reason; closing again changes nothing.
    """
    job = subject.job()
    members = job.members(2, 2, 3)
    join_all(members, subject.timeout)
    members[0].handler.set_closed()
    ends = [member.await_change() for member in members]
    members[1].handler.set_closed()
    late = job.member(2, 3)
    reasons = set()
    for member in [*members, late]:
        joining = member.joining()
        settle(joining, subject.timeout)
        error = joining.exception() if joining.done() else None
        if not isinstance(error, RendezvousClosedError):
            raise LawBrokenError(f"joining a closed job should raise RendezvousClosedError, but {error!r}")
        require(member.handler.is_closed(), "is_closed is false although the job is closed")
        reasons.add(error.reason)
    reasons |= {end.reason for end in ends if end is not None}
    require(len(reasons) == 1, f"nodes report different reasons for closing: {sorted(reasons)}")


@law(Tier.MEMBERSHIP, Ability.STORE, Ability.SEVERAL_NODES)
def first_reason_wins(subject: Subject) -> None:
    """If several members end a round at once, each with its own reason, all of them get the same one: the first.

    The reason is written with create; look for a create that two writers can win.
    """
    job = subject.job()
    members = job.members(3, 3, 3)
    join_all(members, subject.timeout)
    for index, member in enumerate(members):
        member.handler.end_round(_end(member, f"reason {index}", Cause.EXIT_CODE, RoundVerdict.RESTART))
    ends = [member.await_change() for member in members]
    reasons = {end.reason for end in ends if end is not None}
    require(len(reasons) == 1, f"members of one round get different reasons: {sorted(reasons)}")
    require_one_world(join_all(members, subject.timeout))


@law(Tier.MEMBERSHIP, Ability.STORE, Ability.SEVERAL_NODES)
def job_ends_when_all_are_done(subject: Subject) -> None:
    """When the workers of all nodes have succeeded, and not before, every node learns that the job has succeeded.

    Each node counts itself with add, and the last one ends the job with create.
    """
    job = subject.job()
    members = job.members(2, 2, 2)
    infos = join_all(members, subject.timeout)
    # The first node reads the heartbeats: if it finishes first, only the heartbeat of the last node matters.
    first, last = sorted(members, key=lambda member: infos[members.index(member)].rank)
    first.handler.report_done()
    early = start(last.handler.wait_for_change, 0.5)
    require(result_of(early, subject.timeout, "wait_for_change") is None, "the job ended while a node still worked")
    last.handler.report_done()
    for member in members:
        end = member.await_change()
        require(end is not None and end.verdict is RoundVerdict.SUCCEEDED, f"the job should have succeeded, not {end}")


@law(Tier.MEMBERSHIP, Ability.PARTITION, Ability.STORE, Ability.SEVERAL_NODES)
def short_outage_ends_no_round(subject: Subject) -> None:
    """No node loses its place in the round when the server is cut off for longer than a lease.

    The store must raise StoreUnavailableError during the outage and work again after it, in every thread.
    """
    job = subject.job()
    members = job.members(2, 1, 2, last_call_timeout=subject.timeout, operation_timeout=0.5)
    join_all(members, subject.timeout)
    with subject.server.partition():
        sleep(1.4)
    watching = start(members[0].handler.wait_for_change, 1.2)
    end = result_of(watching, subject.timeout, "wait_for_change")
    require(end is None, f"the round ended because of a short outage: {end.reason if end is not None else ''}")
    members[0].handler.set_closed()
    for member in members:
        member.await_change()
