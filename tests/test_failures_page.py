"""``docs/failures.md``: each cause with the command that produces it and the report that follows; every row is run.

    tests/with-private-hosts python tests/test_failures_page.py --rewrite

writes the reports and the example anew; the page's text is written by hand.  What differs from run to run and from
machine to machine - pids, times, hosts, ports, paths - is put in the page's own words before it is compared.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from quorate.clock import monotonic, sleep

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from quorate.records import Cause  # noqa: E402
from tests.backends import loopback_port  # noqa: E402
from tests.watching import wait_for_text  # noqa: E402

PAGE = ROOT / "docs" / "failures.md"
SCRIPTS = ROOT / "examples" / "failures"
DEADLINE = 90.0


@dataclass(frozen=True)
class Row:
    """One cause: ``commands`` is one per node; ``then`` is what happens to the last node once all workers run.

    ``wait_for`` is what the workers print by then.  The first node's report and ``exit_code`` are what is shown.
    """

    cause: Cause
    title: str
    commands: tuple[str, ...]
    exit_code: int
    then: str = ""
    wait_for: str = ""
    limit_bytes: int = 0

    @property
    def anchor(self) -> str:
        return re.sub(r"[^a-z0-9_ -]", "", self.title.lower()).replace(" ", "-")


TWO = "quorate run --nnodes={nodes} --rdzv-backend=tcp --rdzv-endpoint=localhost:29400 "
LEASE = ",lease_timeout=2,last_call_timeout=60"


def pair(nodes: str, script: str, conf: str = "") -> tuple[str, str]:
    """Return the same command for the node that serves the store and for another one."""
    first, second = (f"--rdzv-conf=is_host={host}{conf} {script}" for host in ("true", "false"))
    return TWO.format(nodes=nodes) + first, TWO.format(nodes=nodes) + second


ROWS = (
    Row(
        Cause.EXCEPTION,
        "exception",
        ("quorate run --standalone raises.py",),
        1,
    ),
    Row(
        Cause.EXCEPTION,
        "exception, recorded",
        ("quorate run --standalone records.py",),
        1,
    ),
    Row(
        Cause.EXCEPTION,
        "exception, again and again",
        ("quorate run --standalone --max-restarts=3 --redirects=3 --log-dir=logs recovers.py",),
        0,
    ),
    Row(
        Cause.EXIT_CODE,
        "exit code",
        ("quorate run --standalone exits.py",),
        1,
    ),
    Row(
        Cause.SIGNAL,
        "signal",
        ("quorate run --standalone segfaults.py",),
        1,
    ),
    Row(
        Cause.SIGNAL,
        "signal, after the script's end",
        ("quorate run --standalone aborts_late.py",),
        1,
    ),
    Row(
        Cause.OUT_OF_MEMORY,
        "out of memory",
        ("systemd-run --scope -p MemoryMax=128M quorate run --standalone eats.py",),
        1,
        limit_bytes=128 << 20,
    ),
    Row(
        Cause.BROKEN_COLLECTIVE,
        "broken collective",
        ("quorate run --standalone --nproc-per-node=2 leaves_early.py",),
        1,
    ),
    Row(
        Cause.HANG,
        "hang",
        ("quorate run --standalone --redirects=2 --hang-after=1 hangs.py",),
        1,
    ),
    Row(
        Cause.START_FAILED,
        "start failed: no such command",
        ("quorate run --standalone --max-restarts=3 --no-python sh -c no-such-command",),
        1,
    ),
    Row(
        Cause.START_FAILED,
        "start failed: no such script",
        ("quorate run --standalone --max-restarts=3 no_such_script.py",),
        2,
    ),
    Row(
        Cause.START_FAILED,
        "start failed: no such module",
        ("quorate run --standalone --max-restarts=3 -m no_such_module",),
        1,
    ),
    Row(
        Cause.START_FAILED,
        "start failed: syntax error",
        ("quorate run --standalone --max-restarts=3 broken.txt",),
        1,
    ),
    Row(
        Cause.UNHEALTHY,
        "unhealthy",
        ("quorate run --standalone --health-checks=command --health-check-cmd=false waits.py",),
        5,
    ),
    Row(
        Cause.NODE_LOST,
        "node lost",
        pair("1:2", "waits.py", LEASE),
        0,
        then="kill -9",
        wait_for="a world of 2",
    ),
    Row(
        Cause.NODE_LEFT,
        "node left",
        pair("1:2", "waits.py", LEASE),
        0,
        then="kill -TERM",
        wait_for="a world of 2",
    ),
    Row(
        Cause.STOPPED,
        "stopped from outside",
        ("quorate run --nnodes=1 --rdzv-backend=tcp --rdzv-endpoint=localhost:29400 --nproc-per-node=2 waits.py",),
        143,
        then="kill -TERM",
        wait_for="a world of 2",
    ),
    Row(
        Cause.TOO_FEW_NODES,
        "too few nodes",
        pair("2", "waits.py", ",join_timeout=1")[:1],
        3,
    ),
    Row(
        Cause.STORE_LOST,
        "store lost",
        pair("2", "waits.py", LEASE)[::-1],
        3,
        then="kill -9",
        wait_for="a world of 2",
    ),
    Row(
        Cause.CONFIGURATION,
        "configuration",
        tuple(command.replace("waits.py", "--node-rank=0 waits.py") for command in pair("2", "waits.py")),
        3,
    ),
)

#: These end a round or a job, but nothing has failed.
NO_FAILURES = {Cause.SUCCEEDED, Cause.NODE_JOINED, Cause.PREEMPTED}


# --- running a row --------------------------------------------------------------------------------------------------


class ImpossibleError(Exception):
    """This machine cannot produce the failure; the sentence says why."""


@contextmanager
def memory_group(limit_bytes: int) -> Iterator[Path]:
    """Make a control group with a limit, of version 1 or 2, below that of this process."""
    parents = {"/sys/fs/cgroup/memory": "memory.limit_in_bytes", "/sys/fs/cgroup": "memory.max"}
    for parent, file in parents.items():
        group = Path(parent, f"quorate-test-{os.getpid()}")
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / file).write_text(str(limit_bytes))
        except OSError:
            group.rmdir()
            continue
        try:
            yield group
        finally:
            group.rmdir()
        return
    raise ImpossibleError("no control group with a limit can be made here; that takes root and a memory controller")


def argv_of(command: str, port: str) -> list[str]:
    words = command.partition("quorate run")[2].split()
    words = [word.replace("localhost:29400", f"127.0.0.1:{port}") for word in words]
    return [sys.executable, "-m", "quorate", "run", *words]


@dataclass(frozen=True)
class Result:
    """What became of a row: the exit code and words of the node that is shown, and what all nodes wrote."""

    exit_code: int
    report: str
    everything: str


def run_row(row: Row, folder: Path) -> Result:
    """Carry out a row in ``folder``."""
    for script in SCRIPTS.iterdir():
        if script.is_file():
            (folder / script.name).write_text(script.read_text())
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "TMPDIR": str(folder)}
    for name in ("QUORATE_LOG", "TORCHELASTIC_ERROR_FILE", "PYTHONFAULTHANDLER"):
        environment.pop(name, None)
    outputs = [folder / f"output-{number}" for number in range(len(row.commands))]
    with ExitStack() as stack:
        port = stack.enter_context(loopback_port()).rpartition(":")[2]
        commands = [argv_of(command, port) for command in row.commands]
        if row.limit_bytes:
            group = stack.enter_context(memory_group(row.limit_bytes))
            commands = [["sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', str(group), *c] for c in commands]
        agents: list[subprocess.Popen[bytes]] = []
        for command, output in zip(commands, outputs, strict=True):
            if agents and "is_host=false" not in row.commands[0]:
                wait_for_host(agents[0], int(port))  # node 1 takes its ticket first, and so gets rank 0
            agents.append(stack.enter_context(agent_of(command, folder, environment, output)))
        if row.then:
            for output in outputs:
                wait_for_text(output, f"{row.wait_for}\n", DEADLINE)
            agents[-1].send_signal(signal.SIGKILL if row.then == "kill -9" else signal.SIGTERM)
        for agent in agents:
            agent.wait(DEADLINE)
    texts = [output.read_text(errors="replace") for output in outputs]
    return Result(agents[0].returncode, said(texts[0], folder), "\n".join(texts))


def wait_for_host(agent: subprocess.Popen[bytes], port: int) -> None:
    """Wait until the agent of node 1 serves the store, or has ended."""
    deadline = monotonic() + DEADLINE
    while agent.poll() is None and monotonic() < deadline:
        try:
            socket.create_connection(("localhost", port), DEADLINE).close()
            return
        except ConnectionRefusedError:
            sleep(0.02)  # nothing announces a port that is listened on


@contextmanager
def agent_of(
    command: list[str], folder: Path, environment: dict[str, str], output: Path
) -> Iterator[subprocess.Popen[bytes]]:
    with (
        output.open("ab") as file,
        subprocess.Popen(command, cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT) as agent,
    ):
        try:
            yield agent
        finally:
            agent.kill()  # which does nothing to one that has been waited for


# --- the page's own words -------------------------------------------------------------------------------------------

_DIFFERS = re.compile(r'[ |"]*[~^]+[ ~^",]*|.*Extension modules.*')
_FIRST_WORDS = re.compile(r"^quorate: ", re.MULTILINE)
#: On a busy machine a node needs more than the three seconds after which the other one says for what it waits.
_WAITS = re.compile(r"^quorate: waiting for .*\n", re.MULTILINE)


def said(text: str, folder: Path) -> str:
    """Return what the agent said, without what its workers wrote before, in the page's own words."""
    text = _WAITS.sub("", text)
    match = _FIRST_WORDS.search(text)
    return in_our_words(text[match.start() :] if match else "", folder).strip()


