"""Whole jobs of live workers with torch and gloo: who lives on, what is trained, and who is stopped as ever."""

from __future__ import annotations

import os
import random
import re
import signal
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from quorate import LaunchConfig, launch
from quorate.testing import free_port

from .live_jobs import PRELOAD, Job, steps_of

torch = pytest.importorskip("torch")

from . import live_training  # noqa: E402 - torch is there
from .live_training import train_alone  # noqa: E402

pytestmark = [
    pytest.mark.needs("quorate-process-local", "quorate-rendezvous-static"),
    pytest.mark.slow,  # each job loads torch
]


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    with Job(tmp_path, STEPS="60") as job:
        yield job


def check_training(job: Job, steps: int, size: int) -> None:
    """Every step was trained once by all, and the parameters are those of an undisturbed training on every rank."""
    ends = job.of("end", job.generation)
    assert len({line["RANK"] for line in ends}) == size
    expected = train_alone(steps)
    for line in ends:
        assert line["digest"] == pytest.approx(expected, rel=1e-9)
    for trained in steps_of(job).values():
        assert trained == sorted(set(trained)), "a worker counts no step twice and goes back nowhere"
        # A step whose update another worker completed for this one is not reported by it, and by no worker if each was
    # interrupted between the update and its report: then the next world begins with it.
    reported = {step for trained in steps_of(job).values() for step in trained}
    every = set(range(1, steps + 1))
    assert reported <= every
    assert every - reported <= {line["step"] for line in job.of("begin")}


def check_lived(job: Job, pids: Iterable[int], generation: int) -> None:
    """These workers are in this world, but for such as a busy machine has kept from leaving the last one in time."""
    assert set(pids) - set(job.pids(generation).values()) <= late_pids(job), job.output()


def late_pids(job: Job) -> set[int]:
    """Return the workers that were stopped because they did not leave their world in time."""
    return {int(pid) for pid in re.findall(r"\(pid (\d+)\) did not leave its world in time", job.output())}


@pytest.mark.parametrize("size", [2, 4])
def test_survivors_keep_their_process_and_every_step_is_trained_once(job: Job, size: int) -> None:
    job.start("train", size)
    lived = []
    for _ in range(3):
        number = job.wait_for_world(size, above=lived[-1] if lived else 0, steps=3)
        pids = job.pids(number)
        victim = max(pids) if not lived else min(pids)
        os.kill(pids[victim], signal.SIGKILL)
        again = job.wait_for_world(size, above=number)
        after = job.pids(again)
        survivors = set(pids.values()) - {pids[victim]}
        assert survivors == set(pids.values()) & set(after.values()), job.output()
        lived.append(number)
    assert job.finish() == [0], job.output()
    check_training(job, 60, size)
    assert f"{size - 1} worker(s) live on" in job.output()


def test_an_exception_of_the_programs_own_is_a_failure_and_the_others_live_on(job: Job) -> None:
    job.start("fail_by_itself", 2)
    job.wait_for_world(2, above=1)
    first, second = job.pids(1), job.pids(2)
    assert first[0] == second[0]
    assert first[1] != second[1]
    assert job.finish() == [0]
    assert "my own fault" in job.output()
    check_training(job, 60, 2)


def test_a_program_that_catches_exceptions_broadly_lives_on(job: Job) -> None:
    job.start("catch_broadly", 3)
    number = job.wait_for_world(3, steps=3)
    pids = job.pids(number)
    os.kill(pids[1], signal.SIGKILL)
    after = job.pids(job.wait_for_world(3, above=number))
    assert len(set(pids.values()) & set(after.values())) == 2, job.output()
    assert job.finish() == [0]
    check_training(job, 60, 3)


def test_a_program_that_catches_everything_ends_with_equal_parameters(job: Job) -> None:
    """An interruption that comes outside of its ``try`` takes it out; if none does, it is stopped."""
    job.start("catch_everything", 2, "--release-timeout=1", "--shutdown-timeout=2", STEPS="20")
    number = job.wait_for_world(2, steps=3)
    os.kill(job.pids(number)[1], signal.SIGKILL)
    job.wait_for_world(2, above=number)
    assert job.finish() == [0], job.output()
    assert len({tuple(line["digest"]) for line in job.of("end", job.generation)}) == 1


