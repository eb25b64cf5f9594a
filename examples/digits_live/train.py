"""Trains on scikit-learn's handwritten digits, as ``digits_ddp`` does, by workers that live through the end of a round.

No checkpoint is written: a newcomer gets the state from the workers that have lived on.  What does not live here: the
processes that start it and kill it (``demo.py``).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from typing import Any

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from quorate_live import World, worlds

SEED = 20260101
GLOBAL_BATCH = 60  # by 1 to 6 workers, so that a step means the same in a world of any size
LEARNING_RATE = 1e-2
HELD_STEPS = 10  # while the training is held, each new world does one of them


def load_data() -> tuple[torch.Tensor, torch.Tensor]:
    """Return 1,797 images of 8 x 8 pixels, and their labels."""
    digits = load_digits()
    return torch.tensor(digits.data / 16.0, dtype=torch.float32), torch.tensor(digits.target, dtype=torch.int64)


def build_model() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def batch_of(step: int, size: int) -> torch.Tensor:
    """Return which images a step is about: it follows from the step alone, not from the workers."""
    chosen = torch.randperm(size, generator=torch.Generator().manual_seed(SEED + step))
    return chosen[:GLOBAL_BATCH]


def report(kind: str, **details: Any) -> None:
    """Write one line about this worker into the named pipe ``PROGRESS``, if there is one."""
    path = os.environ.get("PROGRESS")
    if path:
        line = {"kind": kind, "at": time.monotonic(), "pid": os.getpid(), **details}
        for name in ("RANK", "WORLD_SIZE", "QUORATE_GENERATION"):
            line[name] = int(os.environ.get(name, "0"))
        with open(path, "w") as file:
            file.write(json.dumps(line) + "\n")


def train_one_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, data: tuple[torch.Tensor, torch.Tensor], step: int
) -> float:
    """Train one step on this worker's part of its batch; return the loss over the whole batch."""
    images, labels = data
    mine = batch_of(step, len(images)).chunk(dist.get_world_size())[dist.get_rank()]
    loss = nn.functional.cross_entropy(model(images[mine]), labels[mine])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    mean = loss.detach()
    dist.all_reduce(mean, op=dist.ReduceOp.SUM)
    result: float = mean.item() / dist.get_world_size()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--step-seconds", type=float, default=0.0, help="pause after a step, so that people can follow")
    parser.add_argument("--hold", default="", metavar="FILE", help="while this file exists, do not go on to the end")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    data = load_data()
    model, step = build_model(), 0
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9)
    for world in worlds():
        with world:
            dist.init_process_group("gloo")
            step = world.share(model, optimizer, step)
            parallel = DistributedDataParallel(model)
            first = step
            while step < options.steps:
                while step > first and step >= options.steps - HELD_STEPS and os.path.exists(options.hold):
                    time.sleep(0.02)
                loss = train_one_step(parallel, optimizer, data, step)
                step += 1
                report("step", step=step, loss=loss)
                time.sleep(options.step_seconds)
            finish(world, model, data)


def finish(world: World, model: nn.Module, data: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Report the accuracy, and parameters in short, which are the same on all ranks."""
    images, labels = data
    with torch.no_grad():
        accuracy = float((model(images).argmax(1) == labels).float().mean())
    digest = [float(parameter.detach().double().sum()) for parameter in model.parameters()]
    report("end", accuracy=accuracy, digest=digest)
    if world.rank == 0:
        print(f"accuracy {accuracy:.2%}", flush=True)
    dist.barrier()


if __name__ == "__main__":
    main()
