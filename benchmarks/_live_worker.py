"""A worker that trains until it is stopped, and writes a line after each step: ``PIPE MODE``.

``MODE`` is ``live`` (quorate's live workers), ``plain`` (data-parallel training as every launcher knows it) or
``torchft``.  A line has the monotonic second, the process id, a number that is another one in each world of this
process, the world's size, and this worker's rank.
"""

from __future__ import annotations

import os
import sys
import time
from datetime import timedelta
from importlib import import_module
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

WIDTH = 64
PAUSE_SECONDS = 0.005


def say(pipe: int, number: int, size: int, rank: int) -> None:
    # One write, so that lines of several workers never mix.
    os.write(pipe, f"{time.monotonic()} {os.getpid()} {number} {size} {rank}\n".encode())
    time.sleep(PAUSE_SECONDS)


def build() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.Tanh(), torch.nn.Linear(WIDTH, 1))
    return model, torch.optim.SGD(model.parameters(), lr=0.01)


def train_one(parallel: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    parallel(torch.ones(4, WIDTH)).square().mean().backward()
    optimizer.step()


def live(pipe: int) -> None:
    from quorate_live import worlds  # the other contenders do without

    model, optimizer = build()
    step = 0
    for world in worlds():
        with world:
            dist.init_process_group("gloo")
            step = world.share(model, optimizer, step)
            parallel = DistributedDataParallel(model)
            while True:
                train_one(parallel, optimizer)
                step += 1
                say(pipe, world.number, world.size, world.rank)


def plain(pipe: int) -> None:
    dist.init_process_group("gloo")
    model, optimizer = build()
    parallel = DistributedDataParallel(model)
    while True:
        train_one(parallel, optimizer)
        say(pipe, 0, dist.get_world_size(), dist.get_rank())


def torchft(pipe: int) -> None:
    """Each worker is a replica group of its own, so each has torch's rank 0, and torchft tells its place."""
    library = import_module("torchft")  # no types
    model, optimizer = build()

    def load(state: Any) -> None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])

    manager = library.Manager(
        pg=library.ProcessGroupGloo(timeout=timedelta(seconds=10)),
        load_state_dict=load,
        state_dict=lambda: {"model": model.state_dict(), "optimizer": optimizer.state_dict()},
        min_replica_size=1,
    )
    parallel = library.DistributedDataParallel(manager, model)
    wrapped = library.Optimizer(manager, optimizer)
    before = manager.current_step()
    while True:
        train_one(parallel, wrapped)
        rank, step = manager.participating_rank(), manager.current_step()
        if step > before and rank is not None:  # else the step was not committed, or by others alone
            say(pipe, manager._quorum_id, manager.num_participants(), rank)
        before = step


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"live": live, "plain": plain, "torchft": torchft}[sys.argv[2]](os.open(sys.argv[1], os.O_WRONLY))
