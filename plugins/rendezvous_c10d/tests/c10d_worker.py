"""A worker: joins a gloo group from its environment alone, sums all ranks, and prints the sum."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist

dist.init_process_group("gloo", timeout=timedelta(seconds=60))
total = torch.tensor([dist.get_rank() + 1])
dist.all_reduce(total)
print(os.environ["RANK"], int(total), flush=True)
dist.destroy_process_group()
