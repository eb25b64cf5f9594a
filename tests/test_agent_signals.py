"""Signals to the agent at every moment of its life, and what its workers get of them."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from quorate import SignalException
from tests import workers
from tests.harness import DEADLINE, PROMPT, Ear, Gate, Job, Outcome, as_store_client, as_store_host, wait_for_end
from tests.watching import wait_for_text

SIGNALS = [signal.SIGTERM, signal.SIGINT]


def assert_stopped_by(outcome: Outcome, number: int) -> None:
    assert isinstance(outcome.error, SignalException), outcome
    assert outcome.error.sigval == number


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_before_the_first_round(job: Job, number: signal.Signals) -> None:
    """A node that waits for others leaves at once, and nothing of it stays."""
    host = job.start(job.plan(workers.give, None, nodes=(2, 2)), QUORATE_LOG="debug")
    wait_for_text(host.console_path, "joining the job", DEADLINE)
    host.send_signal(number)
    assert_stopped_by(host.outcome(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_workers_have_their_grace(job: Job, ear: Ear, number: signal.Signals) -> None:
    """While workers run: they are signalled alike, may finish their work, and are waited for."""
    host = job.start(job.plan(workers.trap, ear.path, True, workers=2))
    ear.hear(2, event="started")
    host.send_signal(number)
    assert_stopped_by(host.outcome(), number)
    ear.hear(2, event="saved")
    assert {message["signal"] for message in ear.all(event="signalled")} == {number}


def test_a_grace_of_zero_waits_for_nobody(job: Job, ear: Ear) -> None:
    """Workers that ignore the signal are killed when their grace is over."""
    host = job.start(job.plan(workers.trap, ear.path, False, spec={"shutdown_timeout": 0.0}))
    (message,) = ear.hear(1, event="started")
    host.send_signal(signal.SIGTERM)
    assert_stopped_by(host.outcome(), signal.SIGTERM)
    wait_for_end([message["pid"]], PROMPT)


@pytest.mark.parametrize("second", SIGNALS)
def test_a_second_signal_changes_nothing(job: Job, ear: Ear, second: signal.Signals) -> None:
    """While workers use their grace: they keep it, and are not told again; the first signal is what is reported."""
    host = job.start(job.plan(workers.trap, ear.path, False, spec={"shutdown_timeout": 1.0}))
    started = ear.hear(1, event="started")
    began = time.monotonic()
    host.send_signal(signal.SIGTERM)
    ear.hear(1, event="signalled", signal=signal.SIGTERM)
    host.send_signal(second)
    assert_stopped_by(host.outcome(), signal.SIGTERM)
    assert time.monotonic() - began >= 1.0, "the grace was cut short"
    assert len(ear.all(event="signalled")) == 1
    wait_for_end([message["pid"] for message in started], PROMPT)


def test_a_signal_while_workers_are_stopped_for_a_restart(job: Job, ear: Ear, gate: Gate) -> None:
    """While the others of a failed worker use their grace: the signal makes this the last stop, without a new round."""
    arguments = (ear.path, gate.path, 1)
    grace = {"restart": 600.0, "preemption": 0.5}
    plan = job.plan(workers.trap_or_fail, *arguments, workers=2, max_restarts=3, spec={"grace": grace})
    host = job.start(plan)
    ear.hear(1, event="started", rank=0)
    gate.open()
    ear.hear(1, event="signalled", rank=0)
    host.send_signal(signal.SIGTERM)
    wait_for_text(host.console_path, "SIGTERM received", DEADLINE)
    host.send_signal(signal.SIGINT)
    assert_stopped_by(host.outcome(), signal.SIGTERM)
    assert len(ear.all(event="started")) == 1


def test_the_other_node_is_not_stopped_by_it(job: Job, ear: Ear) -> None:
    """A node that is told to go leaves a 2:2 job waiting for another one; told as well, that one leaves, too."""
    plan = job.plan(workers.trap, ear.path, True, nodes=(2, 2))
    hosts = [job.start(as_store_host(plan)), job.start(as_store_client(plan))]
    ear.hear(2, event="started")
    hosts[1].send_signal(signal.SIGTERM)
    assert_stopped_by(hosts[1].outcome(), signal.SIGTERM)
    ear.hear(2, event="saved")
    hosts[0].send_signal(signal.SIGINT)
    assert_stopped_by(hosts[0].outcome(), signal.SIGINT)


# --- through the command --------------------------------------------------------------------------------------------

SCRIPT = """
import os, signal, sys, time
def caught(number, frame):
    os.write(1, b"caught %d\\n" % number)
    if sys.argv[2] == "ends":
        sys.exit(0)
signal.signal(signal.SIGTERM, caught)
signal.signal(signal.SIGINT, caught)
with open(sys.argv[1], "w") as pipe:
    pipe.write(f"{os.getpid()}\\n")
while True:
    signal.pause()
"""


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("manner", ["ends", "stays"])
def test_the_exit_code_of_the_command(job: Job, tmp_path: Path, number: signal.Signals, manner: str) -> None:
    """Stopped by a signal, ``quorate run`` exits with 128 + its number, after the grace and with nothing left."""
    import subprocess

    script, pipe = tmp_path / "script.py", tmp_path / "pipe"
    script.write_text(SCRIPT)
    os.mkfifo(pipe)
    grace = "600" if manner == "ends" else "0.2"
    command = [sys.executable, "-m", "quorate", "run", f"--rdzv-backend={job.backend.name}", "--nnodes=1"]
    command += [f"--rdzv-endpoint={job.endpoint}", f"--shutdown-timeout={grace}", str(script), str(pipe), manner]
    environment = {**os.environ, **job.environment}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        with open(pipe) as file:
            worker = int(file.readline())
        began = time.monotonic()
        process.send_signal(number)
        output, _ = process.communicate(timeout=DEADLINE)
        assert process.returncode == 128 + number, output
        assert time.monotonic() - began < DEADLINE
    assert f"caught {int(number)}".encode() in output
    assert b"Traceback" not in output
    wait_for_end([worker], PROMPT)
