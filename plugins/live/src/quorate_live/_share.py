"""Brings all workers of a world to the same state: those that have lived on keep theirs, newcomers get it from them.

The *ledger* of this process says what its state is worth: which step it has reached, by counting the optimizer's
updates, whether an update was cut in two, and the whole copy of a sharded state.  What does not live here: when
interruptions are held back (:mod:`._world`), and how that copy is taken and loaded (:mod:`._shards`).
"""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import IO, Any, Protocol, final

import torch
import torch.distributed as dist

from ._errors import StateLostError
from ._shards import WholeState, is_sharded, load_whole, take_whole


class Interruptible(Protocol):
    """A world, as far as it is told when it may be interrupted."""

    def begin_update(self, frame: FrameType) -> None: ...

    def end_update(self) -> None: ...

    def begin_step(self) -> None: ...


@final
class Ledger:
    """What this process knows of its state.  One for the whole process."""

    def __init__(self) -> None:
        self.is_shared = False
        self.is_torn = False
        self.whole: WholeState | None = None
        self._base = self._given = self._updates = 0
        self._handles: list[Any] = []

    def true_step(self, step: int) -> int:
        """Return the step that the state has reached.

        An interruption may have kept the program from counting the last update, or from taking up the step that the
        last exchange returned; ``step`` is what the program has counted.
        """
        reached = self._base + self._updates
        not_taken_up = self._updates == 0 and step == self._given
        return reached if self.is_shared and (step == reached - 1 or not_taken_up) else step

    def begin(
        self, world: Interruptible, model: Any, optimizer: Any, step: int, given: int, others: Sequence[Any] = ()
    ) -> None:
        """Count updates from ``step`` on; ``given`` is what the program had counted before the exchange.

        Those of further optimizers among ``others`` are not counted, but not interrupted either.
        """
        for handle in self._handles:
            handle.remove()
        self.is_shared, self.is_torn = True, False
        self._base, self._given, self._updates = step, given, 0
        self._handles = [model.register_forward_pre_hook(lambda *_: world.begin_step())]
        if optimizer is not None:
            self._handles += [
                optimizer.register_step_pre_hook(lambda *_: self._begin_update(world, sys._getframe(1))),
                optimizer.register_step_post_hook(lambda *_: self._end_update(world)),
            ]
        for other in others:
            if isinstance(other, torch.optim.Optimizer):
                self._handles += [
                    other.register_step_pre_hook(lambda *_: world.begin_update(sys._getframe(1))),
                    other.register_step_post_hook(lambda *_: world.end_update()),
                ]

    def _begin_update(self, world: Interruptible, frame: FrameType) -> None:
        world.begin_update(frame)  # which may be the end of the world
        self.is_torn = True

    def _end_update(self, world: Interruptible) -> None:
        self._updates += 1
        self.is_torn = False
        world.end_update()


_ledger = Ledger()


def share(
    world: Interruptible,
    model: Any,
    optimizer: Any,
    step: int,
    others: Sequence[Any],
    restore: Callable[[], int] | None,
) -> int:
    """See :meth:`._world.World.share`."""
    exchange = _share_shards if is_sharded(model) else _share_replicas
    reached = exchange(model, optimizer, step, others)
    if reached is None:
        if restore is None:
            raise StateLostError(
                "no worker has a whole state to go on from; reload a checkpoint (world.share(..., restore=function)), "
                "or let this exception end the worker, which then starts again"
            )
        reached = reload(restore)
    model.zero_grad(set_to_none=True)
    if optimizer is not None:
        optimizer.zero_grad(set_to_none=True)
    _ledger.begin(world, model, optimizer, reached, step, others)
    return reached


def reload(restore: Callable[[], int]) -> int:
    """Call the program's function that reads a checkpoint; unlike the rest of this package, it may be interrupted.

    Nothing is lost by that: all workers' states are still known not to be whole.
    """
    return restore()


def keep(model: Any, optimizer: Any, step: int, others: Sequence[Any]) -> None:
    """See :meth:`._world.World.keep`."""
    if is_sharded(model):
        _ledger.whole = take_whole(model, optimizer, step, others)


def _share_replicas(model: Any, optimizer: Any, step: int, others: Sequence[Any]) -> int | None:
    """Every worker has the whole state: those that are furthest keep it; return their step, ``None`` if all is lost."""
    source, furthest, receivers = _compare(_ledger.is_torn, _ledger.true_step(step))
    if source is None:
        return None
    if receivers:
        objects = [model, *([] if optimizer is None else [optimizer]), *others]
        rank = dist.get_rank()
        if rank == source:
            _send([each.state_dict() for each in objects], receivers)
        elif rank in receivers:
            _ledger.is_torn = True
            for each, state in zip(objects, _receive(source), strict=True):
                each.load_state_dict(state)
    return furthest


