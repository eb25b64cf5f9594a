"""``worlds()`` and :class:`World`: the places of this worker in the rounds of its job, one after the other.

What does not live here: the channel to the agent (:mod:`._session`), torch's process groups (:mod:`._groups`) and the
state that is shared with newcomers (:mod:`._share`).
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from importlib import import_module
from types import FrameType, ModuleType, TracebackType
from typing import Any, final

from quorate.clock import monotonic, sleep

from . import _groups
from ._coroutines import EnteredTask, entered_task
from ._errors import WorldEnded, is_interruption, is_peer_loss
from ._groups import Groups
from ._meeting import wait_for_store
from ._session import Session, connect

#: The least time for which a broken collective waits for the agent's word: a worker that fails closes its connections
#: some time before its process has ended, which is when its agent notices.
_SHORTEST_LOSS_TIMEOUT_SECONDS = 10.0
#: For how long an interruption waits between an update of the parameters and the next forward pass.
_LONGEST_HOLD_SECONDS = 1.0
#: How often in a row no other thread may be seen in torch's collectives before a world is left, and how far apart.
_CLEAR_LOOKS, _LOOK_PAUSE_SECONDS = 4, 0.003
_OWN_THREADS = 2  # the main thread, and the session's
_FOLDER = os.path.dirname(os.path.abspath(__file__)) + os.sep

#: Where Python's own functions for imports are from, as their frames say.
_IMPORTER = "<frozen importlib._bootstrap>"
#: The function of this package that calls one of the program, which may be interrupted as if it stood alone.
_PROGRAMS_OWN = "reload"

_session: Session | None = None


def worlds() -> Iterator[World]:
    """Yield a :class:`World` for each round that this worker takes part in; the last is the one that ends by itself.

    The first call makes this worker a live one.  Without an agent that can do so (a plain start, another launcher)
    there is one world.

    Raises:
        RuntimeError: this is not the main thread, which alone can be interrupted; or the body of the loop has no ``with
            world``.
    """
    global _session
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("worlds() must be called in the main thread: no other thread can be taken out of a world")
    if _session is None:
        _session = connect()
    number = 0
    while True:
        if _session is not None:
            _session.wait_for_assignment()
        world = World(_session, number)
        try:
            yield world
        except GeneratorExit:
            if world.has_ended and _session is not None:
                _session.quit()  # the program has left the loop although another world follows
            raise
        if not world.was_entered:
            raise RuntimeError("a world was not entered: put what a worker does in a round into 'with world:'")
        if not world.has_ended:
            return
        number += 1


@final
class World:
    """This worker's place in one round; a context manager, whose exit takes torch's process groups down.

    Attributes:
        number: how many worlds this process was in before.
        was_entered: whether ``with world`` has begun.
        has_ended: whether the round is over, so that another world follows.
    """

    def __init__(self, session: Session | None, number: int) -> None:
        self._session, self.number = session, number
        self._groups: Groups | None = None
        self._is_open = False
        self._is_held = False
        self._task: EnteredTask | None = None
        self._update: FrameType | None = None
        self._imports = 0  # that were running when this world was entered
        self._pending_since: float | None = None
        self.has_ended = self.was_entered = False

    # --- what a program asks ----------------------------------------------------------------------------------------

    @property
    def rank(self) -> int:
        """This worker's rank; may be another one than in the world before."""
        return int(os.environ.get("RANK", "0"))

    @property
    def size(self) -> int:
        """The number of workers."""
        return int(os.environ.get("WORLD_SIZE", "1"))

    @property
    def generation(self) -> int:
        """The fencing number of the round: it rises with each sealed round of the job."""
        return int(os.environ.get("QUORATE_GENERATION", "0"))

    @property
    def is_live(self) -> bool:
        """Whether this worker has an agent that can take it into the next round."""
        return self._session is not None and not self._session.has_ended

    def commit(self) -> bool:
        """Return whether this world is still the job's, as far as the agent knows: to be asked before a checkpoint."""
        return self._session is None or (self._session.is_current() and not self.has_ended)

    def share(
        self,
        model: Any,
        optimizer: Any = None,
        step: int = 0,
        *others: Any,
        restore: Callable[[], int] | None = None,
    ) -> int:
        """Bring all workers of this world to the same state, and return the step that it is the state of.

        Workers whose state is furthest keep theirs; all others, newcomers among them, get it over the default process
        group, which must be there.  Gradients are cleared.

        Arguments:
            model: a torch module, wrapped for parallel training or not, alike on all workers.
            optimizer: a torch optimizer, or ``None``.
            step: the number of updates (calls of ``optimizer.step()``) that this worker's state has seen.
            others: whatever else has ``state_dict()`` and ``load_state_dict()``: a scheduler, a scaler.
            restore: called on all workers where no whole state is left: reloads a checkpoint and returns its step.

        Raises:
            StateLostError: no whole state is left, and ``restore`` was not given.

        A model in shards (``fully_shard``) is made in each world anew; it goes on from the step of the newest copy that
        the workers have taken by :meth:`keep`.
        """
        reached: int = _sharing().share(self, model, optimizer, step, others, restore)
        return reached

    def keep(self, model: Any, optimizer: Any = None, step: int = 0, *others: Any) -> None:
        """Take a copy of a state in shards into the memory of each worker; what is not in shards needs none.

        All workers of this world call it at the same step.  It gathers all shards, and needs as much memory of each
        host's as the whole state has, for each of its workers.

        Arguments:
            model, optimizer, step, others: as for :meth:`share`.
        """
        _sharing().keep(model, optimizer, step, others)

    # --- entering and leaving ---------------------------------------------------------------------------------------

    def __enter__(self) -> World:
        if self.was_entered:
            raise RuntimeError("this world was entered before: take the next one from worlds()")
        self.was_entered = True
        session = self._session
        if session is not None:
            self._task = entered_task()
            self._imports = _count_imports(sys._getframe(1))
            session.enter(self)
            self._groups = Groups()
            wait_for_store(lambda: session.is_asked_to_leave)
        self._is_open = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._is_open = False
        session, groups = self._session, self._groups
        if session is not None and session.is_forked:
            return False  # the groups are the parent's
        if session is None or groups is None:
            if error is None:
                _groups.destroy()
            return False
        was_taken_out = self._task is not None and self._task.leave(error)
        is_own = error is not None and not (was_taken_out or is_interruption(error) or is_peer_loss(error))
        if is_own or not self._has_to_leave(session, error):
            groups.close()
            if session.end(is_asked_in_vain=is_own):
                if error is None:
                    _groups.destroy()
                return False
        groups.take_down()
        _wait_for_threads(groups)
        self.has_ended = True
        session.acknowledge()
        return True

    @staticmethod
    def _has_to_leave(session: Session, error: BaseException | None) -> bool:
        if session.is_asked_to_leave or error is None or not is_peer_loss(error):
            return session.is_asked_to_leave
        return session.wait_for_request(max(session.loss_timeout, _SHORTEST_LOSS_TIMEOUT_SECONDS))

    # --- called by the session --------------------------------------------------------------------------------------

    def break_collectives(self) -> None:
        """On the session's thread: end what waits for other workers."""
        if self._groups is not None:
            self._groups.break_collectives()

    def interrupt(self, frame: FrameType | None) -> None:
        """In the signal handler, on the main thread: leave the world, now or as soon as an update is complete."""
        if not self._is_open or _is_own(frame) or self._is_in_update(frame):
            return
        if _count_imports(frame) > self._imports:
            return  # a module that is imported in part could never be imported again
        if self._is_held:
            now = monotonic()
            self._pending_since = self._pending_since or now
            if now < self._pending_since + _LONGEST_HOLD_SECONDS:
                return
        if self._task is not None and self._task.cancel_if_it_waits():
            return
        raise WorldEnded("this worker's round is over")

    # --- called by the hooks of shared objects ----------------------------------------------------------------------

    def begin_update(self, frame: FrameType) -> None:
        """The parameters are about to change: no interruption until ``frame`` has ended, in whatever way."""
        self.begin_step()
        self._update = frame

    def end_update(self) -> None:
        """The parameters have changed: interruptions wait for the next forward pass, so that the step is counted."""
        self._is_held, self._update = True, None

    def begin_step(self) -> None:
        """A forward pass begins: between two steps, unless the update itself wants it."""
        if self._is_in_update(sys._getframe()):
            return
        self._is_held = False
        if self._pending_since is not None and self._is_open:
            self._pending_since = None
            raise WorldEnded("this worker's round is over")

    def _is_in_update(self, frame: FrameType | None) -> bool:
        if self._update is None:
            return False
        while frame is not None and frame is not self._update:
            frame = frame.f_back
        return frame is not None


def _sharing() -> ModuleType:
    """Return the module that needs torch, which this one does without."""
    return import_module(f"{__package__}._share")


def _is_own(frame: FrameType | None) -> bool:
    """Return whether a function of this package runs that looks itself whether the world has ended."""
    while frame is not None:
        if frame.f_code.co_filename.startswith(_FOLDER):
            return frame.f_code.co_name != _PROGRAMS_OWN
        frame = frame.f_back
    return False


def _count_imports(frame: FrameType | None) -> int:
    """Return how many imports run, those that others wait for included."""
    count = 0
    while frame is not None:
        count += frame.f_code.co_filename == _IMPORTER
        frame = frame.f_back
    return count


def _wait_for_threads(groups: Groups) -> None:
    """Wait until no other thread uses the groups; the agent stops this worker if that takes too long."""
    clear = 0
    while clear < _CLEAR_LOOKS and threading.active_count() > _OWN_THREADS:
        clear = 0 if groups.holders() else clear + 1
        sleep(_LOOK_PAUSE_SECONDS)


def _forget_parent() -> None:
    """In a forked child: the channel and the worlds are the parent's."""
    global _session
    if _session is not None:
        _session.forget()
        _session = None


os.register_at_fork(after_in_child=_forget_parent)
