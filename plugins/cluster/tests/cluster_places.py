"""A machine of a test, and what a scheduler says on it.  No tests."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import field, frozen

from quorate.clusters import ClusterJob
from quorate_cluster import plugin

ENVIRONMENTS = {each.name: each for each in plugin.quorate_register_environment()}


@frozen
class Place:
    """A machine of a test."""

    host: str = "n1"
    files: Mapping[str, str] = field(factory=dict)
    outputs: Mapping[tuple[str, ...], str] = field(factory=dict)

    def read(self, path: str) -> str:
        return self.files.get(path, "")

    def output(self, *command: str) -> str:
        return self.outputs.get(command, "")


def find(name: str, environment: Mapping[str, str], place: Place | None = None) -> ClusterJob | None:
    return ENVIRONMENTS[name].find(environment, place or Place())


def found(name: str, environment: Mapping[str, str], place: Place | None = None) -> ClusterJob:
    job = find(name, environment, place)
    assert job is not None
    return job
