"""One connection from a client to the TCP store's server: opened within a timeout, opened again when it breaks.

A link is used by one thread at a time; only :meth:`Link.interrupt` and :meth:`Link.shut` may be called from others.
What does not live here: what the requests mean (``_client``).
"""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import final

from quorate.clock import monotonic
from quorate.errors import RendezvousStateError, StoreUnavailableError
from quorate.job_token import TOKEN_FILE_VARIABLE
from quorate.net import Address, close_in_children, resolve, set_keep_alive, set_linear_retransmission
from quorate.text import printable

from ._auth import NONCE_BYTES, TAG_BYTES, Challenge, Role, Session, new_nonce
from ._target import Target
from ._wire import (
    LARGEST_FRAME,
    MAGIC,
    PROTOCOL_VERSION,
    Code,
    FrameBuffer,
    Message,
    Problem,
    WireError,
    decode,
    encode,
)

_ATTEMPT_SECONDS = 3.0
#: Where there is another port to try: a firewall may drop what goes to the first one.
_FIRST_PORT_SECONDS = 1.0
_FIRST_PAUSE_SECONDS = 0.02
_LONGEST_PAUSE_SECONDS = 1.0
_LONGEST_POLL_SECONDS = 3600.0
#: Trying again cannot help.
_FINAL_PROBLEMS = (Problem.VERSION, Problem.TOKEN, Problem.TLS)


@final
class InterruptedLinkError(Exception):
    """:meth:`Link.interrupt` or :meth:`Link.shut` was called."""


@final
class BrokenError(Exception):
    """The connection is of no more use; the text says why."""


@final
class _LateError(Exception):
    """The deadline has passed."""


@final
class _RefusedError(Exception):
    """The server answered the hello with a problem."""

    def __init__(self, problem: int, sentence: str) -> None:
        self.problem = problem
        super().__init__(sentence)


