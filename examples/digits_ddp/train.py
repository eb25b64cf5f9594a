"""Trains a small network on scikit-learn's handwritten digits with DistributedDataParallel over gloo.

This is an ordinary training script.  It reads its ranks from the environment, writes a checkpoint after each epoch, and
resumes from the newest one when it is started again.  It does not use quorate, and runs under any launcher that sets
torch's usual variables.  What does not live here: the processes that start it and kill it (``demo.py``).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

SEED = 20260101
GLOBAL_BATCH = 64  # split over the workers, so that a step means the same in a world of any size
LEARNING_RATE = 1e-3


def load_data() -> tuple[TensorDataset, TensorDataset]:
    """Return training and test set: 1,797 images of 8 x 8 pixels in all, a fifth of them for the test."""
    digits = load_digits()
    parts = train_test_split(digits.data, digits.target, test_size=0.2, random_state=SEED, stratify=digits.target)
    train_images, test_images = (torch.tensor(part / 16.0, dtype=torch.float32) for part in parts[:2])
    train_labels, test_labels = (torch.tensor(part, dtype=torch.int64) for part in parts[2:])
    return TensorDataset(train_images, train_labels), TensorDataset(test_images, test_labels)


def build_model() -> nn.Module:
    """Return a small convolutional network; equal on all workers, because the seed is."""
    torch.manual_seed(SEED)
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 10),
    )


@final
class Checkpoints:
    """One file per epoch in ``folder``; a file that has its name is complete."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def newest(self) -> dict[str, Any] | None:
        """Return the newest checkpoint, ``None`` if there is none."""
        files = sorted(self._folder.glob("epoch-*.pt"))
        if not files:
            return None
        state: dict[str, Any] = torch.load(files[-1], weights_only=True)
        return state

    def save(self, epoch: int, state: Mapping[str, Any]) -> None:
        """Write to a temporary file first: a worker that is killed while it writes leaves no torn checkpoint."""
        path = self._folder / f"epoch-{epoch:04d}.pt"
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        torch.save(state, temporary)
        os.replace(temporary, path)


@final
class Progress:
    """Writes messages about this worker's progress, one JSON line each, into a named pipe, if there is one.

    Lines are short enough for one atomic write, so that the workers' lines never mix.
    """

    def __init__(self, fifo: str | None) -> None:
        self._descriptor = -1
        if fifo:
            try:
                self._descriptor = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
            except OSError as error:
                print(f"no process reads {fifo} ({error.strerror}); progress is not reported", flush=True)

    def report(self, kind: str, **details: Any) -> None:
        if self._descriptor < 0:
            return
        line = json.dumps({"kind": kind, "at": time.monotonic(), **place(), **details})
        try:
            os.write(self._descriptor, line.encode() + b"\n")
        except OSError:
            self._descriptor = -1  # training goes on without a reader, or with one that is too slow


def place() -> dict[str, Any]:
    """Return this worker's ranks and round, from the environment that the launcher has set."""
    names = {
        "rank": "RANK",
        "world_size": "WORLD_SIZE",
        "restart": "TORCHELASTIC_RESTART_COUNT",
        "round": "QUORATE_ROUND",
        "group_rank": "GROUP_RANK",
    }
    numbers = {name: int(os.environ.get(variable, "0")) for name, variable in names.items()}
    return {"pid": os.getpid(), "node": os.environ.get("DIGITS_NODE", ""), **numbers}


def train(options: argparse.Namespace, progress: Progress) -> None:
    rank, world_size = dist.get_rank(), dist.get_world_size()
    train_set, test_set = load_data()
    model = build_model()
    checkpoints = Checkpoints(options.output / "checkpoints")
    saved = checkpoints.newest()
    history: list[dict[str, Any]] = []
    if saved is not None:
        model.load_state_dict(saved["model"])
        history = saved["history"]
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.Adam(parallel.parameters(), lr=LEARNING_RATE)
    if saved is not None:
        optimizer.load_state_dict(saved["optimizer"])
    sampler: DistributedSampler[Any] = DistributedSampler(train_set, shuffle=True, seed=SEED)
    batches = DataLoader(train_set, batch_size=max(1, GLOBAL_BATCH // world_size), sampler=sampler)
    progress.report("ready", resumed_from=len(history))
    first = len(history) + 1
    for epoch in range(first, options.epochs + 1):
        while first < epoch == options.epochs and options.hold is not None and options.hold.exists():
            time.sleep(0.05)
        begun = time.monotonic()
        sampler.set_epoch(epoch)
        loss = train_epoch(parallel, optimizer, batches, epoch, progress)
        history.append({"epoch": epoch, "loss": loss, **place()})
        if rank == 0:
            print(describe(history[-1]), flush=True)
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "history": history}
            checkpoints.save(epoch, state)
            progress.report("checkpoint", epoch=epoch)
        time.sleep(max(0.0, begun + options.epoch_seconds - time.monotonic()))
    if rank == 0:
        finish(model, test_set, history, options.output)
    dist.barrier()


def train_epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, batches: DataLoader[Any], epoch: int, progress: Progress
) -> float:
    """Run one epoch and return the mean loss over all workers."""
    model.train()
    total = torch.zeros(1)
    for step, (images, labels) in enumerate(batches):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        total += loss.detach()
        if step == 0:
            progress.report("step", epoch=epoch)
    dist.all_reduce(total)
    mean: float = total.item() / (len(batches) * dist.get_world_size())
    return mean


def describe(entry: Mapping[str, Any]) -> str:
    return (
        f"epoch {entry['epoch']:3d}  round {entry['round']}  restart {entry['restart']}  "
        f"world size {entry['world_size']}  loss {entry['loss']:.4f}"
    )


def finish(model: nn.Module, test_set: TensorDataset, history: list[dict[str, Any]], output: Path) -> None:
    """Measure the accuracy on the test images, print it, and write ``result.json``."""
    model.eval()
    images, labels = test_set.tensors
    with torch.no_grad():
        accuracy = float((model(images).argmax(1) == labels).float().mean())
    print(f"test accuracy {accuracy:.2%}", flush=True)
    temporary = output / "result.json.tmp"
    temporary.write_text(json.dumps({"accuracy": accuracy, "history": history}, indent=1))
    os.replace(temporary, output / "result.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument(
        "--epoch-seconds", type=float, default=0.0, help="an epoch lasts at least this long, so that people can follow"
    )
    parser.add_argument(
        "--hold", type=Path, metavar="FILE", help="while this file exists, do not go on to the last epoch"
    )
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="where checkpoints and result go")
    parser.add_argument("--progress", metavar="FIFO", help="named pipe for messages about progress")
    options = parser.parse_args()
    torch.set_num_threads(1)
    progress = Progress(options.progress)
    dist.init_process_group("gloo")
    try:
        train(options, progress)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
