"""Training programs for the tests, run by agents.  Each worker writes what it does into a named pipe, a line at a time.

Their data follow from the step alone, whatever the number of workers, so an undisturbed training in one process
(:func:`train_alone`) ends with the same parameters, unless a step is lost or trained twice.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from quorate.proc import state_of
from quorate.testing import settles
from quorate_live import World, worlds

GLOBAL_BATCH = 12  # by 1, 2, 3, 4 and 6 workers
WIDTH = 16
_digests: list[list[float]] = []


def say(kind: str, **more: Any) -> None:
    """Report; a line is short enough to be written in one piece."""
    line = {"kind": kind, "pid": os.getpid(), "at": time.monotonic(), **more}
    for name in ("RANK", "WORLD_SIZE", "QUORATE_GENERATION", "TORCHELASTIC_RESTART_COUNT"):
        line[name] = int(os.environ.get(name, "-1"))
    with open(os.environ["EAR"], "w") as file:
        file.write(json.dumps(line) + "\n")


def build(prepare: Callable[[nn.Module], Any] = lambda model: None) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1)).double()
    prepare(model)
    # Small steps: with 0.05 a rounding in a world of another size grows to other parameters within some 2,000 steps.
    # With these a step that is lost or trained twice is still seen after 9,000 (6e-4), and a rounding is not (1e-15).
    return model, torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)


def begin_alike() -> None:
    """Draw the same numbers as all workers that start before the first step; those of later ones must not count."""
    torch.manual_seed(os.getpid() if os.path.exists(beside_the_pipe("begun")) else 0)


def beside_the_pipe(name: str) -> str:
    return os.path.join(os.path.dirname(os.environ["EAR"]), name)


def batch_of(step: int) -> torch.Tensor:
    return torch.randn(GLOBAL_BATCH, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(step))


def loss_of(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    loss: torch.Tensor = (model(batch) - batch.sum(1, keepdim=True).sin()).square().mean()
    return loss


def digest(model: nn.Module) -> list[float]:
    norms = [parameter.detach().norm() for parameter in model.parameters()]
    return [float(norm.full_tensor() if isinstance(norm, DTensor) else norm) for norm in norms]


def train_alone(steps: int, seed: int = 0) -> list[float]:
    """Return the digest after an undisturbed training."""
    torch.manual_seed(seed)
    model, optimizer = build()
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(model, batch_of(step)).backward()
        optimizer.step()
    return digest(model)


def train_one(parallel: nn.Module, optimizer: torch.optim.Optimizer, step: int, is_enough: torch.Tensor) -> None:
    """Train one step; ``is_enough`` becomes 1 if any worker sees the file that ends the training."""
    share = batch_of(step).chunk(dist.get_world_size())[dist.get_rank()]
    loss = loss_of(parallel, share)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step == 0:
        open(beside_the_pipe("begun"), "w").close()
    dist.all_reduce(is_enough.fill_(os.path.exists(beside_the_pipe("enough"))))


def train(
    around: Callable[[Callable[[], None]], None] = lambda step: step(),
    before: Callable[[int], None] = lambda step: None,
) -> None:
    """Train as many steps as ``STEPS`` says; ``around`` calls each one, ``before`` is called ahead of each.

    A file called ``enough`` beside the pipe ends the training earlier, as soon as all workers agree that it is there.
    """
    torch.set_num_threads(1)
    last = int(os.environ["STEPS"])
    begin_alike()
    model, optimizer = build()
    step = 0
    for world in worlds():
        with world:
            dist.init_process_group("gloo")
            step = world.share(model, optimizer, step)
            parallel = DistributedDataParallel(model)
            say("begin", step=step)

            is_enough = torch.zeros(1)
            while step < last and not is_enough:
                before(step)
                around(partial(train_one, parallel, optimizer, step, is_enough))
                step += 1
                say("step", step=step)
                time.sleep(float(os.environ.get("PAUSE", "0.01")))  # the work of a step
            _digests.append(digest(model))
            say("end", step=step, digest=_digests[-1])
            dist.barrier()
    say("out")


def train_in_shards() -> None:
    """As :func:`train`, with parameters and momenta spread over the workers; every fifth step is kept."""
    torch.set_num_threads(1)
    last, step = int(os.environ["STEPS"]), 0
    for world in worlds():
        with world:
            dist.init_process_group("gloo")
            begin_alike()
            model, optimizer = build(fully_shard)
            step = world.share(model, optimizer, step)
            say("begin", step=step)
            is_enough = torch.zeros(1)
            while step < last and not is_enough:
                train_one(model, optimizer, step, is_enough)
                step += 1
                say("step", step=step)
                if step % 5 == 0:
                    world.keep(model, optimizer, step)
                time.sleep(float(os.environ.get("PAUSE", "0.01")))  # the work of a step
            say("end", step=step, digest=digest(model))
            dist.barrier()


# --- programs that are not easily taken out of their world ----------------------------------------------------------


def catch_broadly() -> None:
    """As user code does that survives everything: an exception of a step is printed, and the step is tried again."""

    told = set[str]()

    def around(step: Callable[[], None]) -> None:
        while True:
            try:
                step()
                return
            except Exception as error:
                text = f"generation {os.environ['QUORATE_GENERATION']}: caught {type(error).__name__}: {error}"
                if text not in told:  # it is tried again thousands of times
                    told.add(text)
                    sys.stderr.write(f"{text}\n")

    train(around)


def catch_everything() -> None:
    """As worse user code does: what is not an Exception is caught around the step, too, and the step is tried again."""

    def around(step: Callable[[], None]) -> None:
        while True:
            try:
                step()
                return
            except BaseException:
                time.sleep(0.001)

    train(around)


def wait_after_forward() -> None:
    """Rank 0 is taken out of its world between a forward and a backward pass: its DDP module waits for gradients."""

    def before(step: int) -> None:
        if step == 5 and os.environ["LOCAL_RANK"] == "0" and os.environ["QUORATE_GENERATION"] == "1":
            (parallel,) = [each for each in gc.get_objects() if type(each) is DistributedDataParallel]
            loss = loss_of(parallel, batch_of(step))
            say("forward", loss=float(loss))
            time.sleep(60)  # until it is interrupted or killed

    train(before=before)


def swallow_everything() -> None:
    """Local rank 1 cannot be interrupted: it catches what is not an Exception, too."""

    def before(step: int) -> None:
        if step == 5 and os.environ["LOCAL_RANK"] == "1" and os.environ["QUORATE_GENERATION"] == "1":
            say("deaf")
            while True:
                with suppress(BaseException):
                    while True:
                        time.sleep(60)  # until it is interrupted or killed

    train(before=before)


def block() -> None:
    """Local rank 1 waits in native code for a lock that nobody releases."""

    def before(step: int) -> None:
        if step == 5 and os.environ["LOCAL_RANK"] == "1" and os.environ["QUORATE_GENERATION"] == "1":
            lock, library = ctypes.create_string_buffer(64), ctypes.CDLL(None)
            library.pthread_mutex_lock(lock)
            say("deaf")
            library.pthread_mutex_lock(lock)

    train(before=before)


def hold_by_a_thread() -> None:
    """Local rank 1 has a thread that goes on with collectives of its own, whatever they raise."""

    def go_on() -> None:
        say("deaf")
        while True:
            with suppress(Exception):
                dist.recv(torch.ones(1), (dist.get_rank() + 1) % dist.get_world_size(), tag=7)

    def before(step: int) -> None:
        if step == 5 and os.environ["LOCAL_RANK"] == "1" and os.environ["QUORATE_GENERATION"] == "1":
            threading.Thread(target=go_on, daemon=True).start()
            time.sleep(60)  # until it is interrupted or killed

    train(before=before)


def freeze_amid_a_message() -> None:
    """Local rank 1 is stopped (SIGSTOP) in the middle of a message that local rank 2 sends it."""

    def before(step: int) -> None:
        if step != 5 or os.environ["QUORATE_GENERATION"] != "1":
            return
        message = torch.ones(1 << 23, dtype=torch.float64)  # more than the kernel takes in
        own = torch.tensor([os.getpid()])
        if os.environ["LOCAL_RANK"] == "1":
            dist.irecv(message, 2)
            dist.send(own, 2)
            os.kill(os.getpid(), signal.SIGSTOP)
        elif os.environ["LOCAL_RANK"] == "2":
            dist.recv(own, 1)
            assert settles(lambda: state_of(int(own)) == "T")
            say("deaf")
            dist.send(message, 1)

    train(before=before)


def fail_by_itself() -> None:
    """Local rank 1 fails once by an exception of its own."""

    def before(step: int) -> None:
        if step == 5 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            raise ValueError("my own fault")

    train(before=before)


def function(steps: int) -> tuple[int, list[float]]:
    """Train as a function that ``launch`` calls; returns the process id and the digest."""
    os.environ["STEPS"] = str(steps)
    train()
    return os.getpid(), _digests[-1]


def ask_before_writing() -> None:
    """Ask whether the world is still the job's, before its end and after it."""

    def ask(world: World) -> None:
        say("step", answer=world.commit())

    for world in worlds():
        with world:
            ask(world)
            try:
                while os.environ["QUORATE_GENERATION"] == "1":
                    time.sleep(60)  # until it is interrupted or killed
            finally:
                ask(world)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
