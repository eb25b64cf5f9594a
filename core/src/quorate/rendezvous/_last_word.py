"""A node's last words: what is written for it if its agent dies without a word, so that the others need no lease.

Two can write them.  The *guardian* is a small process that the agent starts and that outlives it: it knows at once that
the agent is dead.  A store whose server sees connections (the ability ``last words``) writes them when a node's
connections close without a goodbye and the node does not come back: that is, when the guardian has died as well.  Where
neither can, as when a machine vanishes, the lease remains.  The sentence in the words says which of the three it was.

What does not live here: the guardian's program (:mod:`._last_word_program`), and the leases (:mod:`._liveness`).
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import final

from ..notices import warn
from ..proc import hold, kill_and_reap, release
from ..records import Cause, RoundEnd, Verdict
from ._layer import writes_below
from ._liveness import Heartbeat, HeartbeatState
from ._protocol import FINAL, Key, Phase
from ._state import State
from ._store import AttentiveStore, LastWordStore, LastWordWriter, Store, Write
from ._wire import encode

_PROGRAM = str(Path(__file__).with_name("_last_word_program.py"))
#: Higher than every heartbeat that a node has sent: nothing newer comes.
_LAST_COUNT = 10**17
KILLED = "its agent was killed"
CLOSED = "its connections to the store were closed without a goodbye, and it did not come back within {:g} s"


def _last_words_of(state: State, how: str) -> tuple[Write, ...]:
    """Return what others have to learn if the agent dies in ``state``; ``how`` completes "… is lost: …".  Pure.

    A member of a running round ends it.  Every node that others may wait for says that it has left.
    """
    node, assignment = state.node, state.assignment
    if node is None or node.declined or state.phase in FINAL or state.phase is Phase.IDLE:
        return ()
    writes: list[Write] = []
    if state.phase is Phase.RUNNING and not state.is_done:
        assert assignment is not None
        assert state.summary is not None
        rank = assignment.group_rank
        name = f"group rank {rank}" + (f" ({node.host})" if node.host else "")
        end = RoundEnd(
            assignment.round_number,
            Cause.NODE_LOST,
            Verdict.RESCALE,
            f"{name} is lost: {how}",
            node_id=node.node_id,
            host=node.host,
            restart_count=state.summary.restart_count,
            lost_ranks=(rank,),
        )
        writes.append(Write(Key.ended(assignment.round_number), encode(end), once=True))
    if assignment is not None:
        heartbeat_key = Key.rank_heartbeat(assignment.round_number, assignment.group_rank)
    elif state.ticket > 0:
        heartbeat_key = Key.ticket_heartbeat(state.round_number, state.ticket)
    else:
        return tuple(writes)
    word = HeartbeatState.DONE_AND_LEFT if state.is_done else HeartbeatState.LEFT
    writes.append(Write(heartbeat_key, Heartbeat(_LAST_COUNT, word, node.host).encode()))
    return tuple(writes)


@final
class LastWords:
    """Keeps what could write this node's last words up to date.

    Arguments:
        later: has a function called on the store thread, with the store.
    """

    def __init__(self, later: Callable[[Callable[[Store], None]], None]) -> None:
        self._later = later
        self._lock = threading.Lock()
        self._store: Store | None = None
        self._guardian: Guardian | None = None
        self._state: State | None = None
        self._told: tuple[Write, ...] = ()

    def opened(self, store: Store) -> None:
        """The store is there; called on the store thread."""
        guardian = Guardian(store.last_word_writer()) if isinstance(store, LastWordStore) else None
        with self._lock:
            self._store, self._guardian = store, guardian
            self._tell()

    def follow(self, state: State) -> None:
        """Take note of the machine's new state; called on the rendezvous thread."""
        with self._lock:
            self._state = state
            self._tell()

    def _tell(self) -> None:
        store, state = self._store, self._state
        if store is None or state is None:
            return
        words = _last_words_of(state, KILLED)
        if words == self._told:
            return
        self._told = words
        if self._guardian is not None:
            self._guardian.tell(writes_below(store, words))
        if isinstance(store, AttentiveStore):
            closed = _last_words_of(state, CLOSED.format(store.return_timeout))
            self._later(lambda _: store.set_last_words(closed))

    def close(self) -> None:
        """This node has left, or is about to be closed for good: its last words are not written any more."""
        with self._lock:
            self._store = None
            guardian, self._guardian = self._guardian, None
        if guardian is not None:
            guardian.close()


@final
class Guardian:
    """A running guardian, which calls ``write`` (a function that can be pickled) with what it was told last.

    Where it cannot be started, a warning says what that means.
    """

    def __init__(self, write: LastWordWriter) -> None:
        self._pid, self._write_end = 0, -1
        read_end, write_end = os.pipe()
        try:
            # Not in the agent's session: who kills that one's processes must not kill this one.
            self._pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-I", _PROGRAM],
                dict(os.environ),
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, read_end, 0),
                    (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                    (os.POSIX_SPAWN_DUP2, 1, 2),
                ],
                setsid=True,
            )
            self._write_end = hold(write_end)
            os.set_blocking(write_end, False)
            self._send((list(sys.path), pickle.dumps(write)))
        except (OSError, TypeError) as error:  # an embedded interpreter may have no path
            if self._write_end < 0:
                os.close(write_end)
            warn(
                f"no guardian of this node could be started ({error}): if this agent is killed, the other nodes learn "
                "it by the lease"
            )
        finally:
            os.close(read_end)

    @property
    def pid(self) -> int:
        """Its process id; 0 where it could not be started, or has ended."""
        return self._pid

    def tell(self, writes: Sequence[Write]) -> None:
        """Replace what it is to write."""
        if self._write_end >= 0:
            self._send(list(writes))

    def _send(self, frame: object) -> None:
        data = pickle.dumps(frame)
        data = len(data).to_bytes(4, "big") + data
        try:
            if os.write(self._write_end, data) == len(data):
                return
        except OSError:
            pass  # it was killed, or is stopped and has its pipe full: the lease remains
        self.close()

    def close(self) -> None:
        """End and reap it; it writes nothing."""
        pid, self._pid = self._pid, 0
        if pid:
            kill_and_reap(pid)  # before its pipe closes: at the end of the pipe it would act
        release(self._write_end)
        self._write_end = -1
