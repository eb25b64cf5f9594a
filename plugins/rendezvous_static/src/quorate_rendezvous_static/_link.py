"""One connection from a client to the TCP store's server: made with patience, re-made when it breaks.

A link is used by one thread at a time; only :meth:`Link.interrupt` and :meth:`Link.shut` may come from others.
What does not live here: what the requests mean (``_client``).
"""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Sequence
from typing import final

from quorate.clock import monotonic
from quorate.errors import RendezvousStateError, StoreLostError, StoreUnavailableError

from ._endpoint import Address, resolve, spell
from ._fork import close_in_children
from ._tuning import tune
from ._wire import MAGIC, PROTOCOL_VERSION, Code, FrameBuffer, Message, Problem, WireError, decode, encode

__all__ = ["Broken", "Interrupted", "Link", "Target"]

_ATTEMPT_SECONDS = 3.0
_FIRST_PAUSE_SECONDS = 0.02
_LONGEST_PAUSE_SECONDS = 1.0
_LONGEST_POLL_SECONDS = 3600.0


@final
class Interrupted(Exception):  # noqa: N818 - not an error: somebody wants the thread back
    """:meth:`Link.interrupt` or :meth:`Link.shut` was called."""


@final
class Broken(Exception):  # noqa: N818 - internal, never seen by callers of the store
    """The connection is of no more use; the text says why."""


@final
class _Late(Exception):  # noqa: N818 - internal
    """The deadline has passed."""


@final
class _Refused(Exception):  # noqa: N818 - internal
    """The server answered the hello with a problem."""

    def __init__(self, problem: int, sentence: str) -> None:
        self.problem = problem
        super().__init__(sentence)


@final
class Target:
    """Whom the links of one store talk to.  ``keeper`` names the process that hosts the server, for messages."""

    __slots__ = ("address", "host", "incarnation", "keeper", "port", "run_id")

    def __init__(self, host: str, port: int, run_id: str, keeper: str) -> None:
        self.host, self.port, self.run_id, self.keeper = host, port, run_id, keeper
        self.address: Address | None = None
        self.incarnation: bytes | None = None

    @property
    def endpoint(self) -> str:
        return spell(self.host, self.port)

    def lost(self, how: str) -> StoreLostError:
        return StoreLostError(
            f"{self.keeper} ({self.endpoint}) is gone, and with it the rendezvous store that it held: {how}"
        )


