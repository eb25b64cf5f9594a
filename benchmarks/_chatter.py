"""A worker that prints numbered lines of 100 bytes, ``RANK NUMBER xxxx…``, upon a signal: ``COUNT READY GO``.

It writes a byte into the named pipe READY, and begins when it reads one from GO, so that the start of workers is not
measured.  It writes a hundred lines at a time, so that its own system calls are not measured either.
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
