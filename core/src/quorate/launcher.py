"""``launch``: runs one node of a job from a :class:`~quorate.config.LaunchConfig`, in this process.

The module is not called ``launch``: a submodule of that name would hide the public ``quorate.launch``.
What does not live here: reading flags (:mod:`quorate.cli`), and what happens while the job runs
(:mod:`quorate.agent`).
"""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Callable, Sequence
from typing import Any, final

from ._isolation import raise_if_interrupted
from .agent import LocalElasticAgent, WorkerSpec
from .backends import get_rendezvous_handler
from .config import LaunchConfig
from .errors import RendezvousClosedError, UsageError
from .failures import ChildFailedError
from .notices import warn
from .plugins import PluginHost, get_host
from .rendezvous import RendezvousHandler

__all__ = ["elastic_launch", "launch", "run_script_path"]


@final
class elastic_launch:  # noqa: N801 - the name that TorchElastic's users already call
    """Runs an entrypoint in ``nproc_per_node`` workers, together with the other nodes of the job.

    ``elastic_launch(config, entrypoint)(*args)`` blocks until the job is over.

    Arguments:
        config: this node's part of the job.
        entrypoint: a callable, called with ``args`` in every worker; or a command, whose argv ``args`` follow, as
            text; ``None``: ``args`` are the whole command.

    Returns (the call):
        What the entrypoint returned, by global rank, for the workers of this node (``None`` for a command).

    Raises (the call):
        ChildFailedError: workers failed and no restarts were left.
        SignalException: this process was stopped by a signal.
        RendezvousError: the nodes could not agree on a round, or (RendezvousClosedError) the job ended before
            this node got in.
        UsageError: the configuration cannot be used; raised before anything is started.
    """

    def __init__(
        self, config: LaunchConfig, entrypoint: Callable[..., Any] | str | None, *, host: PluginHost | None = None
    ) -> None:
        if entrypoint is not None and not callable(entrypoint) and not (isinstance(entrypoint, str) and entrypoint):
            raise UsageError(f"the entrypoint must be a callable or a command, not {entrypoint!r}")
        self._config, self._entrypoint, self._host = config, entrypoint, host

    def __call__(self, *args: Any) -> dict[int, Any]:
        entrypoint, arguments = self._entrypoint, args if callable(self._entrypoint) else _argv(args)
        if entrypoint is None:
            if not arguments:
                raise UsageError("there is neither an entrypoint nor a command among the arguments")
            entrypoint, arguments = arguments[0], arguments[1:]
        return _run(self._config, entrypoint, arguments, self._host)


launch = elastic_launch


def _argv(args: Sequence[Any]) -> tuple[str, ...]:
    return tuple(os.fsdecode(value) if isinstance(value, (bytes, os.PathLike)) else str(value) for value in args)


def _run(
    config: LaunchConfig, entrypoint: Callable[..., Any] | str, args: tuple[Any, ...], host: PluginHost | None
) -> dict[int, Any]:
    host = get_host() if host is None else host
    handler = get_rendezvous_handler(config.rendezvous_parameters(), host)
    try:
        spec = WorkerSpec.from_config(config, handler, entrypoint, args)
        agent = LocalElasticAgent(
            spec,
            config.worker_logs_specs(),
            start_method=config.start_method,
            exit_barrier_timeout=config.exit_barrier_timeout,
            log_line_prefix_template=config.log_line_prefix_template,
            host=host,
        )
        result = agent.run(role=config.role)
    finally:
        _shut_down(handler)
    if not result.is_failed():
        return dict(result.return_values)
    if not result.failures:
        # The job failed on another node, whose agent recorded a reason but no failed worker.
        error = RendezvousClosedError(result.reason or "the job has failed on another node")
        error.verdict = result.verdict
        raise error
    raise ChildFailedError(_name_of(spec, args), result.failures, result.reason, result.verdict)


def _shut_down(handler: RendezvousHandler) -> None:
    """Release the rendezvous.  A handler that fails in it must not replace how the job ended."""
    try:
        handler.shutdown()
    except BaseException as problem:
        raise_if_interrupted(problem)
        warn(f"the rendezvous could not be shut down: {type(problem).__name__}: {problem}")


def _name_of(spec: WorkerSpec, args: tuple[Any, ...]) -> str:
    """Return the name of the entrypoint: for a Python command the script or module, not the interpreter."""
    name = spec.get_entrypoint_name()
    if isinstance(spec.entrypoint, str) and name.startswith("python"):
        return next((arg for arg in args if not arg.startswith("-")), name)
    return args[0] if spec.entrypoint is run_script_path else name


def run_script_path(script: str, *args: str) -> None:
    """Run the Python file ``script`` in this interpreter as if it were the main program (``--run-path``)."""
    sys.argv = [script, *args]
    runpy.run_path(script, run_name="__main__")
