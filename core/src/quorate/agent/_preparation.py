"""The starter of an entrypoint: which one it is, and holding workers back while it gets ready.

What does not live here: what a starter does (:mod:`quorate.starter`), and starting the workers (``_runner``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, final

from .._isolation import call_plugin
from ..catalogue import PluginKind, StarterBackend
from ..plugins import PluginHost
from ..starter import PreparingStarter, Starter
from . import _protocol as protocol
from ._environment import base_environment, common_environment
from ._spec import WorkerSpec


def choose_starter(host: PluginHost, entrypoint: str | Callable[..., Any], start_method: str) -> StarterBackend:
    """Return the starter for ``entrypoint``: ``exec`` for a command, unless the one asked for takes commands too.

    Raises:
        UnknownBackendError: no plugin offers it.
    """
    if isinstance(entrypoint, str):
        asked: StarterBackend | None = host.catalogue(PluginKind.STARTER).get(start_method)
        if asked is None or asked.kind == "function":
            start_method = "exec"
    backend: StarterBackend = host.choose(PluginKind.STARTER, start_method)
    return backend


@final
class Preparation:
    """The preparation of a starter, where it is a :class:`~quorate.starter.PreparingStarter`.

    ``descriptor`` is readable when :meth:`take_ready` should be called, -1 where there is nothing to wait for.
    """

    def __init__(self, start_method: str, starter: Starter) -> None:
        self._name = f"start method {start_method!r}"
        self._starter = starter if isinstance(starter, PreparingStarter) else None
        self._held_back: protocol.StartWorkers | None = None
        self.descriptor = -1

    def begin(self, spec: WorkerSpec, defaults: Mapping[str, str]) -> None:
        """Have the starter begin; ``defaults`` as for ``build_launches``.

        Raises:
            UsageError: it can never start this entrypoint.
            PluginError: it raised what it must not, as from the methods below.
        """
        if self._starter is not None:
            environment = common_environment(spec, spec.local_world_size, base_environment(spec, defaults))
            call_plugin(self._name, self._starter.prepare, spec.entrypoint, spec.args, environment)
            self.descriptor = call_plugin(self._name, self._starter.fileno)

    def holds_back(self, command: protocol.StartWorkers) -> bool:
        """Return whether the workers of ``command`` have to wait; if so, :meth:`take_ready` returns it in time."""
        if self._starter is None or call_plugin(self._name, self._starter.is_ready):
            return False
        self._held_back = command
        return True

    def take_ready(self) -> protocol.StartWorkers | None:
        """Carry the preparation forward; return the command whose workers can now be started."""
        if self._starter is None or not call_plugin(self._name, self._starter.is_ready):
            return None
        command, self._held_back = self._held_back, None
        return command

    def cancel(self) -> None:
        """Forget the workers that wait: their round is over."""
        self._held_back = None

    def close(self) -> None:
        """End what was prepared."""
        starter, self._starter = self._starter, None
        if starter is not None:
            call_plugin(self._name, starter.close)
