"""The node's checks: which there are, which are wanted, and what they measure against.

What does not live here: how each one looks (``_resources``, ``_disk``, ``_watches``, ``_command``, ``_gpu``) and how
the flags are parsed (``_check_flags``).  The core runs the checks, each under its timeout.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, final
from weakref import WeakKeyDictionary

from attrs import frozen

from quorate.catalogue import HealthCheck
from quorate.records import Event
from quorate.services import AgentService, AgentView

from ._disk import check_disk, check_log_dir
from ._gpu import Gpus
from ._resources import check_memory, check_open_files
from ._watches import ClockWatch, StoreWatch

if TYPE_CHECKING:
    from ._command import Command  # brings subprocess

#: Setting -> limit, as ``--health-check-conf`` names them; ``None``: not judged unless a number is given.
DEFAULTS: Mapping[str, float | None] = {
    "disk_free_mb": 50.0,
    "memory_free_mb": 64.0,
    "open_files": 256.0,
    "clock_step_s": None,
    "store_latency_ms": None,
    "gpus": None,
    "gpu_ecc_errors": 0.0,
    "gpu_temperature_c": None,
    "command_timeout_s": 30.0,
}

#: The most that ``command_timeout_s`` may be.
LONGEST_COMMAND_SECONDS = 3600.0

#: Exists where NVIDIA's driver is loaded; asking NVML takes a thousand times as long.
_GPU_DEVICE = "/dev/nvidiactl"


@final
class CheckState:
    """What the checks of one agent keep from one time to the next.

    Arguments:
        settings: of the launch: ``health_check_conf`` (limits by name, over the defaults), ``health_checks`` (names of
            those wanted; absent: all), ``health_check_cmd`` (the words of the user's command).
        gpu_device: the file that a machine with GPUs has.
    """

    def __init__(self, settings: Mapping[str, Any], gpu_device: str = _GPU_DEVICE) -> None:
        self.limits: dict[str, float | None] = {**DEFAULTS, **settings.get("health_check_conf", {})}
        self.wanted = frozenset(settings.get("health_checks", NAMES))
        self.clock = ClockWatch()
        self.store = StoreWatch()
        self._words = tuple(settings.get("health_check_cmd", ()))
        self._gpu_device = gpu_device
        self._command: Command | None = None
        self._gpus: Gpus | None = None
        self._closed = False

    def limit(self, name: str) -> float:
        """Return a limit that has a default."""
        value = self.limits[name]
        assert value is not None
        return value

    @property
    def must_be_closed(self) -> bool:
        """Whether a check may start something that outlives it."""
        return bool(self._words) or os.path.exists(self._gpu_device)

    def run_command(self) -> str | None:
        """Run the user's command, if there is one."""
        if not self._words or self._closed:
            return None
        if self._command is None:
            from ._command import Command  # brings subprocess, which most launches do not need

            self._command = Command(self._words)
        return self._command.check(self.limit("command_timeout_s"))

    def check_gpus(self) -> str | None:
        """Judge the GPUs, if there are any or some are expected."""
        wanted = self.limits["gpus"]
        if not os.path.exists(self._gpu_device) or self._closed:
            return f"no NVIDIA GPU is here, but gpus={wanted:g} are expected" if wanted else None
        if self._gpus is None:
            self._gpus = Gpus()
        return self._gpus.check(wanted, self.limit("gpu_ecc_errors"), self.limits["gpu_temperature_c"])

    def close(self) -> None:
        """End the command, if it runs, and release the GPUs."""
        self._closed = True
        if self._command is not None:
            self._command.close()
        if self._gpus is not None:
            self._gpus.close()


@final
@frozen
class _Check:
    summary: str
    timeout_seconds: float
    look: Callable[[CheckState, AgentView], str | None]


#: In the order in which they run: those that answer at once come first.
_CHECKS: Mapping[str, _Check] = {
    "open_files": _Check("limit of open files", 10.0, lambda state, agent: check_open_files(state.limit("open_files"))),
    "clock": _Check(
        "steps of the wall clock", 10.0, lambda state, agent: state.clock.check(agent, state.limits["clock_step_s"])
    ),
    "memory": _Check("free memory", 10.0, lambda state, agent: check_memory(state.limit("memory_free_mb"))),
    "log_dir": _Check("folder for logs", 10.0, lambda state, agent: check_log_dir(agent)),
    "disk": _Check("free disk space", 10.0, lambda state, agent: check_disk(agent, state.limit("disk_free_mb"))),
    "store": _Check(
        "rendezvous store", 70.0, lambda state, agent: state.store.check(agent, state.limits["store_latency_ms"])
    ),
    "gpu": _Check("NVIDIA GPUs", 60.0, lambda state, agent: state.check_gpus()),
    "command": _Check("--health-check-cmd", LONGEST_COMMAND_SECONDS + 10.0, lambda state, agent: state.run_command()),
}

#: The names that ``--health-checks`` knows.
NAMES: tuple[str, ...] = tuple(_CHECKS)


@final
class CheckStates:
    """The :class:`CheckState` of each agent of this process, for as long as the agent lives; for any thread."""

    def __init__(self) -> None:
        self._states: WeakKeyDictionary[AgentView, CheckState] = WeakKeyDictionary()

    def __len__(self) -> int:
        return len(self._states)

    def of(self, agent: AgentView) -> CheckState:
        """Return the state of ``agent``, the same one each time."""
        state = self._states.get(agent)
        return self._states.setdefault(agent, CheckState(agent.settings)) if state is None else state


def make_checks(states: CheckStates) -> list[HealthCheck]:
    """Return all checks; what they keep for an agent is in ``states``."""
    return [
        HealthCheck(name, check.summary, partial(_run, states, name), check.timeout_seconds)
        for name, check in _CHECKS.items()
    ]


def _run(states: CheckStates, name: str, agent: AgentView) -> str | None:
    state = states.of(agent)
    return _CHECKS[name].look(state, agent) if name in state.wanted else None


@final
class _Cleaner:
    """A service that does nothing but close the state when the agent ends."""

    worker_environment: Mapping[str, str] = {}

    def __init__(self, state: CheckState) -> None:
        self._state = state

    def observe(self, event: Event) -> None:
        pass

    def close(self) -> None:
        self._state.close()


def make_cleaner(states: CheckStates, agent: AgentView) -> AgentService | None:
    """Return the service that ends a running command and releases GPUs; ``None`` if there can be neither."""
    state = states.of(agent)
    return _Cleaner(state) if state.must_be_closed else None
