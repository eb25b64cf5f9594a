"""Between reading a key and watching it nothing is missed, and nothing that came before is taken for news.

On scripted streams of etcd's own messages; on a real etcd the same is in ``test_lost.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, final

from quorate.clock import monotonic
from quorate_rendezvous_etcd._v3.messages import load_messages
from quorate_rendezvous_etcd._v3.requests import Requests
from quorate_rendezvous_etcd._v3.watch import Watcher

from .etcd_harness import DEADLINE_SECONDS

MESSAGES = load_messages()


def answer(revision: int, created: bool = False, canceled: bool = False, writes: Sequence[int] = ()) -> Any:
    """Return what a member says on a watch's stream: at which revision, and which writes of the key."""
    made = MESSAGES.WatchResponse(created=created, canceled=canceled)
    made.header.revision = revision
    for write in writes:
        event = made.events.add()
        event.kv.mod_revision = write
    return made


@final
class Script:
    """Stands in for the transport: gives one prepared stream after another; one that is over blocks no one."""

    def __init__(self, *streams: Sequence[Any]) -> None:
        self.streams = [list(stream) for stream in streams]

    def begin_watch(self) -> Any:
        return object()

    def watch(self, connection: Any, request: Any, timeout: float) -> Iterator[Any]:
        return iter(self.streams.pop(0))

    def end_watch(self, connection: Any, stream: Any) -> None:
        pass


def wait(script: Script, *looks: tuple[Any, int]) -> tuple[Any, int]:
    """Wait through ``script``; returns what was found and how many of ``looks`` were taken."""
    left = list(looks)
    transport: Any = script
    found = Watcher(transport).wait(lambda: left.pop(0), None, monotonic() + DEADLINE_SECONDS)
    return found, len(looks) - len(left)


def test_a_watch_that_begins_at_the_reading_needs_no_second_one() -> None:
    found, looks = wait(Script([answer(7, created=True), answer(8, writes=[8])]), (None, 7))
    assert found.mod_revision == 8
    assert looks == 1


def test_what_was_written_before_the_watch_began_is_read() -> None:
    found, looks = wait(Script([answer(9, created=True)]), (None, 7), ("the record", 9))
    assert found == "the record"
    assert looks == 2


def test_other_nodes_writes_before_the_watch_began_cost_one_reading() -> None:
    found, looks = wait(Script([answer(9, created=True), answer(10, writes=[10])]), (None, 7), (None, 9))
    assert found.mod_revision == 10
    assert looks == 2


def test_what_was_removed_again_by_the_time_of_the_reading_is_no_news() -> None:
    """A member that lags behind begins its watch before the reading, which another one has answered."""
    stream = [answer(5, created=True), answer(6, writes=[6]), answer(9, writes=[7, 9])]
    found, looks = wait(Script(stream), (None, 7))
    assert found.mod_revision == 9
    assert looks == 1


def test_a_watch_that_is_refused_begins_anew_with_a_reading() -> None:
    found, looks = wait(Script([answer(7, created=True, canceled=True)]), (None, 7), ("the record", 8))
    assert found == "the record"
    assert looks == 2


def test_a_watch_begins_now_so_that_etcd_does_not_count_it_among_those_that_have_to_catch_up() -> None:
    assert Requests(MESSAGES).watch(b"key").create_request.start_revision == 0
