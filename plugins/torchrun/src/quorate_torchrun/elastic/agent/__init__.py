"""``torch.distributed.elastic.agent``."""

from __future__ import annotations
