"""Two workers: each joins a gloo group from its environment alone, sums all ranks, and writes the sum.

They are forked, so that torch is imported once.  Whoever starts this gives all variables but the ranks.
"""

from __future__ import annotations

import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist


def work(rank: int) -> None:
    os.environ["RANK"] = os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    total = torch.tensor([dist.get_rank() + 1])
    dist.all_reduce(total)
    os.write(sys.stdout.fileno(), f"{rank} {int(total)}\n".encode())  # in one piece, for the other one writes too
    dist.destroy_process_group()


def fork(rank: int) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work(rank)
            code = 0
        finally:
            os._exit(code)
    return pid


codes = [os.waitpid(pid, 0)[1] for pid in [fork(rank) for rank in range(int(os.environ["WORLD_SIZE"]))]]
sys.exit(any(codes))
