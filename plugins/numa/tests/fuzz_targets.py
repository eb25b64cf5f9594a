"""What the binding of workers reads of the machine; found by ``core.tests.fuzz``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import cache
from tempfile import TemporaryDirectory

from core.tests.fuzz.target import Target

from quorate.errors import UsageError
from quorate_numa._devices import find_devices
from quorate_numa._modes import parse_mode
from quorate_numa._topology import read_topology


def _on_a_machine(read: Callable[[str], object], *paths: str) -> Callable[[bytes], None]:
    """Return ``read`` for a machine whose files at ``paths`` hold the parts of the bytes, which NULs separate.

    From one input to the next only the files that differ are written: making them all took most of the time.
    """

    @cache
    def machine() -> tuple[TemporaryDirectory[str], dict[str, bytes]]:
        return TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None), {}

    def read_bytes(data: bytes) -> None:
        folder, written = machine()
        parts = dict(zip(paths, data.split(b"\0"), strict=False))
        for path in paths:
            place, part = os.path.join(folder.name, path), parts.get(path)
            if part is None and written.pop(path, None) is not None:
                os.unlink(place)
            elif part is not None and written.get(path) != part:
                os.makedirs(os.path.dirname(place), exist_ok=True)
                with open(place, "wb") as file:
                    file.write(part)
                written[path] = part
        read(folder.name)

    return read_bytes


_CPU, _NODE = "sys/devices/system/cpu", "sys/devices/system/node"
_TOPOLOGY = (
    *(f"{_CPU}/online", f"{_CPU}/cpu0/topology/package_cpus_list", f"{_CPU}/cpu0/topology/core_cpus_list"),
    *(f"{_CPU}/cpu0/cache/index3/level", f"{_CPU}/cpu0/cache/index3/type", f"{_CPU}/cpu0/cache/index3/shared_cpu_list"),
    *(f"{_NODE}/node0/cpulist", f"{_NODE}/node0/distance", f"{_NODE}/has_memory"),
)
_GPU = "0000:0a:00.0"
_DEVICES = (
    f"proc/driver/nvidia/gpus/{_GPU}/information",
    f"sys/bus/pci/devices/{_GPU}/numa_node",
    f"sys/bus/pci/devices/{_GPU}/device",
    "sys/class/kfd/kfd/topology/nodes/1/properties",
)


TARGETS: Mapping[str, Target] = {
    "topologies": Target(
        _on_a_machine(lambda root: read_topology(range(4), root), *_TOPOLOGY),
        (b"\0".join((b"0-3\n", b"0-3", b"0-1", b"3", b"Unified", b"0-3", b"0-3", b"10", b"0")),),
    ),
    "devices": Target(
        _on_a_machine(find_devices, *_DEVICES),
        (b"GPU UUID: GPU-1\nDevice Minor: 0\n\x001\n\x000x20b0\n\0simd_count 4\nlocation_id 768\nunique_id 5\n",),
    ),
    "modes": Target(
        lambda data: parse_mode(data.decode("utf-8", "replace")), (b"node", b"core-complex"), (UsageError,)
    ),
}
