"""Virtual time, seeded randomness and the transcript: what all parts of a simulated world share.

Everything that happens is an entry in one heap, ordered by virtual time.  All randomness comes from one seeded
generator, so that a seed replays a run exactly.
"""

from __future__ import annotations

import heapq
import random
import re
from collections import Counter
from collections.abc import Callable
from itertools import count

_LONGEST_TRANSCRIPT = 20_000
_EXPLAINED_LINES = 200


class Timeline:
    """The time of a world, and what happened in it; made to be subclassed by ``World``.

    Arguments:
        seed: of all randomness.
    """

    def __init__(self, seed: int) -> None:
        self.now = 0.0
        self.seed = seed
        self.random = random.Random(seed)
        self.transcript: list[str] = []
        self.counts: Counter[str] = Counter()
        self._reasons: dict[str, str] = {}
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    # --- time ---------------------------------------------------------------------------------------------------------

    def at(self, time: float, action: Callable[[], None]) -> None:
        """Do ``action`` at virtual ``time``."""
        heapq.heappush(self._heap, (max(time, self.now), next(self._order), action))

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Do ``action`` in ``seconds``."""
        heapq.heappush(self._heap, (self.now + seconds, next(self._order), action))

    def run(self, until: float, stop: Callable[[], bool] | None = None) -> bool:
        """Let time pass to ``until``; returns early, with True, once ``stop`` holds."""
        heap, pop = self._heap, heapq.heappop
        while heap and heap[0][0] <= until:
            self.now, _, action = pop(heap)
            action()
            if stop is not None and stop():
                return True
        self.now = max(self.now, until)
        return stop is not None and stop()

    # --- the transcript -----------------------------------------------------------------------------------------------

    def count(self, kind: str) -> None:
        """Count a fault."""
        self.counts[kind] += 1

    def explain(self, what: str) -> str:
        """Return ``what`` with the seed and the transcript that led to it."""
        return "\n".join([what, f"seed {self.seed}", *self.transcript[-_EXPLAINED_LINES:]])

    def is_new(self, name: str, reason: str) -> bool:
        """Return whether ``reason`` says more than the last reason of the node ``name``; a countdown says no more."""
        bare = re.sub(r"[\d.]+ s more", "", reason)
        old, self._reasons[name] = self._reasons.get(name), bare
        return old != bare

    def note(self, name: str, subject: str, what: str) -> None:
        """Add a line about the node ``name`` to the transcript."""
        if len(self.transcript) < _LONGEST_TRANSCRIPT:
            self.transcript.append(f"{self.now:10.4f}  {name:<8} {subject:<10} {what}")

    def remark(self, what: str) -> None:
        """Add a line about the store or the world to the transcript."""
        self.transcript.append(f"{self.now:10.4f}  {'-':<8} {'store':<10} {what}")