def test_a_state_in_shards_goes_on_from_the_newest_copy_in_worlds_of_other_sizes(job: Job) -> None:
    host, other = two_agents()
    job.start("train_in_shards", 2, *host, STEPS="1000000")
    small = job.wait_for_world(2, steps=6)
    before = job.pids(small)
    os.kill(before[1], signal.SIGKILL)  # half of the parameters
    again = job.wait_for_world(2, above=small, steps=6)
    check_lived(job, {before[0]}, again)
    second = job.start("train_in_shards", 1, *other, STEPS="1000000")
    large = job.wait_for_world(3, above=again, steps=6)
    check_lived(job, job.pids(again).values(), large)
    second.kill()
    job.wait_for_world(2, above=large, steps=6)
    (job.folder / "enough").touch()
    assert job.finish() == [0, -signal.SIGKILL], job.output()
    for generation in range(2, job.generation + 1):
        begun = {line["step"] for line in job.of("begin", generation)}
        trained = max(line["step"] for line in job.of("step", generation - 1))
        assert len(begun) == 1
        assert trained - 5 <= max(begun) <= trained
        assert max(begun) % 5 == 0
    ends = job.of("end", job.generation)
    assert len(ends) == 2
    for line in ends:
        assert line["digest"] == pytest.approx(train_alone(line["step"]), rel=1e-9)


def test_a_worker_between_two_passes_leaves_nothing_behind(job: Job) -> None:
    """The hooks of the old DDP module would reduce the next world's gradients over broken connections."""
    job.start("wait_after_forward", 2)
    job.wait(lambda: job.of("forward"), "no worker is between the passes")
    pids = job.pids(1)
    os.kill(pids[1], signal.SIGKILL)
    after = job.pids(job.wait_for_world(2, above=1))
    assert set(pids.values()) & set(after.values()) == {pids[0]}, job.output()
    assert job.finish() == [0]
    check_training(job, 60, 2)


@pytest.mark.parametrize("program", ["block", "swallow_everything", "hold_by_a_thread", "freeze_amid_a_message"])
def test_a_worker_that_does_not_leave_its_world_is_stopped_and_the_others_live_on(job: Job, program: str) -> None:
    job.start(program, 3, "--release-timeout=1", "--shutdown-timeout=2")
    job.wait(lambda: job.of("deaf"), "no worker is deaf")
    pids = job.pids(1)
    os.kill(pids[0], signal.SIGKILL)
    after = job.pids(job.wait_for_world(3, above=1))
    assert set(pids.values()) & set(after.values()) == {pids[2]}, job.output()
    assert f"local rank 1 (pid {pids[1]}) did not leave its world in time" in job.output()
    assert job.finish() == [0]
    check_training(job, 60, 3)


def test_a_release_timeout_of_zero_stops_all_workers_as_ever(job: Job) -> None:
    job.start("train", 2, "--release-timeout=0", STEPS="5")
    number = job.wait_for_world(2, steps=2)
    pids = job.pids(number)
    os.kill(pids[1], signal.SIGKILL)
    after = job.pids(job.wait_for_world(2, above=number))
    assert not set(pids.values()) & set(after.values())
    assert job.finish() == [0]


@pytest.mark.parametrize("count", [int(os.environ.get("LIVE_KILLS", "30"))])
def test_random_kills(tmp_path: Path, count: int) -> None:
    """``make soak`` has a thousand of them, of agents too."""
    seed, of_agents = int(os.environ.get("LIVE_SEED", "1")), float(os.environ.get("LIVE_AGENTS", "0"))
    choose = random.Random(seed)
    with Job(tmp_path, STEPS="1000000", PAUSE="0.003") as job:
        host, other = two_agents() if of_agents else ((), ())
        job.start("train", 2 if of_agents else 3, *host)
        if of_agents:
            job.start("train", 1, *other)
        number = 0
        for _ in range(count):
            number = job.wait_for_world(3, above=number)
            pids = job.pids(number)
            if choose.random() < of_agents:
                agent = job.agents.pop(1)
                agent.kill()
                agent.wait()
                job.start("train", 1, *other)
                continue
            for victim in choose.sample(sorted(pids), choose.choice([1, 1, 1, 2])):
                os.kill(pids[victim], signal.SIGKILL)
        number = job.wait_for_world(3, above=number)
        (tmp_path / "enough").touch()
        assert set(job.finish()) == {0}, f"LIVE_SEED={seed}\n{job.output()}"
        held_up, anew = job.output().count("did not leave its world in time"), len(beginnings(job)) - 1
        print(f"{job.generation} worlds; {held_up} workers did not leave theirs in time; {anew} trainings began anew")
        ends = job.of("end", job.generation)
        assert {line["RANK"] for line in ends} == {0, 1, 2}
        assert len({tuple(line["digest"]) for line in ends}) == 1, f"LIVE_SEED={seed}"
        begun = [(line["QUORATE_GENERATION"], line["RANK"], line["pid"], line["step"]) for line in job.of("begin")]
        expected = pytest.approx(train_alone(ends[0]["step"], beginnings(job)[-1]), rel=1e-9)
        assert ends[0]["digest"] == expected, f"LIVE_SEED={seed}\n{begun}\n{job.output()}"


