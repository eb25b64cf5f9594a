"""How many devices this machine offers for ``--nproc-per-node``; torch is not imported where it can be avoided."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping

from ..errors import UsageError
from ..text import whole_number

_NVIDIA_FOLDER = "/proc/driver/nvidia/gpus"
_AMD_FOLDER = "/sys/class/kfd/kfd/topology/nodes"
#: Slurm and others set these for NVIDIA's devices as well, whose driver does not read them.
_AMD_VARIABLES = ("ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL")
#: Seconds that torch gets to count an accelerator's devices.
_COUNT_SECONDS = 120.0
_COUNT = """\
import sys, torch
kind = torch.accelerator.current_accelerator()
count = torch.accelerator.device_count() if kind is not None and kind.type == sys.argv[1] else 0
if not count and hasattr(torch, sys.argv[1]):
    count = getattr(torch, sys.argv[1]).device_count()
print("devices", count)
"""


def count_workers(kind: str) -> int:
    """Return how many workers ``auto``, ``cpu``, ``gpu`` or the name of torch's accelerator (``xpu``) stands for here.

    Raises:
        UsageError: this machine has no such device.
    """
    if kind == "cpu":
        return count_cpus()
    if kind == "auto":
        return count_gpus() or count_cpus()
    count = count_gpus() if kind == "gpu" else _count_with_torch(kind)
    if count == 0:
        device, cause = f"device of the kind {kind!r}", "that torch knows this kind"
        if kind == "gpu":
            device = "GPU"
            cause = "the variables that hide devices (CUDA_VISIBLE_DEVICES; AMD: ROCR_VISIBLE_DEVICES too)"
        raise UsageError(
            f"--nproc-per-node={kind}: no {device} is visible here; give a number of workers, or check the driver and "
            f"{cause}"
        )
    return count


def count_cpus() -> int:
    """Return how many CPUs this process may use."""
    return len(os.sched_getaffinity(0))


def count_gpus(
    environment: Mapping[str, str] | None = None,
    installed: Callable[[], int] | None = None,
    is_amd: Callable[[], bool] | None = None,
) -> int:
    """Return how many GPUs a worker would see.

    The installed ones, narrowed as the driver does it: ``CUDA_VISIBLE_DEVICES`` (AMD: ``HIP_VISIBLE_DEVICES``) is
    read up to its first entry that does not name a device.  AMD's driver reads ``ROCR_VISIBLE_DEVICES`` before that,
    and ``GPU_DEVICE_ORDINAL`` where neither of the two is set.
    """
    environment = os.environ if environment is None else environment
    visible = environment.get("CUDA_VISIBLE_DEVICES", environment.get("HIP_VISIBLE_DEVICES"))
    if visible is not None and not visible.strip():
        return 0
    total = (installed or _count_installed)()
    if any(name in environment for name in _AMD_VARIABLES) and (is_amd or _is_amd)():
        below, ordinal = (environment.get(name) for name in _AMD_VARIABLES)
        total = _narrow(total, below)
        visible = ordinal if visible is None else visible
    return _narrow(total, visible)


def _narrow(total: int, visible: str | None) -> int:
    """Return how many of ``total`` devices a variable leaves."""
    if visible is None:
        return total
    entries: list[str] = []
    for entry in visible.split(","):
        entry = entry.strip()
        if entry in entries:
            return 0  # the driver shows none at all where one is named twice
        number = whole_number(entry)
        if not entry.startswith(("GPU-", "MIG-")) and (number is None or number >= total):
            break
        entries.append(entry)
    return len(entries) if total else 0


def _count_installed() -> int:
    return _count_nvidia_by_driver() or _count_nvidia_by_tool() or _count_amd()


def _is_amd() -> bool:
    return not os.path.isdir(_NVIDIA_FOLDER) and _count_amd() > 0


def _count_nvidia_by_driver() -> int:
    try:
        return len(os.listdir(_NVIDIA_FOLDER))
    except OSError:
        return 0


def _count_nvidia_by_tool() -> int:
    """Ask ``nvidia-smi``, for systems whose driver has no folder in /proc (containers, WSL)."""
    if not any(os.access(os.path.join(folder, "nvidia-smi"), os.X_OK) for folder in os.get_exec_path()):
        return 0
    import subprocess  # keeps it off the start of agents, which do not need it

    try:
        answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30.0, check=True)
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in answer.stdout.splitlines())


def _count_amd() -> int:
    """Count the compute nodes that have SIMD units: the GPUs."""
    try:
        nodes = os.listdir(_AMD_FOLDER)
    except OSError:
        return 0
    return sum(_simd_units(os.path.join(_AMD_FOLDER, node, "properties")) > 0 for node in nodes)


def _simd_units(path: str) -> int:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            for line in file:
                name, _, value = line.partition(" ")
                if name == "simd_count":
                    return int(value)
    except (OSError, ValueError):
        pass
    return 0


def _count_with_torch(kind: str) -> int:
    """Ask torch, where nothing else knows, in a process of its own: an agent never imports it."""
    import subprocess  # keeps it off the start of agents, which do not need it

    try:
        answer = subprocess.run(
            [sys.executable, "-c", _COUNT, kind], capture_output=True, text=True, timeout=_COUNT_SECONDS, check=True
        )
        # Some accelerators' libraries print notes of their own.
        return int(answer.stdout.rpartition("devices ")[2])
    except (OSError, subprocess.SubprocessError, ValueError):
        return 0
