"""The worker that takes one step of data-parallel training, then prints its process id."""

import os
import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("gloo")
model = DistributedDataParallel(torch.nn.Linear(8, 8))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model(torch.ones(4, 8)).sum().backward()
optimizer.step()
sys.stdout.write(f"{os.getpid()}\n")
sys.stdout.flush()
dist.destroy_process_group()
