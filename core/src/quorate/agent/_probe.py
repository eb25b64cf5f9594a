"""Tries the address where the workers of a round meet, so that an agent can say why they do not.

What does not live here: what an address is taken from (:mod:`quorate.net`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from ..net import host_name, is_local_name
from ..reach import why_unreachable
from ..records import Assignment
from ._spec import WorkerSpec


def probe_master(spec: WorkerSpec, assignment: Assignment, warn: Callable[[str], None]) -> None:
    """Try the first node's address while the workers start: they would only say that a node is missing."""
    address, port = spec.master_addr or assignment.master_addr, assignment.master_port

    def probe() -> None:
        try:
            problem = why_unreachable(address, spec.master_port or port)
        except Exception as error:  # a name that no resolver takes
            problem = f"{type(error).__name__}: {error}"
        if problem:
            warn(
                f"this node ({host_name()}) cannot reach the first node at MASTER_ADDR={address}: {problem}. Its "
                "workers will not meet the others. Check the firewall, or set --local-addr on the first node"
            )

    if assignment.group_rank > 0 and not is_local_name(address):
        threading.Thread(target=probe, name="quorate-probe", daemon=True).start()
