"""A worker that saves what it has once its scheduler warns, by a signal or by the deadline that it asks for."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import quorate

folder, how = Path(sys.argv[1]), sys.argv[2]
got: list[int] = []
if how == "signal":
    for each in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(each, lambda number, _: got.append(number))
else:
    for each in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(each, signal.SIG_IGN)
start = os.environ.get("SLURM_RESTART_COUNT", "0")
print("begins", os.environ["RANK"], "start", start, flush=True)
if how == "deadline" and os.environ["WORLD_SIZE"] == "1":
    sys.exit(0)  # the others have gone
end = time.monotonic() + 100
while time.monotonic() < end:
    deadline = quorate.deadline(wait_seconds=10.0 if got else 0.0)
    if got or (how == "deadline" and deadline is not None):
        assert deadline is not None
        assert deadline.seconds_left > 0
        name = signal.Signals(deadline.signal_number).name
        (folder / f"saved-{os.environ['RANK']}-{start}").write_text(f"{name} {deadline.seconds_left:.1f}")
        print("saved", os.environ["RANK"], name, flush=True)
        sys.exit(0)
    if how != "deadline" and start != "0":
        sys.exit(0)  # the second start has little to do
    time.sleep(0.05)
