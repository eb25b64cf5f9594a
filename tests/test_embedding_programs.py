"""What programs that embed agents do, and the command never does: everything left to its default, little cleared away.

Each test is such a program, in a process of its own: agents one after another in its main thread and in forked
children, handlers that are never shut down, an environment that is changed and stays so, log folders that are removed
while their agent is still held, one server for all.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from quorate_rendezvous_etcd import EtcdServer
from tests.backends import BACKENDS, loopback_port
from tests.harness import DEADLINE, TOKEN, processes_with, wait_for_end

_ROOT = Path(__file__).resolve().parent.parent

_COMMON = """
import multiprocessing, os, shutil, sys, tempfile
from quorate import *
from quorate import record
from tests import workers

backend, *endpoints = sys.argv[1:]
kept = []

def agent(endpoint, run_id, entrypoint, nodes, *args, workers=2, restarts=0):
    parameters = RendezvousParameters(backend=backend, endpoint=endpoint, run_id=run_id,
                                      min_nodes=nodes, max_nodes=nodes, is_host=True)
    spec = WorkerSpec(role="default", local_world_size=workers, entrypoint=entrypoint, args=args,
                      rdzv_handler=get_rendezvous_handler(parameters), max_restarts=restarts, monitor_interval=0.01)
    folder = tempfile.mkdtemp()
    made = LocalElasticAgent(spec, start_method="spawn", exit_barrier_timeout=5,
                             logs_specs=DefaultLogsSpecs(log_dir=folder, redirects=Std.NONE, tee=Std.NONE))
    kept.append(made)
    return made, folder
"""

_IN_TURN = (
    _COMMON
    + """
if __name__ == "__main__":
    for number, endpoint in enumerate(endpoints[:-1]):
        os.environ["TORCHELASTIC_TIMER_FILE"] = os.path.join(tempfile.gettempdir(), f"timers-{number}")
        made, folder = agent(endpoint, f"job-{os.getpid()}-{number}", workers.rank, 1)
        assert made.run().return_values == {0: 0, 1: 1}
        shutil.rmtree(folder)
    os.environ.pop("TORCHELASTIC_TIMER_FILE")
    # A failure after them; where one server serves all, it still holds the others' jobs.
    made, folder = agent(endpoints[-1], f"job-{os.getpid()}-fails", workers.raise_on, 1, [0], 9, restarts=1)
    assert made.run().is_failed()
    assert made.remaining_restarts == 0
    shutil.rmtree(folder)
    print("done")
"""
)

_FORKED = (
    _COMMON
    + """
@record
def run(endpoint, results):
    made, folder = agent(endpoint, "job-of-" + str(os.getppid()), workers.rank, 2)
    result = made.run()
    results.put(result)
    shutil.rmtree(folder)

