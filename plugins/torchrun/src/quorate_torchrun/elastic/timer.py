"""``torch.distributed.elastic.timer``, torch's own: timers, which quorate's watchdog serves.

It starts nothing, so that it works in quorate's workers as it is.
"""

from __future__ import annotations

from torch.distributed.elastic.timer import *  # noqa: F403 - whatever this release of torch has
