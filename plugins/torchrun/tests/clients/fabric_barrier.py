"""A barrier of Lightning's Fabric."""

from __future__ import annotations

from lightning.fabric import Fabric
from said import say

fabric = Fabric()
say(fabric.global_rank, fabric.world_size)
fabric.barrier()
