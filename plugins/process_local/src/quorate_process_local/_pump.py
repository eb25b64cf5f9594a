"""The thread that reads the workers' pipes and passes on what they wrote.

There is one thread per context, only if some stream needs it, and it sleeps in the kernel while no worker writes.  It
ends when every writer has closed its end.  What does not live here: what is done with the bytes (:mod:`._streams`).
"""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Iterable
from typing import final

from quorate.notices import warn
from quorate.proc import forget, hold, release

from ._consoles import consoles
from ._streams import Sink, Stream

_CHUNK_BYTES = 1 << 16
#: More than any pipe holds: after this much, all that was written before the request has been read.
_DRAIN_BYTES = 2 << 20


@final
class Pump:
    """Reads pipes until they close.

    ``notice`` is an eventfd that becomes readable whenever a drain that was asked for, or the whole pump, is done.
    """

    def __init__(self) -> None:
        self.consoles = consoles()
        self.copies: dict[str, Sink] = {}
        self.notice = hold(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        try:
            self._requests = hold(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        except OSError:
            release(self.notice)
            raise
        self._streams: dict[int, Stream] = {}
        self._drains: list[Stream] = []
        self._finish = False
        self._thread: threading.Thread | None = None
        self._epoll: select.epoll | None = None
        self.is_done = True

    def add(self, streams: Iterable[Stream]) -> None:
        """Take more streams; only before :meth:`start`."""
        for stream in streams:
            self._streams[stream.read_end] = stream

    def start(self) -> None:
        """Start the thread if there is anything to read.

        Raises:
            OSError: there is no descriptor left for it.
            RuntimeError: the limit on threads is reached.
        """
        if not self._streams:
            return
        self._epoll = select.epoll()
        hold(self._epoll.fileno(), self._epoll.close)
        self._epoll.register(self._requests, select.EPOLLIN)
        for descriptor in self._streams:
            self._epoll.register(descriptor, select.EPOLLIN)
        thread = threading.Thread(target=self._run, args=(self._epoll,), name="quorate-output", daemon=True)
        self.is_done = False
        try:
            thread.start()
        except RuntimeError:
            self.is_done = True
            self._close_epoll(self._epoll)
            raise
        self._thread = thread

    def drain(self, stream: Stream) -> None:
        """Have everything read that ``stream``'s pipe holds now; then ``stream.drained`` is true."""
        self._drains.append(stream)
        self._wake_thread()
        if self.is_done:  # read last: the thread may have ended without seeing the request
            stream.drained = True

    def take_notice(self) -> None:
        """Read ``notice``, so that it is readable again only with the next one."""
        os.eventfd_read(self.notice)

    def finish(self) -> None:
        """Read what the pipes hold now, then stop, even if other processes have them open."""
        self._finish = True
        self._wake_thread()

    def close(self, timeout_seconds: float) -> None:
        """End the thread and close everything; a thread that a full console blocks is left behind."""
        self.finish()
        if self._thread is not None:
            self._thread.join(timeout_seconds)
            if self._thread.is_alive():
                warn("the console takes no more output; the rest of the workers' output is lost")
                return
        for stream in self._streams.values():
            release(stream.read_end)
            stream.close()
        self._streams.clear()
        for sink in self.copies.values():
            sink.close()
        for descriptor in (self.notice, self._requests):
            release(descriptor)

    def _wake_thread(self) -> None:
        os.eventfd_write(self._requests, 1)

    # --- on the thread --------------------------------------------------------------------------------------------

    def _run(self, epoll: select.epoll) -> None:
        # The agent's own thread is the one to be interrupted by signals.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            while self._streams:
                for descriptor, _ in epoll.poll():
                    if descriptor == self._requests:
                        self._answer(epoll)
                    elif descriptor in self._streams:
                        self._read(epoll, self._streams[descriptor], _CHUNK_BYTES)
        finally:
            self._close_epoll(epoll)
            self.is_done = True
            for stream in self._drains:
                stream.drained = True
            os.eventfd_write(self.notice, 1)

    @staticmethod
    def _close_epoll(epoll: select.epoll) -> None:
        forget(epoll.fileno())
        epoll.close()

    def _answer(self, epoll: select.epoll) -> None:
        os.eventfd_read(self._requests)
        while self._drains:
            stream = self._drains[0]
            self._read(epoll, stream, _DRAIN_BYTES)
            stream.drained = True
            self._drains.pop(0)
            os.eventfd_write(self.notice, 1)
        if self._finish:
            for stream in list(self._streams.values()):
                self._read(epoll, stream, _DRAIN_BYTES)
                self._end(epoll, stream)

    def _read(self, epoll: select.epoll, stream: Stream, limit_bytes: int) -> None:
        """Read until the pipe is empty or closed, or ``limit_bytes`` were read."""
        while limit_bytes > 0 and stream.read_end in self._streams:
            try:
                data = os.read(stream.read_end, _CHUNK_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._end(epoll, stream)
                return
            stream.feed(data)
            limit_bytes -= len(data)

    def _end(self, epoll: select.epoll, stream: Stream) -> None:
        if self._streams.pop(stream.read_end, None) is None:
            return
        stream.finish()
        stream.close()
        epoll.unregister(stream.read_end)
        release(stream.read_end)
        stream.drained = True