def _share_shards(model: Any, optimizer: Any, step: int, others: Sequence[Any]) -> int | None:
    """Every worker has shards of this world: all load theirs from the newest copy; as above."""
    whole = _ledger.whole
    has_none = _ledger.is_shared and whole is None
    source, furthest, receivers = _compare(has_none, step if whole is None else whole.step)
    if source is None:
        return None
    rank = dist.get_rank()
    has_copy = torch.tensor([whole is not None], dtype=torch.int64, device=_device())
    dist.broadcast(has_copy, source)
    if not has_copy:
        return furthest  # the first world of all
    if rank == source and whole is not None and receivers:
        _send(whole.states, receivers)
    elif rank in receivers:
        whole = _ledger.whole = WholeState(furthest, _receive(source))
    assert whole is not None
    load_whole(whole, model, optimizer, others)
    return furthest


def _compare(is_torn: bool, step: int) -> tuple[int | None, int, list[int]]:
    """Return the rank whose state counts (``None`` if no state is whole), its step, and the ranks that need it."""
    mine = torch.tensor([_ledger.is_shared, is_torn, step], dtype=torch.int64, device=_device())
    table = [torch.zeros_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(table, mine)
    rows = [tuple(int(number) for number in row) for row in table]
    survivors = [rank for rank, (is_shared, _, _) in enumerate(rows) if is_shared]
    whole = [rank for rank in survivors or range(len(rows)) if not rows[rank][1]]
    if not whole:
        return None, 0, []
    furthest = max(rows[rank][2] for rank in whole)
    keepers = [rank for rank in whole if rows[rank][2] == furthest]
    return keepers[0], furthest, [rank for rank in range(len(rows)) if rank not in keepers]


def _device() -> torch.device:
    """Return the device whose tensors the default group takes."""
    if "gloo" in dist.get_backend() or "mpi" in dist.get_backend():
        return torch.device("cpu")
    return torch.device(torch.accelerator.current_accelerator() or "cpu")


# --- from one worker to another -------------------------------------------------------------------------------------


def _send(state: Any, receivers: Sequence[int]) -> None:
    frame = io.BytesIO()
    packer = _Packer(frame)
    packer.dump(state)
    head = torch.frombuffer(bytearray(frame.getvalue()), dtype=torch.uint8).to(_device())
    size = torch.tensor([head.numel()], dtype=torch.int64, device=_device())
    for receiver in receivers:
        for tensor in (size, head, *packer.tensors):
            if tensor.numel():
                dist.send(tensor.detach().to(_device()).contiguous(), receiver)


def _receive(source: int) -> Any:
    size = torch.zeros(1, dtype=torch.int64, device=_device())
    dist.recv(size, source)
    head = torch.zeros(int(size), dtype=torch.uint8, device=_device())
    dist.recv(head, source)

    def receive(shape: Sequence[int], kind: torch.dtype) -> torch.Tensor:
        tensor = torch.empty(shape, dtype=kind, device=_device())
        if tensor.numel():
            dist.recv(tensor, source)
        return tensor

    return _Unpacker(io.BytesIO(head.cpu().numpy().tobytes()), receive).load()


@final
class _Packer(pickle.Pickler):
    """Writes a state of whatever types, without its dense tensors: their values travel behind it, in its order."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.tensors: list[torch.Tensor] = []
        self._places: dict[int, int] = {}

    def persistent_id(self, value: Any) -> tuple[int, tuple[int, ...], torch.dtype] | None:
        if type(value) not in (torch.Tensor, torch.nn.Parameter) or value.layout is not torch.strided:
            return None
        place = self._places.setdefault(id(value), len(self.tensors))
        if place == len(self.tensors):
            self.tensors.append(value)
        return place, tuple(value.shape), value.dtype


@final
class _Unpacker(pickle.Unpickler):
    """Reads what :class:`_Packer` has written; ``receive`` returns the next tensor."""

    def __init__(self, file: IO[bytes], receive: Callable[[Sequence[int], torch.dtype], torch.Tensor]) -> None:
        super().__init__(file)
        self._receive, self._tensors = receive, list[torch.Tensor]()

    def persistent_load(self, description: tuple[int, tuple[int, ...], torch.dtype]) -> torch.Tensor:
        place, shape, kind = description
        if place == len(self._tensors):
            self._tensors.append(self._receive(shape, kind))
        return self._tensors[place]
