"""TcpStore: the store contract over two connections, one for operations and one for waits.

What does not live here: the connections (``_link``) and the server (``_server``).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, final

from quorate.clock import monotonic
from quorate.errors import StoreCorruptError, StoreUnavailableError, UsageError
from quorate.rendezvous import LastWordWriter, Write

from ._link import BrokenError, InterruptedLinkError, Link, reason_in
from ._server import TcpStoreServer
from ._shared_port import SharedPort
from ._target import Target
from ._wire import LARGEST_FRAME, LARGEST_KEY, LARGEST_VALUE, MOST_ITEMS, Code, Message, Problem

if TYPE_CHECKING:
    from ._tls import Tls  # a type here: the module imports ssl, which few jobs need

RETURN_TIMEOUT_SECONDS = 1.0
#: For a guardian: to connect, and for each write.
_LAST_WORD_SECONDS = 3.0

_FRAME_ROOM_BYTES = LARGEST_FRAME - 64
_FIRST_ANSWER_SECONDS = 1.0
_CLOSE_TIMEOUT_SECONDS = 10.0


@final
class TcpStore:
    """A client of a :class:`TcpStoreServer`.  Implements Store with the abilities
    ``batch``, ``interrupt``, ``last word``, ``attentive`` and ``lends port``.

    Both connections are made at once, so that no operation ever has to wait for one.

    Arguments:
        host, port: where the server is.
        run_id: the job; the server refuses clients of another.
        connect_timeout: seconds until which a server that is not there yet is tried again.
        operation_timeout: seconds that each operation may take.
        hosted_by: the process that hosts the server, for messages.
        server: a server that this store closes after itself.
        key: what both ends must prove to have, 32 bytes that come from the job's token; ``None``: nothing.
        tls: how the connections are encrypted; ``None``: they are not.
        return_timeout: seconds that this node has to come back, once both connections are closed, before the server
            writes its last words.
        shared_port: another port of the server, on which it listens while no workers run.
        lendable: the server's end of that port, which this store closes before the server.

    Raises:
        StoreUnavailableError: no server answered in time.
        RendezvousStateError: the server serves another job, speaks another version, or only one of the two has the
            key.
    """

    def __init__(
        self,
        host: str,
        port: int,
        run_id: str,
        *,
        connect_timeout: float = 60.0,
        operation_timeout: float = 5.0,
        hosted_by: str = "the agent that hosts the store",
        server: TcpStoreServer | None = None,
        key: bytes | None = None,
        tls: Tls | None = None,
        return_timeout: float = RETURN_TIMEOUT_SECONDS,
        shared_port: int | None = None,
        lendable: SharedPort | None = None,
    ) -> None:
        self._operation_timeout, self._return_timeout = operation_timeout, return_timeout
        self._server, self._lendable = server, lendable
        self._target = Target(host, port, run_id, hosted_by, key, tls, shared_port)
        self._closed = False
        self._closing = threading.Lock()
        self._work_lock, self._wait_lock = threading.Lock(), threading.Lock()
        self._worker = Link(self._target)
        self._waiter = Link(self._target)
        try:
            deadline = monotonic() + connect_timeout
            self._worker.open(connect_timeout)
            self._waiter.open(max(1.0, deadline - monotonic()))
        except BaseException:
            self._worker.release()
            self._waiter.release()
            raise

    @property
    def endpoint(self) -> str:
        """Where the server is, as ``host:port``."""
        return self._target.endpoint

    @property
    def incarnation(self) -> bytes | None:
        """What tells the server from every other one."""
        return self._target.incarnation

    @property
    def server(self) -> TcpStoreServer | None:
        """The server, if this process hosts it."""
        return self._server

    @property
    def ends_with_this_node(self) -> bool:
        """Whether this process hosts the server.  (The server itself waits for its clients to leave.)"""
        return self._server is not None

    # --- the contract ---------------------------------------------------------------------------------------------

    def create(self, key: str, value: bytes) -> bool:
        items = [_key(key), _value(key, value)]
        return self._call(key, Code.CREATE, 0, items, repeatable=False).number == 1

    def put(self, key: str, value: bytes) -> None:
        self.put_many([(key, value)])

    def put_many(self, items: Sequence[tuple[str, bytes]]) -> None:
        """Write all ``items`` in as few round trips as frames allow (2 MiB and 8192 pairs each)."""
        batch: list[bytes] = []
        size = 0
        for key, value in items:
            pair = (_key(key), _value(key, value))
            more = 8 + len(pair[0]) + len(pair[1])
            if batch and (size + more > _FRAME_ROOM_BYTES or len(batch) >= MOST_ITEMS):
                self._call(key, Code.PUT, 0, batch)
                batch, size = [], 0
            batch += pair
            size += more
        if batch:
            self._call("", Code.PUT, 0, batch)

    def add(self, key: str, amount: int) -> int:
        if not -(1 << 63) <= amount < 1 << 63:
            raise UsageError(f"the amount {amount} to add to {key!r} does not fit into 64 bits")
        return self._call(key, Code.ADD, amount, [_key(key)], repeatable=False).number

    def get(self, keys: Sequence[str]) -> list[bytes | None]:
        wanted = [_key(key) for key in keys]
        found: list[bytes | None] = []
        while len(found) < len(wanted):
            answer = self._call("", Code.GET, 0, _as_many_as_fit(wanted, len(found)))
            if not 0 < len(answer.items) <= len(wanted) - len(found):
                raise self._invalid_answer()
            found += answer.items
        return found

    def wait(self, key: str, timeout: float) -> bytes | None:
        name, deadline = _key(key), monotonic() + timeout
        self._check_open()
        with self._wait_lock:
            self._check_open()
            while True:
                try:
                    # The server says at once whether the key exists, so that even a wait of 0 s finds it.
                    first = max(deadline, monotonic() + _FIRST_ANSWER_SECONDS)
                    answer: Message | None = self._waiter.call(Code.WAIT, 0, [name], first, repeatable=True)
                    if answer is not None and answer.code == Code.PENDING:
                        answer = self._waiter.listen(answer.request, deadline)
                except InterruptedLinkError:
                    return None
                except BrokenError:
                    continue
                if answer is None:
                    return None
                if answer.code != Code.OK or len(answer.items) != 1:
                    raise self._invalid_answer()
                return answer.items[0]

    def interrupt(self) -> None:
        """Make a :meth:`wait` that is under way (or else the next one) return ``None`` soon.  Never blocks."""
        self._waiter.interrupt()

    def delete(self, prefix: str) -> None:
        self._call(prefix, Code.DELETE, 0, [_key(prefix)])

    @property
    def return_timeout(self) -> float:
        """How long this node has to come back, in seconds, before its last words are written."""
        return self._return_timeout

    def set_last_words(self, writes: Sequence[Write]) -> None:
        items: list[bytes] = []
        for write in writes:
            kind = Code.CREATE if write.once else Code.PUT
            items += [b"%d" % kind, _key(write.key), _value(write.key, write.value)]
        self._call("", Code.LAST_WORDS, round(self._return_timeout * 1000), items)

    def last_word_writer(self) -> LastWordWriter:
        target = self._target
        open_store = partial(
            TcpStore,
            target.host,
            target.port,
            target.run_id,
            connect_timeout=_LAST_WORD_SECONDS,
            operation_timeout=_LAST_WORD_SECONDS,
            key=target.key,
            tls=target.tls,
            shared_port=target.shared_port,
        )
        return partial(write_last_words, open_store)

    def close(self) -> None:
        """Leave; a server that came with this store then waits for the other clients to leave (``linger_timeout``)."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            for link, lock in ((self._worker, self._work_lock), (self._waiter, self._wait_lock)):
                link.shut()
                if lock.acquire(timeout=_CLOSE_TIMEOUT_SECONDS):
                    link.release()
                    lock.release()
            if self._lendable is not None:
                self._lendable.close()
            if self._server is not None:
                self._server.close()

    def lend_port(self) -> None:
        if self._lendable is not None:
            self._lendable.lend()

    def take_port_back(self) -> None:
        if self._lendable is not None:
            self._lendable.take_back()

    # --- helpers --------------------------------------------------------------------------------------------------

    def _call(self, key: str, code: Code, number: int, items: Sequence[bytes], *, repeatable: bool = True) -> Message:
        self._check_open()
        with self._work_lock:
            self._check_open()
            deadline = monotonic() + self._operation_timeout
            try:
                answer = self._worker.call(code, number, items, deadline, repeatable=repeatable)
            except InterruptedLinkError:
                raise self._is_closed() from None
        if answer.code == Code.OK:
            return answer
        if answer.code != Code.PROBLEM:
            raise self._invalid_answer()
        sentence = reason_in(answer)
        if answer.number == Problem.NOT_A_COUNTER:
            raise StoreCorruptError(key, sentence)
        raise StoreUnavailableError(f"the rendezvous store at {self.endpoint} refused: {sentence}")

    def _check_open(self) -> None:
        # Called before a lock is taken, too: in a forked child the links are shut, and no thread would release it.
        if self._closed or self._worker.is_shut:
            raise self._is_closed()

    def _is_closed(self) -> StoreUnavailableError:
        return StoreUnavailableError(f"this connection to the rendezvous store at {self.endpoint} was closed")

    def _invalid_answer(self) -> StoreUnavailableError:
        return StoreUnavailableError(
            f"the rendezvous store at {self.endpoint} gave an answer that does not follow the protocol"
        )


def write_last_words(open_store: Callable[[], TcpStore], writes: Sequence[Write]) -> None:
    """Write for a node whose agent was killed; called in its guardian.  Raises what TcpStore raises."""
    store = open_store()
    try:
        for write in writes:
            if write.once:
                store.create(write.key, write.value)
            else:
                store.put(write.key, write.value)
    finally:
        store.close()


def _key(key: str) -> bytes:
    name = key.encode()
    if len(name) > LARGEST_KEY:
        raise UsageError(f"a key of {len(name)} bytes is longer than the {LARGEST_KEY} that the store takes")
    return name


def _value(key: str, value: bytes) -> bytes:
    if len(value) > LARGEST_VALUE:
        raise UsageError(f"the value of {key!r} has {len(value)} bytes; the store takes {LARGEST_VALUE}")
    return value


def _as_many_as_fit(keys: list[bytes], start: int) -> list[bytes]:
    size = 0
    for index in range(start, len(keys)):
        size += 4 + len(keys[index])
        if size > _FRAME_ROOM_BYTES or index - start >= MOST_ITEMS:
            return keys[start:index]
    return keys[start:]
