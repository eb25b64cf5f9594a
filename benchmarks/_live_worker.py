"""A worker that trains until it is stopped, and writes a line after each step of each of its worlds: ``PIPE MODE``.

``MODE`` is ``live`` (quorate's live workers), ``plain`` (data-parallel training as every launcher knows it) or
``torchft``.  A line has the monotonic second, the process id, a number of the world within this process, its size and
this worker's rank.
"""

from __future__ import annotations

import os
import sys
import time
from datetime import timedelta

from quorate._trace import mark
mark("W start")
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

WIDTH = 64
PAUSE_SECONDS = 0.005

pipe = os.open(sys.argv[1], os.O_WRONLY)


def say(number: int, size: int, rank: int) -> None:
    # One write, so that lines of several workers never mix.
    os.write(pipe, f"{time.monotonic()} {os.getpid()} {number} {size} {rank}\n".encode())


def build() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.Tanh(), torch.nn.Linear(WIDTH, 1))
    return model, torch.optim.SGD(model.parameters(), lr=0.01)


def train_one(parallel: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    parallel(torch.ones(4, WIDTH)).square().mean().backward()
    optimizer.step()


def live() -> None:
    from quorate_live import worlds  # the other contenders do without

    mark("W program"); model, optimizer = build()
    mark("W built"); step = 0
    for world in worlds():
        with world:
            mark("W before-init"); dist.init_process_group("gloo"); mark("W after-init")
            step = world.share(model, optimizer, step)
            mark("W shared"); parallel = DistributedDataParallel(model); mark("W ddp"); first=True
            while True:
                train_one(parallel, optimizer)
                step += 1
                if first: mark("W first-step"); first=False
                say(world.number, world.size, world.rank)
                time.sleep(PAUSE_SECONDS)


def plain() -> None:
    dist.init_process_group("gloo")
    model, optimizer = build()
    parallel = DistributedDataParallel(model)
    while True:
        train_one(parallel, optimizer)
        say(0, dist.get_world_size(), dist.get_rank())
        time.sleep(PAUSE_SECONDS)


torch.set_num_threads(1)
{"live": live, "plain": plain}[sys.argv[2]]()
