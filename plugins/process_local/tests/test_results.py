"""What a function has returned counts, and its worker stays until all have returned.

What does not live here: whole jobs with torch (``tests/test_function_results.py``).
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from quorate.proc import is_alive
from quorate.records import WorkerExited
from quorate.starter import DeliversResults, StarterRequest
from quorate_process_local import _task
from quorate_process_local._functions import FunctionStarter
from quorate_process_local._results import LARGEST_RESULT_BYTES, LENGTH
from quorate_process_local._warm import WarmStarter

from .conftest import DEADLINE_SECONDS, Ear, Group, Start, launch, starter, wait_for_end

#: Longer than any test waits.
FOR_EVER = 1000.0

Begin = Callable[..., Group]


@pytest.fixture(params=["spawn", "fork", "forkserver", "warm"])
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def begin(method: str, functions: ModuleType) -> Iterator[Begin]:
    """``begin(call, …)`` starts one worker per call, in the order of their local ranks."""
    opened: list[Any] = []

    def begin(*calls: Sequence[Any], grace_seconds: float = FOR_EVER) -> Group:
        chosen = starter(method, grace_seconds)
        group = Group(chosen.start([launch(rank, *call) for rank, call in enumerate(calls)]))
        opened[:0] = [group, *([chosen] if hasattr(chosen, "close") else [])]
        return group

    yield begin
    for each in opened:
        each.close()


@pytest.fixture
def door(tmp_path: Path) -> str:
    path = str(tmp_path / "door")
    os.mkfifo(path)
    return path


def open_door(door: str) -> None:
    with open(door, "w"):
        pass


def delivered(group: Group) -> Sequence[int]:
    context = group.context
    assert isinstance(context, DeliversResults)
    return context.delivered()


def wait_for_delivery(group: Group, *local_ranks: int) -> int:
    """Wait until exactly these have delivered and wait; return the pid of the first."""
    group.run_until(lambda: list(delivered(group)) == list(local_ranks))
    assert not group.exits
    return group.context.pids()[local_ranks[0]]


def facts(exits: Sequence[WorkerExited]) -> dict[int, tuple[int, Any, bool]]:
    return {event.local_rank: (event.exit_code, event.return_value, event.stopped) for event in exits}


def test_a_worker_stays_until_all_have_delivered(begin: Begin, functions: ModuleType, door: str) -> None:
    group = begin((functions.echo, "early"), (functions.pass_door, door, "late"))
    assert is_alive(wait_for_delivery(group, 0))
    open_door(door)
    assert facts(group.run()) == {0: (0, ("early",), False), 1: (0, "late", False)}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT, signal.SIGTERM, signal.SIGINT])
def test_what_ends_a_worker_that_has_delivered_does_not_matter(
    begin: Begin, functions: ModuleType, door: str, number: signal.Signals
) -> None:
    group = begin((functions.echo, "early"), (functions.pass_door, door, "late"))
    os.kill(wait_for_delivery(group, 0), number)
    group.run_until(lambda: len(group.exits) == 1)
    assert facts(group.exits) == {0: (0, ("early",), False)}
    open_door(door)
    assert facts(group.run())[1] == (0, "late", False)


@pytest.mark.parametrize("end", ["abort_at_the_end", "fail_at_the_end"])
def test_how_a_process_ends_after_its_function_does_not_matter(
    begin: Begin, functions: ModuleType, end: str, capfd: pytest.CaptureFixture[str]
) -> None:
    group = begin(*[(getattr(functions, end), rank) for rank in range(2)])
    assert facts(group.run()) == {0: (0, 0, False), 1: (0, 1, False)}
    how = "by SIGABRT" if end == "abort_at_the_end" else "with exit code 3"
    assert f"local rank 1 ended {how} after its function had returned; the result counts" in capfd.readouterr().err


@pytest.mark.parametrize(("hang", "arguments"), [("hang_at_the_end", (0,)), ("leave_a_thread", ())])
def test_a_process_that_does_not_end_is_terminated(
    begin: Begin, functions: ModuleType, hang: str, arguments: tuple[int, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    group = begin((getattr(functions, hang), "value", *arguments), (functions.nothing,), grace_seconds=1.0)
    assert facts(group.run()) == {0: (0, "value", False), 1: (0, None, False)}
    assert "local rank 0 did not end within 1 s" in capfd.readouterr().err


def test_a_process_that_ignores_that_is_killed(begin: Begin, functions: ModuleType) -> None:
    group = begin((functions.hang_at_the_end, "value", signal.SIGTERM), grace_seconds=0.5)
    assert facts(group.run()) == {0: (0, "value", False)}


RANK_ZERO_OF_TWO_NODES = {"RANK": "0", "GROUP_WORLD_SIZE": "2", "TORCHELASTIC_USE_AGENT_STORE": "False"}


def begin_kept(method: str, start: Start, *call: Any, **environment: str) -> Group:
    return start(method, [launch(0, *call, environment={**RANK_ZERO_OF_TWO_NODES, **environment})])


@pytest.mark.parametrize("plain", ["spawn", "fork", "forkserver"])
def test_rank_zero_serves_other_nodes_until_it_is_stopped(
    plain: str, start: Start, functions: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Workers of other nodes may still use its store; the agent stops it after the exit barrier."""
    path = tmp_path / "written"
    group = begin_kept(plain, start, functions.write_at_the_end, str(path), 0.3)
    group.run_until(lambda: bool(group.exits))
    assert facts(group.exits) == {0: (0, None, False)}
    assert is_alive(group.context.pids()[0])
    assert not group.context.is_gone()
    assert not delivered(group)
    assert group.context.wake_at() is None  # nothing is due before the stop
    group.stop()
    assert facts(group.run()) == {0: (0, None, False)}  # once only
    assert path.read_text() == "done"  # it came to its own end: no signal cut it short
    assert not capfd.readouterr().err


