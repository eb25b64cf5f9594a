"""A loop that saves its state when the scheduler ends the job, and goes on from there at the next start.

It has no model: ``step`` stands for whatever a training program would save.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import quorate

PREEMPTED = 75  # tells quorate, and the scheduler after it, that another start is wanted


def main(state: Path, steps: int) -> None:
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # the deadline says it; by default the signal would end this program
    rank = int(os.environ["RANK"])
    file = state.with_name(f"{state.name}-{rank}")
    first = int(file.read_text()) if file.exists() else 0
    print(f"rank {rank} begins at step {first}", flush=True)
    for step in range(first, steps):
        time.sleep(0.05)
        deadline = quorate.deadline()
        if deadline is not None:
            file.write_text(str(step + 1))
            print(f"rank {rank} saved step {step + 1}, {deadline.seconds_left:.0f} s before the deadline", flush=True)
            sys.exit(PREEMPTED)
    file.write_text(str(steps))
    print(f"rank {rank} is done", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
