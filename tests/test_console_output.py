"""What workers write to the console, and debuggers in them: terminals, ranks, kept lines, control characters."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from quorate import clock
from quorate.testing import free_port
from tests.harness import DEADLINE
from tests.terminals import QUORATE, Piped, Terminal, script

# --- output ---------------------------------------------------------------------------------------------------------

TALKER = """
import os, sys
print(os.isatty(1), os.isatty(2), os.get_terminal_size(2).columns if os.isatty(2) else 0, flush=True)
for number in range(20):
    print("out", number, flush=True)
    print("err", number, file=sys.stderr, flush=True)
"""


def test_workers_see_a_terminal_where_the_launcher_does_and_the_order_is_kept(tmp_path: Path) -> None:
    with Terminal(["sh", "-c", f"stty columns 77; {' '.join(QUORATE)} {script(tmp_path, TALKER)}"]) as terminal:
        code, shown = terminal.end()
    expected = ["True True 77", *(f"{stream} {number}" for number in range(20) for stream in ("out", "err"))]
    assert (code, shown.splitlines()) == (0, expected)


def test_stderr_alone_is_a_terminal_where_stdout_goes_elsewhere(tmp_path: Path) -> None:
    program = script(tmp_path, TALKER + "raise ValueError('\\x1b[31mbad\\x1b[0m')\n")
    with Terminal(["sh", "-c", f"{' '.join(QUORATE)} {program} >{tmp_path}/out"]) as terminal:
        code, shown = terminal.end()
    assert (tmp_path / "out").read_text().startswith("False True ")
    assert (code, "failed: ValueError: bad;" in shown) == (1, True), shown


@pytest.mark.parametrize("captures", ["no", "yes"])
def test_the_last_lines_are_kept_unless_the_user_says_no(tmp_path: Path, captures: str) -> None:
    program = script(tmp_path, "import sys; print('why', file=sys.stderr); sys.exit(3)")
    with Terminal([*QUORATE, f"--capture-stderr={captures}", program]) as terminal:
        code, shown = terminal.end()
    assert (code, shown.count("why")) == (1, 1 if captures == "no" else 3), shown
    assert ("last lines of its output:" in shown) is (captures == "yes")


def test_nothing_that_steers_a_terminal_reaches_the_reason_or_the_verdict(tmp_path: Path) -> None:
    """A message with colours, by the error file and by a traceback; then more noise than the report has lines."""
    for recorded in ("1", ""):
        folder = tmp_path / f"logs{recorded}"
        program = script(
            tmp_path,
            "import json, os, sys\n"
            f"if {recorded!r}:\n"
            "    message = {'message': '\\x1b[1mcoloured\\x1b[0m\\x1b(B cause'}\n"
            "    message['extraInfo'] = {'py_callstack': '\\x1b[2mx'}\n"
            "    json.dump({'message': message}, open(os.environ['TORCHELASTIC_ERROR_FILE'], 'w')); sys.exit(1)\n"
            "sys.excepthook = lambda *them: None\n"
            "print('\\x1b[35mTraceback (most recent call last):\\x1b[0m', file=sys.stderr)\n"
            "print('  File \\x1b[35m\"x.py\"\\x1b[0m, line 1, in f', file=sys.stderr)\n"
            "print('\\x1b[1;35mValueError\\x1b[0m: \\x1b[35mcoloured cause\\x1b[0m', file=sys.stderr)\n"
            "for number in range(100): print(f'\\x1b[3{number % 8}mnoise', number, file=sys.stderr)\n"
            "sys.exit(1)\n",
        )
        with Terminal([*QUORATE, f"--log-dir={folder}", program]) as terminal:
            _, shown = terminal.end()
        assert "coloured cause;" in shown
        (path,) = folder.glob("*/verdict.json")
        text = path.read_text()
        assert not re.search(r"\\u00[01][0-9a-f]|[\x00-\x09\x0b-\x1f]", text), text
        assert "coloured cause" in json.loads(text)["first_cause"]["message"]


def test_the_console_shows_global_ranks(tmp_path: Path) -> None:
    program = script(tmp_path, "import os; print('rank', os.environ['RANK'])")
    flags = ["--nnodes=2", "--nproc-per-node=2", f"--master-port={free_port()}", "--console-ranks=1,2"]
    nodes = [Piped(*QUORATE, *flags, f"--node-rank={rank}", program) for rank in range(2)]
    assert sorted(re.findall("rank .", "".join(node.end()[1] for node in nodes))) == ["rank 1", "rank 2"]


def test_flags_that_hide_all_output_are_reported_once(tmp_path: Path) -> None:
    """A job whose round is repeated; then a job of two nodes whose ranks are known when the nodes have met."""
    program = script(tmp_path, "import os, sys; sys.exit(os.environ['TORCHELASTIC_RESTART_COUNT'] == '0')")
    command = [*QUORATE, "--nproc-per-node=2", "--max-restarts=1", "--local-ranks-filter=7", program]
    code, shown = Piped(*command).end()
    assert (code, re.findall("quorate: (?:warning: .*|round 0 ended)", shown)) == (
        0,
        [
            "quorate: warning: the console shows no output of this node: --local-ranks-filter=7, but its workers have "
            "local ranks 0 to 1",
            "quorate: round 0 ended",
        ],
    )
    flags = ["--nnodes=2", "--nproc-per-node=2", f"--master-port={free_port()}", "--console-ranks=4,9"]
    nodes = [Piped(*QUORATE, *flags, f"--node-rank={rank}", sys.executable, "--version") for rank in range(2)]
    assert re.findall("quorate: warning: (.*)", "".join(node.end()[1] for node in nodes)) == [
        "the console shows no output of this job: --console-ranks=4,9, but its workers have ranks 0 to 3"
    ]


# --- debuggers ------------------------------------------------------------------------------------------------------


def test_pdb_works_with_one_worker(tmp_path: Path) -> None:
    with Terminal([*QUORATE, script(tmp_path, "answer = 6\nbreakpoint()\nprint('the end', answer)\n")]) as terminal:
        terminal.wait_for("(Pdb) ")
        terminal.press(b"answer = answer * 7\n")
        terminal.wait_for("(Pdb) ", terminal.wait_for("* 7"))
        terminal.press(b"c\n")
        code, shown = terminal.end()
    assert (code, "the end 42" in shown) == (0, True), shown


FOLLOWER = """
import operator, os, sys
from quorate import LaunchConfig, launch
spawn = os.posix_spawn
def follow(path, argv, *others, **more):
    if "guardian" not in str(argv):
        print("spawns", *(os.path.basename(os.fsdecode(word)) for word in (path, argv[0])), flush=True)
    return spawn(path, argv, *others, **more)
