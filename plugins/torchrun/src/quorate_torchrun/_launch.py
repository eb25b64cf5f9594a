"""Torchrun's entry points: from a namespace or a configuration to a launch by quorate.

What does not live here: the launch itself (:mod:`quorate.launcher`), and errors as torch's classes (``_errors``).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from typing import Any, final

from attrs import evolve

import quorate
from quorate.clock import wall_seconds
from quorate.flags import configure
from quorate.launcher import run_script_path

from ._arguments import parse_args, texts_of
from ._config import LaunchConfig, to_quorate
from ._environment import without_hook
from ._errors import raised_as_torch_has_it
from ._registry import host_with

__all__ = ["config_from_args", "elastic_launch", "launch_agent", "main", "run", "run_script_path"]

Entrypoint = Callable[..., Any] | str | None


def config_from_args(args: argparse.Namespace) -> tuple[LaunchConfig, Callable[..., Any] | str, list[str]]:
    """Return the configuration, the entrypoint and its arguments that a namespace asks for.

    Arguments:
        args: a namespace of :func:`get_args_parser` or of torch's own parser; values may be strings.

    Raises:
        UsageError: a value cannot be used (it is a ValueError too).
    """
    arguments = [str(each) for each in args.training_script_args]
    config, entrypoint, command = configure(texts_of(args), args.training_script, arguments)
    argv = list(command)
    # torch.distributed.launch without --use-env tells the script its rank by an argument, put before the script's own.
    if not getattr(args, "use_env", True):
        argv.insert(len(argv) - len(arguments), "--local-rank=${local_rank}")
    return LaunchConfig.from_quorate(config), entrypoint, argv


def run(args: argparse.Namespace) -> None:
    """Run one node of the job that a namespace describes; blocks until the job is over.

    Raises:
        as :func:`launch_agent`.
    """
    config, entrypoint, argv = config_from_args(args)
    elastic_launch(config, entrypoint)(*argv)


def main(args: Sequence[str] | None = None) -> None:
    """Run one node of the job that a command line describes (``None``: that of this process)."""
    run(parse_args(args))


def launch_agent(
    config: Any, entrypoint: Entrypoint, args: Sequence[Any], health_check_server: Any = None
) -> dict[int, Any]:
    """Run ``entrypoint`` in the workers of this node, together with the other nodes of the job.

    Arguments:
        config: a :class:`LaunchConfig`, torch's or quorate's own.
        entrypoint: a function, called with ``args``; or a command, whose argv ``args`` follow; ``None``: ``args`` are
            the whole command.
        health_check_server: a server that torch's caller has started; it is told that the agent is alive, and stopped
            at the end.

    Returns:
        What the function returned, by global rank, for the workers of this node.

    Raises:
        ChildFailedError, SignalException, RendezvousError: torch's own classes in a process that has loaded them, with
            quorate's error as the cause; else quorate's.
    """
    set_delegate = getattr(getattr(health_check_server, "alive_callback", None), "set_delegate", None)
    if set_delegate is not None:
        set_delegate(wall_seconds)
    try:
        with raised_as_torch_has_it():
            frozen = to_quorate(config)
            undone = without_hook(os.environ)
            if undone:
                frozen = evolve(frozen, environment={**undone, **frozen.environment})
            return quorate.elastic_launch(frozen, entrypoint, host=host_with(frozen.rdzv_backend))(*args)
    finally:
        if health_check_server is not None:
            health_check_server.stop()


@final
class elastic_launch:  # noqa: N801 - torch's name
    """Runs an entrypoint as :func:`launch_agent` does: ``elastic_launch(config, entrypoint)(*args)``."""

    def __init__(self, config: Any, entrypoint: Entrypoint, health_check_server: Any = None) -> None:
        self._config, self._entrypoint, self._server = config, entrypoint, health_check_server

    def __call__(self, *args: Any) -> dict[int, Any]:
        return launch_agent(self._config, self._entrypoint, list(args), self._server)
