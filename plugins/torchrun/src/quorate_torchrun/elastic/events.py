"""``torch.distributed.elastic.events``, torch's own: the records that torch's own launcher logs.

It starts nothing, so that it works in quorate's workers as it is.
"""

from __future__ import annotations

from torch.distributed.elastic.events import *  # noqa: F403 - whatever this release of torch has
