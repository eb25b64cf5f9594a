"""The check of GPUs, on a fake of NVML whose every name the real binding has: CI has no GPU."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from quorate_health._checks import CheckState
from quorate_health._gpu import Gpus

pynvml = pytest.importorskip("pynvml", reason="the extra gpu is not installed")


class FakeNvml:
    """A node of GPUs whose state tests set; what is asked for and not here is looked up in the real binding."""

    def __init__(self, count: int = 2) -> None:
        self.gpus = [SimpleNamespace(ecc=0, rows=(0, 0, 0, 0), degrees=40, reasons=0, lost=False) for _ in range(count)]
        self.events: list[tuple[int, int]] = []  # GPU, Xid
        self.watched: set[int] = set()
        self.opened = 0
        self.init_error: type[Exception] | None = None
        self.has_ecc = True

    def __getattr__(self, name: str) -> Any:
        value = getattr(pynvml, name)
        assert not callable(value) or isinstance(value, type), f"the fake lacks {name}"
        return value

    def nvmlInit(self) -> None:  # noqa: N802 - NVML's name, as all below
        if self.init_error is not None:
            raise self.init_error
        self.opened += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.opened -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> SimpleNamespace:  # noqa: N802
        if self.gpus[index].lost:
            raise pynvml.NVMLError_GpuIsLost
        return self.gpus[index]

    def nvmlDeviceGetIndex(self, handle: SimpleNamespace) -> int:  # noqa: N802
        return next(index for index, gpu in enumerate(self.gpus) if gpu is handle)

    def nvmlDeviceGetTotalEccErrors(self, handle: SimpleNamespace, kind: int, counter: int) -> int:  # noqa: N802
        assert (kind, counter) == (pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC)
        if not self.has_ecc:
            raise pynvml.NVMLError_NotSupported
        return int(handle.ecc)

    def nvmlDeviceGetRemappedRows(self, handle: SimpleNamespace) -> tuple[int, ...]:  # noqa: N802
        if not self.has_ecc:
            raise pynvml.NVMLError_NotSupported
        return tuple(handle.rows)

    def nvmlDeviceGetTemperature(self, handle: SimpleNamespace, sensor: int) -> int:  # noqa: N802
        assert sensor == pynvml.NVML_TEMPERATURE_GPU
        return int(handle.degrees)

    def nvmlDeviceGetTemperatureThreshold(self, handle: SimpleNamespace, which: int) -> int:  # noqa: N802
        assert which == pynvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN
        return 90

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: SimpleNamespace) -> int:  # noqa: N802
        return int(handle.reasons)

    def nvmlEventSetCreate(self) -> list[int]:  # noqa: N802
        self.opened += 1
        return []

    def nvmlEventSetFree(self, events: list[int]) -> None:  # noqa: N802
        self.opened -= 1

    def nvmlDeviceRegisterEvents(self, handle: SimpleNamespace, kinds: int, events: list[int]) -> None:  # noqa: N802
        assert kinds == pynvml.nvmlEventTypeXidCriticalError
        self.watched.add(self.nvmlDeviceGetIndex(handle))

    def nvmlEventSetWait_v2(self, events: list[int], milliseconds: int) -> SimpleNamespace:  # noqa: N802
        assert milliseconds == 0, "a check does not wait for trouble"
        if not self.events:
            raise pynvml.NVMLError_Timeout
        index, xid = self.events.pop(0)
        assert index in self.watched
        return SimpleNamespace(device=self.gpus[index], eventData=xid)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


def state_with(gpu_device: str = __file__, **limits: float) -> CheckState:
    """Return the state of checks with these limits; ``gpu_device`` exists, as with a driver, unless it is given."""
    return CheckState({"health_check_conf": limits}, gpu_device)


def test_every_name_of_the_fake_is_in_the_real_binding() -> None:
    names = [name for name in vars(FakeNvml) if name.startswith("nvml")]
    assert names
    assert not [name for name in names if not callable(getattr(pynvml, name, None))]


def test_healthy_gpus(nvml: FakeNvml) -> None:
    state = state_with(gpus=2.0)
    assert state.check_gpus() is None
    assert nvml.watched == {0, 1}
    state.close()
    assert nvml.opened == 0


@pytest.mark.parametrize(
    ("condition", "problem"),
    [
        ({"ecc": 3}, "GPU 1 has 3 uncorrectable memory error(s), more than gpu_ecc_errors=0; reset it"),
        ({"rows": (0, 1, 1, 0)}, "GPU 1 has memory rows to remap, which takes a reset; reset it"),
        ({"rows": (0, 1, 1, 1)}, "GPU 1 has memory rows that could not be remapped; have it replaced"),
        ({"degrees": 90}, "GPU 1 is at 90 degrees Celsius, not below 90 at which it slows down; look at its cooling"),
        ({"reasons": 0x40}, "GPU 1 runs at reduced clocks because it is too hot; look at its cooling"),
        ({"lost": True}, "GPU 1 cannot be reached: GPU is lost; reset it, or restart the machine"),
    ],
)
def test_an_unhealthy_gpu(nvml: FakeNvml, condition: dict[str, Any], problem: str) -> None:
    vars(nvml.gpus[1]).update(condition)
    state = state_with()
    assert state.check_gpus() == problem
    state.close()


def test_tolerated_errors_and_heat(nvml: FakeNvml) -> None:
    nvml.gpus[0].ecc, nvml.gpus[1].degrees = 3, 70
    state = state_with(gpu_ecc_errors=3.0, gpu_temperature_c=70.0)
    assert state.check_gpus() == "GPU 1 is at 70 degrees Celsius, not below gpu_temperature_c=70; look at its cooling"


def test_a_gpu_without_counters_is_healthy(nvml: FakeNvml) -> None:
    nvml.has_ecc = False
    assert state_with().check_gpus() is None


def test_an_xid_is_remembered_unless_a_program_caused_it(nvml: FakeNvml) -> None:
    state = state_with()
    assert state.check_gpus() is None
    nvml.events = [(0, 13), (1, 79), (0, 43)]
    problem = "GPU 1 reported Xid 79; look at the kernel's log, and reset it"
    assert [state.check_gpus(), state.check_gpus()] == [problem, problem]


def test_too_few_gpus(nvml: FakeNvml) -> None:
    """Fewer than were asked for, or than there were before."""
    assert "2 GPU(s) are here, but gpus=8 are expected" in str(state_with(gpus=8.0).check_gpus())
    state = state_with()
    assert state.check_gpus() is None
    nvml.gpus.pop()
    assert "1 GPU(s) are here, but there were 2" in str(state.check_gpus())


def test_a_driver_that_does_not_answer(nvml: FakeNvml) -> None:
    nvml.init_error = pynvml.NVMLError_DriverNotLoaded
    assert state_with().check_gpus() == "NVML cannot be used: Driver Not Loaded; look at the driver (nvidia-smi)"


def test_a_container_without_the_library_is_judged_only_if_gpus_are_expected(nvml: FakeNvml) -> None:
    nvml.init_error = pynvml.NVMLError_LibraryNotFound
    assert state_with().check_gpus() is None
    assert "NVML Shared Library Not Found" in str(state_with(gpus=1.0).check_gpus())


def test_without_the_binding_gpus_are_judged_only_if_expected(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert state_with().check_gpus() is None
    assert "pip install quorate-health[gpu]" in str(state_with(gpus=1.0).check_gpus())


def test_without_a_driver_nothing_is_loaded(nvml: FakeNvml) -> None:
    assert state_with("/nowhere").check_gpus() is None
    assert nvml.opened == 0
    assert "no NVIDIA GPU is here, but gpus=1" in str(state_with("/nowhere", gpus=1.0).check_gpus())


def test_the_real_binding_on_a_machine_without_gpu() -> None:
    """Whatever it says here, it is an error that the check expects."""
    gpus = Gpus()
    answer = gpus.check(None, 0.0, None)
    gpus.close()
    assert answer is None or "NVML" in answer or "GPU" in answer
