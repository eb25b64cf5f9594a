"""Chooses the starter of an entrypoint.

What does not live here: what a starter does (:mod:`quorate.starter`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..catalogue import PluginKind, StarterBackend
from ..plugins import PluginHost

__all__ = ["choose_starter"]


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
