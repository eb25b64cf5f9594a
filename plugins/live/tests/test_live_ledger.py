"""What a worker knows of its state when an interruption has kept its program from counting, and how states travel."""

from __future__ import annotations

import io
import sys
from collections import Counter, namedtuple
from collections.abc import Callable
from datetime import timedelta
from types import FrameType
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from quorate_live import World, WorldEnded  # noqa: E402 - torch is there
from quorate_live._share import Ledger, _Packer, _Unpacker, reload  # noqa: E402 - torch is there

pytestmark = [
    pytest.mark.slow,  # torch is imported
]


class Quiet:
    """A world that nobody interrupts."""

    def begin_update(self, frame: FrameType) -> None: ...

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


Pair = namedtuple("Pair", "first second")


class Trained:
    """A model in a world that this process is in, and an optimizer that evaluates the model during an update."""

    def __init__(self) -> None:
        self.world, self.ledger, self.model = World(None, 0), Ledger(), torch.nn.Linear(1, 1)
        self.world._is_open = True
        self.optimizer = torch.optim.LBFGS(self.model.parameters(), max_iter=3)
        self.other = torch.optim.SGD(self.model.parameters())
        self.ledger.begin(self.world, self.model, self.optimizer, 0, 0, [self.other])

    def interrupt(self) -> None:
        """As the signal handler does."""
        self.world.interrupt(sys._getframe(1))

    def update(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        def closure() -> Any:
            meanwhile()
            self.optimizer.zero_grad()
            loss = (self.model(torch.ones(4, 1)) - 3).square().mean()
            loss.backward()
            return loss

        self.optimizer.step(closure)


def test_an_update_that_evaluates_the_model_is_not_interrupted() -> None:
    trained = Trained()
    trained.update()
    trained.interrupt()  # it waits for the next forward pass
    with pytest.raises(WorldEnded):
        trained.update(trained.interrupt)
    assert not trained.ledger.is_torn, "the update had not begun"
    trained.update(trained.interrupt)
    assert not trained.ledger.is_torn


def test_a_further_optimizers_update_is_not_interrupted() -> None:
    trained = Trained()
    trained.other.step(trained.interrupt)


def test_an_update_that_has_failed_does_not_hold_interruptions() -> None:
    def fail() -> None:
        raise MemoryError

    trained = Trained()
    with pytest.raises(MemoryError):
        trained.update(fail)
    assert trained.ledger.is_torn
    with pytest.raises(WorldEnded):
        trained.interrupt()


def test_reading_a_checkpoint_is_interrupted() -> None:
    trained = Trained()

    def restore() -> int:
        trained.interrupt()
        return 3

    with pytest.raises(WorldEnded):
        reload(restore)


def test_a_state_of_whatever_types_arrives_as_it_was() -> None:
    weight = torch.ones(3)
    state = {
        "pair": Pair(weight, Counter("aab")),
        "tied": [weight, torch.empty(0), torch.ones((), dtype=torch.bfloat16)],
        "others": (timedelta(1), {1, 2}, torch.Size([3]), torch.eye(2).to_sparse()),
        "layer": torch.nn.Linear(1, 1).state_dict(),
    }
    file = io.BytesIO()
    packer = _Packer(file)
    packer.dump(state)
    on_their_way = iter(packer.tensors)

    def receive(shape: Any, kind: Any) -> Any:
        tensor = next(on_their_way)
        assert (tuple(tensor.shape), tensor.dtype) == (shape, kind)
        return tensor.clone()

    arrived = _Unpacker(io.BytesIO(file.getvalue()), receive).load()
    assert next(on_their_way, None) is None
    assert type(arrived["pair"]) is Pair
    assert arrived["pair"].second == Counter("aab")
    assert arrived["tied"][0] is arrived["pair"].first
    assert arrived["others"][:3] == state["others"][:3]
    assert arrived["others"][3].is_sparse
    assert arrived["layer"]._metadata == state["layer"]._metadata
    torch.testing.assert_close(arrived["layer"], state["layer"])
