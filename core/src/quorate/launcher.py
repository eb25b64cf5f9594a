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

__all__ = ["elastic_launch", "launch", "run_script_path"]


@final
class elastic_launch:  # noqa: N801 - the name that TorchElastic's users already call
    """Runs an entrypoint in ``nproc_per_node`` workers, together with the other nodes of the job.

    ``elastic_launch(config, entrypoint)(*args)`` blocks until the job is over.

    Arguments:
        config: this node's part of the job.
        entrypoint: a callable, called with ``args`` in every worker; or a command, whose argv ``args`` follow.

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
        self, config: LaunchConfig, entrypoint: Callable[..., Any] | str, *, host: PluginHost | None = None
    ) -> None:
        if not callable(entrypoint) and not (isinstance(entrypoint, str) and entrypoint):
            raise UsageError(f"the entrypoint must be a callable or a command, not {entrypoint!r}")
        self._config, self._entrypoint, self._host = config, entrypoint, host

    def __call__(self, *args: Any) -> dict[int, Any]:
        arguments = args if callable(self._entrypoint) else _argv(args)
        return _run(self._config, self._entrypoint, arguments, self._host)


launch = elastic_launch


def _argv(args: Sequence[Any]) -> tuple[str, ...]:
    for position, value in enumerate(args):
        if not isinstance(value, (str, os.PathLike)):
            raise UsageError(f"argument {position} of the command is {value!r}; a command takes strings only")
    return tuple(os.fspath(value) for value in args)


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
        try:
            handler.shutdown()
        except BaseException as problem:  # how the job has ended does not depend on it
            raise_if_interrupted(problem)
            warn(f"the rendezvous could not be shut down: {type(problem).__name__}: {problem}")
    if not result.is_failed():
        return dict(result.return_values)
    if not result.failures:
        # The job failed on another node, whose agent recorded a reason but no failed worker.
        error = RendezvousClosedError(result.reason or "the job has failed on another node")
        error.verdict = result.verdict
        raise error
    raise ChildFailedError(_name_of(spec, args), result.failures, result.reason, result.verdict)


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
