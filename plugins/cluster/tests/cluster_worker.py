"""A worker without torch: says where it is, and does what its argument says."""

from __future__ import annotations

import os
import sys

names = ("RANK", "WORLD_SIZE", "GROUP_RANK", "TORCHELASTIC_RUN_ID")
# In one piece: mpirun mixes the pieces that its processes write.
sys.stdout.write(" ".join(os.environ[name] for name in names) + "\n")
sys.stdout.flush()
sys.exit(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