@pytest.mark.parametrize(
    ("name", "value"), [("RANK", "1"), ("GROUP_WORLD_SIZE", "1"), ("TORCHELASTIC_USE_AGENT_STORE", "True")]
)
def test_who_serves_no_other_node_ends_at_once(start: Start, functions: ModuleType, name: str, value: str) -> None:
    group = begin_kept("fork", start, functions.nothing, **{name: value})
    assert facts(group.run()) == {0: (0, None, False)}


def test_a_kept_worker_that_does_not_end_is_killed(start: Start, functions: ModuleType) -> None:
    group = begin_kept("spawn", start, functions.hang_at_the_end, "value", signal.SIGTERM)
    group.run_until(lambda: bool(group.exits))
    group.stop(grace_seconds=0.3)
    assert facts(group.run()) == {0: (0, "value", False)}


def test_a_kept_worker_that_dies_has_succeeded(start: Start, functions: ModuleType) -> None:
    group = begin_kept("fork", start, functions.echo, "value")
    group.run_until(lambda: bool(group.exits))
    os.kill(group.context.pids()[0], signal.SIGKILL)
    assert facts(group.run()) == {0: (0, ("value",), False)}


def test_a_kept_worker_waits_for_the_others_of_its_node(start: Start, functions: ModuleType, door: str) -> None:
    late = launch(1, functions.pass_door, door, "late", environment={**RANK_ZERO_OF_TWO_NODES, "RANK": "1"})
    group = start("fork", [launch(0, functions.echo, "early", environment=RANK_ZERO_OF_TWO_NODES), late])
    assert is_alive(wait_for_delivery(group, 0))
    open_door(door)
    group.run_until(lambda: len(group.exits) == 2)
    assert is_alive(group.context.pids()[0])
    group.stop()
    assert facts(group.run()) == {0: (0, ("early",), False), 1: (0, "late", False)}


def test_what_is_left_to_do_at_the_end_is_done(begin: Begin, functions: ModuleType, tmp_path: Path) -> None:
    """Nobody is hurried: the grace is for those that hang."""
    path = tmp_path / "written"
    group = begin((functions.write_at_the_end, str(path), 0.3), (functions.nothing,))
    assert facts(group.run()) == {0: (0, None, False), 1: (0, None, False)}
    assert path.read_text() == "done"


def test_one_delivers_and_another_raises(begin: Begin, functions: ModuleType) -> None:
    """The first is neither cause nor victim of the other's failure, and does not wait for it any longer."""
    group = begin((functions.echo, "value"), (functions.boom,))
    assert facts(group.run()) == {0: (0, ("value",), False), 1: (1, None, False)}


def test_a_stop_ends_those_that_wait_at_once(begin: Begin, functions: ModuleType, door: str) -> None:
    """Although the function has caught the signal, and left nobody to heed it."""
    group = begin((functions.swallow, signal.SIGTERM, "value"), (functions.pass_door, door, "never"))
    wait_for_delivery(group, 0)
    group.stop(grace_seconds=FOR_EVER)
    assert facts(group.run()) == {0: (0, "value", False), 1: (-signal.SIGTERM, None, True)}


def test_what_is_delivered_after_a_stop_is_a_stopped_workers(begin: Begin, functions: ModuleType, door: str) -> None:
    group = begin((functions.pass_door, door, "value"), (functions.nothing,))
    wait_for_delivery(group, 1)
    group.stop(signal.SIGCONT, grace_seconds=FOR_EVER)  # a signal that does nothing
    open_door(door)
    assert facts(group.run()) == {0: (0, "value", True), 1: (0, None, False)}


