"""The mutants: one wrong backend per law of the conformance kit.

What does not live here: the stores and handlers (``mutant_stores``, ``mutant_handlers``), and trying them
(``test_conformance_mutants``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quorate import hookimpl
from quorate.plugins import get_host
from quorate.rendezvous import (
    RendezvousBackend,
    RendezvousHandler,
    RendezvousParameters,
    Store,
    StoreRendezvousHandler,
)

from . import mutant_handlers as handlers, mutant_stores as stores


@dataclass(frozen=True)
class Mutant:
    """``law`` must catch it, with a problem that matches ``seen``; ``installed`` is code for an installed plugin."""

    law: str
    what: str
    seen: str
    store: type[stores.Honest] | None = None
    handler: type[handlers.HonestHandler] | None = None
    installed: str = ""
    plugins: tuple[tuple[str, Any], ...] = ()


class _LosesNodes:
    """A plugin that decides ranks, and takes nodes for one whose names begin alike."""

    @staticmethod
    @hookimpl
    def quorate_decide_ranks(nodes: Any) -> list[str]:
        return sorted({node.node_id[:2] for node in nodes})


MUTANTS = (
    Mutant("found_by_its_entry_point", "a backend without a summary", "no summary", installed="SUMMARY = ''"),
    Mutant("import_is_light", "imports a library with the plugin", "also imports _pytest", installed="import _pytest"),
    Mutant("bad_endpoint_is_refused", "accepts any endpoint", "nothing was raised", store=stores.Honest),
    Mutant("dead_endpoint_is_given_up_in_time", "raises OSError", "ConnectionRefusedError", stores.RaisesWhatItLikes),
    Mutant("jobs_are_isolated", "shares keys between jobs", "of another job is visible", stores.SharesKeys),
    Mutant("close_is_idempotent", "the second close raises", "second close RuntimeError", stores.ClosesOnce),
    Mutant("nothing_is_left_behind", "leaks a thread", "thread leaked", stores.LeaksAThread),
    Mutant("create_has_one_winner", "compares bytes", "4 of 4 racing writers", stores.ComparesBytes),
    Mutant("create_respects_every_kind_of_write", "a namespace per method", "had made", stores.CreatesInItsOwnSpace),
    Mutant("counters_are_exact", "reads, then writes", "returned the totals", stores.LosesAdditions),
    Mutant("counters_read_as_decimal", "counts in binary", "a counter of 12 reads", stores.CountsInBinary),
    Mutant("values_come_back_unchanged", "strips white space", "came back as", stores.StripsValues),
    Mutant("keys_are_kept_apart", "ignores the case of keys", "confused with another one", stores.IgnoresCase),
    Mutant("get_answers_in_order", "answers in the server's order", r"get\(\[", stores.SortsAnswers),
    Mutant("writes_are_seen_at_once", "a cache of reads", "by another member, get returns", stores.CachesReads),
    Mutant("delete_removes_a_prefix", "prefixes are patterns", "after delete", stores.DeletesPatterns),
    Mutant("batches_write_everything", "truncates a batch", "has not written every item", stores.SplitsBatches),
    Mutant("history_is_linearizable", "stale reads from a replica", "no order of these calls", stores.ReadsBehind),
    Mutant("wait_finds_what_is_there", "treats empty as absent", "but the value is b''", stores.TakesEmptyForAbsent),
    Mutant("every_write_wakes_every_waiter", "loses a wake-up", "that add has written", stores.ForgetsWakeUps),
    Mutant("wake_ups_are_prompt", "polls once a second", "half of the waits", stores.LooksEverySecond),
    Mutant("no_wake_up_is_lost", "registers after the read", "did not return a key", stores.RegistersTooLate),
    Mutant("wait_ends_at_its_deadline", "ignores the timeout", "did not return", stores.IgnoresTheTimeout),
    Mutant("wait_survives_a_delete", "a delete ends waits", "a delete has ended", stores.EndsWaitsOnDelete),
    Mutant("waiting_holds_nothing_up", "one connection for both", "add, during a wait", stores.HasOneConnection),
    Mutant(
        "interrupt_ends_a_wait", "loses early interrupts", "a wait that was interrupted", stores.DropsEarlyInterrupts
    ),
    Mutant(
        "partition_is_reported_and_survived",
        "None for no answer",
        "while the server is cut",
        stores.AnswersNoneWhenCutOff,
    ),
    Mutant("wait_survives_a_partition", "waits on a dead connection", "never ends", stores.WaitsOnADeadConnection),
    Mutant("lost_answer_is_not_repeated_in_secret", "tries again", "the counter by 2", stores.RepeatsInSecret),
    Mutant("pause_is_reported_and_survived", "reads without a timeout", "get hangs", stores.HangsWhenStopped),
    Mutant("restart_loses_nothing_in_silence", "begins again", "a key that was written reads", stores.ForgetsOnRestart),
    Mutant("single_node_meets_itself", "ranks from 1", "have the group ranks", handler=handlers.CountsFromOne),
    Mutant("everyone_agrees_on_the_round", "one ticket for all", "", stores.GivesEveryoneTheFirstTicket),
    Mutant("minimum_is_honoured", "ignores the minimum", "with 1", handler=handlers.IgnoresTheMinimum),
    Mutant("too_few_nodes_end_in_time", "blames the connection", "Rendezvous", handler=handlers.BlamesTheConnection),
    Mutant(
        "surplus_node_stands_by", "ignores the maximum", "3 of 3 nodes got into", handler=handlers.IgnoresTheMaximum
    ),
    Mutant(
        "late_joiner_is_in_the_next_round",
        "does not report newcomers",
        "did not",
        handler=handlers.KeepsNewcomersWaiting,
    ),
    Mutant(
        "closing_is_final",
        "each node has its own reason",
        "different reasons for closing",
        handler=handlers.ForgetsTheReason,
    ),
    Mutant("first_reason_wins", "double seal: every create wins", "different reasons", stores.SealsTwice),
    Mutant("job_ends_when_all_are_done", "confuses keys", "while a node still worked", stores.MixesHeartbeatsUp),
    Mutant("short_outage_ends_no_round", "gives up at the first failure", "did not answer once", stores.GivesUpAtOnce),
    Mutant("dead_member_is_superseded", "values change when read", "did not return", stores.KeepsTheDeadAlive),
    Mutant(
        "returning_member_learns_its_loss",
        "misses a key written before the wait",
        "did not",
        stores.MissesWhatEndedMeanwhile,
    ),
    Mutant("crash_at_any_call_is_survived", "locks outlive their owner", "does not|did not", stores.LocksDieWithNobody),
    Mutant(
        "killed_process_is_superseded",
        "keeps a dead node's key fresh",
        "did not return",
        installed="""\
