"""Runs the rendezvous machine on a real store.  All decisions are in ``_executor``.

Three threads, so that a store that hangs can stop neither the machine's clock nor the agent:

* *rendezvous*: owns the machine's state, turns inputs into commands, keeps time;
* *store*: carries out calls, one at a time, and opens the store before the first;
* *wait*: sits in the one blocking wait.

An unexpected exception in a thread becomes ``RendezvousFailed``, which ends the agent; no thread ends in silence.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, TypeVar, final

from attrs import evolve

from .._isolation import described
from ..clock import LONGEST_WAIT_SECONDS, monotonic, seconds_until
from ..errors import FailureKind, QuorateError, StoreLostError, StoreUnavailableError
from ..notices import warn
from ..records import NodeRecord, RoundSummary
from ._executor import Interpreter, PendingWait
from ._incarnation_store import IncarnationStore, wrong_answer
from ._last_word import LastWords
from ._liveness import Heartbeat, HeartbeatState
from ._protocol import Call, Failed, Input, Key, Operation, Output, Phase, RendezvousFailed, Reply, Settings
from ._refusals import RefusalReader, tell_refusal
from ._sealing import refusal_of
from ._state import State, Step
from ._store import HostedStore, InterruptibleStore, Store, put_many
from ._transition import own_heartbeat_key

_T = TypeVar("_T")
_LONG_WAIT_SECONDS = 3600.0
#: The longest wait in a store that has no ``interrupt``.
_SLICE_SECONDS = 1.0
#: How long the end of the interpreter waits for the threads of handlers that were never shut down.
_EXIT_SECONDS = 2.0
#: After this time a call without an answer counts as failed.
_CALL_SECONDS = 10.0
#: The drivers of this process whose threads may run.
_running: weakref.WeakSet[Driver] = weakref.WeakSet()


# Registered as this module is imported, so that it runs after what a program registers for a handler of its own.
@atexit.register
def _stop_before_exit() -> None:
    """Stop the threads of all drivers that were never closed, without a word to the other nodes.

    The interpreter ends a daemon thread the moment that it returns from a call of a library.  Where that library is
    written in C++, as torch's store is, the process would abort.
    """
    drivers = list(_running)
    for driver in drivers:
        driver.request_stop()
    deadline = monotonic() + _EXIT_SECONDS
    for driver in drivers:
        driver.join(deadline)


@final
class Driver:
    """One node's rendezvous machine, running.

    Arguments:
        settings: bounds and timeouts.
        open_store: opens the store; called on the store thread, again after StoreUnavailableError.
        decide_ranks, decide_rescale: the policies, called on the rendezvous thread.
        emit: called on the rendezvous thread with each output of the machine; must not block.
        after_call: called on the store thread after each call; may use the store and raise StoreUnavailableError.
        refused: called on the store thread with a sentence about each node that was refused while a round runs.
    """

    def __init__(
        self,
        settings: Settings,
        open_store: Callable[[], Store],
        decide_ranks: Callable[[Sequence[NodeRecord], Sequence[str]], Sequence[str]],
        decide_rescale: Callable[[RoundSummary, int], bool],
        emit: Callable[[Output], None],
        after_call: Callable[[], None] | None = None,
        refused: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        self._refusals = RefusalReader(refused)
        self._open_store, self._after_call = open_store, after_call
        self.decide_ranks, self.decide_rescale, self.emit = decide_ranks, decide_rescale, emit
        self._interpreter = Interpreter(settings, self, monotonic, _CALL_SECONDS, self._on_step)
        self._inputs: SimpleQueue[Input | None] = SimpleQueue()
        self._calls: SimpleQueue[Call | Callable[[Store], object] | None] = SimpleQueue()
        self._store: Store | None = None
        self._last_words = LastWords(self._calls.put)
        self._is_opening = False
        self._opened = threading.Event()
        self._pending, self._pending_changed = PendingWait(), threading.Condition()
        self._is_closing = False
        self._linger_seconds = 0.0
        self._threads: list[threading.Thread] = []
        self._says_goodbye = False
        self._process_id = os.getpid()

    @property
    def state(self) -> State:
        """The machine's last state (a frozen record, safe to read from any thread)."""
        return self._interpreter.state

    def start(self) -> None:
        """Start the threads.  Called once."""
        _running.add(self)
        for name, run in (("rendezvous", self._run), ("store", self._run_calls), ("wait", self._run_wait)):
            thread = threading.Thread(target=self._guard, args=(name, run), name=f"quorate-{name}", daemon=True)
            thread.start()  # raises where the system has no thread left
            self._threads.append(thread)

    def _guard(self, name: str, run: Callable[[], None]) -> None:
        """Run a thread; whatever ends it too early is the end of this node's rendezvous."""
        try:
            run()
        except BaseException as error:
            problem = f"the thread {name!r} of the rendezvous raised {described(error)}"
            self.emit(RendezvousFailed(FailureKind.of(error), problem))

    def post(self, event: Input) -> None:
        """Hand the machine an input; from any thread."""
        self._inputs.put(event)

    def query(self, function: Callable[[Store], _T], timeout: float) -> _T:
        """Run ``function`` on the store thread and return its result; from any other thread.

        Raises:
            StoreUnavailableError: no answer within ``timeout`` seconds.
        """
        answer: SimpleQueue[tuple[bool, Any]] = SimpleQueue()

        def run(store: Store) -> None:
            try:
                answer.put((True, function(store)))
            except BaseException as error:
                answer.put((False, error))

        self._calls.put(run)
        try:
            good, value = answer.get(timeout=min(timeout, LONGEST_WAIT_SECONDS))
        except Empty:
            raise StoreUnavailableError(f"the store did not answer within {timeout:g} s") from None
        if not good:
            raise value
        result: _T = value
        return result

    def refuse_round(self, reason: str) -> None:
        """Tell the nodes in line why no round will be formed: this node hosts the store, and has given up."""
        state = self.state
        if state.ticket > 0 and state.assignment is None:
            number, refusal = state.round_number, refusal_of(state.ticket, reason, FailureKind.TIMEOUT)
            self._calls.put(lambda store: store.create(Key.sealed(number), refusal))

    def tell_refusal(self, round_number: int, sentence: str) -> None:
        """Tell the members of a round that runs about this node, which was refused."""
        self._calls.put(lambda store: tell_refusal(store, round_number, sentence))

    def close(self, timeout: float, linger_seconds: float = 0.0) -> None:
        """Stop the threads and close the store; returns after at most about ``timeout + linger_seconds`` seconds.

        A node that hosts the store first gives the other members up to ``linger_seconds`` to read how the round ended.
        """
        self._says_goodbye, self._linger_seconds = True, linger_seconds
        self.request_stop()
        self.join(monotonic() + timeout + linger_seconds)
        self._last_words.close()

    def request_stop(self) -> None:
        """Have the threads end.  Without ``close`` they leave the store as it is, and the other nodes without a word.

        In a forked child of the process that started them they do not run, and their locks may be held for ever.
        """
        if self._process_id != os.getpid():
            return
        self._is_closing = True
        self._inputs.put(None)
        self._calls.put(None)
        self.wait_for(None)
        self._opened.set()

    def join(self, deadline: float) -> None:
        """Wait until the threads have ended, or until ``deadline`` (monotonic seconds)."""
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - monotonic()))
        _running.discard(self)

    # --- the rendezvous thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            event = self._next_input()
            if event is None:
                return
            self._interpreter.feed(event)
            self._last_words.follow(self.state)

    def _on_step(self, before: State, event: Input, step: Step) -> None:
        # Before this member's first heartbeat: a node that has read one no longer reads the last words of its ticket.
        if step.state.phase is Phase.RUNNING and before.phase is not Phase.RUNNING:
            self._last_words.follow(step.state)

    def _next_input(self) -> Input | None:
        while True:
            event = self._interpreter.due_input(self._is_opening)
            if event is not None:
                return event
            due_at = self._interpreter.next_due_at()
            try:
                return self._inputs.get(timeout=None if due_at is None else seconds_until(due_at))
            except Empty:
                pass

    def call(self, call: Call) -> None:
        """Queue a call for the store thread."""
        self._calls.put(call)

    def wait_for(self, key: str | None) -> None:
        """Have the wait thread wait for ``key`` instead of the key before."""
        with self._pending_changed:
            is_waiting = self._pending.set_key(key)
            self._pending_changed.notify_all()
            store = self._store
            if is_waiting and isinstance(store, InterruptibleStore):
                store.interrupt()

    # --- the store thread ---------------------------------------------------------------------------------------------

    def _run_calls(self) -> None:
        while True:
            call = self._calls.get()
            if call is None:
                break
            try:
                store = self._ensure_store()
                if isinstance(call, Call):
                    self.post(Reply(call, self._perform(store, call)))
                else:
                    call(store)
            except StoreUnavailableError as error:
                if isinstance(call, Call):
                    self.post(Failed(call, str(error), isinstance(error, StoreLostError)))
            except BaseException as error:
                self._give_up(error)
            else:
                self._follow_up()
        if self._store is not None and self._says_goodbye:
            waiting = self._threads[-1]
            if waiting is not threading.current_thread():  # it is where no thread was left for the waiting
                waiting.join(2 * _SLICE_SECONDS)  # it still uses the store
            # This node has left; where it cannot say so, the others find out by its lease.
            with suppress(BaseException):
                self._count_departure(self._store)
            try:
                self._store.close()
            except BaseException as error:
                warn(f"the rendezvous store could not be closed: {described(error)}")
            finally:
                self._last_words.close()

    def _perform(self, store: Store, call: Call) -> Any:
        along = self._refusals.keys(call, self.state)
        if not along:
            return perform(store, call)
        values = perform(store, evolve(call, keys=(*call.keys, *along)))
        self._refusals.take(values[len(call.keys) :])
        return values[: len(call.keys)]

    def _follow_up(self) -> None:
        if self._after_call is None:
            return
        try:
            self._after_call()
        except StoreUnavailableError:
            pass  # the next call finds out, and fails for the machine to see
        except BaseException as error:
            self._give_up(error)

    def _count_departure(self, store: Store) -> None:
        """Count this node as departed.  The store's host stays until all nodes are, or the linger time is over."""
        state = self.state
        if isinstance(store, IncarnationStore):
            _write_last_heartbeat(store, state)
        if state.assignment is not None:
            number, members = state.assignment.round_number, state.assignment.group_world_size
        elif state.previous is not None:
            number, members = state.previous.summary.round_number, state.previous.summary.group_world_size
        elif state.phase is Phase.FAILED and state.ticket > 0 and state.trouble.since is None:
            number, members = state.round_number - 1, 0  # no round was formed; those in line want to read why
        else:
            return
        heartbeats = [Key.rank_heartbeat(number, rank) for rank in range(members)]
        members += store.add(Key.tickets(number + 1), 0)  # standbys want to read the end, too
        if store.add(Key.departed(number), 1) >= members:
            store.create(Key.empty(number), b"")
            if isinstance(store, IncarnationStore) and _have_all_left(store.get(heartbeats)):
                store.end()
        elif self._linger_seconds > 0 and isinstance(store, HostedStore) and store.is_host:
            store.wait(Key.empty(number), self._linger_seconds)

    def _ensure_store(self) -> Store:
        if self._store is None:
            self._is_opening = True
            try:
                self._store = self._open_store()
            finally:
                self._is_opening = False
            if self._interpreter.state.settings.max_nodes > 1:
                self._last_words.opened(self._store)
            self._opened.set()
        return self._store

    def _give_up(self, error: BaseException) -> None:
        """The settings are wrong, or the store raised what its contract does not name: retrying cannot help."""
        text = str(error) if isinstance(error, QuorateError) else f"the store raised {described(error)}"
        self.emit(RendezvousFailed(FailureKind.of(error), text))

    # --- the wait thread ----------------------------------------------------------------------------------------------

    def _run_wait(self) -> None:
        self._opened.wait()
        while True:
            with self._pending_changed:
                while (key := self._pending.begin()) is None and not self._is_closing:
                    self._pending_changed.wait()
                if self._is_closing:
                    return
            store = self._store
            assert store is not None
            assert key is not None
            value, failure = None, None
            try:
                can_stop = isinstance(store, InterruptibleStore)
                value = _checked(store, "wait", store.wait(key, _LONG_WAIT_SECONDS if can_stop else _SLICE_SECONDS))
            except StoreUnavailableError as error:
                failure = Failed(None, str(error), isinstance(error, StoreLostError))
            except BaseException as error:
                self._give_up(error)
                return
            with self._pending_changed:
                event = self._pending.finish(key, value, failure)
                if event is not None:
                    self.post(event)


