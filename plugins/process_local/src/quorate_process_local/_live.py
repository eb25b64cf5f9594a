"""The channels of one context's live workers, on the agent's side.

A worker that can live through the end of a round connects to its context when it knows so; until then nothing of this
is in it but the address in its environment.  The messages are JSON objects, one in each packet:

==========  ==========================================================================================================
from        message
==========  ==========================================================================================================
worker      ``{"live": 1}``: from now on it can be released; answered by ``{"welcome": 1, "loss_timeout": seconds}``
agent       ``{"leave": n}``: leave your world
worker      ``{"left": n}``: it has left its world, and waits
agent       ``{"assign": {name: value or null, ...}}``: the variables that differ in the next world
worker      ``{"end": true}``: its last world has ended by itself; from now on it cannot be released
worker      ``{"quit": true}``: it has left its world, and its program does not want another one
worker      ``{"ask": n}``: is its world still the job's?  Answered by ``{"answer": n, "is_current": boolean}``
==========  ==========================================================================================================

What does not live here: when workers are released and stopped (:mod:`._context`), and the worker's side
(``quorate-live``).
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, final

from quorate.notices import warn
from quorate.proc import ancestor_among, peer_of
from quorate.text import printable

from ._channel import Channel
from ._connections import Listener
from ._workers import Worker

#: Where a worker finds its agent: a name in Linux's abstract namespace of sockets, ``@`` for the leading NUL.
ADDRESS_VARIABLE = "QUORATE_LIVE"
FORMAT = 1

_LONGEST_ASSIGNMENT_BYTES = 100_000
_MESSAGES_AT_A_TIME = 64


@final
class Live:
    """The live workers of one context.

    Arguments:
        workers: the context's, those that are yet to be started included.
        watch, unwatch: have the context make a call whenever a descriptor is readable.
        loss_timeout: seconds within which other nodes notice that a node is lost; told to the workers.
        is_current: whether a worker's world is still the job's, as far as the context knows.

    Raises:
        OSError: there is no descriptor left for it.
    """

    def __init__(
        self,
        workers: Sequence[Worker],
        watch: Callable[[int, Callable[[], None]], None],
        unwatch: Callable[[int], None],
        loss_timeout: float,
        is_current: Callable[[Worker], bool],
    ) -> None:
        self._workers, self._watch, self._unwatch = workers, watch, unwatch
        self._loss_timeout, self._is_current = loss_timeout, is_current
        self._listener = Listener(socket.SOCK_SEQPACKET)
        #: Called when a worker has become live.
        self.on_live: Callable[[], None] = lambda: None
        #: The value of the variable.
        self.address = f"@{self._listener.name}"
        self._is_paused = False  # where no descriptor was left for a connection
        watch(self._listener.descriptor, self._admit)

    # --- what the context asks for ----------------------------------------------------------------------------------

    def ask_to_leave(self, deadline: float, given_up: Collection[int]) -> None:
        """Have the live workers leave their world by ``deadline`` (monotonic seconds), if they have not done so."""
        self._resume()
        self._admit()  # a worker may have become live just now
        for worker in self._workers:
            if worker.channel is not None:
                self._read(worker, worker.channel)
            channel = worker.channel
            if channel is None or not channel.is_open or worker.has_left or worker.exit_code is not None:
                continue
            if worker.result is None and worker.local_rank not in given_up:
                channel.number += 1
                if channel.send({"leave": channel.number}):
                    worker.leave_by = deadline

    def take_late(self, now: float) -> Sequence[Worker]:
        """Return the workers that did not leave their world in time; from now on they are not spared."""
        late = [worker for worker in self._workers if worker.leave_by is not None and now >= worker.leave_by]
        for worker in late:
            worker.leave_by = None
            if worker.exit_code is None:
                warn(
                    f"local rank {worker.local_rank} (pid {worker.pid}) did not leave its world in time; it is stopped"
                )
        return late

    def assign(self, worker: Worker, environment: Mapping[str, str]) -> None:
        """Let a worker that has left go on with ``environment``; one that cannot be told is killed."""
        before, channel = worker.environment, worker.channel
        changed: dict[str, str | None] = {
            name: environment.get(name)
            for name in sorted(before.keys() | environment.keys())
            if before.get(name) != environment.get(name)
        }
        message = {"assign": changed}
        worker.environment, worker.has_left = dict(environment), False
        is_short = len(json.dumps(message)) <= _LONGEST_ASSIGNMENT_BYTES
        if channel is None or not is_short or not channel.send(message):
            warn(f"local rank {worker.local_rank} cannot receive its next world, and is killed")
            worker.kill()

    def drop(self, worker: Worker) -> None:
        """Close the channel of a worker that has ended."""
        if worker.channel is not None:
            if worker.channel.descriptor >= 0:
                self._unwatch(worker.channel.descriptor)
            worker.channel.close()
            worker.channel = None
            self._resume()  # there is a descriptor again
        worker.leave_by, worker.has_left = None, False

    def close(self) -> None:
        """Close everything."""
        self._is_paused = False
        for worker in self._workers:
            self.drop(worker)
        self._unwatch(self._listener.descriptor)
        self._listener.close()

    # --- what workers say -------------------------------------------------------------------------------------------

    def _resume(self) -> None:
        if self._is_paused:
            self._is_paused = False
            self._watch(self._listener.descriptor, self._admit)

    def _admit(self) -> None:
        for _ in range(_MESSAGES_AT_A_TIME):
            try:
                accepted = self._listener.accept()
            except OSError:
                # There is no descriptor for it.  It waits in the queue, where it would wake the agent again at once.
                self._unwatch(self._listener.descriptor)
                self._is_paused = True
                return
            if accepted is None:
                return
            worker = self._worker_of(accepted)
            if worker is None or worker.channel is not None:
                accepted.close()  # a stranger, or a process that a live worker has started
                continue
            channel = worker.channel = Channel(accepted)
            self._watch(channel.descriptor, lambda worker=worker, channel=channel: self._read(worker, channel))  # type: ignore[misc] # bound now

    def _worker_of(self, accepted: socket.socket) -> Worker | None:
        """Return the worker that has connected: itself, or a process that it has started (a shell's Python)."""
        running = {worker.pid: worker for worker in self._workers if worker.exit_code is None}
        found = ancestor_among(peer_of(accepted), running)
        return None if found is None else running[found]

    def _read(self, worker: Worker, channel: Channel) -> None:
        for _ in range(_MESSAGES_AT_A_TIME):
            if channel is not worker.channel or channel.descriptor < 0:
                return
            try:
                message = channel.receive()
            except EOFError:
                self._forget(worker, may_end=True)
                return
            except ValueError as error:
                warn(f"local rank {worker.local_rank} sent what is not a message of a live worker ({error})")
                self._forget(worker)
                return
            if message is None:
                return
            self._take(worker, channel, message)

    def _take(self, worker: Worker, channel: Channel, message: Mapping[str, Any]) -> None:
        if "live" in message:
            if message["live"] != FORMAT:
                wanted = printable(str(message["live"]), 20)
                warn(f"local rank {worker.local_rank} speaks format {wanted} of live workers, its agent {FORMAT}")
                self._forget(worker)
                return
            was_open = channel.is_open
            channel.is_open = channel.send({"welcome": FORMAT, "loss_timeout": self._loss_timeout})
            if channel.is_open and not was_open:  # a worker may say it again and again
                self.on_live()
        elif message.get("left") == channel.number and worker.leave_by is not None:
            worker.leave_by, worker.has_left = None, True
        elif message.get("end") is True:
            channel.is_open = False
            if worker.leave_by is not None:
                worker.leave_by = 0.0  # long past
        elif message.get("quit") is True and channel.is_open:
            warn(
                f"local rank {worker.local_rank} (pid {worker.pid}) has left its loop over worlds() although its round "
                "was over, and is killed"
            )
            worker.has_left = False
            worker.kill()
        elif "ask" in message:
            channel.send({"answer": message["ask"], "is_current": self._is_current(worker)})

    def _forget(self, worker: Worker, may_end: bool = False) -> None:
        """Without its channel a worker is not live: one that waits cannot go on, one that leaves is stopped.

        A channel that was closed tells as a rule that its process ends (``may_end``), which is seen a moment later.  So
        one that was leaving has the rest of its time for that.
        """
        leave_by, has_left = worker.leave_by, worker.has_left
        self.drop(worker)
        if has_left:
            worker.kill()
        elif leave_by is not None:
            worker.leave_by = leave_by if may_end else 0.0  # long past
