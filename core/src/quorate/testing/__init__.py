"""For authors of plugins: the conformance kit, and a simulated world that runs the machines of production.

The kit is a list of laws (:func:`all_laws`), each tried on a backend that a :class:`Subject` describes.  With pytest,
subclass :class:`StoreConformance` or :class:`RendezvousConformance`; without it, call :func:`check`, or run
``quorate conformance``.  The simulated world is :class:`World`; ``python -m quorate.testing.simulate`` plays random
scenarios in it.
"""

from ._abilities import Ability, LawBrokenError
from ._check import all_laws, check, try_law
from ._classes import NewLawWarning, RendezvousConformance, StoreConformance
from ._law import Law, Outcome, Tier, Verdict
from ._servers import CuttableProxy, FreshPorts, ServerProcess, free_port
from ._simulation import Faults, SimulatedNode, World
from ._subject import Server, Subject
from ._waiting import answered, open_descriptors, settles

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
    "answered",
    "check",
    "free_port",
    "open_descriptors",
    "settles",
    "try_law",
]
