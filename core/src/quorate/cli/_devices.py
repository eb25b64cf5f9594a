"""How many devices this machine offers for ``--nproc-per-node``; torch is not imported where it can be avoided."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib import import_module

from ..errors import UsageError

__all__ = ["count_cpus", "count_gpus", "count_workers"]

_NVIDIA_FOLDER = "/proc/driver/nvidia/gpus"
_AMD_FOLDER = "/sys/class/kfd/kfd/topology/nodes"


def count_workers(kind: str) -> int:
    """Return how many workers ``auto``, ``cpu``, ``gpu`` or ``xpu`` stands for on this machine.

    Raises:
        UsageError: this machine has no such device.
    """
    if kind == "cpu":
        return count_cpus()
    if kind == "auto":
        return count_gpus() or count_cpus()
    count = count_gpus() if kind == "gpu" else _count_with_torch("xpu")
    if count == 0:
        raise UsageError(
            f"--nproc-per-node={kind}: no {kind.upper()} is visible here; give a number of workers, or check the "
            "driver and the variables that hide devices (CUDA_VISIBLE_DEVICES)"
        )
    return count


def count_cpus() -> int:
    """Return how many CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def count_gpus(environment: Mapping[str, str] | None = None, installed: Callable[[], int] | None = None) -> int:
    """Return how many GPUs a worker would see.

    The installed ones, narrowed as the driver does it: ``CUDA_VISIBLE_DEVICES`` (AMD: ``HIP_VISIBLE_DEVICES``) is
    read up to its first entry that does not name a device.
    """
    environment = os.environ if environment is None else environment
    visible = environment.get("CUDA_VISIBLE_DEVICES", environment.get("HIP_VISIBLE_DEVICES"))
    if visible is not None and not visible.strip():
        return 0
    total = (installed or _count_installed)()
    if visible is None:
        return total
    entries: list[str] = []
    for entry in visible.split(","):
        entry = entry.strip()
        if entry in entries:
            return 0  # the driver shows none at all where one is named twice
        if not entry.startswith(("GPU-", "MIG-")) and not (entry.isdecimal() and int(entry) < total):
            break
        entries.append(entry)
    return len(entries) if total else 0


def _count_installed() -> int:
    for count in (_count_nvidia_by_driver, _count_nvidia_by_tool, _count_amd):
        number = count()
        if number:
            return number
    return 0


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
    """Ask torch, where nothing else knows; the core itself never imports it."""
    try:
        module = getattr(import_module("torch"), kind)
        return int(module.device_count()) if module.is_available() else 0
    except (ImportError, AttributeError):
        return 0
