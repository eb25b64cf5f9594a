"""Waits while the job has two workers, and ends when it is the only one."""

import os
import signal

if os.environ["LOCAL_RANK"] == "0":
    print(f"a world of {os.environ['WORLD_SIZE']}", flush=True)
if os.environ["WORLD_SIZE"] != "1":
    signal.pause()
