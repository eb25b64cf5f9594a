"""For authors of plugins: a simulated world that runs the very machines that production runs."""

from __future__ import annotations

from ._simulation import Faults, SimulatedNode, World

__all__ = ["Faults", "SimulatedNode", "World"]