def in_our_words(text: str, folder: Path) -> str:
    import socket

    text = text.replace(f"{folder}/", "").replace(str(folder), ".").replace(sys.executable, "python")
    text = re.sub(rf"\b{re.escape(socket.gethostname())}\b", "alpha", text)
    for pattern, words in (
        (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{9} UTC", "2025-06-01 12:00:00.123456789 UTC"),
        (r"(pid|PID) \d+", r"\1 4711"),
        (r'"pid": \d+', '"pid": 4711'),
        (r'"time_ns": \d+', '"time_ns": 1748779200123456789'),
        (r"\(node [0-9a-f]{8}\)", "(node 5f3a90c1)"),
        (r'"node": "[0-9a-f]{32}"', '"node": "5f3a90c1d2e84b7f96a05c3e1b2d4f68"'),
        (r"quorate_[0-9a-f]+_[0-9a-f]{8}|\b[0-9a-f]{16}_[0-9a-f]{8}", "job1_6ad1c2f0"),
        (r'"run_id": "[0-9a-f]{16}"', '"run_id": "job1"'),
        (r"(127\.0\.0\.1|localhost):\d+", "localhost:29400"),
        (r"0x[0-9a-f]+( \[\w+\])?", "0x00007f0000000000"),
        (r'File "[^"]*/lib/python3\.\d+t?/(\S+)", line \d+', r'File "…/\1", line 500'),
        (r'File "[^"]*/(quorate/\S+)", line \d+', r'File "…/\1", line 30'),
        (r"\S*sh: [^;\n]*no-such-command[^;\n]*", "sh: no-such-command: not found"),
        (r"RuntimeError: (?:(?!; no re).)*gloo(?:(?!; no re).)*", "RuntimeError: [gloo] Connection closed by peer ..."),
        (r"written for \d+\.\d s", "written for 1.0 s"),
        # Stacks are written by py-spy, where it is installed, or by Python itself.
        (
            r"(last lines of its stderr:\n)(?:  \|.*\n)*?  \|.*hangs\.py.*\n(?:  \|.*\n)*",
            r"\1  | ... hangs.py, line 5\n",
        ),
        (r"(after|pause of) [01]\.\d s", r"\1 0.8 s"),
        # On a busy machine the host of the store may see the connections close before the guardian is heard.
        (r"is lost: its connections to the store were closed .*", "is lost: its agent was killed"),
        (r"\b(python)3\.\d+\b", r"\1"),
    ):
        text = re.sub(pattern, words, text)
    lines = text.splitlines()
    # Where exactly in a line it was, and which native modules were loaded: both differ with Python's version.
    lines = [line for line in lines if not _DIFFERS.fullmatch(line)]
    return "\n".join(line.rstrip() for line in lines)


def block(row: Row, result: Result) -> str:
    """Return what the page shows of a row: its commands, the report of the first node, and its exit code."""
    several = len(row.commands) > 1
    lines = []
    for number, command in enumerate(row.commands, 1):
        lines.append(f"$ {command}" + (f"   # on node {number}" if several else ""))
    if row.then:
        who = f"the agent of node {len(row.commands)}" if several else "the agent"
        lines.append(f"$ {row.then} PID   # of {who}, when all workers run")
    lines += [result.report] if result.report else []
    return "\n".join([*lines, f"[{'on node 1: ' if several else ''}exit code {result.exit_code}]"])


def place_of(title: str, language: str, page: str) -> slice:
    """Return where in the page the block of a section is."""
    start = page.index(f"\n## {title}\n")
    match = re.compile(rf"^```{language}\n(.*?)\n```$", re.MULTILINE | re.DOTALL).search(page, start)
    assert match is not None, f"{PAGE.name} has no section {title!r} with a block of {language}"
    return slice(*match.span(1))


def example(folder: Path) -> str:
    """Return the verdict of the first row, without its rounds."""
    run_row(replace(ROWS[0], commands=(ROWS[0].commands[0].replace("run ", "run --log-dir=logs "),)), folder)
    (path,) = folder.glob("logs/*/verdict.json")
    return in_our_words(json.dumps({**json.loads(path.read_text()), "rounds": []}, indent=2), folder)


# --- the tests ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS, ids=[row.title for row in ROWS])
def test_the_report_is_what_the_page_says(row: Row, tmp_path: Path) -> None:
    try:
        result = run_row(row, tmp_path)
    except ImpossibleError as reason:
        pytest.skip(str(reason))
    assert result.exit_code == row.exit_code, result.everything
    page = PAGE.read_text(encoding="utf-8")
    assert block(row, result) == page[place_of(row.title, "console", page)]


def test_the_verdict_is_what_the_page_says(tmp_path: Path) -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert example(tmp_path) == page[place_of("verdict.json", "json", page)]


def test_every_cause_has_a_row_that_the_page_lists() -> None:
    assert {row.cause for row in ROWS} | NO_FAILURES == set(Cause)
    page = PAGE.read_text(encoding="utf-8")
    for row in ROWS:
        (line,) = (line for line in page.splitlines() if line.startswith(f"| `{row.cause.value}` | ["))
        assert f"[{row.title}](#{row.anchor})" in line
    titles = re.findall(r"^## (.*)$", page, re.MULTILINE)
    assert titles == ["How to read a report", *(row.title for row in ROWS), "verdict.json"]


def rewrite() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for row in ROWS:
        with tempfile.TemporaryDirectory() as name:
            try:
                result = run_row(row, Path(name))
            except ImpossibleError as reason:
                print(f"{row.title}: kept as it is: {reason}")
                continue
        if result.exit_code != row.exit_code:
            print(f"{row.title}: exit code {result.exit_code}, not {row.exit_code}\n{result.everything}")
        place = place_of(row.title, "console", page)
        page = page[: place.start] + block(row, result) + page[place.stop :]
    with tempfile.TemporaryDirectory() as name:
        place = place_of("verdict.json", "json", page)
        page = page[: place.start] + example(Path(name)) + page[place.stop :]
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__" and "--rewrite" in sys.argv:
    rewrite()
