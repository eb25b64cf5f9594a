"""Workers of the start method warm.  No tests."""

from __future__ import annotations

import select
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from quorate.errors import StartError
from quorate.records import WorkerLaunch
from quorate_process_local import _warm

from .conftest import DEADLINE_SECONDS, Group, launch


def python(code: str, *arguments: str, rank: int = 0, **others: Any) -> WorkerLaunch:
    return launch(rank, sys.executable, "-u", "-c", code, *arguments, **others)


def run(starter: _warm.WarmStarter, launches: Sequence[WorkerLaunch]) -> dict[int, Any]:
    """Run a group to its end; local rank → exit record."""
    group = Group(starter.start(launches))
    try:
        return {event.local_rank: event for event in group.run()}
    finally:
        group.close()


def outputs(starter: _warm.WarmStarter, code: str, folder: Path, ranks: int = 2) -> list[str]:
    """Run ``code`` in ``ranks`` workers; what each printed."""
    paths = [folder / f"{rank}.out" for rank in range(ranks)]
    for path in paths:
        path.unlink(missing_ok=True)
    exits = run(starter, [python(code, rank=rank, stdout=str(path)) for rank, path in enumerate(paths)])
    assert [exits[rank].exit_code for rank in range(ranks)] == [0] * ranks
    return [path.read_text() for path in paths]


def refused(starter: _warm.WarmStarter, *launches: WorkerLaunch) -> str:
    with pytest.raises(StartError) as caught:
        starter.start(launches or [python("print('never')")])
    return str(caught.value)


def wait_until_ready(starter: _warm.WarmStarter) -> None:
    """Wait as the agent does."""
    end = time.monotonic() + DEADLINE_SECONDS
    while not starter.is_ready():
        ready, _, _ = select.select([starter], [], [], max(0.0, end - time.monotonic()))
        assert ready, "the template is not ready"


def write_module(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    (folder / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(folder))
