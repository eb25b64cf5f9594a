"""The fixtures of a real Slurm, started once for all tests that need it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import slurm as slurm_parts


@pytest.fixture(scope="session")
def _cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[slurm_parts.Slurm]:
    reason = slurm_parts.why_not()
    if reason:
        pytest.skip(f"Slurm: {reason}")
    cluster = slurm_parts.Slurm(tmp_path_factory.mktemp("slurm"))
    yield cluster
    cluster.close()


@pytest.fixture
def slurm(_cluster: slurm_parts.Slurm) -> Iterator[slurm_parts.Slurm]:
    """A Slurm of three nodes without jobs; afterwards, nothing that quorate started is left."""
    yield _cluster
    _cluster.run("scancel", "--signal=KILL", "--user=root")
    _cluster.run("scancel", "--user=root")
    _cluster.wait_until_free()
    assert _cluster.processes("quorate run") == []
    assert _cluster.processes("cluster_worker") == []
