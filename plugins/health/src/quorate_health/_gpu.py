"""The check of NVIDIA's GPUs, through their management library (NVML).

What does not live here: whether there is a GPU to ask about (``_checks``).  The Python binding is the distribution
``nvidia-ml-py``, which the extra ``gpu`` installs.  Names and meanings are those of NVIDIA's NVML API reference; its
"XID Errors" document lists which Xid errors come from programs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, final

#: Xid errors that a program causes, or that follow from its end: the next program can use the GPU.
_CAUSED_BY_PROGRAMS = frozenset({13, 31, 43, 45, 68, 69, 109})
#: The reason for slower clocks that is the hardware's protection, not the driver's regulation.
_TOO_HOT = 0x40  # nvmlClocksThrottleReasonHwThermalSlowdown


@final
class Gpus:
    """All GPUs of the node; Xid errors are collected from here on.

    Methods may be called from any thread, one at a time.
    """

    def __init__(self) -> None:
        self._nvml: Any = None
        self._events: Any = None
        self._most = 0
        self._xids: list[str] = []
        self._missing = self._problem = ""
        try:
            import pynvml  # optional, and loads the driver's library
        except ImportError:
            self._missing = "the GPUs cannot be looked at; pip install quorate-health[gpu]"
            return
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            if isinstance(error, pynvml.NVMLError_LibraryNotFound):
                self._missing = f"the GPUs cannot be looked at: {error}"  # a container may lack the library
            else:
                # For example, the driver was replaced while its old version is loaded: CUDA fails too.
                self._problem = f"NVML cannot be used: {error}; look at the driver (nvidia-smi)"
            return
        self._nvml = pynvml
        self._events = self._watch()

    def check(self, wanted: float | None, most_errors: float, hottest: float | None) -> str | None:
        """Judge count, memory errors, Xid errors and heat.

        Arguments:
            wanted: how many GPUs there must be; ``None``: as many as there ever were.
            most_errors: uncorrectable memory errors, since the driver was loaded, that are tolerated.
            hottest: degrees Celsius; ``None``: where the GPU itself slows down.
        """
        if self._nvml is None:
            return self._problem or (self._missing if wanted else None)
        try:
            count = int(self._nvml.nvmlDeviceGetCount())
            self._most = max(self._most, count)
            least = self._most if wanted is None else int(wanted)
            if count < least:
                what = f"gpus={least} are expected" if wanted else f"there were {least}"
                return f"{count} GPU(s) are here, but {what}; look at nvidia-smi and the kernel's log"
            problems = [*self._xid_problems(), *self._problems(count, most_errors, hottest)]
        except self._nvml.NVMLError as error:
            return f"NVML answered: {error}; look at the driver (nvidia-smi)"
        return "; ".join(problems) or None

    def close(self) -> None:
        """Release the driver."""
        nvml, self._nvml = self._nvml, None
        if nvml is None:
            return
        try:
            if self._events is not None:
                nvml.nvmlEventSetFree(self._events)
            nvml.nvmlShutdown()
        except nvml.NVMLError:
            pass  # a GPU that has fallen off the bus is released when the process ends

    def _problems(self, count: int, most_errors: float, hottest: float | None) -> Iterator[str]:
        for index in range(count):
            try:
                handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
            except self._nvml.NVMLError as error:
                yield f"GPU {index} cannot be reached: {error}; reset it, or restart the machine"
                continue
            yield from self._memory(index, handle, most_errors)
            yield from self._heat(index, handle, hottest)

    def _memory(self, index: int, handle: Any, most: float) -> Iterator[str]:
        nvml = self._nvml
        errors = self._ask(
            nvml.nvmlDeviceGetTotalEccErrors, handle, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
        )
        if errors is not None and errors > most:
            yield f"GPU {index} has {errors} uncorrectable memory error(s), more than gpu_ecc_errors={most:g}; reset it"
        rows = self._ask(nvml.nvmlDeviceGetRemappedRows, handle)
        if rows is not None:
            _, _, is_pending, has_failed = rows
            if has_failed:
                yield f"GPU {index} has memory rows that could not be remapped; have it replaced"
            elif is_pending:
                yield f"GPU {index} has memory rows to remap, which takes a reset; reset it"

    def _heat(self, index: int, handle: Any, hottest: float | None) -> Iterator[str]:
        nvml = self._nvml
        degrees = self._ask(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU)
        limit = hottest
        if limit is None:
            threshold = nvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN
            limit = self._ask(nvml.nvmlDeviceGetTemperatureThreshold, handle, threshold)
        if degrees is not None and limit and degrees >= limit:
            name = f"gpu_temperature_c={limit:g}" if hottest is not None else f"{limit} at which it slows down"
            yield f"GPU {index} is at {degrees} degrees Celsius, not below {name}; look at its cooling"
            return
        reasons = self._ask(nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle)
        if reasons is not None and reasons & _TOO_HOT:
            yield f"GPU {index} runs at reduced clocks because it is too hot; look at its cooling"

    def _watch(self) -> Any:
        """Return an event set that collects Xid errors, ``None`` where GPUs or driver do not report them."""
        nvml = self._nvml
        try:
            events = nvml.nvmlEventSetCreate()
            for index in range(nvml.nvmlDeviceGetCount()):
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                self._ask(nvml.nvmlDeviceRegisterEvents, handle, nvml.nvmlEventTypeXidCriticalError, events)
        except nvml.NVMLError:
            return None
        return events

    def _xid_problems(self) -> list[str]:
        """Return all that were reported since the start: an Xid does not go away."""
        nvml = self._nvml
        while self._events is not None and len(self._xids) < 16:
            try:
                event = nvml.nvmlEventSetWait_v2(self._events, 0)
            except nvml.NVMLError:  # mostly a timeout: nothing has happened
                break
            if event.eventData not in _CAUSED_BY_PROGRAMS:
                index = self._ask(nvml.nvmlDeviceGetIndex, event.device)
                name = "a GPU" if index is None else f"GPU {index}"
                self._xids.append(f"{name} reported Xid {event.eventData}; look at the kernel's log, and reset it")
        return self._xids

    def _ask(self, question: Callable[..., Any], *arguments: Any) -> Any:
        """Return the answer, ``None`` where this GPU has none."""
        try:
            return question(*arguments)
        except self._nvml.NVMLError_NotSupported:
            return None
