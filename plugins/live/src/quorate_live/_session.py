"""The channel of this process to its agent, and the thread that listens to it.

The thread takes every message.  When the agent asks the worker to leave its world, the thread breaks the world's
collectives and interrupts the main thread, again and again until the main thread has left.

What does not live here: what the main thread does (:mod:`._world`), and how collectives are broken (:mod:`._groups`).
The messages are described in the agent's half (``quorate_process_local._live``).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from types import FrameType
from typing import Any, Protocol, final

from quorate.notices import warn

ADDRESS_VARIABLE = "QUORATE_LIVE"
_FORMAT = 1
_LONGEST_MESSAGE_BYTES = 200_000
_WELCOME_TIMEOUT_SECONDS = 10.0
_ANSWER_TIMEOUT_SECONDS = 5.0
#: More than any job is told.
_LONGEST_LOSS_TIMEOUT_SECONDS = 86_400.0 * 366
#: Thirteen above Linux's first real-time signal that is free for programs.  Nothing sends these by itself.
_SIGNAL = 47
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.01, 0.25


class Place(Protocol):
    """A world that the main thread may be in, as the thread needs it."""

    def break_collectives(self) -> None: ...

    def interrupt(self, frame: FrameType | None) -> None: ...


@final
class Session:
    """What this worker and its agent know of each other.  All attributes are guarded by ``changed``.

    Arguments:
        channel: connected, and welcomed by the agent.
        loss_timeout: seconds within which the agent learns that another node is lost.
    """

    def __init__(self, channel: socket.SocketType, loss_timeout: float) -> None:
        self._channel = channel
        self.loss_timeout = loss_timeout
        self.changed = threading.Condition()
        #: The world that the main thread is in.
        self.place: Place | None = None
        self._asked = self._left = 0  # the newest request to leave, and the newest that was acknowledged
        #: Whether this worker has a place in a world, and the variables of it that are not set yet.
        self._is_assigned, self._changes = True, dict[str, str | None]()
        self._questions, self._answers = 0, dict[int, bool]()
        self._is_over = self._has_ended = False
        self._owner = os.getpid()
        self._main = threading.main_thread().ident
        signal.signal(_SIGNAL, self._on_signal)
        self._thread = threading.Thread(target=self._listen, name="quorate-live", daemon=True)
        self._thread.start()

    # --- on the main thread -----------------------------------------------------------------------------------------

    @property
    def is_asked_to_leave(self) -> bool:
        """Whether the world that this worker was last assigned to has ended."""
        return self._asked > self._left

    def wait_for_request(self, timeout: float) -> bool:
        """Return whether the agent asks this worker to leave its world within ``timeout`` seconds."""
        with self.changed:
            self.changed.wait_for(lambda: self.is_asked_to_leave or self._is_over or self._has_ended, timeout)
            return self.is_asked_to_leave

    def wait_for_assignment(self) -> None:
        """Wait until this worker has a place in a world, and set the variables that describe it."""
        with self.changed:
            self.changed.wait_for(lambda: self._is_assigned or self._is_over)
            if not self._is_assigned:
                sys.exit("the agent has closed its channel to this live worker")
            for name, value in self._changes.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
            self._changes.clear()

    def enter(self, place: Place) -> None:
        """Enter the world that this worker is assigned to now, which may be a later one than it was told."""
        with self.changed:
            self.wait_for_assignment()
            self.place = place

    def acknowledge(self) -> None:
        """Tell the agent that this worker has left its world."""
        with self.changed:
            self._acknowledge()

    def _acknowledge(self) -> None:
        self.place, self._left, self._is_assigned = None, self._asked, False
        self._send({"left": self._left})
        self.changed.notify_all()

    def end(self, is_asked_in_vain: bool = False) -> bool:
        """Be a worker like any other from now on, unless the agent asks this one to leave; return whether it is.

        The agent still answers whether the world is the job's: programs write their last checkpoint after it.  One that
        fails by itself (``is_asked_in_vain``) is not going to leave: the agent need not wait for that.
        """
        with self.changed:
            if self.is_asked_to_leave and not is_asked_in_vain:
                return False
            self.place, self._has_ended = None, True
            self._send({"end": True})
            return True

    def quit(self) -> None:
        """Tell the agent that this worker has left its world and does not want another one."""
        with self.changed:
            self._send({"quit": True})

    def forget(self) -> None:
        """In a forked child: the channel is the parent's alone, and the lock may be held by a thread of the parent."""
        self.changed = threading.Condition()
        self.place, self._is_over = None, True
        self._channel.close()

    @property
    def has_ended(self) -> bool:
        """Whether this worker is one like any other by now."""
        return self._has_ended

    @property
    def is_forked(self) -> bool:
        """Whether this is another process than the one that is live."""
        return os.getpid() != self._owner

    def is_current(self) -> bool:
        """Ask the agent whether the world that this worker is in is still the job's.

        Raises:
            RuntimeError: this is a forked child, which has no agent.
        """
        if self.is_forked:
            raise RuntimeError(
                "world.commit() must be called in the process that has called worlds(), not in its child"
            )
        with self.changed:
            if self.is_asked_to_leave or self._is_over:
                return False
            self._questions += 1
            number = self._questions
            if not self._send({"ask": number}):
                return False
            self.changed.wait_for(
                lambda: number in self._answers or self.is_asked_to_leave or self._is_over, _ANSWER_TIMEOUT_SECONDS
            )
            return self._answers.pop(number, False) and not self.is_asked_to_leave

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        place = self.place
        if place is not None and self.is_asked_to_leave and not self.is_forked:
            place.interrupt(frame)

    # --- on the thread ----------------------------------------------------------------------------------------------

    def _send(self, message: Mapping[str, Any]) -> bool:
        try:
            self._channel.send(json.dumps(message).encode())
        except OSError:
            return False
        return True

    def _listen(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while True:
            try:
                data = self._channel.recv(_LONGEST_MESSAGE_BYTES)
            except OSError:
                data = b""
            if not data:
                break
            try:
                message = _parse(data)
            except ValueError as error:
                warn(f"this worker is not live any more: its agent sent what is not a message ({error})")
                break
            with self.changed:
                self._take(message)
                self.changed.notify_all()
            if "leave" in message:
                self._drive_out()
        with self.changed:
            self._is_over = True
            self.changed.notify_all()

    def _take(self, message: Mapping[str, Any]) -> None:
        if "leave" in message:
            if self._has_ended:
                return  # it was sent before the agent knew; this worker is stopped
            self._asked = message["leave"]
            if self.place is None:
                self._acknowledge()  # the main thread is in no world
        elif "assign" in message:
            self._changes.update(message["assign"])
            self._is_assigned = True
        elif "answer" in message:
            self._answers[message["answer"]] = message["is_current"] is True

    def _drive_out(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while True:
            with self.changed:
                if not self.is_asked_to_leave or self._is_over:
                    return
                place = self.place
            if place is not None:
                try:
                    place.break_collectives()
                except Exception as error:  # whatever it is, the main thread is told all the same
                    warn(f"what waits for other workers could not be ended ({type(error).__name__}: {error})")
                if self._main is not None and signal.getsignal(_SIGNAL) == self._on_signal:
                    signal.pthread_kill(self._main, _SIGNAL)
            with self.changed:
                self.changed.wait_for(lambda: not self.is_asked_to_leave, pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


def _parse(data: bytes) -> dict[str, Any]:
    """Return the agent's message.  Raises ValueError for what is none."""
    try:
        message = json.loads(data)
        if not isinstance(message, dict):
            raise ValueError("it is not an object")
        for name in message.keys() & {"leave", "answer"}:
            if type(message[name]) is not int:
                raise ValueError(f"{name} is not a number")
        for name, value in dict(message.get("assign", {})).items():
            if not name or "=" in name or not isinstance(value, (str, type(None))):
                raise ValueError("it assigns what is not a variable")
            if b"\0" in os.fsencode(name) + os.fsencode(value or ""):
                raise ValueError("it assigns what is not a variable")
        if "loss_timeout" in message and not 0 <= float(message["loss_timeout"]) <= _LONGEST_LOSS_TIMEOUT_SECONDS:
            raise ValueError("loss_timeout is not a time")
        return message
    except (TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"it is not a message ({type(error).__name__})") from None


def connect() -> Session | None:
    """Become live: return the session with this process's agent, ``None`` where there is no agent to talk to."""
    address = os.environ.get(ADDRESS_VARIABLE, "")
    if not address.startswith("@"):
        return None
    # Not socket.socket: the program may have replaced that by a class that knows no Unix sockets (proxies).
    channel = socket.SocketType(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        channel.settimeout(_WELCOME_TIMEOUT_SECONDS)
        channel.connect("\0" + address[1:])
        channel.send(json.dumps({"live": _FORMAT}).encode())
        welcome = _parse(channel.recv(_LONGEST_MESSAGE_BYTES) or b"{}")
        channel.settimeout(None)
    except (OSError, ValueError) as error:
        channel.close()
        warn(f"this worker is not live: it cannot reach its agent ({error})")
        return None
    if welcome.get("welcome") != _FORMAT or "loss_timeout" not in welcome:
        channel.close()
        warn("this worker is not live: its agent has not accepted it")
        return None
    return Session(channel, float(welcome["loss_timeout"]))
