"""``torch.distributed.elastic.rendezvous.api``: names of the package, by torch's second path to them."""

from __future__ import annotations

from . import *  # noqa: F403 - the package says which
