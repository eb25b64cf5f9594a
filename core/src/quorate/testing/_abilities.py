"""What a backend under test is able to do, and the error of a law that it breaks.

What does not live here: finding out which abilities a backend has (``_subject``), and the laws (``_law``).
"""

from __future__ import annotations

from enum import Enum
from typing import final

from ..errors import QuorateError


@final
class LawBrokenError(QuorateError, AssertionError):
    """A backend breaks a law; :attr:`problem` is what was seen."""

    def __init__(self, problem: str) -> None:
        self.problem = problem
        super().__init__(problem)


@final
class Ability(str, Enum):
    """What not every backend or test server can do.  An absent ability is declared, with a reason."""

    ENTRY_POINT = "entry_point"  # the backend is installed, and given by its name
    ENDPOINT = "endpoint"  # the backend has endpoints that can be wrong
    STORE = "store"  # tier 1: the core runs its protocol on the backend's store
    SEVERAL_NODES = "several_nodes"
    BATCH = "batch"
    INTERRUPT = "interrupt"
    PARTITION = "partition"  # the test's server can be cut off from its clients
    LOSING_ANSWERS = "losing_answers"  # the answers of the test's server can be lost
    PAUSE = "pause"  # the test's server can be stopped for a while
    RESTART = "restart"  # the test's server can be ended and started again

    @property
    def remedy(self) -> str:
        """What gives the backend this ability."""
        return _REMEDIES[self]


_REMEDIES = {
    Ability.ENTRY_POINT: "install the plugin and give the backend by its name",
    Ability.ENDPOINT: "the backend must take an endpoint",
    Ability.STORE: "the backend must give open_store",
    Ability.SEVERAL_NODES: "the backend must serve more than one node",
    Ability.BATCH: "the store needs put_many (quorate.rendezvous.BatchStore)",
    Ability.INTERRUPT: "the store needs interrupt (quorate.rendezvous.InterruptibleStore)",
    Ability.PARTITION: "the server of your test needs a context manager partition()",
    Ability.LOSING_ANSWERS: "the server of your test needs a context manager losing_answers()",
    Ability.PAUSE: "the server of your test needs a context manager pause()",
    Ability.RESTART: "the server of your test needs a method restart()",
}
