"""An agent that has imported all it needs and joins when told so: ``LAUNCHER BACKEND NODES PORT IS_HOST COMMAND…``.

Starts through the Python interface of the launcher (``quorate`` or ``torchrun``), so that what is measured from the
word on is the job, not the interpreter.  Says ``ready`` on standard output and waits for a line.
"""

from __future__ import annotations

import gc
import sys
from importlib import import_module
from typing import Any


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

        # What torch's launcher imports when it is imported, ours imports when it is needed.
        needed = ["quorate.agent._runner", "quorate.rendezvous._handler", "quorate_process_local._exec"]
        needed += {"c10d": ["torch.distributed", "quorate_rendezvous_c10d._store"]}.get(backend, [])
        for name in needed:
            import_module(name)
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
