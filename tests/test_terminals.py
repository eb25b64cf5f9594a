"""People at a terminal, and programs around quorate: grace, signals that come twice, suspending, output, exit codes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from quorate import clock
from quorate.proc import is_alive, state_of
from tests.harness import DEADLINE, PROMPT, wait_for_end
from tests.terminals import CTRL_C, CTRL_Z, QUORATE, Piped, Terminal, quorate, script

#: Longer than what makes a second Ctrl-C one of its own.
A_MOMENT = 0.7


#: Saves its work once the file ``argv[1]`` exists, and says all that happens to it.  It writes without a buffer: a
#: signal may come while it does, and a buffer that is in use cannot be written to by a handler.
SAVER = """
import os, signal, sys, time
def say(*words):
    os.write(1, " ".join(map(str, words)).encode() + b"\\n")
def caught(number, frame):
    say("caught", signal.Signals(number).name)
    asked.append(number)
asked = []
for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
    signal.signal(getattr(signal, name), caught)
say("worker", os.getpid())
while not set(asked) - {signal.SIGUSR1}:
    time.sleep(0.01)
while not os.path.exists(sys.argv[1]):
    time.sleep(0.01)
say("saved")
"""


@pytest.fixture
def saver(tmp_path: Path) -> list[str]:
    script = tmp_path / "saver.py"
    script.write_text(SAVER)
    return [str(script), str(tmp_path / "go")]


# --- the grace ------------------------------------------------------------------------------------------------------


def test_a_second_ctrl_c_ends_the_grace_and_the_first_one_says_so(saver: list[str]) -> None:
    with Terminal([*QUORATE, "--shutdown-timeout=600", *saver]) as terminal:
        worker = terminal.number_behind("worker ")
        terminal.press(CTRL_C)
        terminal.wait_for("the workers have 600 s to save their work and end; press Ctrl-C again to end them at once")
        terminal.wait_for("caught SIGINT")
        clock.sleep(A_MOMENT)
        assert is_alive(worker)
        terminal.press(CTRL_C)
        code, shown = terminal.end()
    assert (code, "saved" in shown) == (128 + signal.SIGINT, False), shown
    wait_for_end([worker], PROMPT)


def test_what_programs_send_never_ends_the_grace(saver: list[str], tmp_path: Path) -> None:
    """Not even an interrupt to the foreground of a terminal, as an outer launcher passes it on after a person's."""
    with Terminal([*QUORATE, "--shutdown-timeout=600", *saver]) as terminal:
        terminal.wait_for("worker ")
        terminal.press(CTRL_C)
        terminal.wait_for("caught SIGINT")
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            clock.sleep(A_MOMENT / 2)
            terminal.process.send_signal(number)
        (tmp_path / "go").touch()
        code, shown = terminal.end()
    assert (code, shown.count("caught"), "saved" in shown) == (128 + signal.SIGINT, 1, True), shown


BATCH = """
trap 'kill -TERM $pid; kill -TERM -$$' TERM
"$@" &
pid=$!
while kill -0 $pid 2>/dev/null; do wait $pid; done
"""


@pytest.mark.parametrize("program", ["timeout", "batch"])
def test_programs_that_signal_twice_leave_the_grace_whole(saver: list[str], tmp_path: Path, program: str) -> None:
    """``timeout`` signals its child and then its group, and so does a batch script with a trap."""
    around = {"timeout": ["timeout", "600"], "batch": ["bash", "-c", BATCH, "batch"]}[program]
    run = Piped(*around, *QUORATE, *saver, new_session=True)
    run.wait_for("worker ")
    run.process.send_signal(signal.SIGTERM)
    run.wait_for("caught SIGTERM")
    if program == "batch":
        os.killpg(run.process.pid, signal.SIGTERM)
    clock.sleep(A_MOMENT)
    (tmp_path / "go").touch()
    _, output = run.end()
    assert (output.count("caught"), "saved" in output) == (1, True), output


