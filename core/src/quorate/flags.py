"""The flags of ``quorate run``, for programs that build a command line of their own on them.

What does not live here: the table itself, and how a command line is read (:mod:`quorate.cli`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .cli._devices import count_workers
from .cli._flags import Flag
from .cli._parse import resolve
from .cli._run import check_launch, flags_of
from .config import LaunchConfig
from .plugins import get_host

__all__ = ["Flag", "all_flags", "configure", "count_workers"]


def all_flags() -> tuple[Flag, ...]:
    """Return every flag of ``quorate run``, those of the installed plugins included."""
    return flags_of(get_host())


def configure(
    texts: Mapping[str, str], script: str | None, arguments: Sequence[str] = ()
) -> tuple[LaunchConfig, Callable[..., Any] | str, tuple[str, ...]]:
    """Return the launch configuration, the entrypoint and its arguments that a command line stands for.

    Arguments:
        texts: the values of flags, as text, by the flags' names; the environment is not read.
        script: what to run, as ``quorate run`` takes it; with its ``arguments``.

    Raises:
        UsageError: a value cannot be used, contradicts another, or names what is not there.
    """
    config, (entrypoint, args) = check_launch(resolve(all_flags(), texts, {}, script, arguments), get_host())
    return config, entrypoint, args
