"""An agent that has imported all it needs and joins on demand: ``LAUNCHER BACKEND NODES ENDPOINT IS_HOST COMMAND…``.

It starts through the Python interface of the launcher (``quorate`` or ``torchrun``), so that the job is measured and
not the interpreter.  It prints ``ready`` on standard output, waits for a line, and joins.
"""

from __future__ import annotations

import gc
import sys
from importlib import import_module
from typing import Any

#: Modules that an agent imports before it joins though nothing imports them at their head: always, and by backend.
ALWAYS = ("quorate.agent._runner", "quorate.rendezvous._handler", "quorate_process_local._exec")
OF_BACKEND = {
    "c10d": ("torch.distributed", "quorate_rendezvous_c10d._bootstrap", "quorate_rendezvous_c10d._store"),
    "etcd": ("quorate_rendezvous_etcd._v3.store",),
    "etcd-hosted": ("quorate_rendezvous_etcd._hosted.store",),
    "tcp": ("quorate_rendezvous_static._client", "quorate_rendezvous_static._server"),
}


def main() -> None:
    launcher, backend, nodes, endpoint, is_host, *command = sys.argv[1:]
    low, _, high = nodes.partition(":")
    settings: dict[str, Any] = {
        "min_nodes": int(low),
        "max_nodes": int(high or low),
        "nproc_per_node": 1,
        "run_id": "bench",
        "rdzv_backend": backend,
        "rdzv_endpoint": endpoint,
        "rdzv_configs": {"is_host": is_host} if is_host else {},
        "max_restarts": 3,
    }
    job: Any
    if launcher == "quorate":
        from quorate import LaunchConfig, launch
        from quorate.plugins import PluginKind, get_host

        for name in (*ALWAYS, *OF_BACKEND[backend]):
            import_module(name)
        for kind in PluginKind:
            get_host().catalogue(kind)
        job = launch(LaunchConfig(**settings), command[0])
    else:
        from torch.distributed.launcher.api import (
            LaunchConfig as TorchConfig,  # not in quorate's agent
            elastic_launch,
        )

        job = elastic_launch(TorchConfig(**settings), command[0])
    # A full collection of what torch has loaded takes some 50 ms, at a time that nothing controls.
    gc.collect()
    gc.freeze()
    print("ready", flush=True)
    sys.stdin.readline()
    job(*command[1:])


if __name__ == "__main__":
    main()
