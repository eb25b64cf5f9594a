"""An agent that has imported all it needs and joins when told so: ``LAUNCHER BACKEND NODES PORT IS_HOST COMMAND…``.

Starts through the Python interface of the launcher (``quorate`` or ``torchrun``), so that what is measured from the
word on is the job, not the interpreter.  Says ``ready`` on standard output and waits for a line.
"""

from __future__ import annotations

import gc
import sys
from importlib import import_module
from typing import Any

#: The modules that an agent imports before it joins, whatever the backend, and those of each.
ALWAYS = (
    "quorate.agent._runner",
    "quorate.rendezvous._handler",
    "quorate_process_local._exec",
    "quorate_watchdog._service",
)
OF_BACKEND = {
    "c10d": ("torch.distributed", "quorate_rendezvous_c10d._bootstrap", "quorate_rendezvous_c10d._store"),
    "tcp": ("quorate_rendezvous_static._client", "quorate_rendezvous_static._server"),
}
#: What plugins offer and it asks for before it joins.
CATALOGUES = ("rendezvous backend", "start method", "health check", "watchdog", "service")


def main() -> None:
    launcher, backend, nodes, port, is_host, *command = sys.argv[1:]
    low, _, high = nodes.partition(":")
    settings: dict[str, Any] = {
        "min_nodes": int(low),
        "max_nodes": int(high or low),
        "nproc_per_node": 1,
        "run_id": "bench",
        "rdzv_backend": backend,
        "rdzv_endpoint": f"127.0.0.1:{port}",
        "rdzv_configs": {"is_host": is_host},
        "max_restarts": 3,
    }
    job: Any
    if launcher == "quorate":
        from quorate import LaunchConfig, launch
        from quorate.plugins import get_host

        # What torch's launcher imports when it is imported, ours imports when it is needed.
        for name in (*ALWAYS, *OF_BACKEND[backend]):
            import_module(name)
        for kind in CATALOGUES:
            get_host().catalogue(kind)
        job = launch(LaunchConfig(**settings), command[0])
    else:
        from torch.distributed.launcher.api import LaunchConfig as TorchConfig
        from torch.distributed.launcher.api import elastic_launch

        job = elastic_launch(TorchConfig(**settings), command[0])
    # A full collection of what torch has loaded takes some 50 ms, and whom it meets is chance.
    gc.collect()
    gc.freeze()
    print("ready", flush=True)
    sys.stdin.readline()
    job(*command[1:])


if __name__ == "__main__":
    main()
