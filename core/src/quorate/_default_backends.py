"""The names of the rendezvous backends that are used where the user names none.

They stand here, and are not fields of the plugins' records, for two reasons.  What a command means must not depend on
which plugins are installed: with a field, one more plugin could change the backend of a job, or two could claim the
same default.  And the names are an interface: ``static`` is what ``torchrun`` writes, and users write all three.  The
core knows no more than the name.  Any plugin may offer a backend under it, and where none does, the error names what to
install, as for every other name.
"""

from __future__ import annotations

from typing import Final

#: One node without an endpoint: it meets no other node.
ONE_NODE: Final = "standalone"
#: Several nodes, or an endpoint, in a program and under a scheduler.
SEVERAL_NODES: Final = "tcp"
#: ``quorate run``, as with ``torchrun``: a node's rank is ``--node-rank``.
FIXED_RANKS: Final = "static"
