"""Live workers without torch that do what programs do now and then: fork, or forget the ``with``."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from quorate_live import World, worlds

from .live_jobs import DEADLINE_SECONDS, QUORATE

_FORKS = """
import os, signal, time
from quorate_live import worlds

own = os.getpid()
for world in worlds():
    with world:
        first, rank = os.environ["QUORATE_GENERATION"] == "1", os.environ["RANK"]
        if first and os.fork() == 0:
            try:
                world.commit()
            except RuntimeError as error:
                print("child", rank, "is told", error, flush=True)
            continue  # it leaves the world as its parent does
        if first:
            os.wait()
            print("parent", rank, "commits", world.commit(), flush=True)
            open("committed" + rank, "w").close()
        if first and rank == "1":
            while not os.path.exists("committed0"):
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        if first:
            time.sleep(60)
if os.getpid() == own:
    print("finally", rank, "commits", world.commit(), flush=True)
"""
_DIES = """
import os, signal, time
from quorate_live import WorldEnded, worlds

for world in worlds():
    with world:
        rank = os.environ["RANK"]
        if os.environ["QUORATE_GENERATION"] == "1":
            open("entered" + rank, "w").close()
            while rank == "0" and not os.path.exists("entered1"):
                time.sleep(0.01)
            if rank == "0":
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                time.sleep(60)
            except WorldEnded:
                open("asked", "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
"""
_ODDITIES = """
import asyncio, os, resource, signal, sys, time
from quorate_live import worlds

def say(*words):
    os.write(1, (" ".join(map(str, ("rank", *words))) + "\\n").encode())  # in one piece: all write to one pipe

def use_up_descriptors():
    begin()
    used = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
    try:
        while True:
            used.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        pass
    time.sleep(60)

def import_a_module():
    with open("slow_to_import.py", "w") as file:
        file.write("import time, __main__; __main__.begin(); time.sleep(0.5); finished = True")
    sys.path.insert(0, os.getcwd())
    import slow_to_import
    time.sleep(60)

def begin():
    open("ready" + os.environ["RANK"], "w").close()

def wait():
    begin()
    time.sleep(60)

def kill_itself():
    while not all(os.path.exists(f"ready{rank}") for rank in range(1, len(ODDITIES))):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)

def fail():
    begin()
    raise ValueError("of its own")

ODDITIES = [kill_itself, use_up_descriptors, import_a_module, fail, wait, None]

def train(number):
    first = None
    for world in worlds():
        with world:
            first = first or world
            if os.environ["QUORATE_GENERATION"] == "1":
                try:
                    ODDITIES[number]()
                except BaseException:
                    if number != 4:
                        raise
                    return  # out of the loop, although the round is over
        if world is first and number == 2:
            assert sys.modules["slow_to_import"].finished
    say(number, "ends as", os.getpid(), "and its first world commits", first.commit())

async def train_in_a_coroutine():
    beside = asyncio.create_task(asyncio.sleep(3600))
    for world in worlds():
        with world:
            if os.environ["QUORATE_GENERATION"] == "1":
                begin()
                await asyncio.sleep(3600)
            await asyncio.sleep(0)
    assert not beside.done()
    say(5, "ends as", os.getpid(), "and its first world commits False")

number = int(os.environ["RANK"])
say(number, "begins as", os.getpid())
try:
    train(number) if number != 5 else asyncio.run(train_in_a_coroutine())
except ValueError:
    time.sleep(60)  # a program that takes its time to end
if os.environ["QUORATE_GENERATION"] == "1":
    time.sleep(60)
"""
_FORGETS = """
from quorate_live import worlds

for world in worlds():
    print("in no world", flush=True)
"""


def run(folder: Path, program: str, *flags: str) -> subprocess.CompletedProcess[str]:
    path = folder / "program.py"
    path.write_text(program)
    command = [QUORATE, "run", "--standalone", "--nproc-per-node=2", *flags, str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_SECONDS, cwd=folder)


def test_a_forked_child_leaves_its_parents_world_alone(tmp_path: Path) -> None:
    """The channel to the agent is the parent's, which lives on after the child has left the block."""
    done = run(tmp_path, _FORKS, "--max-restarts=1")
    assert done.returncode == 0, done.stdout + done.stderr
    for rank in (0, 1):
        assert f"child {rank} is told world.commit() must be called in the process" in done.stdout
        assert f"parent {rank} commits True" in done.stdout
        assert f"finally {rank} commits True" in done.stdout, "for the last checkpoint"
    assert "1 worker(s) live on" in done.stderr, done.stderr


def test_a_worker_that_dies_while_it_leaves_its_world_is_not_late(tmp_path: Path) -> None:
    """Its channel closes a moment before its process has ended."""
    done = run(tmp_path, _DIES, "--max-restarts=1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "asked").exists()
    assert "did not leave its world in time" not in done.stderr


def test_who_can_leave_its_world_lives_on_and_who_has_no_use_for_another_is_replaced_at_once(tmp_path: Path) -> None:
    done = run(tmp_path, _ODDITIES, "--nproc-per-node=6", "--max-restarts=1", "--release-timeout=30")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "did not leave its world in time" not in done.stderr
    assert "has left its loop over worlds() although its round was over" in done.stderr
    words = [line.split() for line in done.stdout.splitlines()]
    began = [(line[1], line[4]) for line in words if line[2] == "begins"]
    ended = {line[1]: (line[4], line[-1]) for line in words if line[2] == "ends"}
    alive = [rank for rank, (pid, _) in ended.items() if began.index((rank, pid)) < 6]
    assert sorted(alive) == ["1", "2", "5"], done.stdout + done.stderr
    assert [ended[rank][1] for rank in ("0", "1", "2")] == ["True", "False", "False"]


def test_a_world_that_is_not_entered_is_a_mistake(tmp_path: Path) -> None:
    done = run(tmp_path, _FORGETS)
    assert done.returncode == 1
    assert "put what a worker does in a round into 'with world:'" in done.stderr


def test_a_world_is_entered_once() -> None:
    """Its place in the job is gone with its block, and its number may belong to another process by then."""
    (world,) = [world for world in worlds() if not enter(world)]
    with pytest.raises(RuntimeError, match="entered before: take the next one"):
        enter(world)


def enter(world: World) -> None:
    with world:
        pass
