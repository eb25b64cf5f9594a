"""The driver of a Ray job: a task for each node runs one node of a job of quorate.

argv[1] is the port of its endpoint, argv[2:] its program and arguments.
"""

from __future__ import annotations

import subprocess
import sys

import ray

ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR")


@ray.remote(num_cpus=1)
def node(rank, command, program):
    done = subprocess.run([*command, f"--node-rank={rank}", *program], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


command = [
    sys.executable,
    "-m",
    "quorate",
    "run",
    "--nnodes=2",
    "--rdzv-backend=tcp",
    "--cluster=none",
    f"--rdzv-endpoint=127.0.0.1:{sys.argv[1]}",
    "--rdzv-id=of-ray",
]
for code, output, errors in ray.get([node.remote(rank, command, sys.argv[2:]) for rank in range(2)]):
    assert code == 0, errors
    sys.stdout.write(output)
