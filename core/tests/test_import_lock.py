"""A fork waits for what another thread imports, and the import for nothing that the fork has taken."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import os, threading, warnings
from quorate.import_lock import import_lock
warnings.simplefilter("ignore", DeprecationWarning)

def fork():
    pid = os.fork()
    if pid == 0:
        os._exit(0 if import_lock.acquire(blocking=False) else 1)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

codes = []
forking = threading.Thread(target=fork)
with import_lock:
    forking.start()
    forking.join(0.2)
    assert forking.is_alive(), "it did not wait"
    import logging
    logging.getLogger("of.a.module")
forking.join()
assert codes == [0], "the child cannot import"
"""


def test_a_fork_waits_for_an_import_that_asks_for_a_logger() -> None:
    """In a new interpreter: here :mod:`logging` was imported long before."""
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