def _write_last_heartbeat(store: Store, state: State) -> None:
    """Say that this node has left, so that no other node waits for it, or takes it for one that lives."""
    if state.node is None or (state.assignment is None and state.ticket == 0):
        return
    word = HeartbeatState.DONE_AND_LEFT if state.is_done else HeartbeatState.LEFT
    value = Heartbeat(state.heartbeat_count + 1, word, state.node.host).encode()
    items = [(own_heartbeat_key(state), value)]
    if state.assignment is None and state.node.previous_round is not None and state.node.previous_rank is not None:
        items.append((Key.rank_heartbeat(state.node.previous_round, state.node.previous_rank), value))
    put_many(store, items)


def _have_all_left(heartbeats: Sequence[bytes | None]) -> bool:
    """A repeated count of those that departed is too high: the heartbeats of a round's members say who has left."""
    return all(value is not None and Heartbeat.decode(value).state.has_left for value in heartbeats)


def perform(store: Store, call: Call) -> Any:
    """Carry out one call, and return the value of its reply.

    Raises:
        RendezvousStateError: the answer is not of the type that the store's contract names.
    """
    if call.operation is Operation.ADD:
        return _checked(store, "add", store.add(call.keys[0], call.amount))
    if call.operation is Operation.CREATE:
        return _checked(store, "create", store.create(call.keys[0], call.values[0]))
    if call.operation is Operation.PUT:
        return store.put(call.keys[0], call.values[0])
    if call.operation is Operation.PUT_MANY:
        return put_many(store, list(zip(call.keys, call.values, strict=True)))
    values = store.get(call.keys)
    if not isinstance(values, Sequence) or len(values) != len(call.keys):
        raise wrong_answer(store, "get", values)
    return [_checked(store, "get", value) for value in values]


_ANSWERS: Mapping[str, tuple[type, ...]] = {
    "add": (int,),
    "create": (bool,),
    "get": (bytes, type(None)),
    "wait": (bytes, type(None)),
}


def _checked(store: Store, method: str, answer: Any) -> Any:
    if not isinstance(answer, _ANSWERS[method]) or (isinstance(answer, bool) and method != "create"):
        raise wrong_answer(store, method, answer)
    return answer
