"""The same crowd for torch's own rendezvous: one thread a node, each with a connection of its own, as in its agents.

``BACKEND ENDPOINT RUN_ID HERE ALL``, where BACKEND is ``c10d`` or ``etcd-v2``.  Input and output are those of
``_crowd.py``, but operations are not counted.
"""

from __future__ import annotations

import gc
import logging
import sys
import threading
import time
from datetime import timedelta

from torch.distributed import TCPStore
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler


def over_c10d(endpoint: str, run_id: str, nodes: int) -> RendezvousHandler:
    host, _, port = endpoint.rpartition(":")
    store = TCPStore(host, int(port), is_master=False, timeout=timedelta(seconds=300))
    backend = C10dRendezvousBackend(store, run_id)
    return DynamicRendezvousHandler.from_backend(run_id, store, backend, nodes, nodes)


def over_etcd(endpoint: str, run_id: str, nodes: int) -> RendezvousHandler:
    from torch.distributed.elastic.rendezvous.etcd_rendezvous import create_rdzv_handler  # needs python-etcd

    handler: RendezvousHandler = create_rdzv_handler(RendezvousParameters("etcd", endpoint, run_id, nodes, nodes))
    return handler


def main() -> None:
    logging.disable(logging.INFO)  # one line per node and step
    connect = {"c10d": over_c10d, "etcd-v2": over_etcd}[sys.argv[1]]
    here, everywhere = int(sys.argv[4]), int(sys.argv[5])
    handlers = [connect(sys.argv[2], sys.argv[3], everywhere) for _ in range(here)]
    # A full collection of what torch has loaded takes some 50 ms, at a time that nothing controls.
    gc.collect()
    gc.freeze()
    print("ready", flush=True)
    sys.stdin.readline()
    threads = [threading.Thread(target=handler.next_rendezvous) for handler in handlers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(time.monotonic(), 0, 0, 0, flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main()
