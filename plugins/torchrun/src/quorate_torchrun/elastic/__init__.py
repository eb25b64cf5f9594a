"""``torch.distributed.elastic`` by its own paths: write ``quorate_torchrun.elastic`` for it.

What torch has in ``….api`` stands in the package itself.  Nothing is imported until it is used, and torch only by what
is torch's own: ``events``, ``metrics`` and ``timer``, which start nothing and so need no replacement.
"""

from __future__ import annotations
