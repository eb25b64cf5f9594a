"""What a host says is bounded, cleaned and named: a program in the place of ssh that prints, lies, or says nothing.

No connection is made; real ones are in ``test_ssh_jobs``.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import quorate
from quorate.cli import ExitCode
from quorate.cli._main import execute
from quorate.clock import monotonic, sleep
from quorate.proc import is_alive
from quorate_ssh._launch import ask_hosts
from quorate_ssh._messages import MARK

HELLO = {"version": quorate.__version__, "plugins": "", "host": "h", "address": "", "port": 1, "pid": 2}
RECORD = {"job": "j", "host": "h", "log": "/log", "pid": 5}
NOT_ASKED_FOR = "is not one that was asked for"
ENDLESS = "it prints without end where an answer was expected"


def say(**message: Any) -> str:
    return f"printf '%s\\n' {shlex.quote(MARK + json.dumps(message))}; "


GREETING = say(hello=HELLO)
ASKED = "read line; "
FITS = GREETING + ASKED + say(problem="") + ASKED
STAYS = "while read line; do :; done"
HOLDS_ON = "exec sleep 100"
FOREVER = "while :; do {} done"
HOSTS = {
    "says nothing known": (say(hello={"host": "h"}) + STAYS, NOT_ASKED_FOR),
    "has no version": (say(hello={**HELLO, "version": None}) + STAYS, NOT_ASKED_FOR),
    "has an endless version": (
        say(hello={**HELLO, "version": "\x1b[2J\n" + "9" * 9000}) + STAYS,
        "9…, and",
    ),
    "has an endless problem": (GREETING + ASKED + say(problem="\x1b[2J\r\n" + "9" * 9000) + STAYS, "999…"),
    "answers before it is asked": (say(problem="") + STAYS, NOT_ASKED_FOR),
    "greets for ever": (FOREVER.format(GREETING), NOT_ASKED_FOR),
    "answers for ever": (GREETING + FOREVER.format(say(detached=[])), NOT_ASKED_FOR),
    "prints text for ever": ("exec yes", ENDLESS),
    "prints errors for ever": ("exec yes >&2", ENDLESS),
    "prints bytes for ever": ("exec cat /dev/zero", ENDLESS),
    "steers the terminal": (
        r"printf '\033[2J\033]0;t\007no\n' >&2; exit 9",
        "its connection ended with exit code 9 before quorate answered: no",
    ),
    "has a shell that ends": ("exit 0", "exit code 0 before quorate answered; does a start file of its shell, or"),
    "has a shell for nobody": ("echo not available; exit 1", "exit code 1 before quorate answered: not available"),
    "has a broken Python": (
        "echo \"ModuleNotFoundError: No module named 'encodings'\" >&2; exit 1",
        "exit code 1 before quorate answered: ModuleNotFoundError",
    ),
    "asks for a password": (
        "echo 'Permission denied (publickey,password).' >&2; exit 255",
        "it cannot be reached: Permission denied (publickey,password). (no password is asked for here; use a key that",
    ),
    "is unknown": ("echo 'Host key verification failed.' >&2; exit 255", "it is by: ssh a)"),
}


@pytest.fixture
def ssh(tmp_path: Path) -> Path:
    """The program in the place of ssh; it writes its process id into ``pid``."""
    path = tmp_path / "connect"  # a program called ssh gets options first
    path.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\n. {tmp_path}/host\n")
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def user_signals() -> Iterator[None]:
    """Undo what ``quorate run`` does to these signals for the life of its process, which is that of all tests here."""
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def run(ssh: Path, host: str, *arguments: str) -> int:
    ssh.with_name("host").write_text(host)
    script = ssh.with_name("train.py")
    script.touch()
    return execute(["run", f"--ssh-command={ssh}", "--hosts=a", *arguments, str(script)])


def assert_gone(ssh: Path) -> None:
    pid, deadline = int(ssh.with_name("pid").read_text()), monotonic() + 30
    while is_alive(pid):
        assert monotonic() < deadline, "the program in the place of ssh is left"
        sleep(0.01)


@pytest.mark.parametrize("name", HOSTS)
def test_a_host_that_does_not_do_its_part_is_named(ssh: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    host, sentence = HOSTS[name]
    assert run(ssh, host) == ExitCode.RENDEZVOUS
    errors = capfd.readouterr().err
    assert f"nothing was started. a: {sentence}" in errors or (sentence in errors and "started. a: " in errors), errors
    assert "\x1b" not in errors
    assert len(errors) < 2000
    assert_gone(ssh)


@pytest.mark.parametrize(
    ("host", "sentence"),
    [
        (FITS + say(detached=[]), NOT_ASKED_FOR),
        (FITS + "echo /state: No space left on device >&2; exit 126", "/state: No space left on device"),
        (FITS + "exit 0", "its connection ended with exit code 0"),
    ],
)
def test_an_agent_that_was_not_detached_is_named(
    ssh: Path, host: str, sentence: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(ssh, host, "--detach=1") != 0
    errors = capfd.readouterr().err
    assert "a: no agent goes on there: " in errors
    assert sentence in errors
    assert "find it with" not in errors


def test_a_worker_that_prints_what_a_host_says_only_prints_it(ssh: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lie = say(hello={"version": "0"}) + say(problem="later") + say(detached=RECORD)
    assert run(ssh, FITS + lie + "exit 0") == 0
    assert capfd.readouterr().out.count("[a] ") == 3


def test_a_connection_that_a_busy_server_has_dropped_is_made_again(
    ssh: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tries = ssh.with_name("tries")
    dropped = "echo 'kex_exchange_identification: read: Connection reset by peer' >&2; exit 255"
    assert run(ssh, f"echo >> {tries}; test $(wc -l < {tries}) -gt 1 || {{ {dropped}; }}; {FITS} exit 0") == 0
    assert tries.read_text() == "\n\n"
    assert "kex_exchange" not in capfd.readouterr().err


def test_variables_of_this_machine_alone_are_not_for_the_hosts(ssh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PET_NODE_RANK", "1")  # as in a pod of a job
    monkeypatch.setenv("PET_LOCAL_ADDR", "eth0")
    assert run(ssh, FITS + "exit 0") == 0
    assert run(ssh, FITS + "exit 0", "--node-rank=1") == ExitCode.USAGE


def test_two_names_of_one_machine_are_told(ssh: Path, capfd: pytest.CaptureFixture[str]) -> None:
    machine = (
        f"case $1 in d) {say(hello={**HELLO, 'machine': 'y'})};; *) {say(hello={**HELLO, 'machine': 'x'})};; esac; "
    )
    assert run(ssh, machine + FITS.removeprefix(GREETING) + "exit 0", "--hosts=a,b,d") == 0
    errors = capfd.readouterr().err
    assert "warning: a and b are one machine" in errors
    assert "write a:N" in errors


def test_a_program_that_does_not_end_with_its_connection_is_killed(ssh: Path) -> None:
    # Its first host does not fit, so the second one is let go before anything starts.
    host = f'if [ "$1" = a ]; then {say(hello={**HELLO, "version": "0"})} else {FITS} fi\n{HOLDS_ON}'
    assert run(ssh, host, "--nnodes=2", "--hosts=b,a") == ExitCode.RENDEZVOUS
    assert_gone(ssh)


@pytest.mark.parametrize(
    ("host", "sentence"),
    [
        (HOLDS_ON, "a: no answer within 1 s"),
        (FOREVER.format(GREETING), NOT_ASKED_FOR),
        (say(detached=[]) + STAYS, NOT_ASKED_FOR),
        (GREETING + ASKED + say(detached=RECORD) + STAYS, NOT_ASKED_FOR),
        ("exec yes", ENDLESS),
    ],
)
def test_a_host_that_is_asked_for_its_agents_is_not_waited_for_for_ever(ssh: Path, host: str, sentence: str) -> None:
    ssh.with_name("host").write_text(host)
    seconds = 1.0 if "no answer" in sentence else 60.0
    answers, problems = ask_hosts("a", str(ssh), {"end": None, "forget": None}, seconds)
    assert answers == {}
    assert len(problems) == 1
    assert sentence in problems[0]
    assert_gone(ssh)


def test_a_record_without_a_state_is_shown(ssh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ssh.with_name("host").write_text(GREETING + ASKED + say(detached=[{**RECORD, "log": "/l\x1b[2J\ny" + "z" * 9999}]))
    assert execute(["detached", f"--ssh-command={ssh}", "--hosts=a"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("j  a  pid 5  has ended  /l y")
    assert len(line) < 5000


@pytest.mark.parametrize("command", ["", "ssh 'x", "/nowhere/ssh"])
def test_a_command_that_cannot_be_run_is_named(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["detached", f"--ssh-command={command}", "--hosts=a"]) == ExitCode.USAGE
    assert "--ssh-command" in capsys.readouterr().err


# --- the host's end ---------------------------------------------------------------------------------------------------

FULL = """
mount -t tmpfs -o size=64k tmpfs {folder} || exit 77
mkdir -p {folder}/quorate/detached/job
cat /dev/zero > {folder}/ballast 2>/dev/null
exec "$@"
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_no_agent_goes_on_whose_record_cannot_be_kept(tmp_path: Path) -> None:
    start = {"start": {"arguments": ["--", "train.py"], "environment": {}, "detach": "job"}}
    remote = [sys.executable, "-m", "quorate_ssh.remote"]
    done = subprocess.run(
        ["unshare", "--mount", "/bin/sh", "-c", FULL.format(folder=tmp_path), "sh", *remote],
        input=json.dumps(start) + "\n",
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("no file system can be mounted here")
    assert done.returncode == 126, done.stderr
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert '"detached"' not in done.stdout


def test_a_host_answers_in_utf_8_whatever_its_variables_say() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "utf-16"}
    remote = [sys.executable, "-m", "quorate_ssh.remote"]
    done = subprocess.run(remote, input=b"", env=environment, capture_output=True, timeout=60)
    assert done.stdout.startswith(MARK.encode() + b'{"hello":'), done.stderr


@pytest.mark.parametrize(
    ("content", "argv", "sentence"),
    [
        ("a\n".encode("utf-16"), [], "it is not text in UTF-8"),
        (b"a\n", ["--nnodes=0"], "--nnodes=0 is not a number of nodes"),
        (b"a\n", ["--nnodes=2:1"], "--nnodes=2:1 is not a number of nodes"),
    ],
)
def test_a_file_or_a_number_of_nodes_that_is_none_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, argv: list[str], sentence: str
) -> None:
    path = tmp_path / "hosts"
    path.write_bytes(content)
    assert execute(["run", f"--hostfile={path}", *argv, "train.py"]) == ExitCode.USAGE
    assert sentence in capsys.readouterr().err


def test_a_hostfile_without_an_end_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "hosts"
    path.write_text("a\n" * (1 << 20))
    assert execute(["run", f"--hostfile={path}", "train.py"]) == ExitCode.USAGE
    assert "has more than 1 MiB" in capsys.readouterr().err
