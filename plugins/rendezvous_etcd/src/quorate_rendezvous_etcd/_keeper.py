"""The thread that keeps a member's leases alive, for both backends.

What does not live here: the leases (:mod:`._v3.lease`, :mod:`._v2.lease`).
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import final

from quorate.errors import QuorateError, StoreLostError, StoreUnavailableError

_RETRY_SECONDS = 0.5


@final
class LeaseKeeper:
    """Calls ``renew`` on a thread of its own, about every ``interval_seconds``.

    The thread ends when :meth:`stop` is called or ``renew`` raises StoreLostError.  It calls ``renew`` again after
    every other error of quorate.  On an error that is not one of quorate's it calls ``on_crash`` with a sentence, and
    ends.

    Arguments:
        name: the thread's name.
        interval_seconds: the time between two calls; each is shortened by up to a fifth, at random.
    """

    def __init__(
        self, name: str, interval_seconds: float, renew: Callable[[], None], on_crash: Callable[[str], None]
    ) -> None:
        self._interval_seconds, self._renew, self._on_crash = interval_seconds, renew, on_crash
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Have the thread end before its next call."""
        self._stopping.set()

    def join(self, timeout_seconds: float) -> None:
        """Wait for the thread's end; returns at once if it was never started."""
        if self._thread.ident is not None:
            self._thread.join(timeout_seconds)

    def _run(self) -> None:
        pause = self._interval_seconds
        while not self._stopping.wait(pause * random.uniform(0.8, 1.0)):
            try:
                self._renew()
                pause = self._interval_seconds
            except StoreLostError:
                return  # the next operation raises it
            except StoreUnavailableError:
                pause = min(_RETRY_SECONDS, self._interval_seconds)
            except QuorateError:
                pass  # refused, for example after a change of permissions; the next operation raises it
            except Exception as error:
                if not self._stopping.is_set():
                    self._on_crash(
                        "the thread that keeps this node's leases in etcd alive has failed "
                        f"({type(error).__name__}: {error})"
                    )
                return
