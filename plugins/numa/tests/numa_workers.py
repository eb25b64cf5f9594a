"""What workers of the tests do; in a module that every start method can import."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from quorate.memory_policy import get_policy


def bindings() -> dict[str, object]:
    """Return what this process, a thread of it and a process that it starts are bound to."""
    of_thread: list[list[int]] = []
    thread = threading.Thread(target=lambda: of_thread.append(sorted(os.sched_getaffinity(0))))
    thread.start()
    thread.join()
    code = "import os; print(*sorted(os.sched_getaffinity(0)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {
        "own": sorted(os.sched_getaffinity(0)),
        "thread": of_thread[0],
        "child": [int(word) for word in done.stdout.split()],
        "policy": get_policy(),
        "maps": Path("/proc/self/numa_maps").read_text().split("\n", 1)[0].split()[1],
    }


def fail_once(folder: str) -> list[int]:
    """Fail in the first round as local rank 0, which leaves its CPUs in a file; return the CPUs of the second."""
    cpus = sorted(os.sched_getaffinity(0))
    mark = Path(folder) / f"{os.environ['RANK']}-{os.environ['TORCHELASTIC_RESTART_COUNT']}"
    mark.write_text(" ".join(map(str, cpus)))
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        if os.environ["RANK"] == "0":
            raise SystemExit(3)
        signal.pause()  # until it is stopped
    return cpus


def visible() -> tuple[str, list[int]]:
    """Return which devices are to be seen, and the CPUs."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", ""), sorted(os.sched_getaffinity(0))