if __name__ == "__main__":
    os.posix_spawn = follow
    config = LaunchConfig(1, 1, 1, max_restarts=0)
    launch(config, sys.executable)("-c", "pass")
    print(launch(config, operator.add)(1, 2))
"""


def test_a_debugger_that_follows_into_children_sees_python_itself(tmp_path: Path) -> None:
    """pydevd replaces ``os.posix_spawn`` and looks for Python in the command; a command and a function."""
    run = subprocess.run([sys.executable, script(tmp_path, FOLLOWER)], capture_output=True, text=True, timeout=DEADLINE)
    python = os.path.basename(sys.executable)
    assert re.findall("spawns (.*)", run.stdout) == [f"{python} {python}"] * 2, run.stdout + run.stderr
    assert "{0: 3}" in run.stdout


DEBUGPY = os.environ.get("QUORATE_DEBUGPY", "")


@pytest.mark.skipif(not DEBUGPY, reason="QUORATE_DEBUGPY names no folder with debugpy (pip install --target)")
def test_debugpy_attaches_to_workers(tmp_path: Path) -> None:
    """Debugpy asks its client to attach to the worker, which it does for Python only."""
    port = free_port()
    program = script(tmp_path, "import sys; print('followed', 'pydevd' in sys.modules)")
    command = [sys.executable, "-m", "debugpy", "--listen", str(port), "--wait-for-client", "-m", "quorate", "run"]
    with subprocess.Popen([*command, program], env={**os.environ, "PYTHONPATH": DEBUGPY}) as process:
        try:
            client = _connect(port)
            with client, client.makefile("rwb") as stream:
                _ask(stream, "initialize", adapterID="test")
                while (message := _message(stream)).get("event") != "debugpyAttach":
                    if message.get("command") == "initialize":
                        _ask(stream, "attach", subProcess=True)
                    elif message.get("event") == "initialized":
                        _ask(stream, "configurationDone")
                    assert message.get("event") != "terminated"
                worker = message["body"]["subProcessId"]
                assert os.readlink(f"/proc/{worker}/exe") == os.path.realpath(sys.executable)
        finally:
            process.kill()


def _connect(port: int) -> socket.socket:
    deadline = clock.monotonic() + DEADLINE
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), DEADLINE)
        except ConnectionRefusedError:
            assert clock.monotonic() < deadline
            clock.sleep(0.1)  # nothing announces a port that is listened on


def _ask(stream: Any, command: str, **arguments: Any) -> None:
    body = json.dumps({"seq": 1, "type": "request", "command": command, "arguments": arguments}).encode()
    stream.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
    stream.flush()


def _message(stream: Any) -> dict[str, Any]:
    length = 0
    while line := stream.readline().strip():
        length = int(line.rpartition(b":")[2])
    message: dict[str, Any] = json.loads(stream.read(length))
    return message
