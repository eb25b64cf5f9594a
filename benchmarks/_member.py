"""A worker of a job of several nodes: writes when it runs and in which world, then waits to be stopped."""

import os
import signal
import sys
import time

NAMES = ("GROUP_RANK", "GROUP_WORLD_SIZE", "RANK", "WORLD_SIZE")
words = [str(time.monotonic()), str(os.getpid()), *(os.environ[name] for name in NAMES)]
# One write, so that lines of several workers never mix.
os.write(os.open(sys.argv[1], os.O_WRONLY), (" ".join(words) + "\n").encode())
signal.pause()