def spoil_value(key, value):
    _, space, rest = value.partition(b' ')
    return b'%d' % (time.time_ns() // 1000) + space + rest if '/heartbeat/' in key else value
""",
    ),
    Mutant(
        "clock_skew_changes_nothing",
        "compares clocks of hosts",
        "",
        installed="""\
def spoil_put(value): return b'%d ' % time.time() + value
def spoil_value(key, value):
    stamp, _, rest = value.partition(b' ')
    if '/heartbeat/' not in key: return value
    return rest if abs(time.time() - int(stamp)) < 60 else b'expired'
""",
    ),
    Mutant("run_id_can_be_used_again", "keys of four parts at most", "", stores.CutsKeysAfterFourParts),
    Mutant(
        "next_job_waits_for_the_last",
        "heartbeats seem to stand still",
        "while nodes of the last job",
        stores.FreezesHeartbeats,
    ),
    Mutant(
        "old_node_cannot_disturb_the_next_job",
        "writes the end of a job into the next one",
        "has ended the next one: by the old job",
        stores.EndsTheNewestJob,
    ),
    Mutant(
        "ranks_are_dense_for_any_nodes",
        "a plugin's order leaves nodes out",
        r"decide_ranks answered .*does not name each node once",
        stores.Honest,
        plugins=(("ranks", _LosesNodes),),
    ),
    Mutant(
        "unequal_nodes_are_ranked_together",
        "ignores that nodes differ",
        "ranks|are assigned",
        handler=handlers.RanksEveryoneAlike,
    ),
)


def backend_of(mutant: Mutant, server: stores.FakeServer) -> RendezvousBackend:
    """Return the mutant as a backend that is not installed."""
    store = mutant.store or stores.Honest

    def open_store(parameters: RendezvousParameters) -> Store:
        return store(server, parameters)

    if mutant.handler is None:
        return RendezvousBackend("mutant", mutant.what, open_store=open_store)
    handler, inner = mutant.handler, RendezvousBackend("inner", "honest", open_store=open_store)

    def open_handler(parameters: RendezvousParameters) -> RendezvousHandler:
        handler.spoil(parameters)
        return handler(StoreRendezvousHandler(parameters, inner, get_host()))

    return RendezvousBackend("mutant", mutant.what, open_handler=open_handler)
