"""``--agent-store``: the workers' store where the rendezvous serves none."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from quorate.errors import UsageError
from quorate.events import EventName
from quorate.records import Assignment, Event, WorkerLaunch
from quorate_rendezvous_c10d._agent_store import AgentStore, When, parse_when

#: As torchft does: every worker only connects.  Each of them also forms a process group, which uses the same store.
CLIENT = """
import os, sys
import torch.distributed as dist
where = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
store = dist.TCPStore(*where, is_master=False, wait_for_workers=False)
before = store.add("runs", 1)
dist.init_process_group("gloo")
dist.barrier()
words = "runs", before <= 2, store.add("runs", 0), os.environ["TORCHELASTIC_RESTART_COUNT"]
sys.stdout.write(" ".join(map(str, words)) + "\\n")
sys.stdout.flush()
dist.barrier()
if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    os._exit(1)
dist.destroy_process_group()
"""


def test_workers_that_only_connect_find_a_store_in_each_round(tmp_path: Path) -> None:
    """One of its own: keys of the round before are gone.  The first worker's process is not the one that serves."""
    script = tmp_path / "client.py"
    script.write_text(CLIENT)
    command = [sys.executable, "-m", "quorate", "run", "--nproc-per-node=2", "--max-restarts=1"]
    command += ["--start-method=warm", "--preload=torch.distributed"]  # imported once, and not by four workers
    done = subprocess.run([*command, "--agent-store=always", str(script)], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert sorted(re.findall("runs (.*)", done.stdout)) == ["True 2 0"] * 2 + ["True 2 1"] * 2


class Agent:
    """What a store sees of its agent."""

    def __init__(self, **environment: str) -> None:
        self.environment = environment
        self.said = threading.Event()
        self.sentence = ""

    def say(self, sentence: str) -> None:
        self.sentence = sentence
        self.said.set()


def change(store: AgentStore, port: int) -> WorkerLaunch:
    environment = {"MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "False"}
    launch = WorkerLaunch(1, 1, "trainer", "true", (), environment, "")
    return store.change(launch, _assignment(port))


def _assignment(port: int) -> Assignment:
    return Assignment(0, "node", "trainer", 2, 0, 1, 0, 2, 0, 2, "127.0.0.1", port)


def make(agent: Any, when: When = When.AUTO, seconds: float = 60.0) -> AgentStore:
    return AgentStore(agent, when, lambda: None, seconds)


def test_auto_serves_programs_of_torchft_and_leaves_others_alone() -> None:
    served = change(make(Agent(TORCHFT_LIGHTHOUSE="http://host:29510")), 29400)
    assert served.environment["TORCHELASTIC_USE_AGENT_STORE"] == "True"
    assert change(make(Agent()), 29400).environment["TORCHELASTIC_USE_AGENT_STORE"] == "False"
    with pytest.raises(UsageError, match="--agent-store=sometimes is not one of always, auto, never"):
        parse_when("sometimes")


@pytest.mark.parametrize("is_served", [True, False])
def test_who_may_wait_in_vain_is_told(is_served: bool) -> None:
    agent = Agent()
    store = make(agent, seconds=0.05)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if is_served:
            server.listen()
        port = server.getsockname()[1]
        environment = {"MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "False"}
        store.change(WorkerLaunch(0, 0, "trainer", "true", (), environment, ""), _assignment(port))
        store.observe(Event(EventName.WORKERS_STARTED, ""))
        if not is_served:
            assert agent.said.wait(30.0)
            assert "--agent-store=always serves it" in agent.sentence
        timer = store._timer
        assert timer is not None
        timer.join(30.0)
        assert agent.said.is_set() is not is_served
    store.close()