def beginnings(job: Job) -> list[int]:
    """Return the pid of rank 0 at each beginning: of the job, and of each world that had no survivor.

    Two workers of three are killed at times.  Where the third does not leave its world it is stopped, and rank 0 of the
    next world begins anew.
    """
    late, pids = late_pids(job), [0]
    earlier, before = set[int](), set[int]()  # the workers of all worlds so far, and of the last one
    for generation in sorted({line["QUORATE_GENERATION"] for line in job.of("begin")}):
        begun = job.of("begin", generation)
        own = {line["pid"] for line in begun}
        anew = [line["pid"] for line in begun if line["RANK"] == line["step"] == 0]
        if anew and earlier and not own & earlier:
            assert late & before, job.output()
            pids += anew
        earlier, before = earlier | own, own
    return pids


def two_agents() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the flags of the agents of a job of one or two: of the one that hosts the store, and of the other."""
    flags = ("--nnodes=1:2", "--rdzv-backend=tcp", f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--rdzv-id=live")
    conf = "--rdzv-conf=last_call_timeout=0.2,lease_timeout=1,is_host="
    return (*flags, f"{conf}true"), (*flags, f"{conf}false")


def test_the_world_grows_with_an_agent_and_shrinks_without_it(job: Job) -> None:
    host, other = two_agents()
    job.start("train", 2, *host, STEPS="1000000")
    small = job.wait_for_world(2, steps=3)
    before = job.pids(small)
    second = job.start("train", 1, *other, STEPS="1000000")
    large = job.wait_for_world(3, above=small, steps=3)
    check_lived(job, before.values(), large)
    between = set(job.pids(large).values())
    second.kill()
    last = job.wait_for_world(2, above=large)
    alive = set(job.pids(last).values())
    assert alive < between or between & late_pids(job), job.output()
    (job.folder / "enough").touch()
    assert job.finish() == [0, -signal.SIGKILL], job.output()
    check_training(job, job.of("end")[-1]["step"], 2)


@pytest.mark.parametrize("method", ["spawn", "warm"])
def test_functions_are_live_too(job: Job, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EAR", str(job.pipe))
    config = LaunchConfig(1, 1, 2, max_restarts=3, start_method=method, settings={"preload": tuple(PRELOAD.split(","))})
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(lambda: launch(config, live_training.function)(40))
        job.wait_for_world(2, steps=3, meanwhile=running)
        pids = job.pids(1)
        os.kill(pids[1], signal.SIGKILL)
        job.wait_for_world(2, above=1, meanwhile=running)
        results = running.result(60)
    assert {results[0][0]} == set(pids.values()) & {pid for pid, _ in results.values()}
    assert all(digest == pytest.approx(train_alone(40), rel=1e-9) for _, digest in results.values())


def test_commit_says_no_once_the_world_is_not_the_jobs(job: Job) -> None:
    job.start("ask_before_writing", 2)
    job.wait(lambda: len(job.of("step", 1)) == 2, "nobody asks")
    first, second = job.of("step", 1)
    assert first["answer"]
    assert second["answer"]
    os.kill(second["pid"], signal.SIGKILL)
    assert job.finish() == [0], job.output()
    assert [line["answer"] for line in job.of("step") if line["pid"] == first["pid"]] == [True, False, True, True]
