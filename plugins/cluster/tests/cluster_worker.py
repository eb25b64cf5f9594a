"""A worker without torch: says where it is, and does what its argument says."""

from __future__ import annotations

import os
import sys

print(*(os.environ[name] for name in ("RANK", "WORLD_SIZE", "GROUP_RANK", "TORCHELASTIC_RUN_ID")), flush=True)
sys.exit(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
