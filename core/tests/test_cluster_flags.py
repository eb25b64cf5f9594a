"""What a scheduler says takes the place of defaults, and never of what the user has said."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve, frozen

from quorate import (
    ClusterEnvironment,
    ClusterJob,
    PluginError,
    PluginHost,
    RendezvousBackend,
    RendezvousParameters,
    RendezvousTimeoutError,
    UsageError,
    WorkerSpec,
    get_rendezvous_handler,
    hookimpl,
)
from quorate.cli._cluster import ThisMachine, find_cluster, with_cluster
from quorate.cli._flags import FLAGS
from quorate.cli._parse import Parsed, parse
from quorate.cli._run import _for_one_node, _print_notes, build_config
from quorate.clusters import Machine

JOB = ClusterJob(
    scheduler="Example",
    job_id="4711",
    job_name="train",
    run_id="train-4711",
    min_nodes=2,
    max_nodes=2,
    node_rank=1,
    endpoint_host="n1",
    local_addr="10.0.0.2",
)


@frozen
class Place:
    host: str = "n2"

    def read(self, path: str) -> str:
        return ""

    def output(self, *command: str) -> str:
        return ""


class Schedulers:
    """A plugin with schedulers that answer by their variables."""

    def __init__(self, **jobs: Any) -> None:
        self.jobs = jobs

    @hookimpl
    def quorate_register_environment(self) -> list[ClusterEnvironment]:
        def offer(at: int, name: str, job: Any) -> ClusterEnvironment:
            def find(environment: Mapping[str, str], machine: Machine) -> Any:
                return job() if callable(job) else job if f"IN_{name.upper()}" in environment else None

            return ClusterEnvironment(name, f"the scheduler {name}", find, at)

        return [offer(at, name, job) for at, (name, job) in enumerate(self.jobs.items())]

    @hookimpl
    def quorate_register_rendezvous(self) -> list[RendezvousBackend]:
        names = {"c10d": True, "tcp": True, "static": True, "etcd": False}
        return [
            RendezvousBackend(name, name, open_store=lambda _: None, hosted_by_job=hosted)  # type: ignore[arg-type]
            for name, hosted in names.items()
        ]


def host_of(**jobs: Any) -> PluginHost:
    return PluginHost(paths=[], extra=[("schedulers", Schedulers(**jobs))])


def read(*argv: str, job: ClusterJob = JOB, **environment: str) -> Parsed:
    return with_cluster(parse(argv, environment, FLAGS), job, host_of(example=job))


def meeting(parsed: Parsed) -> tuple[Any, ...]:
    names = ("nnodes", "node-rank", "rdzv-backend", "rdzv-endpoint", "rdzv-id", "master-addr", "master-port")
    return tuple(parsed[name] for name in names)


def test_no_flags_are_needed() -> None:
    parsed = read()
    assert meeting(parsed) == ((2, 2), 1, "tcp", "n1:29400", "train-4711", None, None)
    assert {parsed.settings[name].source for name in ("nnodes", "rdzv-endpoint", "local-addr")} == {"Example job 4711"}
    config = build_config(parsed, JOB)
    assert config.cluster is not None
    assert config.cluster.sentence == "Example job 4711: node 2 of 2, meets at n1:29400"


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--rdzv-endpoint=h:1"], ((2, 2), 1, "static", "h:1", "train-4711", None, None)),
        (["--rdzv-backend=c10d"], ((2, 2), 1, "c10d", "n1:29400", "train-4711", None, None)),
        (["--rdzv-backend=etcd"], ((2, 2), 1, "etcd", None, "train-4711", None, None)),
        (["--master-addr=h"], ((2, 2), 1, "static", None, "train-4711", "h", None)),
        (["--master-port=7"], ((2, 2), 1, "static", None, "train-4711", "n1", 7)),
        (["--master-port-range=5:9"], ((2, 2), 1, "tcp", "n1:29400", "train-4711", None, None)),
        (["--nnodes=2:4"], ((2, 4), None, "tcp", "n1:29400", "train-4711", None, None)),
        (["--nnodes=2:4", "--master-port=7"], ((2, 4), None, "tcp", "n1:29400", "train-4711", None, 7)),
        (["--node-rank=0", "--rdzv-id=mine"], ((2, 2), 0, "tcp", "n1:29400", "mine", None, None)),
        (["--nnodes=1"], ((1, 1), None, "static", None, "train-4711-node1", None, None)),
        (["--standalone"], ((1, 1), None, "static", None, None, None, None)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_the_user_says_counts(argv: list[str], expected: tuple[Any, ...]) -> None:
    assert meeting(read(*argv)) == expected


def test_variables_stand_between_arguments_and_the_scheduler() -> None:
    parsed = read("--rdzv-id=argument", PET_NNODES="3", PET_RDZV_ID="variable")
    assert (parsed["nnodes"], parsed["rdzv-id"]) == ((3, 3), "argument")
    assert parsed.settings["nnodes"].source == "environment PET_NNODES"


def test_a_port_that_the_scheduler_sets_apart_is_the_workers() -> None:
    job = evolve(JOB, master_port=29600)
    assert meeting(read(job=job)) == ((2, 2), 1, "static", None, "train-4711", "n1", 29600)
    assert meeting(read("--nnodes=1:2", job=job))[2:4] == ("tcp", "n1:29400")


def test_the_sentence_has_the_rank_that_the_user_gave() -> None:
    config = build_config(read("--node-rank=0"), JOB)
    assert config.cluster is not None
    assert config.cluster.sentence.startswith("Example job 4711: node 1 of 2")


def test_a_job_of_one_node_meets_nobody() -> None:
    job = evolve(JOB, min_nodes=1, max_nodes=1, node_rank=0)
    assert meeting(read(job=job)) == ((1, 1), None, "static", None, "train-4711", None, None)
    config = build_config(read(job=job), job)
    assert config.cluster is not None
    assert (config.rdzv_backend, config.cluster.sentence) == ("standalone", "Example job 4711: one node")


def test_a_problem_is_refused_unless_the_user_says_how_many_nodes() -> None:
    job = evolve(JOB, problem="two agents on a machine; write: example --one")
    with pytest.raises(UsageError, match="Example job 4711: two agents on a machine; write: example --one"):
        read(job=job)
    assert meeting(read("--nnodes=2", job=job))[3] == "n1:29400"
    assert meeting(read("--standalone", job=job))[0] == (1, 1)


def test_a_script_that_is_not_a_node_is_refused_with_any_number_of_nodes() -> None:
    job = evolve(JOB, problem="this is the script; write: example --each", node_rank=None)
    with pytest.raises(UsageError, match=r"write: example --each.*--cluster=none"):
        read("--nnodes=2", job=job)
    assert meeting(read("--nnodes=2", "--rdzv-endpoint=h:1", job=job))[3] == "h:1"
    assert meeting(read("--nnodes=1", job=job))[0] == (1, 1)


def test_a_node_beside_the_job_is_told_so() -> None:
    assert JOB.described(1, 1, "").sentence == "Example job 4711: one node"
    sentence = evolve(JOB, node_rank=2).described(2, 2, "n1:1").sentence
    assert sentence == "Example job 4711: node 3, beside a job of 2, meets at n1:1"


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--standalone"], ((1, 1), None)),  # a shell in a pod of a job
        (["--nnodes=1"], ((1, 1), None)),
        (["--nnodes=3"], ((3, 3), 1)),
        ([], ((2, 2), 1)),
        (["--nnodes=1", "--node-rank=0"], ((1, 1), 0)),
    ],
    ids=str,
)
def test_an_argument_for_one_node_stands_above_the_variables_of_several(argv: list[str], expected: object) -> None:
    parsed = _for_one_node(parse(argv, {"PET_NNODES": "2", "PET_NODE_RANK": "1"}, FLAGS))
    assert (parsed["nnodes"], parsed["node-rank"]) == expected


def test_nodes_that_do_not_know_where_to_meet_are_told_what_to_add() -> None:
    with pytest.raises(UsageError, match="--rdzv-endpoint=HOST:29400"):
        read(job=evolve(JOB, endpoint_host=""))


@pytest.mark.parametrize(
    ("argv", "is_told"), [([], False), (["--shutdown-timeout=5"], False), (["--shutdown-timeout=60"], True)]
)
def test_a_grace_that_the_scheduler_does_not_leave_is_told(
    argv: list[str], is_told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    job = evolve(JOB, kill_seconds=30.0)
    parsed = read(*argv, job=job)
    _print_notes(parsed, build_config(parsed, job))
    sentence = "--shutdown-timeout=60, but Example kills 30 s after its SIGTERM; the workers get 28 s then"
    assert (sentence in capsys.readouterr().err) is is_told


@pytest.mark.needs("quorate-rendezvous-static")
def test_the_grace_is_bounded_by_what_the_scheduler_leaves() -> None:
    config = build_config(read(), evolve(JOB, kill_seconds=4.0))
    handler = get_rendezvous_handler(RendezvousParameters("standalone", "", "x", 1, 1))
    grace = WorkerSpec.from_config(config, handler, "true").grace_periods()
    assert (grace.preemption, grace.restart) == (3.0, 30.0)


# --- which scheduler --------------------------------------------------------------------------------------------------

HERE = {"IN_OUTER": "1", "IN_INNER": "1"}
OUTER = evolve(JOB, scheduler="Outer", warnings=("SIGUSR1",))
INNER = ClusterJob(scheduler="Inner", min_nodes=4, max_nodes=4, node_rank=3, endpoint_host="m")


def test_the_launcher_inside_counts_and_takes_the_rest_from_the_scheduler_around_it() -> None:
    job = find_cluster("auto", host_of(outer=OUTER, inner=INNER), HERE, Place())
    assert job is not None
    assert (job.title, job.max_nodes, job.node_rank, job.endpoint_host) == ("Inner in Outer job 4711", 4, 3, "m")
    assert (job.run_id, job.job_name, job.warnings) == ("train-4711", "train", ("SIGUSR1",))


def test_a_scheduler_can_be_named_and_left_out() -> None:
    host = host_of(outer=OUTER, inner=INNER)
    assert find_cluster("outer", host, HERE, Place()) == OUTER
    assert find_cluster("none", host, HERE, Place()) is None
    assert find_cluster("auto", host, {}, Place()) is None
    with pytest.raises(UsageError, match="the scheduler inner has not started this process"):
        find_cluster("inner", host, {}, Place())
    with pytest.raises(UsageError, match="unknown cluster 'other'; installed: inner, outer"):
        find_cluster("other", host, HERE, Place())


def test_an_agent_in_a_worker_is_not_a_node_of_the_schedulers_job() -> None:
    host = host_of(outer=OUTER)
    assert find_cluster("auto", host, {**HERE, "TORCHELASTIC_RUN_ID": "x"}, Place()) is None


def test_variables_that_cannot_be_read_are_told_with_the_scheduler() -> None:
    def wrong() -> None:
        raise UsageError("the list of hosts 'n[1-' is not one")

    with pytest.raises(UsageError, match=r"what the scheduler broken says cannot be used: .*--cluster=none"):
        find_cluster("auto", host_of(broken=wrong), HERE, Place())


WRONG: dict[str, Any] = {
    "scheduler": "",
    "job_id": 4711,
    "run_id": None,
    "min_nodes": 0,
    "max_nodes": 1.5,
    "node_rank": "1",
    "endpoint_host": ["n1"],
    "endpoint_port": 70_000,
    "master_port": -1,
    "workers": float("nan"),
    "warnings": "SIGTERM",
    "kill_seconds": float("nan"),
    "seconds_left": 60.0,
    "requeue": ["scontrol", "requeue"],
    "problem": b"no",
}


def _raise(error: Exception) -> Any:
    raise error


@pytest.mark.parametrize(
    "answer",
    [
        lambda: 1 / 0,
        lambda: _raise(RendezvousTimeoutError("x")),
        lambda: "n1",
        *(lambda name=name: evolve(JOB, **{name: WRONG[name]}) for name in WRONG),
    ],
    ids=["raises", "raises an error of quorate", "wrong", *WRONG],
)
def test_a_broken_scheduler_is_left_out_unless_it_was_named(answer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    host = host_of(outer=OUTER, broken=answer)
    assert find_cluster("auto", host, HERE, Place()) == OUTER
    assert "broken" in capsys.readouterr().err
    with pytest.raises(PluginError):
        find_cluster("broken", host, HERE, Place())


def test_what_a_scheduler_prints_is_bounded_in_size_and_time(tmp_path: Path) -> None:
    machine = ThisMachine(timeout_seconds=30.0)
    assert machine.output("printf", "n[1-2]\\377") == "n[1-2]\N{REPLACEMENT CHARACTER}"
    assert machine.output("yes") == "", "it never ends, and is killed once it has printed too much"
    assert [machine.output(*words) for words in (["false"], ["/no such"], ["a\0b"])] == ["", "", ""]
    assert ThisMachine(timeout_seconds=0.1).output("sh", "-c", "echo x; sleep 1000 & exec sleep 1000") == ""
    os.mkfifo(tmp_path / "pipe")
    assert [machine.read(str(tmp_path / "pipe")), machine.read("/dev/zero"), machine.read("/")] == ["", "", ""]


@pytest.mark.parametrize("nodes", ["0", "-1", "0:2"])
def test_a_number_of_nodes_that_is_none_is_refused_under_a_scheduler_too(nodes: str) -> None:
    parsed = parse([f"--nnodes={nodes}", "--rdzv-endpoint=n1:29400", "train.py"], {}, FLAGS)
    with pytest.raises(UsageError, match="--nnodes"):
        build_config(parsed, JOB)


def test_an_endless_job_id_is_cut_where_it_is_shown() -> None:
    assert len(evolve(JOB, job_id="9" * 5000).title) < 200
