"""An agent that has imported all it needs and joins when told so: ``LAUNCHER BACKEND NODES PORT IS_HOST COMMAND…``.

Starts through the Python interface of the launcher (``quorate`` or ``torchrun``), so that what is measured from the
word on is the job, not the interpreter.  Says ``ready`` on standard output and waits for a line.
"""

from __future__ import annotations

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

        if backend == "c10d":
            import_module("torch.distributed")  # what the backend imports when it is opened
        job = launch(LaunchConfig(**settings), command[0])
    else:
        from torch.distributed.launcher.api import LaunchConfig as TorchConfig
        from torch.distributed.launcher.api import elastic_launch

        job = elastic_launch(TorchConfig(**settings), command[0])
    print("ready", flush=True)
    sys.stdin.readline()
    job(*command[1:])


if __name__ == "__main__":
    main()
