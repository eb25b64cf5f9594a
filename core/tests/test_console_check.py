"""When an agent says that the flags which choose ranks hide all output, and when it does not."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, cast

import pytest
from attrs import evolve

from quorate.agent._console import ConsoleCheck, why_nothing_is_shown
from quorate.agent._environment import build_launches
from quorate.agent._spec import RunSettings, WorkerSpec
from quorate.logs_specs import DefaultLogsSpecs, Std
from quorate.records import Assignment, WorkerLaunch

Ranks = Collection[int] | None


def assignment_of(group_rank: int, workers: int, nodes: int) -> Assignment:
    first, world = group_rank * workers, nodes * workers
    return Assignment(0, "node", "role", workers, group_rank, nodes, first, world, first, world, "127.0.0.1", 1)


def settings_of(folder: Path, local_ranks: Ranks, console_ranks: Ranks, workers: int, **logs: Any) -> RunSettings:
    chosen = None if local_ranks is None else set(local_ranks)
    spec = WorkerSpec("role", workers, cast(Any, None), "true", console_ranks=console_ranks)
    return RunSettings(spec, DefaultLogsSpecs(str(folder), local_ranks_filter=chosen, **logs), "exec", 0.0)


def launches_of(settings: RunSettings, assignment: Assignment) -> list[WorkerLaunch]:
    return build_launches(settings, assignment, "job", lambda launch, _: launch, {})


@pytest.mark.parametrize(
    ("local_ranks", "console_ranks", "said"),
    [
        pytest.param(
            [7], None, ["node: --local-ranks-filter=7, but its workers have local ranks 0 to 1"] * 2, id="no_local_rank"
        ),
        pytest.param(
            [], None, ["node: --local-ranks-filter=, but its workers have local ranks 0 to 1"] * 2, id="an_empty_set"
        ),
        pytest.param([2, 7, 1], None, ["", ""], id="one_of_three"),
        pytest.param(None, [4, 9], ["job: --console-ranks=4,9, but its workers have ranks 0 to 3", ""], id="no_rank"),
        pytest.param(
            [7], [9], ["job: --console-ranks=9, but its workers have ranks 0 to 3", ""], id="neither_names_any"
        ),
        pytest.param(None, [0], ["", ""], id="a_rank_of_another_node"),
        pytest.param(
            [7],
            [0],
            ["node: --local-ranks-filter=7, but its workers have local ranks 0 to 1", ""],
            id="no_local_rank_where_a_rank_is_chosen",
        ),
        pytest.param(
            [1],
            [0],
            ["node: --local-ranks-filter=1 and --console-ranks=0 name different workers", ""],
            id="contradiction",
        ),
        pytest.param(
            [1],
            [0, 3],
            ["node: --local-ranks-filter=1 and --console-ranks=0,3 name different workers", ""],
            id="on_one_node",
        ),
    ],
)
def test_each_of_two_nodes_says_what_the_flags_hide(
    local_ranks: Ranks, console_ranks: Ranks, said: list[str], tmp_path: Path
) -> None:
    settings = settings_of(tmp_path, local_ranks, console_ranks, workers=2)
    for group_rank, words in enumerate(said):
        assignment = assignment_of(group_rank, workers=2, nodes=2)
        why = why_nothing_is_shown(assignment, launches_of(settings, assignment), local_ranks, console_ranks)
        assert why == (f"the console shows no output of this {words}" if words else "")


def test_nothing_is_said_where_no_output_would_go_to_the_console(tmp_path: Path) -> None:
    assignment = assignment_of(0, workers=1, nodes=1)
    for redirects, tee, is_said in ((Std.ALL, Std.NONE, False), (Std.ALL, Std.ERR, True), (Std.OUT, Std.NONE, True)):
        settings = settings_of(tmp_path, [7], None, workers=1, redirects=redirects, tee=tee)
        assert bool(why_nothing_is_shown(assignment, launches_of(settings, assignment), [7], None)) is is_said


def test_nothing_is_said_where_a_plugin_shows_a_worker_after_all(tmp_path: Path) -> None:
    assignment = assignment_of(0, workers=1, nodes=1)
    launches = launches_of(settings_of(tmp_path, [7], None, workers=1), assignment)
    shown = [evolve(launch, logs=evolve(launch.logs, console=True)) for launch in launches]
    assert why_nothing_is_shown(assignment, shown, [7], None) == ""


def test_an_agent_warns_once_even_if_the_world_changes(tmp_path: Path) -> None:
    """Two workers at first, then four, then two again: ranks that were not there before are shown without a word."""
    warnings: list[str] = []
    settings = settings_of(tmp_path, None, [3], workers=2)
    check = ConsoleCheck(settings, warnings.append)
    for nodes in (1, 2, 1):
        assignment = assignment_of(0, workers=2, nodes=nodes)
        check.look(assignment, launches_of(settings, assignment))
    assert [text.rpartition(", but ")[2] for text in warnings] == ["its workers have ranks 0 to 1"]


@pytest.mark.parametrize("flag", ["tee", "redirects"])
@pytest.mark.parametrize(
    ("choice", "named"),
    [
        ({7: Std.ALL}, "7"),
        ({9: Std.OUT, 2: Std.ERR, 0: Std.NONE}, "2, 9"),
        ({1: Std.OUT, 7: Std.OUT}, ""),
        ({7: Std.NONE}, ""),
        ({}, ""),
        (Std.ALL, ""),
    ],
)
def test_an_agent_says_when_streams_are_chosen_of_no_worker(
    tmp_path: Path, flag: str, choice: Std | dict[int, Std], named: str
) -> None:
    """A node with more workers than another may have all of them chosen, so one that is there is enough."""
    said: list[str] = []
    settings, assignment = settings_of(tmp_path, None, None, 2, **{flag: choice}), assignment_of(0, 2, 1)
    check = ConsoleCheck(settings, said.append)
    for _ in range(2):
        check.look(assignment, launches_of(settings, assignment))
    expected = f"--{flag} names no worker of this node ({named}): its workers have local ranks 0 to 1"
    assert said == ([expected] if named else [])


def test_two_flags_that_choose_no_worker_are_one_warning(tmp_path: Path) -> None:
    said: list[str] = []
    settings, assignment = (
        settings_of(tmp_path, [9], None, 2, tee={7: Std.ALL}, redirects={5: Std.OUT}),
        assignment_of(0, 2, 1),
    )
    ConsoleCheck(settings, said.append).look(assignment, launches_of(settings, assignment))
    assert said == [
        "--redirects names no worker of this node (5) and --tee names no worker of this node (7): "
        "its workers have local ranks 0 to 1"
    ]
