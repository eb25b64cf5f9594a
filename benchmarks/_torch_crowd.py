"""The same crowd for torch's own rendezvous: one thread a node, each with a connection of its own, as its agents have.

``ENDPOINT RUN_ID HERE ALL``; talks as ``_crowd.py`` does, but counts no operations.
"""

from __future__ import annotations

import sys
import threading
import time
from datetime import timedelta

from torch.distributed import TCPStore
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler


def main() -> None:
    host, _, port = sys.argv[1].rpartition(":")
    run_id, here, everywhere = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    handlers = []
    for _ in range(here):
        store = TCPStore(host, int(port), is_master=False, timeout=timedelta(seconds=300))
        backend = C10dRendezvousBackend(store, run_id)
        handlers.append(DynamicRendezvousHandler.from_backend(run_id, store, backend, everywhere, everywhere))
    print("ready", flush=True)
    sys.stdin.readline()
    threads = [threading.Thread(target=handler.next_rendezvous) for handler in handlers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(time.monotonic(), 0, 0, flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main()
