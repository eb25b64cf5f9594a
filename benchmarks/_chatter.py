"""A worker that prints numbered lines of 100 bytes, ``RANK NUMBER xxxx…``, once it is told to: ``COUNT READY GO``.

It says that it is ready by a byte into one named pipe and begins with a byte from another, so that what is measured is
the launcher, not the start of workers.  It writes a hundred lines at a time: nor is it the worker's own system calls.
"""

import os
import sys

rank, count = int(os.environ["RANK"]), int(sys.argv[1])
lines = [f"{rank} {number} ".ljust(99, "x") + "\n" for number in range(count)]
blocks = ["".join(lines[start : start + 100]) for start in range(0, count, 100)]
os.write(os.open(sys.argv[2], os.O_WRONLY), b"r")
os.read(os.open(sys.argv[3], os.O_RDONLY), 1)
for block in blocks:
    sys.stdout.write(block)
