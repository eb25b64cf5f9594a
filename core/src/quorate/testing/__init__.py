"""For authors of plugins: the conformance kit, and a simulated world that runs the very machines of production.

The kit is a list of laws (:func:`all_laws`), each tried on a backend that a :class:`Subject` describes.  With pytest,
subclass :class:`StoreConformance` or :class:`RendezvousConformance`; without it, call :func:`check`, or run
``quorate conformance``.  Nothing is imported until it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._classes import NewLawWarning, RendezvousConformance, StoreConformance
    from ._law import Ability, Law, LawBrokenError, Outcome, Tier, Verdict, all_laws, check, try_law
    from ._servers import CuttableProxy, FreshPorts, ServerProcess, free_port
    from ._simulation import Faults, SimulatedNode, World
    from ._subject import Server, Subject

__all__ = [
    "Ability",
    "CuttableProxy",
    "Faults",
    "FreshPorts",
    "Law",
    "LawBrokenError",
    "NewLawWarning",
    "Outcome",
    "RendezvousConformance",
    "Server",
    "ServerProcess",
    "SimulatedNode",
    "StoreConformance",
    "Subject",
    "Tier",
    "Verdict",
    "World",
    "all_laws",
    "check",
    "free_port",
    "try_law",
]

_HOMES = {
    "_classes": "NewLawWarning RendezvousConformance StoreConformance",
    "_law": "Ability Law LawBrokenError Outcome Tier Verdict all_laws check try_law",
    "_servers": "CuttableProxy FreshPorts ServerProcess free_port",
    "_simulation": "Faults SimulatedNode World",
    "_subject": "Server Subject",
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value
