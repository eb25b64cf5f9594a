"""The GPUs of a machine, the NUMA node of each, and which of them a worker sees; neither torch nor a driver is loaded.

NVIDIA's are listed by their driver in ``/proc/driver/nvidia/gpus``, else by the kernel's PCI devices; AMD's by the
driver's topology, ``/sys/class/kfd``.  Both come in the order in which the drivers number them.  What does not live
here: the CPUs of a node (:mod:`._topology`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import final

from attrs import frozen

from quorate.text import whole_number

from ._topology import numbered, text_of

_NVIDIA_GPUS = "proc/driver/nvidia/gpus"
_AMD_NODES = "sys/class/kfd/kfd/topology/nodes"
_PCI_DEVICES = "sys/bus/pci/devices"
_NVIDIA_VENDOR = "0x10de"
_DISPLAY_CLASSES = ("0x0300", "0x0302")  # VGA and 3D controllers


@final
@frozen
class Device:
    """A GPU.  ``node`` is its NUMA node, ``None`` where the machine does not tell; ``model`` is its PCI device id."""

    address: str
    node: int | None
    uuid: str = ""
    model: str = ""
    is_amd: bool = False


def find_devices(root: str = "/") -> tuple[Device, ...]:
    """Return NVIDIA's GPUs, else AMD's, of the machine whose ``/sys``, ``/proc`` and ``/dev`` are below ``root``."""
    return tuple(_nvidia_by_driver(root) or _nvidia_by_bus(root) or _amd(root))


def visible_devices(devices: Sequence[Device], environment: Mapping[str, str]) -> tuple[Device | None, ...]:
    """Return the devices that a worker with ``environment`` sees, in its own numbering.

    ``None`` stands for one that is there but cannot be told (a part of a GPU that is named by an id of its own).
    """
    seen: Sequence[Device | None] = devices
    if devices and devices[0].is_amd:
        seen = _narrowed(seen, environment.get("ROCR_VISIBLE_DEVICES"))
        return _narrowed(seen, environment.get("HIP_VISIBLE_DEVICES", environment.get("CUDA_VISIBLE_DEVICES")))
    return _narrowed(seen, environment.get("CUDA_VISIBLE_DEVICES"))


def are_numbered_by_bus(devices: Sequence[Device], environment: Mapping[str, str]) -> bool:
    """Return whether the order of the bus is certain to be the driver's; CUDA puts the fastest model first."""
    is_mixed = len({device.model for device in devices if not device.is_amd}) > 1
    return not is_mixed or environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"


def _narrowed(devices: Sequence[Device | None], visible: str | None) -> tuple[Device | None, ...]:
    """Return what a variable leaves; as the drivers do, read it up to its first entry that names no device."""
    if visible is None:
        return tuple(devices)
    result: list[Device | None] = []
    for entry in (entry.strip() for entry in visible.split(",")):
        number = whole_number(entry)
        if number is not None and number < len(devices):
            result.append(devices[number])
        elif entry.startswith("MIG-"):
            # The older form, MIG-GPU-<uuid>/<instance>/<instance>, names the GPU; the newer one only the part.
            result.append(_with_uuid(devices, entry.removeprefix("MIG-").partition("/")[0]))
        elif entry.startswith("GPU-") and (found := _with_uuid(devices, entry)) is not None:
            result.append(found)
        else:
            break
    return tuple(result)


def _with_uuid(devices: Sequence[Device | None], uuid: str) -> Device | None:
    """Return the device whose uuid begins so, if there is just one."""
    found = [device for device in devices if device is not None and device.uuid and device.uuid.startswith(uuid)]
    return found[0] if len(found) == 1 else None


# --- NVIDIA -----------------------------------------------------------------------------------------------------------


def _nvidia_by_driver(root: str) -> list[Device]:
    """Return the driver's GPUs; of those only the ones that this container has a device file for, if it has any."""
    addresses = _entries(os.path.join(root, _NVIDIA_GPUS))
    about = {address: _information(os.path.join(root, _NVIDIA_GPUS, address, "information")) for address in addresses}
    usable = [
        address for address in addresses if os.path.exists(f"{root}/dev/nvidia{about[address].get('Device Minor')}")
    ]
    return [_pci_device(root, address, about[address].get("GPU UUID", "")) for address in usable or addresses]


def _information(path: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in text_of(path).splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _nvidia_by_bus(root: str) -> list[Device]:
    """Return the display controllers of NVIDIA's that its driver drives."""
    folder = os.path.join(root, _PCI_DEVICES)
    return [
        _pci_device(root, address)
        for address in _entries(folder)
        if text_of(f"{folder}/{address}/vendor") == _NVIDIA_VENDOR
        and text_of(f"{folder}/{address}/class")[:6] in _DISPLAY_CLASSES
        and os.path.basename(os.path.realpath(f"{folder}/{address}/driver")) == "nvidia"
    ]


def _pci_device(root: str, address: str, uuid: str = "", is_amd: bool = False) -> Device:
    folder = os.path.join(root, _PCI_DEVICES, address.lower())
    # The kernel writes -1 where the firmware does not tell.
    number = whole_number(text_of(f"{folder}/numa_node"))
    return Device(address, number, uuid, text_of(f"{folder}/device"), is_amd)


# --- AMD --------------------------------------------------------------------------------------------------------------


def _amd(root: str) -> list[Device]:
    """Return the compute nodes that have SIMD units, by their numbers; those of other containers cannot be read."""
    folder = os.path.join(root, _AMD_NODES)
    found = []
    for number in numbered(folder, ""):
        words = (line.split() for line in text_of(f"{folder}/{number}/properties").splitlines())
        properties = {
            pair[0]: value for pair in words if len(pair) == 2 and (value := whole_number(pair[1])) is not None
        }
        if properties.get("simd_count", 0) > 0:
            location = properties.get("location_id", 0)
            # The function's bits number the parts of a GPU that is split up; the GPU itself is function 0.
            address = f"{properties.get('domain', 0):04x}:{location >> 8 & 0xFF:02x}:{location >> 3 & 0x1F:02x}.0"
            found.append(_pci_device(root, address, f"GPU-{properties.get('unique_id', 0):016x}", is_amd=True))
    return found


def _entries(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []
