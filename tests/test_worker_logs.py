"""Where workers' output goes, and how its lines look on the console."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from quorate import Std
from tests import workers
from tests.backends import BACKENDS, Backend
from tests.harness import Ear, Gate, Job


@pytest.fixture(params=["c10d"])
def backend(request: pytest.FixtureRequest) -> Backend:
    """Output has nothing to do with rendezvous: one backend is enough."""
    return BACKENDS[request.param]


def files_below(folder: Path) -> set[str]:
    """All files of attempts, without the run's own folder name."""
    return {"/".join(path.relative_to(folder).parts[1:]) for path in folder.glob("*/attempt_*/**/*") if path.is_file()}


def test_console_lines_carry_the_prefix(job: Job) -> None:
    """With ``tee`` and a template, each line on the console tells role, local rank and rank."""
    agent = {"log_line_prefix_template": "[${role_name}-${local_rank}:${rank}]:"}
    plan = job.plan(workers.print_lines, ["one", "two"], workers=2, agent=agent, logs={"tee": Std.ALL}, role="trainer")
    host = job.start(plan)
    host.outcomes()
    lines = host.console().splitlines()
    for rank in (0, 1):
        for word in ("one", "two", "one error", "two error"):
            assert f"[trainer-{rank}:{rank}]:{word} of {rank}" in lines
    for rank in (0, 1):
        (file,) = job.log_dir.glob(f"*/attempt_0/{rank}/stdout.log")
        assert file.read_text() == f"one of {rank}\ntwo of {rank}\n", "the file has no prefix"


def test_redirected_output_lies_where_it_is_promised(job: Job) -> None:
    """``<log_dir>/<run_id>_<random>/attempt_<restart>/<local_rank>/{stdout,stderr}.log``, nothing on the console."""
    plan = job.plan(workers.print_lines, ["quiet"], workers=2, logs={"redirects": Std.ALL})
    host = job.start(plan)
    host.outcomes()
    assert "quiet" not in host.console()
    (run,) = job.log_dir.iterdir()
    assert run.name.startswith(f"{plan.run_id}_")
    names = {f"attempt_0/{rank}/{name}.log" for rank in (0, 1) for name in ("stdout", "stderr")}
    assert files_below(job.log_dir) == names
    assert (run / "attempt_0/1/stderr.log").read_text() == "quiet error of 1\n"


def test_streams_are_chosen_by_local_rank(job: Job) -> None:
    """A map from local rank to streams; what is not named stays on the console."""
    plan = job.plan(workers.print_lines, ["word"], workers=2, logs={"redirects": {0: Std.OUT}, "tee": {1: Std.ERR}})
    host = job.start(plan)
    host.outcomes()
    assert files_below(job.log_dir) == {"attempt_0/0/stdout.log", "attempt_0/1/stderr.log"}
    console = host.console()
    assert "word of 0" not in console
    for text in ("word error of 0", "word of 1", "word error of 1"):
        assert text in console


def test_a_filter_hides_ranks_on_the_console_only(job: Job) -> None:
    """``local_ranks_filter`` shows some ranks; the files of the others are complete."""
    logs = {"tee": Std.OUT, "local_ranks_filter": {1}}
    host = job.start(job.plan(workers.print_lines, ["word"], workers=2, logs=logs))
    host.outcomes()
    assert "word of 1" in host.console()
    assert "word of 0" not in host.console()
    (file,) = job.log_dir.glob("*/attempt_0/0/stdout.log")
    assert file.read_text() == "word of 0\n"


def test_no_attempt_deletes_an_earlier_ones_logs(job: Job) -> None:
    """Every attempt keeps its folder, with output and error file."""
    plan = job.plan(workers.print_then_raise, 2, max_restarts=2, logs={"redirects": Std.OUT})
    (outcome,) = job.run(plan)
    assert outcome.values == {0: 2}
    for attempt in range(3):
        (file,) = job.log_dir.glob(f"*/attempt_{attempt}/0/stdout.log")
        assert file.read_text() == f"attempt {attempt}\n"
    for attempt in range(2):
        (file,) = job.log_dir.glob(f"*/attempt_{attempt}/0/error.json")
        assert f"attempt {attempt}" in json.loads(file.read_text())["message"]["message"]


def test_a_bigger_world_keeps_the_smaller_ones_logs(job: Job, ear: Ear, gate: Gate) -> None:
    """A round that follows without a restart has a folder of its own."""
    plan = job.plan(workers.meet, ear.path, gate.path, nodes=(1, 2), logs={"redirects": Std.OUT})
    keeper, other = job.start_in_order(ear, plan, plan)
    ear.hear(2, event="started", group_world_size=2)
    gate.open()
    keeper.outcome()
    other.outcome()
    attempts = {run.name: {path.name for path in run.glob("attempt_*")} for run in job.log_dir.iterdir()}
    assert sorted(map(len, attempts.values())) == [1, 2]
    assert all("attempt_0" in name for names in attempts.values() for name in names)


def test_without_a_folder_nothing_stays(job: Job) -> None:
    """The private folder of a job that went well and redirects nothing is removed (see the check of ``job``)."""
    (outcome,) = job.run(job.plan(workers.give, 1, logs={"log_dir": None}))
    assert outcome.values == {0: 1}
    assert not list(job.temporary.iterdir())


def test_a_last_word_without_a_newline_is_not_lost(job: Job) -> None:
    """Output is drained to its end, also where the worker dies in the middle of a line."""
    script = "import os; os.write(1, b'x' * 200000 + b' the end'); os.abort()"
    host = job.start(job.plan(sys.executable, "-c", script, logs={"tee": Std.OUT}))
    assert host.outcome().failed.is_failed()
    (file,) = job.log_dir.glob("*/attempt_0/0/stdout.log")
    assert file.read_text() == "x" * 200000 + " the end"
    assert " the end" in host.console()
