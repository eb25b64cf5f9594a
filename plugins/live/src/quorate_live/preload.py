"""``--preload=quorate_live.preload``: what the replacement of a live worker with torch is going to need.

Importing it imports torch, and those of its modules that torch itself imports only when the first optimizer is made,
the first state is packed or the first backward pass runs; in a replacement these would be most of the time that all
others wait for it.  It starts no thread and touches no device.  Without torch it imports this package alone.
"""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module

#: Modules whose names begin with an underscore may be missing in other versions of torch; they are then left out.
_MODULES = (
    "torch",
    "torch.distributed",
    "torch.nn.parallel",
    "torch._dynamo",
    "torch.profiler._cupti_monitor",
    "torch.utils.serialization.config",
    "quorate_live._session",
    "quorate_live._share",
)

for _name in _MODULES:
    with suppress(ImportError):
        import_module(_name)
