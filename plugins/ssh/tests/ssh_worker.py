"""A worker without torch for launches over ssh; its argument says what it does."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

what, rank = sys.argv[1], os.environ["RANK"]
new = Path(f"new-{rank}")
new.write_text(str(os.getpid()))
new.rename(f"worker-{rank}")  # whoever sees it can read it
if what == "where":
    print("rank", rank, "of", os.environ["WORLD_SIZE"], os.getcwd(), os.environ.get("MARK"), flush=True)
    print("an error of", rank, file=sys.stderr, flush=True)
elif what == "fail":
    sys.exit(7 if rank == "1" else time.sleep(60))
elif what == "stay":
    got: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: got.append(number))
    print("stays", rank, flush=True)
    deadline = time.monotonic() + 60
    while not got and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    print("saved", rank, flush=True)
    Path(f"saved-{rank}").touch()
elif what == "until":
    print("waits", rank, os.environ["WORLD_SIZE"], flush=True)
    deadline = time.monotonic() + 60
    while not Path("finish").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
