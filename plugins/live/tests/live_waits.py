"""Waits in gloo for a peer that is stopped or silent, which ``break_collectives`` has to end: prints how each ends.

Run with a folder for what the processes meet by.  Each case has a process of its own for both sides.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from quorate.proc import state_of
from quorate.testing import settles
from quorate_live._errors import is_peer_loss
from quorate_live._groups import Groups

#: More than the kernel takes in for a peer that does not read.
BIG = 1 << 26
PAUSE_SECONDS = 0.01
#: Whether the survivor's next call is the one that has to be ended.
is_at_last_call = threading.Event()


def tensor(length: int) -> torch.Tensor:
    return torch.ones(length, dtype=torch.uint8)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def wait_until_stopped(pid: int) -> None:
    assert settles(lambda: state_of(pid) == "T")


# What the peer does (first) and the survivor (second).  A connection keeps the order: who has received the small
# message knows of the receive that was posted before it.


def receive_and_stop() -> None:
    work = dist.irecv(tensor(BIG), 0)
    dist.send(tensor(1), 0, tag=1)
    stop()
    work.wait()


def send_to_a_stopped_one(peer: int) -> None:
    dist.recv(tensor(1), 1, tag=1)
    wait_until_stopped(peer)
    is_at_last_call.set()
    dist.send(tensor(BIG), 1)


def begin_to_send_and_stop() -> None:
    dist.recv(tensor(1), 0, tag=1)
    work = dist.isend(tensor(BIG), 0)
    stop()
    work.wait()


def receive_a_part(peer: int) -> None:
    work = dist.irecv(tensor(BIG), 1)
    dist.send(tensor(1), 1, tag=1)
    wait_until_stopped(peer)
    is_at_last_call.set()
    work.wait()


def do_nothing() -> None:
    time.sleep(600)  # until it is killed


def send_to_a_silent_one(peer: int) -> None:
    is_at_last_call.set()
    dist.send(tensor(BIG), 1)


CASES: dict[str, tuple[Callable[[], None], Callable[[int], None]]] = {
    "send to a stopped one": (receive_and_stop, send_to_a_stopped_one),
    "half a message": (begin_to_send_and_stop, receive_a_part),
    "send to a silent one": (do_nothing, send_to_a_silent_one),
}


def join(meeting: Path, rank: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)


def break_what_waits(groups: Groups) -> None:
    """As the session's thread does, once the main thread has waited in native code for a while."""
    is_at_last_call.wait()
    seen = [""]
    while len(seen) < 4 or seen[-1] == "running":
        time.sleep(PAUSE_SECONDS)
        now = Path(f"/proc/self/task/{os.getpid()}/syscall").read_text().strip()
        seen = [*seen, now] if now == seen[-1] else [now]
    while True:
        groups.break_collectives()
        time.sleep(PAUSE_SECONDS)


def survive(meeting: Path, case: str, peer: int) -> None:
    groups = Groups()
    join(meeting, 0)
    threading.Thread(target=break_what_waits, args=(groups,), daemon=True).start()
    try:
        CASES[case][1](peer)
        print(f"{case}: returned", flush=True)
    except RuntimeError as error:
        print(f"{case}: {'peer loss' if is_peer_loss(error) else error}", flush=True)


def fork(function: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            function()
        finally:
            os._exit(0)
    return pid


def peer_of(meeting: Path, case: str) -> None:
    join(meeting, 1)
    CASES[case][0]()


if __name__ == "__main__":
    torch.set_num_threads(1)
    pids = []
    for number, case in enumerate(CASES):
        meeting = Path(sys.argv[1]) / str(number)
        peer = fork(lambda meeting=meeting, case=case: peer_of(meeting, case))  # type: ignore[misc]
        survivor = fork(lambda meeting=meeting, case=case, peer=peer: survive(meeting, case, peer))  # type: ignore[misc]
        pids.append((survivor, peer))
    for survivor, peer in pids:
        os.waitpid(survivor, 0)
        os.kill(peer, signal.SIGKILL)
        os.waitpid(peer, 0)
