"""The hook on machines larger than this one: the launches of a round are changed, but not started."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from quorate import PluginHost
from quorate.affinity import format_cpus
from quorate.catalogue import PluginKind
from quorate.records import Assignment, Event, WorkerLaunch
from quorate.services import AgentService, AgentSnapshot, AgentView
from quorate_numa import NumaMode, NumaPlugin

from .machines import EIGHT_SOCKETS, Machine, nvidia, regular

#: Two nodes of four cores each, and two GPUs at each.
SMALL = replace(regular(2, 1, 4, threads=1), nvidia=nvidia("07 0f 47 4e", [0, 0, 1, 1]))


class StubAgent:
    """What the plugin needs of an agent."""

    def __init__(self, mode: object, node_id: str = "me", environment: Mapping[str, str] | None = None) -> None:
        self.settings = {} if mode is None else {"numa_binding": mode}
        self.environment = environment or {}
        self.said: list[str] = []
        self._node_id = node_id

    def snapshot(self) -> AgentSnapshot:
        return AgentSnapshot("job", self._node_id, "host", "default", "new", "", 0)

    def say(self, sentence: str) -> None:
        self.said.append(sentence)


class Bench:
    """A plugin host with the plugin alone, on a made-up machine."""

    def __init__(self, machine: Machine, root: Path) -> None:
        self.usable = machine.online
        machine.write(root)
        self.host = PluginHost(paths=[], extra=[("numa", NumaPlugin(str(root), lambda: self.usable))])

    def begin(self, agent: StubAgent) -> AgentService | None:
        backend = self.host.catalogue(PluginKind.SERVICE)["numa"]
        return cast("AgentService | None", backend.start(cast(AgentView, agent)))

    def round(self, workers: int, node_id: str = "me", *, virtual: bool = False, **environment: str) -> list[str]:
        """Return the masks of the workers of a round, as lists."""
        assignment = Assignment(0, node_id, "default", workers, 0, 1, 0, workers, 0, workers, "a", 1)
        masks = []
        for local_rank in range(workers):
            variables = {**environment, "LOCAL_RANK": str(local_rank)}
            if virtual:  # as the agent does it
                devices = environment.get("CUDA_VISIBLE_DEVICES", "0,1,2,3").split(",")
                variables |= {"CUDA_VISIBLE_DEVICES": devices[local_rank], "LOCAL_RANK": "0"}
            launch = WorkerLaunch(local_rank, local_rank, "default", "true", (), variables, "")
            changed: Any = self.host.decide("launch", launch, assignment)
            masks.append("" if changed is None else format_cpus(changed.cpus))
        return masks


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(SMALL, tmp_path)


def test_workers_are_bound_near_their_gpus(bench: Bench) -> None:
    assert bench.begin(StubAgent(NumaMode.EXCLUSIVE)) is not None
    assert bench.round(4) == ["0-1", "2-3", "4-5", "6-7"]
    assert bench.round(4, CUDA_VISIBLE_DEVICES="3,0") == ["4-5", "0-1", "6-7", "2-3"]
    assert bench.round(2, CUDA_VISIBLE_DEVICES="") == ["0-3", "4-7"]


@pytest.mark.parametrize(("visible", "masks"), [("0,1,2,3", "0-1 2-3 4-5 6-7"), ("2,1,3", "4-5 0-3 6-7")])
def test_workers_that_see_one_gpu_each_have_shares_that_cover(bench: Bench, visible: str, masks: str) -> None:
    bench.begin(StubAgent("exclusive", environment={"CUDA_VISIBLE_DEVICES": visible}))
    workers = len(visible.split(","))
    assert bench.round(workers, virtual=True, CUDA_VISIBLE_DEVICES=visible) == masks.split()


def test_workers_that_share_the_one_gpu_of_the_agent_are_all_near_it(bench: Bench) -> None:
    bench.begin(StubAgent("exclusive", environment={"CUDA_VISIBLE_DEVICES": "2"}))
    assert bench.round(2, CUDA_VISIBLE_DEVICES="2") == ["4-5", "6-7"]


def test_agents_of_one_process_are_bound_each_in_its_way(bench: Bench) -> None:
    services = {mode: bench.begin(StubAgent(mode, mode)) for mode in ("node", "exclusive")}
    assert bench.begin(StubAgent(None, "unbound")) is None
    assert bench.round(2, "node") == ["0-3", "0-3"]
    assert bench.round(2, "exclusive") == ["0-1", "2-3"]
    assert bench.round(2, "unbound") == ["", ""]
    ended = services["node"]
    assert ended is not None
    ended.observe(Event("agent.phase", ""))
    ended.close()
    assert bench.round(2, "node") == ["", ""]
    assert bench.round(2, "exclusive") == ["0-1", "2-3"]


def test_each_round_is_placed_on_the_cpus_of_its_time_and_a_change_is_said(bench: Bench) -> None:
    agent = StubAgent("node")
    bench.begin(agent)
    assert bench.round(4) == bench.round(4) == ["0-3"] * 2 + ["4-7"] * 2
    bench.usable = frozenset({1, 2, 6})
    assert bench.round(4) == ["1-2"] * 2 + ["6"] * 2
    assert [sentence.partition("; ")[0] for sentence in agent.said] == [
        "NUMA binding node: local ranks 0-1 on node 0 (CPUs 0-3), local ranks 2-3 on node 1 (CPUs 4-7)",
        "NUMA binding node: local ranks 0-1 on node 0 (CPUs 1-2), local ranks 2-3 on node 1 (CPUs 6)",
    ]


def test_a_line_stays_a_line(tmp_path: Path) -> None:
    bench, agent = Bench(replace(EIGHT_SOCKETS, cores=EIGHT_SOCKETS.cores), tmp_path), StubAgent("exclusive")
    bench.begin(agent)
    assert len(set(bench.round(40))) == 40
    (sentence,) = agent.said
    assert sentence.count("local rank") == 16
    assert "and 24 more workers" in sentence
    assert len(sentence) < 1500