@pytest.mark.parametrize("first", [0, 3])
def test_a_function_may_close_every_descriptor(begin: Begin, functions: ModuleType, tmp_path: Path, first: int) -> None:
    """And whatever has the numbers now is not written to."""
    path = tmp_path / "other"
    group = begin((functions.close_everything, first, str(path), "value"), (functions.nothing,))
    assert facts(group.run()) == {0: (0, "value", False), 1: (0, None, False)}
    if first == 3:
        assert path.read_bytes() == b""


def test_a_function_may_use_up_all_descriptors(begin: Begin, functions: ModuleType) -> None:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, limit[0]), limit[1]))  # which workers inherit
    try:
        assert facts(begin((functions.use_up_descriptors, "value")).run()) == {0: (0, "value", False)}
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)


def test_the_agent_may_be_out_of_descriptors_for_a_while(begin: Begin, functions: ModuleType, door: str) -> None:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    group = begin((functions.echo, "value"), (functions.pass_door, door, "late"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limit[1]))
    looks: list[float] = []
    try:
        until = time.monotonic() + 1.0
        group.run_until(lambda: looks.append(time.monotonic()) or looks[-1] > until)  # type: ignore[func-returns-value]
        assert len(looks) < 200  # it looks now and then, and does not spin
        assert not delivered(group)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    wait_for_delivery(group, 0)
    open_door(door)
    assert facts(group.run()) == {0: (0, ("value",), False), 1: (0, "late", False)}


def test_a_child_that_holds_everything_holds_up_nobody(begin: Begin, functions: ModuleType) -> None:
    group = begin((functions.leave_a_child, "value"), (functions.nothing,), grace_seconds=DEADLINE_SECONDS)
    assert facts(group.run()) == {0: (0, "value", False), 1: (0, None, False)}


def test_a_child_that_returns_as_well_delivers_nothing(begin: Begin, functions: ModuleType) -> None:
    group = begin((functions.return_twice,), (functions.nothing,))
    pid = group.context.pids()[0]
    assert facts(group.run()) == {0: (0, pid, False), 1: (0, None, False)}


@pytest.mark.parametrize("code", [0, None])
def test_a_worker_that_exits_well_stays_as_well(
    begin: Begin, functions: ModuleType, door: str, code: int | None
) -> None:
    group = begin((functions.leave, code), (functions.pass_door, door, "late"))
    assert is_alive(wait_for_delivery(group, 0))
    open_door(door)
    assert facts(group.run()) == {0: (0, None, False), 1: (0, "late", False)}


@pytest.mark.parametrize(("function", "code"), [("leave_at_once", 0), ("unpicklable", 1), ("unloadable", 1)])
def test_what_cannot_be_delivered_holds_up_nobody(
    begin: Begin, functions: ModuleType, door: str, function: str, code: int
) -> None:
    group = begin((getattr(functions, function),), (functions.pass_door, door, "late"))
    group.run_until(lambda: len(group.exits) == 1)
    assert facts(group.exits) == {0: (code, None, False)}
    if function == "unloadable":
        assert group.exits[0].problem.startswith("the function's return value cannot be unpickled in the agent: Value")
    open_door(door)
    assert facts(group.run())[1] == (0, "late", False)


def test_a_handler_that_raises_does_not_end_the_wait(begin: Begin, functions: ModuleType, door: str) -> None:
    group = begin((functions.raise_on, signal.SIGUSR1, "value"), (functions.pass_door, door, "late"))
    pid = wait_for_delivery(group, 0)
    os.kill(pid, signal.SIGUSR1)
    open_door(door)
    assert facts(group.run()) == {0: (0, "value", False), 1: (0, "late", False)}


def test_huge_values_of_several_workers(begin: Begin, functions: ModuleType) -> None:
    size = 30_000_000
    exits = begin(*[(functions.blob, size + rank) for rank in range(3)]).run()
    assert {rank: len(value) for rank, (_, value, _) in facts(exits).items()} == {0: size, 1: size + 1, 2: size + 2}


def test_those_that_wait_end_with_a_killed_agent(method: str, functions: ModuleType, ear: Ear, door: str) -> None:
    context: Any = multiprocessing.get_context("spawn")
    agent = context.Process(target=functions.wait_in_an_agent, args=(method, str(ear.path), door))
    agent.start()
    try:
        pids = [int(word) for word in ear.words(2)]
        assert is_alive(pids[0])
        agent.kill()
        wait_for_end(pids)
    finally:
        agent.kill()
        agent.join()
        agent.close()


