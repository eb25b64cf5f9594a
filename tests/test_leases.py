"""How long a node may stand still, in whole jobs over every kind of store: pauses, killed gangs, clocks that are set.

The stores are tried at the same time, because what takes long is waiting.  The protocol's own part, with thousands of
pauses, is in ``core/tests/test_rendezvous_simulation.py``.
"""

from __future__ import annotations

import mmap
import os
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from quorate.clock import monotonic, sleep, wall_time_ns
from quorate.testing import settles

from .backends import BACKENDS
from .nodes import Nodes, file_store_environment

LEASE = 4.0
#: Programs that see a wall clock that is set: the kernel's, and as many seconds as a file says.
SHIM = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long offset(void) {
    static volatile long *shared;
    if (!shared) {
        int file = open(getenv("SHIM_OFFSET"), O_RDONLY);
        shared = mmap(0, sizeof(long), PROT_READ, MAP_SHARED, file, 0);
        close(file);
    }
    return *shared;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = syscall(SYS_clock_gettime, clock, now);
    if (!result && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += offset();
    return result;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec at;
    clock_gettime(CLOCK_REALTIME, &at);
    now->tv_sec = at.tv_sec;
    now->tv_usec = at.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now) {
    struct timespec at;
    clock_gettime(CLOCK_REALTIME, &at);
    if (now) *now = at.tv_sec;
    return at.tv_sec;
}
"""


class Jobs:
    """A job of two nodes on each of several stores."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._stack = folder, ExitStack()
        self.all: list[Nodes] = []

    def make(self, backends: Sequence[str], nodes: str, environment: dict[str, str], **conf: object) -> list[Nodes]:
        for name in backends:
            folder = self._folder / name
            if name == "file":
                (endpoint := folder / "store").mkdir(parents=True)
                environment = {**environment, **file_store_environment(self._folder)}
            else:
                self._stack.enter_context(BACKENDS[name].serve())
                endpoint = self._stack.enter_context(BACKENDS[name].fresh_endpoint())
            made = Nodes(folder, name, str(endpoint), nodes, last_call_timeout=30, **conf)
            made.environment = environment
            self._stack.callback(made.close)
            self.all.append(made)
        return self.all

    def start(self) -> list[list[subprocess.Popen[bytes]]]:
        """Start both agents of each job; the first hosts the store, where an agent does."""
        hosts = [{} if job.backend in ("file", "etcd", "etcd-v2") else {"is_host": "true"} for job in self.all]
        first = [job.start(0, **conf) for job, conf in zip(self.all, hosts, strict=True)]
        second = [job.start(1, **dict.fromkeys(conf, "false")) for job, conf in zip(self.all, hosts, strict=True)]
        return [list(agents) for agents in zip(first, second, strict=True)]

    def wait_for_world(self, size: int, times: int = 1) -> float:
        """Wait until each job has had a world of that size so often, and return when that was."""
        for job in self.all:
            job.wait_for_world(size, times)
        return monotonic()

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    jobs = Jobs(tmp_path)
    yield jobs
    jobs.close()


def pause(agents: Sequence[subprocess.Popen[bytes]], seconds: float) -> float:
    """Stop the agents for some seconds; return for how long they stood still at most."""
    began = monotonic()
    for agent in agents:
        agent.send_signal(signal.SIGSTOP)
    sleep(seconds - (monotonic() - began))
    for agent in agents:
        agent.send_signal(signal.SIGCONT)
    return monotonic() - began


@pytest.mark.slow  # it stands still for two leases
def test_a_node_that_stands_still_for_less_than_its_lease_is_never_lost_and_for_longer_always(jobs: Jobs) -> None:
    jobs.make(("tcp", "c10d", "etcd", "file"), "1:2", {}, lease_timeout=LEASE)
    agents = jobs.start()
    jobs.wait_for_world(2)
    victims = [second for _, second in agents]
    stood_still = pause(victims, 0.9 * LEASE)
    sleep(0.5 * LEASE)  # who has counted too much has said so by then
    if stood_still > 0.96 * LEASE:
        pytest.skip(f"this machine is too busy: a pause of {0.9 * LEASE:g} s took {stood_still:g} s")
    lost = "is lost: no heartbeat within the lease of 4 s"
    for job in jobs.all:
        assert lost not in job.said(0), f"{job.backend}: lost although it came back in time\n{job.story()}"
    pause(victims, 3.5 / 3 * LEASE)
    for job in jobs.all:
        assert settles(lambda job=job: lost in job.said(0)), f"{job.backend}: not lost\n{job.story()}"  # type: ignore[misc]
    jobs.wait_for_world(2, 2)
    for job, both in zip(jobs.all, agents, strict=True):
        job.finish(both)


def kill_gangs(jobs: Jobs, agents: Sequence[Sequence[subprocess.Popen[bytes]]], with_guardians: bool) -> None:
    """Kill all agents at once; with their guardians and workers, as a batch system does, nobody is left to say so."""
    killed = [agent for both in agents for agent in both]
    for agent in killed:
        agent.send_signal(signal.SIGSTOP)  # none sees another's end
    others = {pid for job in jobs.all for pid in job.processes()} - {agent.pid for agent in killed}
    for pid in others if with_guardians else ():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for agent in killed:
        agent.kill()


@pytest.mark.slow  # etcd keeps the keys of the killed nodes, and a lease has to pass
@pytest.mark.parametrize("with_guardians", [False, True], ids=["agents", "agents and guardians"])
def test_a_gang_that_is_killed_and_started_again_is_together_within_a_lease_and_a_second(
    jobs: Jobs, with_guardians: bool
) -> None:
    lease = 2.0
    jobs.make(("etcd", "etcd-v2", "file"), "2", {}, lease_timeout=lease)
    began = monotonic()
    agents = jobs.start()
    first_took = jobs.wait_for_world(2) - began
    began = monotonic()
    kill_gangs(jobs, agents, with_guardians)
    agents = jobs.start()
    again_took = jobs.wait_for_world(2, 2) - began
    # Starting takes what the machine needs; the first start, a moment before, has shown that.
    assert again_took < 2 * first_took + lease + 1.0, "\n".join(job.story() for job in jobs.all)
    for job, both in zip(jobs.all, agents, strict=True):
        job.finish(both)


@pytest.mark.slow  # several leases have to pass with a clock that is wrong
@pytest.mark.skipif(sys.version_info < (3, 11), reason="locks of Python 3.10 wait by the wall clock themselves")
def test_a_clock_that_is_set_expels_no_node(jobs: Jobs, tmp_path: Path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("there is no compiler for a library that sets the clock of some programs alone")
    (tmp_path / "shim.c").write_text(SHIM)
    library = tmp_path / "shim.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, tmp_path / "shim.c"], check=True)
    offset = tmp_path / "offset"
    offset.write_bytes(struct.pack("l", 0))
    lease = 1.0
    jobs.make(
        ("tcp", "etcd", "c10d"), "1:2", {"LD_PRELOAD": str(library), "SHIM_OFFSET": str(offset)}, lease_timeout=lease
    )
    agents = jobs.start()
    jobs.wait_for_world(2)
    date = [sys.executable, "-c", "import time; print(time.time())"]
    with open(offset, "r+b") as file, mmap.mmap(file.fileno(), 0) as shared:
        for seconds in (3600, -7200, 90_000):
            shared[:8] = struct.pack("l", seconds)
            shown = float(subprocess.check_output(date, env=jobs.all[0].environment))
            assert abs(shown - seconds - wall_time_ns() / 1e9) < 600
            sleep(1.5 * lease)
    for job, both in zip(jobs.all, agents, strict=True):
        job.finish(both)
        assert not job.has_world(2, 2), job.story()
        assert not job.has_world(1), job.story()
