"""One node of a job, from its configuration to the agent's result: what ``launch`` does when it is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ._isolation import problem_of, raise_if_interrupted
from .agent import LocalElasticAgent, RunResult, WorkerSpec
from .backends import get_rendezvous_handler
from .config import LaunchConfig
from .errors import RendezvousClosedError
from .failures import ChildFailedError
from .launcher import run_script_path
from .notices import warn
from .plugins import PluginHost, get_host
from .rendezvous import RendezvousHandler


def run_node(
    config: LaunchConfig, entrypoint: Callable[..., Any] | str, args: tuple[Any, ...], host: PluginHost | None
) -> RunResult:
    """Run this node's agent until the job is over; see :class:`quorate.launcher.elastic_launch`."""
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
        return result
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
        warn(f"the rendezvous could not be shut down: {problem_of(problem)}")


def _name_of(spec: WorkerSpec, args: tuple[Any, ...]) -> str:
    """Return the name of the entrypoint: for a Python command the script or module, not the interpreter."""
    name = spec.get_entrypoint_name()
    if isinstance(spec.entrypoint, str) and name.startswith("python"):
        return next((arg for arg in args if not arg.startswith("-")), name)
    return args[0] if spec.entrypoint is run_script_path else name