@pytest.mark.parametrize(("how", "number"), [("nohup", signal.SIGHUP), ("background", signal.SIGINT)])
def test_what_was_ignored_at_the_start_stays_ignored(
    saver: list[str], tmp_path: Path, how: str, number: signal.Signals
) -> None:
    command = ["nohup", *QUORATE] if how == "nohup" else ["sh", "-c", '"$@" & wait $!', "sh", *QUORATE]
    run = Piped(*command, *saver, new_session=True)
    run.wait_for("worker ")
    os.killpg(run.process.pid, number) if how == "nohup" else os.kill(_launcher(run.process.pid), number)
    clock.sleep(A_MOMENT)
    assert b"caught" not in run.text
    os.kill(run.process.pid if how == "nohup" else _launcher(run.process.pid), signal.SIGTERM)
    run.wait_for("caught SIGTERM")
    (tmp_path / "go").touch()
    _, output = run.end()
    assert "SIGTERM received" in output
    assert f"{number.name} received" not in output


def _launcher(shell: int) -> int:
    return int(Path(f"/proc/{shell}/task/{shell}/children").read_text().split()[0])


def test_a_terminal_that_hangs_up_ends_the_job_with_its_grace(saver: list[str], tmp_path: Path) -> None:
    (tmp_path / "go").touch()
    with Terminal([*QUORATE, *saver]) as terminal:
        worker = terminal.number_behind("worker ")
        terminal.hang_up()
        assert terminal.process.wait(DEADLINE) == 128 + signal.SIGHUP
    wait_for_end([worker], PROMPT)


# --- signals for the workers ----------------------------------------------------------------------------------------


def test_user_signals_go_to_the_workers_that_handle_them_and_stop_nothing(saver: list[str], tmp_path: Path) -> None:
    run = Piped(*QUORATE, *saver)
    run.wait_for("worker ")
    run.process.send_signal(signal.SIGUSR1)
    run.wait_for("caught SIGUSR1")
    run.process.send_signal(signal.SIGUSR2)
    run.wait_for("SIGUSR2 is not passed on to local rank 0, which has no handler for it")
    (tmp_path / "go").touch()
    run.process.send_signal(signal.SIGTERM)
    code, output = run.end()
    assert (code, "saved" in output) == (128 + signal.SIGTERM, True), output


def test_a_user_signal_stops_the_job_where_it_is_listed_as_a_stop(saver: list[str], tmp_path: Path) -> None:
    (tmp_path / "go").touch()
    run = Piped(*QUORATE, "--signals-to-handle=usr2,TERM", *saver)
    run.wait_for("worker ")
    run.process.send_signal(signal.SIGUSR2)
    code, output = run.end()
    assert code == 128 + signal.SIGUSR2, output


def test_a_shell_passes_user_signals_on_to_what_it_runs(saver: list[str], tmp_path: Path) -> None:
    """The shell itself would die of it."""
    run = Piped(*QUORATE, "--no-python", "sh", "-c", f"{sys.executable} {' '.join(saver)}; true")
    run.wait_for("worker ")
    run.process.send_signal(signal.SIGUSR1)
    run.wait_for("caught SIGUSR1")
    (tmp_path / "go").touch()
    run.process.send_signal(signal.SIGTERM)
    assert run.end()[0] == 128 + signal.SIGTERM


def test_ctrl_z_stops_the_workers_and_fg_continues_them(saver: list[str], tmp_path: Path) -> None:
    with Terminal(["bash", "--norc", "-i"]) as terminal:
        terminal.press(" ".join([*QUORATE, *saver, "\n"]).encode())
        worker = terminal.number_behind("\nworker ")
        terminal.press(CTRL_Z)
        terminal.wait_for("Stopped")
        deadline = clock.monotonic() + DEADLINE
        while state_of(worker) != "T":  # nothing tells when a process has stopped but to its parent
            assert clock.monotonic() < deadline
            clock.sleep(0.01)
        terminal.press(b"fg\n")
        # The shell hands the terminal over before it continues the agent, which then continues the worker.
        while state_of(worker) == "T":
            assert clock.monotonic() < deadline
            clock.sleep(0.01)
        (tmp_path / "go").touch()
        terminal.press(CTRL_C)
        terminal.wait_for("saved")
        terminal.press(b"exit $?\n")
        assert terminal.end()[0] == 128 + signal.SIGINT


# --- process 1, exit codes, sentences -------------------------------------------------------------------------------

IN_A_CONTAINER = ["unshare", "--fork", "--pid", "--mount-proc", "--kill-child"]


