"""One node in a process of its own: ``python -m quorate.testing._member``, started by the crash laws.

It joins, prints its rank, goes through rounds while its standard input is open, and leaves.
"""

from __future__ import annotations

import sys
import threading
import time
from contextlib import suppress

from ..backends import get_rendezvous_handler
from ..errors import RendezvousError
from ..rendezvous import RendezvousParameters
from ._waiting import someone_waits


def main(backend: str, endpoint: str, run_id: str, settings: str, skew: str) -> None:
    """Join the job; ``skew`` is the number of seconds by which all clocks of this process are wrong."""
    _shift_clocks(float(skew))
    config = dict(pair.split("=", 1) for pair in settings.split(",") if pair)
    handler = get_rendezvous_handler(RendezvousParameters(backend, endpoint, run_id, 1, 2, **config))

    def run() -> None:
        with suppress(RendezvousError):  # the job was closed, or this node was shut down
            while True:
                info = handler.next_rendezvous()
                if info.world_size > 1:
                    sys.stdout.write(f"{info.rank} of {info.world_size}\n")
                    sys.stdout.flush()
                while handler.wait_for_change(1.0) is None and not someone_waits(handler):
                    pass

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    sys.stdin.buffer.read()
    handler.shutdown()


def _shift_clocks(seconds: float) -> None:
    """Make the clocks of this process differ from those of other processes."""
    # The module itself is changed, since libraries of the backend read it too.
    real_time, real_time_ns, real_monotonic = time.time, time.time_ns, time.monotonic
    time.time = lambda: real_time() + seconds
    time.time_ns = lambda: real_time_ns() + int(seconds * 1e9)
    time.monotonic = lambda: real_monotonic() + seconds


if __name__ == "__main__":
    main(*sys.argv[1:])