@final
class Link:
    """One connection."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._socket: socket.socket | None = None
        self._frames = FrameBuffer()
        self._request = 0
        self._shut = False
        self._wake_out, self._wake_in = socket.socketpair()
        self._wake_out.setblocking(False)
        self._wake_in.setblocking(False)
        close_in_children(self)

    # --- from any thread ------------------------------------------------------------------------------------------

    def interrupt(self) -> None:
        """Make what is under way, or else the next call, raise Interrupted.  Never blocks."""
        try:
            self._wake_in.send(b"x")
        except OSError:
            pass  # full (it is readable already) or released

    def shut(self) -> None:
        """As :meth:`interrupt`, for good."""
        self._shut = True
        self.interrupt()

    @property
    def is_shut(self) -> bool:
        """Whether :meth:`shut` was called, or this is a forked child's copy."""
        return self._shut

    def release(self) -> None:
        """Close every descriptor; only after :meth:`shut`, and once no call is under way."""
        self._disconnect()
        self._wake_out.close()
        self._wake_in.close()

    def close_after_fork(self) -> None:
        """Close this process's copies; for a child that was forked off."""
        self._shut = True
        self.release()

    # --- from the one thread that uses it -------------------------------------------------------------------------

    def open(self, timeout: float) -> None:
        """Connect for the first time; tries again, with pauses, until ``timeout`` seconds have passed.

        Raises:
            StoreUnavailableError: nobody who speaks the protocol answered; names everything that was tried.
            RendezvousStateError: who answered serves another job or speaks another version.
        """
        deadline = monotonic() + timeout
        tried: dict[str, str] = {}
        refused: _Refused | None = None
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                found = resolve(self._target.host, self._target.port, max(0.1, deadline - monotonic()))
            except OSError as error:
                found, tried[self._target.endpoint] = [], _sentence(error)
            for address in found:
                try:
                    self._dial(address, min(deadline, monotonic() + _ATTEMPT_SECONDS))
                    return
                except (OSError, Broken, _Late) as error:
                    tried[str(address)] = _sentence(error)
                except _Refused as error:
                    refused, tried[str(address)] = error, str(error)
            wrong_version = refused is not None and refused.problem == Problem.VERSION
            if wrong_version or not self._pause(pause, deadline):
                break
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
        story = "; ".join(f"{where}: {problem}" for where, problem in tried.items())
        if refused is not None:
            raise RendezvousStateError(
                f"the rendezvous store at {self._target.endpoint} cannot be used: {refused}. Give every node of the "
                "job the same --rdzv-id and version of quorate-rendezvous-static, and each job an endpoint of its own"
            )
        raise StoreUnavailableError(
            f"cannot reach the rendezvous store at {self._target.endpoint} within {timeout:.1f} s ({story}). Make "
            f"sure that {self._target.keeper} runs and that this machine can reach it at that address "
            "(--rdzv-endpoint, or --master-addr and --master-port)"
        )

    def call(self, code: Code, number: int, items: Sequence[bytes], deadline: float, *, repeatable: bool) -> Message:
        """Send a request and return its first answer, over a new connection to the same server if need be.

        Raises:
            Interrupted: see :meth:`interrupt`.
            StoreUnavailableError: no answer by ``deadline``, or the connection broke under a request that must not
                be sent twice.
            StoreLostError: the server is gone.
        """
        pause = _FIRST_PAUSE_SECONDS
        while True:
            if self._socket is None:
                self._dial_again(deadline)
            self._request = (self._request + 1) % (1 << 32)
            try:
                self._send(encode(code, self._request, number, items), deadline)
                return self._receive(self._request, deadline)
            except _Late:
                raise StoreUnavailableError(
                    f"the rendezvous store at {self._target.endpoint} did not answer in time; "
                    f"{self._target.keeper} may be overloaded, stopped or cut off"
                ) from None
            except Broken as error:
                how = str(error)
            self._disconnect()
            self._dial_again(deadline)  # whether it is gone should be known at once
            if not repeatable or not self._pause(pause, deadline):
                raise StoreUnavailableError(f"the connection to the store at {self._target.endpoint} broke: {how}")
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    def listen(self, request: int, deadline: float) -> Message | None:
        """Return the next answer to ``request``; ``None`` at ``deadline``.  Raises Broken and Interrupted."""
        try:
            return self._receive(request, deadline)
        except _Late:
            return None
        except Broken:
            self._disconnect()
            raise

    # --- connecting -----------------------------------------------------------------------------------------------

    def _dial_again(self, deadline: float) -> None:
        """Connect to the very server that was talked to before; nobody else has what it held."""
        address = self._target.address
        assert address is not None
        problem, pause = "", _FIRST_PAUSE_SECONDS
        while True:
            try:
                self._dial(address, min(deadline, monotonic() + _ATTEMPT_SECONDS))
                return
            except ConnectionRefusedError:
                raise self._target.lost("nothing listens there any more") from None
            except _Refused as error:
                raise self._target.lost(f"another server has taken its place ({error})") from None
            except (OSError, Broken, _Late) as error:
                problem = _sentence(error)
            if not self._pause(pause, deadline):
                raise StoreUnavailableError(
                    f"the connection to the rendezvous store at {self._target.endpoint} broke and cannot be made "
                    f"again so far: {problem}"
                )
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    def _dial(self, address: Address, deadline: float) -> None:
        sock = socket.socket(address.family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            tune(sock)
            code = sock.connect_ex(address.sockaddr)
            if code == errno.EINPROGRESS:
                self._await(sock, select.POLLOUT, deadline)
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, os.strerror(code))
            if sock.getsockname() == sock.getpeername():
                # A port that nobody listens on may be picked as our own, and TCP then connects it to itself.
                raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
            self._socket, self._frames = sock, FrameBuffer()
            self._greet(deadline)
        except BaseException:
            self._socket = None
            sock.close()
            raise
        self._target.address = address

    def _greet(self, deadline: float) -> None:
        target = self._target
        self._send(encode(Code.HELLO, 0, PROTOCOL_VERSION, [MAGIC, target.run_id.encode()]), deadline)
        answer = self._receive(0, deadline)
        if answer.code == Code.PROBLEM:
            raise _Refused(answer.number, _text(answer))
        incarnation = answer.items[0] if answer.items else None
        if answer.code != Code.OK or incarnation is None:
            raise Broken("what answers is no quorate store")
        if target.incarnation is not None and target.incarnation != incarnation:
            raise _Refused(0, "it is a newer one")
        target.incarnation = incarnation

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    # --- bytes ----------------------------------------------------------------------------------------------------

    def _send(self, frame: bytes, deadline: float) -> None:
        assert self._socket is not None
        left = memoryview(frame)
        try:
            while left:
                try:
                    left = left[self._socket.send(left) :]
                except BlockingIOError:
                    self._await(self._socket, select.POLLOUT, deadline)
        except OSError as error:
            raise Broken(_sentence(error)) from None
        except (_Late, Interrupted):
            if len(left) < len(frame):
                self._disconnect()  # half a frame is out: nothing can follow it
            raise

    def _receive(self, request: int, deadline: float) -> Message:
        """Return the next answer to ``request``; answers to older ones, which nobody waits for, are dropped."""
        assert self._socket is not None
        try:
            while True:
                while (body := self._frames.next()) is not None:
                    message = decode(body)
                    if message.request == request:
                        return message
                self._await(self._socket, select.POLLIN, deadline)
                data = self._socket.recv(1 << 16)
                if not data:
                    raise Broken("the other side closed it")
                self._frames.feed(data)
        except WireError as error:
            raise Broken(f"what answers is no quorate store ({error})") from None
        except OSError as error:
            raise Broken(_sentence(error)) from None

    def _await(self, sock: socket.socket | None, events: int, deadline: float) -> None:
        """Block until ``sock`` is ready.  Raises _Late at ``deadline`` and Interrupted when woken."""
        poller = select.poll()
        poller.register(self._wake_out, select.POLLIN)
        if sock is not None:
            poller.register(sock, events)
        while True:
            left = deadline - monotonic()
            ready = poller.poll(max(0.0, min(left, _LONGEST_POLL_SECONDS)) * 1000)
            if any(descriptor == self._wake_out.fileno() for descriptor, _ in ready):
                if not self._shut:
                    self._wake_out.recv(4096)
                raise Interrupted
            if ready:
                return
            if left <= 0:
                raise _Late("no answer in time")

    def _pause(self, seconds: float, deadline: float) -> bool:
        """Wait about ``seconds``, so that many clients do not knock in step; ``False`` once ``deadline`` is near."""
        until = monotonic() + seconds * (0.5 + os.urandom(1)[0] / 255)
        if until >= deadline:
            return False
        try:
            self._await(None, 0, until)
        except _Late:
            pass
        return True


def _text(answer: Message) -> str:
    item = answer.items[0] if answer.items else None
    return (item or b"no reason given")[:200].decode(errors="replace")


def _sentence(error: BaseException) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
