"""``torch.distributed.elastic.metrics``, torch's own: counters of a program's own.

It starts nothing, so that it works in quorate's workers as it is.
"""

from __future__ import annotations

from torch.distributed.elastic.metrics import *  # noqa: F403 - whatever this release of torch has
