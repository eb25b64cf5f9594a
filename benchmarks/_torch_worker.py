"""The worker that imports torch, then prints its process id; with ``stay`` it waits to be stopped."""

import os
import sys

import torch

sys.stdout.write(f"{os.getpid() if torch.ones(1).item() else 0}\n")
sys.stdout.flush()
if sys.argv[1:] == ["stay"]:
    import signal  # not before the line that is measured

    signal.pause()
