"""One step with accelerate on DeepSpeed."""

from __future__ import annotations

import os
import runpy

from uncompiled_deepspeed import deepspeed

assert deepspeed.ops is not None
runpy.run_path(os.path.join(os.path.dirname(__file__), "accelerate_step.py"))
