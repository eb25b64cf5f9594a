"""The benchmark of live workers measures: both losses, with ours alone, once."""

from __future__ import annotations

import pytest
from benchmarks import live

pytest.importorskip("torch")
pytestmark = [
    pytest.mark.needs("quorate-process-local", "quorate-rendezvous-c10d"),
    pytest.mark.slow,  # two jobs load torch
]


def test_both_losses_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    (ours,) = [each for each in live.find_contenders()[0] if each.name == live.OURS]
    for measure in (live.replace, live.shrink):
        assert 0.0 < measure(ours, 2) < live.NEXT_STEP_SECONDS
    assert "no step" not in capsys.readouterr().out