@pytest.mark.parametrize(
    ("launcher", "expected"),
    [(QUORATE, 128 + signal.SIGTERM), ((sys.executable, "-m", "quorate", "exec", sys.executable), 0)],
    ids=["run", "exec"],
)
def test_as_process_1_orphans_are_reaped_and_signals_passed_on(
    tmp_path: Path, launcher: tuple[str, ...], expected: int
) -> None:
    if subprocess.run([*IN_A_CONTAINER, "true"], capture_output=True).returncode:
        pytest.skip("this user may not make a namespace of processes")
    program = script(
        tmp_path,
        "import contextlib, os, signal, subprocess, sys, time\n"
        "def caught(*_): os.write(1, b'asked'); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, caught)\n"
        "subprocess.run('for i in 1 2 3 4 5; do (exec sleep 0.01 &); done', shell=True)\n"
        "def read(name):\n"
        "    for pid in filter(str.isdigit, os.listdir('/proc')):\n"
        "        with contextlib.suppress(OSError), open(f'/proc/{pid}/{name}') as file: yield file.read()\n"
        "def some(word, name): return any(word in text for text in read(name))\n"
        # A shell that has yet to become a sleep has the words in its command line; a zombie has lost that.
        "while some('(sleep)', 'stat') or some('sleep 0.01', 'cmdline'): time.sleep(0.02)\n"
        "print('reaped', sum(stat.rpartition(') ')[2][0] == 'Z' for stat in read('stat')), flush=True)\n"
        "signal.pause()\n",
    )
    run = Piped(*IN_A_CONTAINER, *launcher, program)
    assert run.number_behind("reaped ") == 0
    (first,) = map(int, Path(f"/proc/{run.process.pid}/task/{run.process.pid}/children").read_text().split())
    os.kill(first, signal.SIGTERM)
    code, output = run.end()
    assert (code, "asked" in output) == (expected, True), output


@pytest.mark.parametrize(
    ("ending", "flags", "code"),
    [
        ("sys.exit(7)", [], 1),
        ("sys.exit(7)", ["--exit-code=worker"], 7),
        ("os.kill(os.getpid(), 9)", ["--exit-code=worker"], 137),
        ("sys.exit(79)", ["--max-restarts=3"], 79),
    ],
)
def test_exit_codes(tmp_path: Path, ending: str, flags: list[str], code: int) -> None:
    """The worker's code can be the launcher's; 79 says that starting it again cannot help, and nobody does."""
    done = quorate(*flags, script(tmp_path, f"import os, sys\nprint('runs')\n{ending}\n"))
    assert (done.returncode, done.stdout.count("runs")) == (code, 1), done.stderr


def test_a_child_that_a_good_worker_leaves_behind_is_named(tmp_path: Path) -> None:
    child = "import subprocess; subprocess.Popen(['sleep', '1234'])"
    done = quorate(script(tmp_path, child))
    assert done.returncode == 0
    assert re.search(r"note: process \d+ \(sleep 1234\), which local rank 0 left behind, is ended", done.stderr)
    (tmp_path / "logs").mkdir()
    assert "left behind" not in quorate(script(tmp_path, child + "; raise SystemExit(1)")).stderr


def test_a_level_of_messages_that_means_nothing_is_refused(tmp_path: Path) -> None:
    done = quorate(script(tmp_path, "print('runs')"), QUORATE_LOG="nonsense")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "quorate: error: QUORATE_LOG is 'nonsense'; it must be one of quiet, info, debug\n"


PROGRAM = """
from quorate import LaunchConfig, launch
def work(): return 1
try:
    launch(LaunchConfig(1, 1, 1, start_method="{method}"), work)()
except Exception as error:
    print(type(error).__name__, error)
import operator
print(launch(LaunchConfig(1, 1, 1, start_method="{method}"), operator.add)(1, 2))
"""


@pytest.mark.parametrize("source", ["-c", "stdin"])
def test_a_function_of_a_program_that_no_worker_can_import(source: str) -> None:
    """One sentence; a function of a module runs from there all the same."""
    text = PROGRAM.format(method="spawn")
    done = subprocess.run(
        [sys.executable, "-c", text] if source == "-c" else [sys.executable],
        input=None if source == "-c" else text,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert "work is part of a program from stdin, python -c or an interactive session" in done.stdout
    assert (done.stdout.count("{0: 3}"), "Traceback" in done.stdout + done.stderr) == (1, False), done.stderr
