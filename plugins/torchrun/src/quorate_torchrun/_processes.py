"""``start_processes`` and its contexts: processes of one machine, started by quorate's starters, without an agent.

What does not live here: how processes are started, read and ended (:mod:`quorate.starter` and the plugins that offer
one).
"""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, final

import quorate
from quorate import ProcessFailure, Std, UsageError
from quorate.catalogue import PluginKind
from quorate.clock import LONGEST_WAIT_SECONDS, monotonic
from quorate.logs_specs import adopt_logs_specs
from quorate.plugins import get_host
from quorate.records import WorkerExited, WorkerLaunch, WorkerLogs
from quorate.starter import PreparingStarter, ProcessContext, Starter, StarterRequest

from ._errors import as_torch_has_it

_GRACE_SECONDS = 30.0
#: The kernel may keep a process that was killed for as long as a disk or a driver needs.
_KILLED_SECONDS = 10.0


@final
@dataclass
class RunProcsResult:
    """What became of the processes, by local rank; a stream without a file has the path ``""``."""

    return_values: dict[int, Any] = field(default_factory=dict)
    failures: dict[int, ProcessFailure] = field(default_factory=dict)
    stdouts: dict[int, str] = field(default_factory=dict)
    stderrs: dict[int, str] = field(default_factory=dict)

    def is_failed(self) -> bool:
        """Return whether a process failed."""
        return bool(self.failures)


def to_map(val_or_map: Std | Mapping[int, Std], local_world_size: int) -> dict[int, Std]:
    """Return a choice of streams for each local rank."""
    if isinstance(val_or_map, Std):
        return dict.fromkeys(range(local_world_size), val_or_map)
    return {rank: val_or_map.get(rank, Std.NONE) for rank in range(local_world_size)}


class PContext:
    """Processes that :func:`start_processes` has started.  Used by one thread at a time.

    Arguments:
        args, envs: by local rank; ``envs`` are added to this process's environment.
        logs_specs: torch's or quorate's.

    Raises:
        UsageError: the local ranks are not 0, 1, 2, …; or no such start method.
    """

    #: How functions are started; commands by ``exec``.
    start_method = "exec"

    def __init__(
        self,
        name: str,
        entrypoint: Callable[..., Any] | str,
        args: Mapping[int, tuple[Any, ...]],
        envs: Mapping[int, Mapping[str, str]],
        logs_specs: Any,
        log_line_prefixes: Mapping[int, str] | None = None,
        numa_options: Any = None,
        duplicate_stdout_filters: list[str] | None = None,
        duplicate_stderr_filters: list[str] | None = None,
    ) -> None:
        for what, by_rank in (("args", args), ("envs", envs)):
            if sorted(by_rank) != list(range(len(args))):
                raise UsageError(f"{what} has the local ranks {sorted(by_rank)}, not 0 to {len(args) - 1}")
        if numa_options is not None:
            raise UsageError("start_processes binds no process to CPUs; set numa_options in a LaunchConfig instead")
        self.name, self.entrypoint, self.args, self.envs = name, entrypoint, dict(args), dict(envs)
        self.nprocs = len(args)
        self._prefixes = dict(log_line_prefixes or {})
        self._specs = adopt_logs_specs(logs_specs).with_duplicate_filters(
            tuple(duplicate_stdout_filters or ()), tuple(duplicate_stderr_filters or ())
        )
        self._dest = self._specs.reify(self.envs)
        self.stdouts, self.stderrs = (
            {rank: files.get(rank, "") for rank in args} for files in (self._dest.stdouts, self._dest.stderrs)
        )
        self.error_files = {rank: self._dest.error_files.get(rank, "") for rank in args}
        self._context: ProcessContext | None = None
        self._starter: Starter | None = None
        self._exits: dict[int, WorkerExited] = {}
        self._result: RunProcsResult | None = None
        self._pids: dict[int, int] = {}
        self._handlers: dict[int, Any] = {}

    def start(self) -> None:
        """Start the processes.  In the main thread SIGTERM and SIGINT then raise SignalException until :meth:`close`.

        Raises:
            StartError: one cannot be started; none is left.
        """
        request = StarterRequest(self.start_method, os.urandom(16).hex(), _GRACE_SECONDS)
        starter = self._starter = get_host().choose(PluginKind.STARTER, self.start_method).create(request)
        launches = [self._launch(rank) for rank in sorted(self.args)]
        if isinstance(starter, PreparingStarter) and launches:
            starter.prepare(self.entrypoint, launches[0].args, launches[0].environment)
            while not starter.is_ready():
                _wait_for(starter.fileno(), None)
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, _raise) for number in (signal.SIGTERM, signal.SIGINT)}
        self._context = starter.start(launches)
        self._pids = dict(self._context.pids())

    def _launch(self, local_rank: int) -> WorkerLaunch:
        environment = {**os.environ, **self.envs[local_rank]}
        if self.error_files[local_rank]:
            environment["TORCHELASTIC_ERROR_FILE"] = self.error_files[local_rank]
        is_teed = local_rank in self._dest.tee_stdouts or local_rank in self._dest.tee_stderrs
        shown, specs = self._specs.local_ranks_filter, self._specs
        files = (
            ("stdout", self._dest.filtered_stdout, specs.duplicate_stdout_filters),
            ("stderr", self._dest.filtered_stderr, specs.duplicate_stderr_filters),
        )
        logs = WorkerLogs(
            self.stdouts[local_rank] or None,
            self.stderrs[local_rank] or None,
            local_rank in self._dest.tee_stdouts,
            local_rank in self._dest.tee_stderrs,
            self._prefixes.get(local_rank, f"[{self.name}{local_rank}]:") if is_teed else None,
            shown is None or local_rank in shown,
            tuple((stream, path, words) for stream, path, words in files if path and words),
        )
        args = self.args[local_rank]
        if isinstance(self.entrypoint, str):
            args = tuple(str(each) for each in args)
        rank = self.envs[local_rank].get("RANK", "")
        return WorkerLaunch(
            local_rank,
            int(rank) if rank.isdigit() else local_rank,
            self.name,
            self.entrypoint,
            tuple(args),
            environment,
            self.error_files[local_rank],
            logs,
        )

    def pids(self) -> dict[int, int]:
        """Return local rank -> process id."""
        return dict(self._pids)

    def wait(self, timeout: float = -1, period: float = 1) -> RunProcsResult | None:
        """Wait until all have succeeded, or one has failed and the others were ended; then say how.

        Arguments:
            timeout: seconds; negative: any time; 0: look and return.
            period: not needed: this returns when something happens.

        Returns:
            ``None`` where they still run.
        """
        deadline = None if timeout < 0 else monotonic() + timeout
        while self._result is None and self._context is not None:
            self._advance(self._context)
            now = monotonic()
            if self._result is not None or (deadline is not None and now >= deadline):
                break
            times = [each for each in (deadline, self._context.wake_at()) if each is not None]
            seconds = max(0.0, min(times) - now) if times else None
            _wait_for(self._context.fileno(), seconds)
        return self._result

    def _advance(self, context: ProcessContext) -> None:
        for each in context.advance(monotonic()):
            self._exits.setdefault(each.local_rank, each)
        failed = [each for each in self._exits.values() if each.exit_code and not each.stopped]
        if failed or len(self._exits) == self.nprocs:
            # What they have started, too; all output is written then.
            self._end(context, signal.SIGTERM, _GRACE_SECONDS)
            self._result = self._make_result(failed)

    def _make_result(self, failed: list[WorkerExited]) -> RunProcsResult:
        if not failed:
            values = {rank: each.return_value for rank, each in sorted(self._exits.items())}
            return RunProcsResult(values, {}, dict(self.stdouts), dict(self.stderrs))
        failures = {
            each.local_rank: ProcessFailure(
                each.local_rank, each.pid, each.exit_code, self.error_files[each.local_rank]
            )
            for each in sorted(failed, key=lambda each: each.timestamp_ns)
        }
        return RunProcsResult({}, failures, dict(self.stdouts), dict(self.stderrs))

    def _end(self, context: ProcessContext, number: int, grace_seconds: float) -> None:
        """Stop all that run; returns when they and what they started are gone."""
        now = monotonic()
        last_resort = now + grace_seconds + _KILLED_SECONDS
        context.stop(number, grace_seconds, now)
        while now < last_resort:
            for each in context.advance(now):
                self._exits.setdefault(each.local_rank, each)
            if context.is_gone():
                return
            wake_at = context.wake_at()
            seconds = max(0.0, min(last_resort if wake_at is None else wake_at, last_resort) - now)
            _wait_for(context.fileno(), seconds)
            now = monotonic()

    def close(self, death_sig: signal.Signals | None = None, timeout: float = 30) -> None:
        """End what still runs: ``death_sig`` (SIGTERM), SIGKILL ``timeout`` seconds later.  May be called twice."""
        context, self._context = self._context, None
        try:
            if context is not None:
                self._end(context, signal.SIGTERM if death_sig is None else death_sig, max(0.0, timeout))
        finally:
            if context is not None:
                context.close()
            if isinstance(self._starter, PreparingStarter):
                self._starter.close()
            self._starter = None
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
            self._handlers = {}
            if isinstance(self._specs, quorate.DefaultLogsSpecs):
                self._specs.remove_if_unused()