if __name__ == "__main__":
    made, folder = agent(endpoints[0], "first-of-" + str(os.getpid()), workers.rank, 1, workers=1)
    assert made.run().return_values == {0: 0}
    shutil.rmtree(folder)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    children = [context.Process(target=run, args=(endpoints[1], results)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0, child.exitcode
    values = [results.get().return_values for _ in children]
    assert sorted(rank for value in values for rank in value) == [0, 1, 2, 3], values
    print("done")
"""
)

_AGAIN = (
    _COMMON
    + """
import threading
from queue import SimpleQueue

def told(call):
    try:
        return call()
    except (RendezvousClosedError, UsageError) as error:
        return type(error).__name__

if __name__ == "__main__":
    endpoints = iter(endpoints)
    made, folder = agent(next(endpoints), "again", workers.rank, 1, workers=1)
    handler = made.worker_group.spec.rdzv_handler
    results = [made.run().return_values for _ in range(2)]
    def other(entrypoint, *args):
        return LocalElasticAgent(WorkerSpec("default", 1, handler, entrypoint, args, 0), start_method="spawn").run()
    results += [other(workers.raise_on, [0], 9).state.value, other(workers.rank).return_values]
    assert results == [{0: 0}, {0: 0}, "FAILED", {0: 0}], results
    handler.shutdown()
    results = [told(made.run)]
    for end in ("shutdown", "set_closed"):
        unused, _ = agent(next(endpoints), "unused", workers.rank, 1)
        getattr(unused.worker_group.spec.rdzv_handler, end)()
        joins, _ = agent(next(endpoints), "joins", workers.rank, 2)
        sole = joins.worker_group.spec.rdzv_handler
        answers = SimpleQueue()
        for _ in range(2):
            threading.Thread(target=lambda: answers.put(told(joins.run))).start()
        assert answers.get() == "UsageError"  # the second of the two with one handler
        getattr(sole, end)()
        results += [answers.get(), told(unused.run)]
        assert sole.is_closed() or end == "shutdown"
    assert results == ["RendezvousClosedError"] * 5, results
    [shutil.rmtree(each._logs_specs.root_log_dir, ignore_errors=True) for each in kept]
    print("done")
"""
)

_MANY = (
    _COMMON
    + """
import threading

def held():
    return len(os.listdir("/proc/self/fd")), threading.active_count()

if __name__ == "__main__":
    counts = []
    for number in range(12):
        parameters = RendezvousParameters(backend, endpoints[0], f"many-{number}", 1, 1)
        spec = WorkerSpec("default", 1, get_rendezvous_handler(parameters), workers.rank, max_restarts=0)
        kept.append(LocalElasticAgent(spec, start_method="fork"))
        assert kept[-1].run().return_values == {0: 0}
        counts.append(held())
    assert counts[-1] == counts[1], counts
    print("done")
"""
)


def _run(program: str, backend: str, tmp_path: Path, endpoints: int) -> str:
    token = os.urandom(8).hex()
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    environment = {
        **os.environ,
        TOKEN: token,
        "TMPDIR": str(temporary),
        "PYTHONPATH": str(_ROOT),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    script = tmp_path / "program.py"
    script.write_text(program)
    with ExitStack() as stack:
        if BACKENDS[backend].dies_with_host:
            # By name, as people write it.
            places = [stack.enter_context(loopback_port()).replace("127.0.0.1", "localhost") for _ in range(endpoints)]
        else:
            server = stack.enter_context(EtcdServer())
            places = [server.get_endpoint()] * endpoints
        done = subprocess.run(
            [sys.executable, str(script), backend, *places],
            env=environment,
            capture_output=True,
            text=True,
            timeout=3 * DEADLINE,
            check=False,
        )
    wait_for_end(list(processes_with(token)), DEADLINE)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    assert not list(temporary.iterdir())
    return done.stderr


@pytest.mark.slow  # four agents and their workers, one after another, with the default time-outs
@pytest.mark.parametrize("backend", list(BACKENDS))
def test_agents_in_turn_that_nobody_shuts_down(backend: str, tmp_path: Path) -> None:
    _run(_IN_TURN, backend, tmp_path, 4)


@pytest.mark.slow  # three agents and their workers, with the default time-outs
@pytest.mark.parametrize("backend", ["c10d", "tcp", "etcd-v2"])
def test_forked_agents_that_all_say_they_host(backend: str, tmp_path: Path) -> None:
    """All say so, after an agent of the parent, whose handler is held still; results come through a queue."""
    told = _run(_FORKED, backend, tmp_path, 2)
    assert told.count("is_host is true on this node") == BACKENDS[backend].dies_with_host


@pytest.mark.slow  # four agents with workers, one after another, with the default time-outs
@pytest.mark.parametrize("backend", list(BACKENDS))
def test_agents_that_run_again_and_handlers_that_were_closed(backend: str, tmp_path: Path) -> None:
    """After the job's end another one of its name begins; a handler that was closed or is in use says so at once."""
    _run(_AGAIN, backend, tmp_path, 5)


@pytest.mark.slow  # a dozen agents with a worker each
@pytest.mark.parametrize("backend", list(BACKENDS))
def test_handlers_that_nobody_shuts_down_hold_nothing_once_their_job_has_ended(backend: str, tmp_path: Path) -> None:
    """Neither a thread nor a descriptor, while the program still holds handlers and agents."""
    _run(_MANY, backend, tmp_path, 1)
