"""Agents that fork a worker just as their first wait begins, as agents do with the start method ``fork``.

Run as ``python c10d_forker.py ENDPOINT COUNT SECONDS``: prints ``ok`` for every worker that could wait in the store,
and ``hangs`` for one that did not come to its end within that time.  Each agent is forked before it has called torch.
"""

from __future__ import annotations

import os
import select
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from torch.distributed import TCPStore

from quorate.net import Endpoint, parse_endpoint
from quorate.rendezvous import RendezvousParameters
from quorate_rendezvous_c10d import plugin

warnings.simplefilter("ignore")  # Python warns of forks beside threads


def run_worker(endpoint: Endpoint) -> None:
    store = TCPStore(endpoint.host, endpoint.port, None, False, timedelta(seconds=30), wait_for_workers=False)
    store.set("key", "value")
    store.wait(["key"], timedelta(seconds=30))


def run_agent(endpoint: str, seconds: float) -> str:
    (backend,) = plugin.quorate_register_rendezvous()
    assert backend.open_store is not None
    store: Any = backend.open_store(RendezvousParameters("c10d", endpoint, f"job-{os.getpid()}", 1, 8))
    assert store.wait("never", 0.0) is None  # it opens the connection of its waits
    begins = threading.Lock()
    begins.acquire()

    def wait() -> None:
        begins.release()
        store.wait("never", 1000.0)

    threading.Thread(target=wait, daemon=True).start()
    begins.acquire()
    pid = fork(lambda: run_worker(parse_endpoint(endpoint)))
    descriptor = os.pidfd_open(pid)
    ended, _, _ = select.select([descriptor], [], [], seconds)
    if not ended:
        os.kill(pid, 9)
    return "ok" if os.waitpid(pid, 0)[1] == 0 else "hangs"


def fork(run: Callable[[], object]) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            run()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def main() -> None:
    endpoint, count, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    for _ in range(count):
        pid = fork(lambda: os.write(1, f"{run_agent(endpoint, seconds)}\n".encode()))
        assert os.waitpid(pid, 0)[1] == 0


if __name__ == "__main__":
    main()