def test_strangers_that_connect_are_nobody(begin: Begin, functions: ModuleType, door: str) -> None:
    group = begin((functions.echo, "value"), (functions.pass_door, door, "late"))
    context: Any = group.context
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(context._deliveries.address)
        stranger.sendall(LENGTH.pack(len(pickled := pickle.dumps("not a result"))) + pickled)
        wait_for_delivery(group, 0)
    open_door(door)
    assert facts(group.run()) == {0: (0, ("value",), False), 1: (0, "late", False)}


def test_functions_of_one_group_and_the_next_do_not_meet(begin: Begin, functions: ModuleType, door: str) -> None:
    first = begin((functions.pass_door, door, "first"))
    second = begin((functions.echo, "second"))
    assert facts(second.run()) == {0: (0, ("second",), False)}
    open_door(door)
    assert facts(first.run()) == {0: (0, "first", False)}


def test_a_result_that_is_too_large_is_refused(begin: Begin, functions: ModuleType, door: str) -> None:
    """The agent reserves nothing for it, ends its worker, and goes on with the others."""
    size = LARGEST_RESULT_BYTES + 1
    group = begin((functions.announce, size), (functions.pass_door, door, "late"))
    group.run_until(lambda: len(group.exits) == 1)
    (event,) = group.exits
    assert (event.local_rank, event.exit_code, event.return_value) == (0, 1, None)
    assert event.problem == f"its result has {size} bytes, and at most {LARGEST_RESULT_BYTES} are taken"
    open_door(door)
    assert facts(group.run())[1] == (0, "late", False)


def test_a_worker_says_itself_that_its_result_is_too_large(
    start: Start, functions: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forked, so that it has the test's smaller limit."""
    monkeypatch.setattr(_task, "LARGEST_RESULT_BYTES", 1000)
    (event,) = start("fork", [launch(0, functions.blob, 1000)]).run()
    assert event.exit_code == 1
    last = "ValueError: blob returned 1018 bytes, and at most 1000 can be passed to the agent; "
    assert event.stderr_tail[-1] == last + "write the value to a file and return its path"


@pytest.mark.parametrize("sent_bytes", [0, 500_000])
def test_a_worker_that_stops_within_its_result_is_ended(
    method: str, functions: ModuleType, door: str, sent_bytes: int
) -> None:
    calls = (functions.announce, 1_000_000, sent_bytes), (functions.pass_door, door, "late")
    make: Any = WarmStarter if method == "warm" else FunctionStarter
    chosen = make(StarterRequest(method, "token", FOR_EVER), stall_seconds=0.5)
    group = Group(chosen.start([launch(rank, *call) for rank, call in enumerate(calls)]))
    try:
        group.run_until(lambda: len(group.exits) == 1)
        (event,) = group.exits
        assert (event.local_rank, event.exit_code, event.return_value) == (0, 1, None)
        assert event.problem == "it stopped in the middle of sending its result, for 0.5 s, and was killed"
        open_door(door)
        assert facts(group.run())[1] == (0, "late", False)
    finally:
        group.close()
        if method == "warm":
            chosen.close()


def test_what_follows_a_result_is_thrown_away(begin: Begin, functions: ModuleType, door: str) -> None:
    group = begin((functions.send_for_ever, "first"), (functions.pass_door, door, "late"))
    group.run_until(lambda: list(delivered(group)) == [0])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    until = time.monotonic() + 1.0
    group.run_until(lambda: time.monotonic() > until)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB; a second brings gigabytes
    open_door(door)
    assert facts(group.run())[0][1] == "first"
    assert facts(group.exits)[1] == (0, "late", False)


@pytest.mark.parametrize("kind", ["exits", "nested", "confuses", "interrupts", "shouts"])
def test_a_result_that_cannot_be_unpickled_harms_nobody(
    begin: Begin, functions: ModuleType, door: str, kind: str
) -> None:
    group = begin((functions.hostile, kind), (functions.pass_door, door, "late"))
    group.run_until(lambda: len(group.exits) == 1)
    (event,) = group.exits
    assert (event.local_rank, event.exit_code, event.return_value) == (0, 1, None)
    assert event.problem.startswith("the function's return value cannot be unpickled in the agent: ")
    assert event.problem.isprintable()
    assert len(event.problem) <= 2048
    open_door(door)
    assert facts(group.run())[1] == (0, "late", False)


def test_connections_of_strangers_do_not_keep_the_agent(begin: Begin, functions: ModuleType, door: str) -> None:
    group = begin((functions.pass_door, door, "value"))
    context: Any = group.context
    strangers = [socket.socket(socket.AF_UNIX) for _ in range(500)]
    for stranger in strangers:
        stranger.connect(context._deliveries.address)
    began = time.monotonic()
    group.context.advance(began)
    open_door(door)
    assert facts(group.run()) == {0: (0, "value", False)}
    for stranger in strangers:
        stranger.close()
