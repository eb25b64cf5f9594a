"""``launch``: runs one node of a job from a :class:`~quorate.config.LaunchConfig`, in this process.

The module is not called ``launch``: a submodule of that name would hide the public ``quorate.launch``.
A function's workers import it with the module that defines the function, so the agent is imported by the call
(:mod:`quorate._one_node`).
What does not live here: reading flags (:mod:`quorate.cli`), and what happens while the job runs
(:mod:`quorate.agent`).
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from typing import Any, final

from .config import LaunchConfig
from .errors import UsageError
from .lazy_exports import lazy_function
from .plugins import PluginHost
from .text import is_word_of_command
from .worker_settings import words_of

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
        #: After the call: this node's workers have succeeded, and what became of the other nodes is not known.
        self.others_unknown = False

    def __call__(self, *args: Any) -> dict[int, Any]:
        entrypoint, arguments = self._entrypoint, args if callable(self._entrypoint) else words_of(args)
        if entrypoint is None:
            if not arguments:
                raise UsageError("there is neither an entrypoint nor a command among the arguments")
            entrypoint, arguments = arguments[0], arguments[1:]
        if isinstance(entrypoint, str):
            for word in (entrypoint, *arguments):  # refused before other nodes wait for this one
                if not is_word_of_command(word):
                    raise UsageError(f"{word!r:.80} cannot be a word of a command: it has a NUL, or half a character")
        result = _run(self._config, entrypoint, arguments, self._host)
        self.others_unknown = bool(result.others_unknown)
        return dict(result.return_values)


launch = elastic_launch

_run = lazy_function("quorate._one_node", "run_node")


def run_script_path(script: str, *args: str) -> None:
    """Run the Python file ``script`` in this interpreter as if it were the main program (``--run-path``)."""
    sys.argv = [script, *args]
    runpy.run_path(script, run_name="__main__")
