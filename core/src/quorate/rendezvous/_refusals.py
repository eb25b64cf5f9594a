"""Has the nodes of a round that runs know of a node that does not belong to their job and was refused.

The refused node writes a sentence below the round.  The members of the round read for heartbeats several times per
lease, and the next sentence is one more key of those reads: this costs no operation, and no wait.  A round holds a few
sentences at most, each once, so that a node that is started again and again fills no log.

A sentence is a message for people, and no decision depends on it.  What does not live here: who is refused
(``_incarnation``, ``_joining``), and nodes that are refused while a round gathers, which ``Key.node`` tells of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

from ..records import NodeRecord
from ..text import printable
from ._protocol import Call, Key, Operation, Phase
from ._state import State
from ._store import Store

_MOST_SENTENCES = 8
_LONGEST_SENTENCE = 1500


def refused(node: NodeRecord, problem: str) -> str:
    """Return the sentence about a node that was refused."""
    whose = f" of {node.user}" if node.user else ""
    return f"a node{whose} on {node.name} wanted to join and was refused: {problem}"


def tell_refusal(store: Store, round_number: int, sentence: str) -> None:
    """Write ``sentence`` for the members of a round that runs, unless it stands there or there are enough.

    Raises:
        StoreUnavailableError: no answer.
    """
    value = sentence[:_LONGEST_SENTENCE].encode("utf-8", "replace")
    keys = [Key.refused(round_number, place) for place in range(1, _MOST_SENTENCES + 1)]
    for key, found in zip(keys, store.get(keys), strict=True):
        if found == value or (found is None and store.create(key, value)):
            return


@final
class RefusalReader:
    """Reads these sentences along with what the rendezvous machine reads.  Used by one thread, the store's.

    Arguments:
        report: called with each sentence.
    """

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self._round, self._next = -1, 1

    def keys(self, call: Call, state: State) -> Sequence[str]:
        """Return which key to read along with ``call``: one, or none where no round runs."""
        if call.operation is not Operation.GET or state.phase is not Phase.RUNNING:
            return ()
        if state.round_number != self._round:
            self._round, self._next = state.round_number, 1
        return (Key.refused(self._round, self._next),) if self._next <= _MOST_SENTENCES else ()

    def take(self, values: Sequence[bytes | None]) -> None:
        """Report what stood under :meth:`keys`."""
        for value in values:
            if value is not None:
                self._next += 1
                self._report(printable(value.decode("utf-8", "replace"), _LONGEST_SENTENCE))
