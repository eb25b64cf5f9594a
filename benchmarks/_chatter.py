"""A worker that prints numbered lines of 100 bytes, ``RANK NUMBER xxxx…``, and leaves in a file when it began.

It writes a hundred lines at a time: what is measured is the launcher, not the worker's own system calls.
"""

import os
import sys
import time

rank, count = int(os.environ["RANK"]), int(sys.argv[1])
lines = [f"{rank} {number} ".ljust(99, "x") + "\n" for number in range(count)]
blocks = ["".join(lines[start : start + 100]) for start in range(0, count, 100)]
with open(f"{sys.argv[2]}.{rank}", "w") as file:
    file.write(str(time.monotonic()))
for block in blocks:
    sys.stdout.write(block)
