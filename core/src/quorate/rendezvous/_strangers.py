"""Finds nodes that use another job token, or none, in the space of the same job.

Names in a signed store depend on the token.  Such nodes do not see each other, and each would wait for the other in
silence.  A node with a token therefore leaves a plain mark in the store, from which all learn that a token is in use.
The mark is not signed, because it is for nodes without the token.  A stranger can forge it, and cause a warning with
that, nothing more: no decision depends on what is found here.  What does not live here: signing (``_signed``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from ..clock import monotonic
from ..job_token import TOKEN_FILE_VARIABLE, JobToken
from ._protocol import JOINING, Key, Phase
from ._store import Store

_MARK = "auth"
_SECOND_MARK = "auth/other"
_INTERVAL_SECONDS = 5.0
_FIRST_TICKET = 1


@final
class StrangerWatch:
    """Warns once of each trace of a node that does not use this node's token.  Used by one thread, the store's.

    Arguments:
        run_id: the job.
        token: this node's; ``None`` if it has none.
        report: called with one sentence for each trace.
        clock: returns monotonic seconds.
    """

    def __init__(
        self,
        run_id: str,
        token: JobToken | None,
        report: Callable[[str], None],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._run_id, self._report, self._clock = run_id, report, clock
        # Public: it tells two tokens apart, and tells nothing else about them.
        self._mark = None if token is None else token.key(run_id, "mark")[:8].hex().encode()
        self._is_marked = False
        self._look_at = clock()
        self._reported: set[str] = set()

    def look(self, store: Store, phase: Phase, round_number: int) -> None:
        """Look into ``store``, the one below the signatures, if it is time to.

        A node without a token looks while it joins only: nothing can be hidden from it later.

        Raises:
            StoreUnavailableError: no answer.
        """
        now = self._clock()
        if now < self._look_at or not (phase in JOINING or (self._mark is not None and phase is Phase.RUNNING)):
            return
        self._look_at = now + _INTERVAL_SECONDS
        if self._mark is None:
            self._look_for_marks(store)
        else:
            self._look_for_strangers(store, self._mark, round_number)

    def _look_for_marks(self, store: Store) -> None:
        # An answer of another form breaks the store's contract, which the driver's own next call reports.
        if isinstance(found := store.get([_MARK]), list) and found not in ([], [None]):
            self._report_once(
                _MARK,
                f"a node of the job {self._run_id!r} uses a job token (the mark {_MARK!r} is in the rendezvous store), "
                f"and this node has none. The two do not see each other. Set {TOKEN_FILE_VARIABLE} on this node",
            )

    def _look_for_strangers(self, store: Store, mark: bytes, round_number: int) -> None:
        if not self._is_marked:
            self._is_marked = store.create(_MARK, mark) or store.get([_MARK]) == [mark]
            if not self._is_marked:
                self._is_marked = True
                store.create(_SECOND_MARK, mark)
        numbers = sorted({0, round_number})
        plain = [key for n in numbers for key in (Key.sealed(n), Key.ended(n), Key.node(n, _FIRST_TICKET))]
        values = store.get([_MARK, _SECOND_MARK, *plain])
        if not isinstance(values, list) or len(values) != 2 + len(plain):
            return
        first, second, *records = values
        if first != mark or second not in (None, mark):
            self._report_once(
                _MARK,
                f"a node that meets here for the job {self._run_id!r} uses another job token (a mark in the rendezvous "
                "store tells). The two do not see each other. Give all nodes of the job the same token, or the jobs "
                "different names (--rdzv-id)",
            )
        for name, record in zip(plain, records, strict=True):
            if record is not None:
                self._report_once(
                    name,
                    f"{name!r} in the rendezvous store of the job {self._run_id!r} was not written with this job's "
                    "token, and is ignored. A node without the token, a stranger or an earlier job has written it; "
                    f"if it is a node of this job, set {TOKEN_FILE_VARIABLE} there",
                )

    def _report_once(self, subject: str, sentence: str) -> None:
        if subject not in self._reported:
            self._reported.add(subject)
            self._report(sentence)