@final
class Link:
    """One connection."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._socket: socket.socket | None = None
        self._frames = FrameBuffer()
        self._session: Session | None = None
        self._request = 0
        self._shut = False
        self._wake_out, self._wake_in = socket.socketpair()
        self._wake_out.setblocking(False)
        self._wake_in.setblocking(False)
        close_in_children(self)

    # --- from any thread ------------------------------------------------------------------------------------------

    def interrupt(self) -> None:
        """Make what is under way, or else the next call, raise InterruptedLinkError.  Never blocks."""
        with suppress(OSError):  # full (it is readable already) or released
            self._wake_in.send(b"x")

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
        """Close this process's copies; for a forked child."""
        self._shut = True
        self.release()

    # --- from the one thread that uses it -------------------------------------------------------------------------

    def open(self, timeout: float) -> None:
        """Connect for the first time; tries again, with pauses, until ``timeout`` seconds have passed.

        Raises:
            StoreUnavailableError: no server that speaks the protocol took the connection; names all that was tried.
            RendezvousStateError: the server serves another job or speaks another version.
        """
        deadline = monotonic() + timeout
        tried: dict[str, str] = {}
        refused: _RefusedError | None = None
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                found = resolve(self._target.host, self._target.port, max(0.1, deadline - monotonic()))
            except OSError as error:
                found, tried[self._target.endpoint] = [], _sentence(error)
            places = self._target.places(found)
            for address in places:
                attempt_deadline = monotonic() + self._attempt_seconds(address, places)
                try:
                    self._connect(address, min(deadline, attempt_deadline))
                    return
                except (OSError, BrokenError, _LateError) as error:
                    is_cut_short = deadline < attempt_deadline
                    tried[str(address)] = _problem_after(tried.get(str(address), ""), error, is_cut_short)
                except _RefusedError as error:
                    refused, tried[str(address)] = error, str(error)
            is_final = refused is not None and refused.problem in _FINAL_PROBLEMS
            if is_final or not self._pause(pause, deadline):
                break
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
        attempts = "; ".join(f"{where}: {problem}" for where, problem in tried.items())
        if refused is not None:
            if refused.problem in (Problem.TOKEN, Problem.TLS):
                raise RendezvousStateError(
                    f"the rendezvous store at {self._target.endpoint} cannot be used: {refused}. Give every node of "
                    "the job the same job token and settings of TLS (docs/security.md)"
                )
            raise RendezvousStateError(
                f"the rendezvous store at {self._target.endpoint} cannot be used: {refused}. Give every node of the "
                "job the same --rdzv-id and version of quorate-rendezvous-static, and each job an endpoint of its own "
                "(--rdzv-endpoint=HOST:PORT; under Slurm, srun --resv-ports also gives it one)"
            )
        raise StoreUnavailableError(
            f"cannot reach the rendezvous store at {self._target.endpoint} within {timeout:.1f} s ({attempts}). Make "
            f"sure that {self._target.hosted_by} runs and that this machine can reach it at that address "
            "(--rdzv-endpoint, or --master-addr and --master-port)"
        )

    def call(self, code: Code, number: int, items: Sequence[bytes], deadline: float, *, repeatable: bool) -> Message:
        """Send a request and return its first answer, over a new connection to the same server if need be.

        Raises:
            InterruptedLinkError: see :meth:`interrupt`.
            StoreUnavailableError: no answer by ``deadline``, or the connection broke under a request that must not
                be sent twice.
            StoreLostError: the server is gone.
        """
        pause = _FIRST_PAUSE_SECONDS
        while True:
            if self._socket is None:
                self._reconnect(deadline)
            self._request = (self._request + 1) % (1 << 32)
            try:
                self._send(encode(code, self._request, number, items), deadline)
                return self._receive(self._request, deadline)
            except _LateError:
                raise StoreUnavailableError(
                    f"the rendezvous store at {self._target.endpoint} did not answer in time; "
                    f"{self._target.hosted_by} may be overloaded, stopped or cut off"
                ) from None
            except BrokenError as error:
                how = str(error)
            self._disconnect()
            self._reconnect(deadline)  # tells at once whether the server is gone
            if not repeatable or not self._pause(pause, deadline):
                raise StoreUnavailableError(f"the connection to the store at {self._target.endpoint} broke: {how}")
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    def listen(self, request: int, deadline: float) -> Message | None:
        """Return the next answer to ``request``; ``None`` at ``deadline``.

        Raises:
            BrokenError, InterruptedLinkError: see there.
        """
        try:
            return self._receive(request, deadline)
        except _LateError:
            return None
        except BrokenError:
            self._disconnect()
            raise

    # --- connecting -----------------------------------------------------------------------------------------------

    def _reconnect(self, deadline: float) -> None:
        """Connect to the server that was reached before; no other has what it holds."""
        problem, pause = "", _FIRST_PAUSE_SECONDS
        while True:
            places = self._target.places_again()
            for address in places:
                attempt_deadline = monotonic() + self._attempt_seconds(address, places)
                try:
                    self._connect(address, min(deadline, attempt_deadline))
                    return
                except _RefusedError as error:
                    raise self._target.lost(f"another server has taken its place ({error})") from None
                except (OSError, BrokenError, _LateError) as error:
                    # On the port that it shares with the workers nothing listens now and then.
                    if isinstance(error, ConnectionRefusedError) and not self._target.is_reached_by_shared_port:
                        raise self._target.lost("nothing listens there any more") from None
                    problem = _problem_after(problem, error, deadline < attempt_deadline)
            if not self._pause(pause, deadline):
                raise StoreUnavailableError(
                    f"the connection to the rendezvous store at {self._target.endpoint} broke and cannot be made "
                    f"again so far: {problem}"
                )
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    def _attempt_seconds(self, address: Address, places: Sequence[Address]) -> float:
        has_other = not self._target.is_shared(address) and any(map(self._target.is_shared, places))
        return _FIRST_PORT_SECONDS if has_other else _ATTEMPT_SECONDS

    def _connect(self, address: Address, deadline: float) -> None:
        sock = socket.socket(address.family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            set_keep_alive(sock)
            set_linear_retransmission(sock)
            code = sock.connect_ex(address.sockaddr)
            if code == errno.EINPROGRESS:
                self._await(sock, select.POLLOUT, deadline)
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, os.strerror(code))
            if sock.getsockname() == sock.getpeername():
                # The system may pick a port without a listener as our own; TCP then connects the socket to itself.
                raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
            sock = self._encrypted(sock, deadline)
            self._socket, self._frames, self._session = sock, FrameBuffer(LARGEST_FRAME + TAG_BYTES), None
            self._greet(deadline)
        except BaseException:
            self._socket = None
            sock.close()
            raise
        self._target.address = address

    def _encrypted(self, sock: socket.socket, deadline: float) -> socket.socket:
        """Return ``sock``, with TLS on it if the store uses TLS."""
        tls, context = self._target.tls, self._target.context
        if tls is None or context is None:
            return sock
        encrypted = tls.connect(sock, context)
        try:
            while event := encrypted.shake_hands():
                self._await(encrypted, event, deadline)
        except BaseException:
            encrypted.close()
            raise
        return encrypted

    def _greet(self, deadline: float) -> None:
        target = self._target
        self._send(encode(Code.HELLO, 0, PROTOCOL_VERSION, [MAGIC, target.run_id.encode()]), deadline)
        answer = self._receive(0, deadline)
        if answer.code == Code.CHALLENGE:
            incarnation = self._answer_challenge(answer, deadline)
        else:
            incarnation = _incarnation(answer)
            if target.key is not None:
                self._send(encode(Code.NO_TOKEN, 0), deadline)
                raise _RefusedError(
                    Problem.TOKEN,
                    f"it has no job token, and this node has one; set {TOKEN_FILE_VARIABLE} on the node that hosts it",
                )
        if target.incarnation is not None and target.incarnation != incarnation:
            raise _RefusedError(0, "it is a newer one")
        target.incarnation = incarnation
        self._send(encode(Code.IDENTIFY, 0, 0, [target.client]), deadline)

    def _answer_challenge(self, question: Message, deadline: float) -> bytes:
        """Prove that this node has the token, have the server prove it, and return the server's incarnation."""
        target = self._target
        server_nonce = question.items[0] if question.items else None
        if server_nonce is None or len(server_nonce) != NONCE_BYTES:
            raise BrokenError("the peer is not a quorate store")
        if target.key is None:
            self._send(encode(Code.PROVE, 0), deadline)
            raise _RefusedError(
                Problem.TOKEN,
                f"it takes only nodes that have the job's token, and this node has none; set {TOKEN_FILE_VARIABLE}",
            )
        challenge = Challenge(target.key, target.run_id.encode(), server_nonce, new_nonce())
        items = [challenge.client_nonce, challenge.proof(Role.CLIENT)]
        self._send(encode(Code.PROVE, 0, 0, items), deadline)
        answer = self._receive(0, deadline)
        incarnation = _incarnation(answer)
        proof = answer.items[1] if len(answer.items) == 2 else None
        if proof is None or not challenge.is_proved(Role.SERVER, proof, incarnation):
            raise _RefusedError(
                Problem.TOKEN, "what listens there does not have the job's token, and is not the host of this job"
            )
        self._session = challenge.session(Role.CLIENT)
        return incarnation

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    # --- bytes ----------------------------------------------------------------------------------------------------

    def _send(self, frame: bytes, deadline: float) -> None:
        assert self._socket is not None
        session = self._session
        if session is not None:
            frame = session.sign(frame)
        left = memoryview(frame)
        try:
            while left:
                try:
                    left = left[self._socket.send(left) :]
                except BlockingIOError:
                    self._await(self._socket, select.POLLOUT, deadline)
        except OSError as error:
            raise BrokenError(_sentence(error)) from None
        except (_LateError, InterruptedLinkError):
            if len(left) < len(frame) or self._target.tls is not None:
                self._disconnect()  # half a frame is out, or may be in TLS's hands: nothing can follow it
            elif session is not None:
                session.forget_last()
            raise

    def _receive(self, request: int, deadline: float) -> Message:
        """Return the next answer to ``request``; late answers to earlier requests are dropped."""
        assert self._socket is not None
        try:
            while True:
                while (body := self._frames.next()) is not None:
                    message = decode(body if self._session is None else self._session.check(body))
                    if message.request == request:
                        return message
                self._await(self._socket, select.POLLIN, deadline)
                try:
                    data = self._socket.recv(1 << 16)
                except BlockingIOError:
                    continue  # not a whole record of TLS yet
                if not data:
                    raise BrokenError("the other side closed it")
                self._frames.feed(data)
        except WireError as error:
            raise BrokenError(f"the peer is not a quorate store ({error})") from None
        except OSError as error:
            raise BrokenError(_sentence(error)) from None

    def _await(self, sock: socket.socket | None, events: int, deadline: float) -> None:
        """Block until ``sock`` is ready.  Raises _LateError at ``deadline`` and InterruptedLinkError when woken."""
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
                raise InterruptedLinkError
            if ready:
                return
            if left <= 0:
                raise _LateError("no answer in time")

    def _pause(self, seconds: float, deadline: float) -> bool:
        """Wait about ``seconds``, so that many clients do not connect in step; ``False`` if ``deadline`` is nearer."""
        until = monotonic() + seconds * (0.5 + os.urandom(1)[0] / 255)
        if until >= deadline:
            return False
        with suppress(_LateError):
            self._await(None, 0, until)
        return True


def _incarnation(answer: Message) -> bytes:
    """Return the incarnation of the server that took this node."""
    if answer.code == Code.PROBLEM and answer.number == Problem.BUSY:
        raise BrokenError(reason_in(answer))  # another attempt may find it less busy
    if answer.code == Code.PROBLEM:
        raise _RefusedError(answer.number, reason_in(answer))
    incarnation = answer.items[0] if answer.items else None
    if answer.code != Code.OK or incarnation is None:
        raise BrokenError("the peer is not a quorate store")
    return incarnation


def reason_in(answer: Message) -> str:
    """Return the server's sentence in an answer with the code PROBLEM."""
    item = answer.items[0] if answer.items else None
    return printable((item or b"no reason given")[:800].decode(errors="replace"), 200)


def _problem_after(before: str, error: Exception, is_cut_short: bool) -> str:
    """Return what to say of failed attempts: one that was cut short does not hide what an earlier one has found out."""
    return before if before and is_cut_short and isinstance(error, _LateError) else _sentence(error)


def _sentence(error: BaseException) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
