"""Which starter a run uses, holding back the workers of one that still gets ready, and the use of idle time.

What does not live here: starting them (:mod:`._runner`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast, final

from ..catalogue import PluginKind, StarterBackend
from ..records import Assignment
from ._environment import base_environment, common_environment
from ._spec import WorkerSpec

if TYPE_CHECKING:
    from ..plugins import PluginHost
    from ..starter import PreparingStarter, Starter

__all__ = ["JOIN_MOMENT_SECONDS", "RUN_MOMENT_SECONDS", "IdleWork", "Preparation", "choose_starter"]

#: A join that takes longer than the first waits for other nodes; workers that run for longer than the second will
#: hardly all fail at once.
JOIN_MOMENT_SECONDS, RUN_MOMENT_SECONDS = 0.05, 0.5


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
    """What a starter may do before it can start; of one without that ability nothing is asked.

    ``descriptor`` is readable when :meth:`take_ready` should be called, -1 where there is nothing to wait for.
    """

    def __init__(self, starter: Starter) -> None:
        self._starter = cast("PreparingStarter", starter) if hasattr(starter, "prepare") else None
        self._held_back: Assignment | None = None
        self.descriptor = -1

    def begin(self, spec: WorkerSpec, defaults: Mapping[str, str]) -> None:
        """Have the starter begin; ``defaults`` as for ``build_launches``.

        Raises:
            UsageError: it can never start this entrypoint.
        """
        if self._starter is not None:
            environment = common_environment(spec, spec.local_world_size, base_environment(defaults))
            self._starter.prepare(spec.entrypoint, spec.args, environment)
            self.descriptor = self._starter.fileno()

    def holds_back(self, assignment: Assignment) -> bool:
        """Return whether the workers of ``assignment`` have to wait; if so :meth:`take_ready` gives it back in time."""
        if self._starter is None or self._starter.is_ready():
            return False
        self._held_back = assignment
        return True

    def take_ready(self) -> Assignment | None:
        """Carry the preparation forward; return the assignment whose workers can now be started."""
        if self._starter is None or not self._starter.is_ready():
            return None
        assignment, self._held_back = self._held_back, None
        return assignment

    def cancel(self) -> None:
        """Forget the workers that wait: their round is over."""
        self._held_back = None

    def close(self) -> None:
        """End what was prepared."""
        starter, self._starter = self._starter, None
        if starter is not None:
            starter.close()


@final
class IdleWork:
    """What will be needed when something happens, loaded while nothing does.

    Once all nodes are there, or a worker has failed, every millisecond counts, and on many machines at the same time; a
    job that is over in a moment needs none of it.

    Arguments:
        moment: seconds that nothing has to have happened for.
        tasks: what to do, some ten milliseconds each at most.
    """

    def __init__(self, moment: float, tasks: Iterable[Callable[[], None]]) -> None:
        self._moment, self._tasks = moment, deque(tasks)
        self._due: float | None = None

    def begin(self, now: float) -> None:
        """From ``now`` (monotonic seconds) on something is waited for."""
        self._due = now + self._moment if self._tasks else None

    def cancel(self) -> None:
        """It has happened."""
        self._due = None

    def wake_at(self) -> float | None:
        """Return when :meth:`advance` has something to do."""
        return self._due

    def advance(self, now: float) -> None:
        """Do one thing, if it is time: whatever has happened meanwhile comes before the next."""
        if self._due is not None and now >= self._due:
            self._tasks.popleft()()
            self._due = now if self._tasks else None
