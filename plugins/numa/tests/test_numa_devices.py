"""Which GPUs there are, where they are, and which of them a worker sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from quorate_numa import find_devices, visible_devices
from quorate_numa._devices import are_numbered_by_bus

from .machines import DGX_A100, DGX_H100, GRACE, MI300X, NAMED, PLAIN_VM, XEON_MAX, Gpu, Machine, regular

SMALL = replace(regular(2, 1, 1), nvidia=DGX_A100.nvidia)


def devices_of(machine: Machine, tmp_path: Path) -> list[tuple[str, int | None]]:
    """Write what matters here of a machine, and return what is found of its GPUs."""
    small = replace(regular(1, 1, 1), nvidia=machine.nvidia, amd=machine.amd)
    return [(device.address, device.node) for device in find_devices(str(small.write(tmp_path)))]


@pytest.mark.parametrize("name", NAMED)
def test_gpus_are_found_in_the_drivers_order(name: str, tmp_path: Path) -> None:
    machine = NAMED[name]
    told = [(gpu.address, None if gpu.node < 0 else gpu.node) for gpu in [*machine.nvidia, *machine.amd]]
    assert devices_of(machine, tmp_path) == told


def test_machines_differ_in_their_gpus() -> None:
    """The test above is not void."""
    assert [len(machine.nvidia) for machine in (DGX_H100, GRACE, PLAIN_VM, XEON_MAX)] == [8, 4, 2, 0]
    assert len(MI300X.amd) == 8


def test_without_the_drivers_folder_they_are_looked_for_on_the_bus(tmp_path: Path) -> None:
    """Its own devices only: not a network card, nor the video chip of the board, nor a GPU that a guest has."""
    machine = replace(SMALL, nvidia=[replace(gpu, uuid="") for gpu in SMALL.nvidia])
    root = machine.write(tmp_path)
    given_away = root / f"sys/bus/pci/devices/{machine.nvidia[2].address}/driver"
    given_away.unlink()
    given_away.symlink_to(root / "sys/bus/pci/drivers/vfio-pci")
    sound = root / "sys/bus/pci/devices/0000:07:00.1"
    sound.mkdir()
    for name, text in (("vendor", "0x10de"), ("class", "0x040300"), ("numa_node", "3")):
        (sound / name).write_text(text)
    assert [device.address for device in find_devices(str(root))] == [
        gpu.address for number, gpu in enumerate(machine.nvidia) if number != 2
    ]


def test_a_container_has_the_gpus_that_it_has_device_files_for(tmp_path: Path) -> None:
    root = SMALL.write(tmp_path)
    (root / "dev").mkdir()
    for name in ("nvidiactl", "nvidia-uvm", "nvidia4", "nvidia6"):
        (root / "dev" / name).touch()
    assert [device.address for device in find_devices(str(root))] == ["0000:87:00.0", "0000:b7:00.0"]


def test_parts_of_an_amd_gpu_are_where_it_is(tmp_path: Path) -> None:
    """In CPX mode a GPU is as many devices, and their locations differ in the function's number."""
    whole = MI300X.amd[5]
    root = replace(regular(1, 1, 1), amd=[replace(whole, address=f"{whole.address[:-1]}{part}") for part in range(8)])
    folder = root.write(tmp_path) / "sys/bus/pci/devices"
    for part in range(1, 8):
        for path in (folder / f"{whole.address[:-1]}{part}").iterdir():
            path.unlink()
    assert [(device.address, device.node) for device in find_devices(str(tmp_path))] == [(whole.address, 1)] * 8


UUID = {number: gpu.uuid for number, gpu in enumerate(DGX_A100.nvidia)}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, [0, 1, 2, 3, 4, 5, 6, 7]),
        ({"CUDA_VISIBLE_DEVICES": "4,5"}, [4, 5]),
        ({"CUDA_VISIBLE_DEVICES": " 7 , 0"}, [7, 0]),
        ({"CUDA_VISIBLE_DEVICES": ""}, []),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, []),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, []),
        ({"CUDA_VISIBLE_DEVICES": "2,-1,3"}, [2]),
        ({"CUDA_VISIBLE_DEVICES": "2,8,3"}, [2]),
        ({"CUDA_VISIBLE_DEVICES": UUID[3]}, [3]),
        ({"CUDA_VISIBLE_DEVICES": f"{UUID[6][:12]},1"}, [6, 1]),
        ({"CUDA_VISIBLE_DEVICES": f"GPU-0000,{UUID[1]}"}, []),
        ({"CUDA_VISIBLE_DEVICES": f"MIG-{UUID[5]}/1/0,MIG-{UUID[5]}/2/0"}, [5, 5]),
        ({"CUDA_VISIBLE_DEVICES": "MIG-5e6f5ee4-5ab9-5f3b-9f55-5d3b5d8e9a5c"}, [None]),
        ({"HIP_VISIBLE_DEVICES": "1", "ROCR_VISIBLE_DEVICES": "1"}, [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_nvidias_variable_is_read_as_the_driver_reads_it(
    environment: Mapping[str, str], expected: list[int | None], tmp_path: Path
) -> None:
    devices = find_devices(str(SMALL.write(tmp_path)))
    wanted = [None if number is None else devices[number] for number in expected]
    assert list(visible_devices(devices, environment)) == wanted


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, [0, 1, 2, 3, 4, 5, 6, 7]),
        ({"HIP_VISIBLE_DEVICES": "6,7"}, [6, 7]),
        ({"CUDA_VISIBLE_DEVICES": "5"}, [5]),
        ({"HIP_VISIBLE_DEVICES": "6", "CUDA_VISIBLE_DEVICES": "5"}, [6]),
        ({"ROCR_VISIBLE_DEVICES": "4,5,6,7", "HIP_VISIBLE_DEVICES": "3,0"}, [7, 4]),
        ({"ROCR_VISIBLE_DEVICES": "GPU-0000000000000003"}, [2]),
    ],
)
def test_amds_variables_narrow_one_after_the_other(
    environment: Mapping[str, str], expected: list[int], tmp_path: Path
) -> None:
    devices = find_devices(str(replace(regular(2, 1, 1), amd=MI300X.amd).write(tmp_path)))
    assert list(visible_devices(devices, environment)) == [devices[number] for number in expected]


def test_different_gpus_are_in_a_certain_order_only_by_the_bus(tmp_path: Path) -> None:
    gpus = [Gpu("0000:07:00.0", 0, "0x20b2"), Gpu("0000:0f:00.0", 0, "0x2330")]
    mixed = find_devices(str(replace(regular(1, 1, 1), nvidia=gpus).write(tmp_path)))
    assert not are_numbered_by_bus(mixed, {})
    assert are_numbered_by_bus(mixed, {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"})
    assert are_numbered_by_bus(mixed[:1], {})


def test_a_machine_without_gpus_has_none(tmp_path: Path) -> None:
    assert find_devices(str(regular(1, 1, 1).write(tmp_path))) == ()
    assert find_devices(str(tmp_path / "nothing")) == ()
    assert visible_devices((), {"CUDA_VISIBLE_DEVICES": "0"}) == ()
