"""The worker of all measurements: prints one line with its process id; with ``stay`` it then waits to be stopped."""

import os
import sys

sys.stdout.write(f"{os.getpid()}\n")
sys.stdout.flush()
if sys.argv[1:] == ["stay"]:
    import signal  # not before the line that is measured

    signal.pause()
