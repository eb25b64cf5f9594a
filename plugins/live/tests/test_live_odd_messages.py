"""Whatever a live worker sends to its agent, the job goes on, and ends as its workers do."""

from __future__ import annotations

import subprocess
from pathlib import Path

from .live_jobs import DEADLINE_SECONDS, QUORATE

_PROGRAM = r"""
import os, socket

def ask(data):
    try:
        agent.send(data)
        return agent.recv(1 << 16)
    except OSError:  # the agent has closed it
        return b""

def deep():
    # From some depth on the agent could read a question but not write its answer: from which one, it has to find out.
    return all(ask(b'{"ask":' + b"[" * depth + b"]" * depth + b"}") for depth in range(850, 1001))

def many():
    for _ in range(300):
        agent.send(b'{"end":true}')
        agent.send(b'{"left":1e308}')

messages = [
    deep,
    many,
    lambda: ask(b'{"ask":[' + b"[]," * 1300 + b"[]]}"),
    lambda: ask(b'{"ask":' + b"9" * 4000 + b"}"),
    lambda: ask(b'{"ask":[1e999,NaN,-Infinity]}'),
    lambda: ask(b"\xff\xfe{"),
    lambda: ask(b'{"ask":"\\ud800"}'),
    lambda: ask(b'{"ask":"' + b"x" * 5000 + b'"}'),
    lambda: ask(b'{"live":{"a":[1]}}'),
]
for rank in range(int(os.environ["RANK"]), len(messages), int(os.environ["WORLD_SIZE"])):
    agent = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    agent.settimeout(20.0)
    agent.connect("\0" + os.environ["QUORATE_LIVE"][1:])
    assert b"welcome" in ask(b'{"live": 1}')
    messages[rank]()
os.write(1, f"done {os.environ['RANK']}\n".encode())  # at once: nine workers write to one pipe
"""


def test_odd_messages_change_nothing(tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(_PROGRAM)
    command = [QUORATE, "run", "--standalone", "--nproc-per-node=9", "--max-restarts=0", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_SECONDS)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [f"done {rank}" for rank in range(9)]
    assert "Traceback" not in done.stderr
