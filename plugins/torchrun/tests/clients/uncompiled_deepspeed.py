"""DeepSpeed for the CPU without the operation that it would compile first, which takes minutes."""

from __future__ import annotations

import os

os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed  # reads the variable

__all__ = ["deepspeed"]

deepspeed.ops.__compatible_ops__.clear()