@final
class SubprocessContext(PContext):
    """Processes of a command."""


@final
class MultiprocessContext(PContext):
    """Processes of a function."""

    def __init__(self, *arguments: Any, start_method: str = "spawn", **keywords: Any) -> None:
        self.start_method = start_method
        super().__init__(*arguments, **keywords)


def start_processes(
    name: str,
    entrypoint: Callable[..., Any] | str,
    args: Mapping[int, tuple[Any, ...]],
    envs: Mapping[int, Mapping[str, str]],
    logs_specs: Any,
    log_line_prefixes: Mapping[int, str] | None = None,
    start_method: str = "spawn",
    numa_options: Any = None,
    duplicate_stdout_filters: list[str] | None = None,
    duplicate_stderr_filters: list[str] | None = None,
) -> PContext:
    """Start a process for each local rank of ``args``: a function, or a command with its arguments.

    They end when this process dies, and so does all that they start.

    Returns:
        Their context, which the caller closes.

    Raises:
        as :class:`PContext` and its ``start``.
    """
    keywords: dict[str, Any] = {
        "log_line_prefixes": log_line_prefixes,
        "numa_options": numa_options,
        "duplicate_stdout_filters": duplicate_stdout_filters,
        "duplicate_stderr_filters": duplicate_stderr_filters,
    }
    context: PContext
    if isinstance(entrypoint, str):
        context = SubprocessContext(name, entrypoint, args, envs, logs_specs, **keywords)
    else:
        context = MultiprocessContext(name, entrypoint, args, envs, logs_specs, start_method=start_method, **keywords)
    try:
        context.start()
    except BaseException:
        context.close()
        raise
    return context


def _wait_for(descriptor: int, seconds: float | None) -> None:
    """Wait until ``descriptor`` is readable, for a day at most; not by select(), which takes none above 1023."""
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    poller.poll(None if seconds is None else 1000 * min(seconds, LONGEST_WAIT_SECONDS))


def _raise(number: int, frame: FrameType | None) -> None:
    raise as_torch_has_it(quorate.SignalException(f"process {os.getpid()} got signal {number}", number))
