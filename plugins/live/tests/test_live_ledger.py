"""What a worker knows of its state when an interruption has kept its program from counting."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from quorate_live._share import Ledger  # noqa: E402 - torch is there

pytestmark = [
    pytest.mark.slow,  # torch is imported
]


class Quiet:
    """A world that nobody interrupts."""

    def begin_update(self) -> None: ...

    def end_update(self) -> None: ...

    def begin_step(self) -> None: ...


def test_the_step_of_a_state_is_known_whatever_the_program_has_not_counted() -> None:
    """A newcomer with step 0 gets a state of step 7, and is interrupted before it takes the 7 up."""
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters())
    ledger = Ledger()
    assert ledger.true_step(3) == 3, "nothing is known before the first exchange"
    ledger.begin(Quiet(), model, optimizer, 7, given=0)
    assert ledger.true_step(0) == 7
    assert ledger.true_step(7) == 7
    model(torch.ones(1, 1)).sum().backward()
    optimizer.step()
    assert ledger.true_step(7) == 8, "the update was not counted any more"
    assert ledger.true_step(8) == 8
    assert ledger.true_step(0) == 0, "a program that has trained has taken the step up: it starts again"
