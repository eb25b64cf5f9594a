"""DDP, FSDP2 and a checkpoint by DCP, with nothing but torch; the checkpoint goes to argv[1]."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from said import say
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
ddp = DistributedDataParallel(torch.nn.Linear(4, 1))
ddp(torch.full((2, 4), float(rank))).sum().backward()
grads = ddp.module.weight.grad
assert torch.all(grads == grads[0, 0]), grads
model = torch.nn.Linear(4, 4)
fully_shard(model, mesh=torch.distributed.device_mesh.init_device_mesh("cpu", (size,)))
model(torch.ones(2, 4)).sum().backward()
dcp.save({"model": model.state_dict()}, checkpoint_id=sys.argv[1])
dcp.load({"model": model.state_dict()}, checkpoint_id=sys.argv[1])
say(rank, size)
dist.destroy_process_group()
