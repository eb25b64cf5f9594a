"""Rank 1 ends with exit code 0 while the others work, which closes its connections."""

import os
import sys

import torch
import torch.distributed as dist

try:
    dist.init_process_group("gloo")
    dist.barrier()
    if dist.get_rank() == 1:
        os._exit(0)
    dist.all_reduce(torch.ones(1))
except RuntimeError as error:
    sys.exit(f"RuntimeError: {error}")
