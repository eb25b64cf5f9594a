"""Rank 1 ends well in the middle of the others' collective, and takes its connection with it."""

import os
import sys

import torch
import torch.distributed as dist

dist.init_process_group("gloo")
if dist.get_rank() == 1:
    os._exit(0)
try:
    dist.all_reduce(torch.ones(1))
except RuntimeError as error:
    sys.exit(f"RuntimeError: {error}")
