"""What the workers of the watchdog's tests do.  Imported by name in worker processes."""

from __future__ import annotations

import os
import stat
import time

from quorate_watchdog import expires

from .workers import environment, rank, restart_count

FILE = "TORCHELASTIC_TIMER_FILE"


def timer_file() -> tuple[str | None, bool, bool]:
    """Return what the variable says, whether a pipe is there, and whether somebody listens."""
    path = environment(FILE)[FILE]
    if path is None or not os.path.exists(path):
        return path, False, False
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        return path, stat.S_ISFIFO(os.stat(path).st_mode), False
    return path, stat.S_ISFIFO(os.stat(path).st_mode), True


def hang_once(hanging: int) -> int:
    """One rank hangs in a timed block in the first attempt; the others, which time nothing, wait for it."""
    if restart_count() > 0:
        return rank()
    if rank() == hanging:
        with expires(after=0.5, scope="step"):
            hang_in_the_step()
    wait_for_the_hung_one()
    return -1


def hang_in_the_step() -> None:
    time.sleep(1000)


def wait_for_the_hung_one() -> None:
    time.sleep(1000)
