"""The start method ``exec``: a command per worker, by ``posix_spawn``.

The agent never forks for it: it may have threads and libraries loaded that do not survive a fork, and a copy of its
page tables takes time.  ``subprocess`` is not imported either: its import takes longer than the start itself.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache, partial
from typing import final

from quorate.affinity import bound_thread
from quorate.errors import StartError
from quorate.records import WorkerLaunch
from quorate.starter import ProcessContext, StarterRequest

from ._commands import explain, find_command, wrapper_for
from ._context import LocalContext
from ._group import start_group
from ._streams import Output
from ._workers import ChildProcess


@final
class ExecStarter:
    """Starts commands.  The entrypoint is looked up on the worker's own PATH; arguments must be strings."""

    def __init__(self, request: StarterRequest) -> None:
        self._request = request

    def start(self, launches: Sequence[WorkerLaunch]) -> ProcessContext:
        """See :class:`quorate.starter.Starter`."""
        programs = [_program(launch) for launch in launches]

        def launch_all(context: LocalContext) -> None:
            leaking = leaking_descriptors()
            for launch, program in zip(launches, programs, strict=True):
                context.launch(launch, partial(_start, program=program, leaking=leaking))

        return start_group(self._request, launch_all)


def _start(
    launch: WorkerLaunch,
    environment: dict[str, str],
    output: Output,
    program: tuple[str, list[str]],
    leaking: Sequence[int],
) -> ChildProcess:
    path, argv = program
    with bound_thread(launch.cpus, launch.memory_node):
        try:
            return ChildProcess(spawn_program(path, argv, environment, output, leaking))
        except OSError as error:
            raise explain(path, error, launch.local_rank) from error


def _program(launch: WorkerLaunch) -> tuple[str, list[str]]:
    """Return the file and argument vector of one worker, the wrapper for parent death included."""
    words = checked_words(launch.entrypoint, launch.args, "exec", launch.local_rank)
    path = find_command(words[0], launch.environment, launch.local_rank)
    wrapper = wrapper_for(path)
    if wrapper:
        return wrapper[0], [*wrapper, path, *words[1:]]
    return path, words


def checked_words(entrypoint: object, args: Sequence[object], method: str, local_rank: int) -> list[str]:
    """Return the words of a command.

    Raises:
        StartError: one of them cannot be a word of a command.
    """
    words: list[str] = []
    for word in (entrypoint, *args):
        if not isinstance(word, str):
            raise StartError(
                f"the start method {method} runs commands, but {word!r} is not a string; "
                "use --start-method=spawn for a function",
                local_rank=local_rank,
            )
        if "\0" in word:
            raise StartError(f"the argument {word!r} holds a NUL byte", local_rank=local_rank)
        words.append(word)
    return words


def spawn_program(
    path: str,
    argv: list[str],
    environment: dict[str, str],
    output: Output,
    leaking: Sequence[int],
    keep: Sequence[int] = (),
) -> int:
    """Start ``path`` in a session of its own with default signals; return its pid.

    Of the agent's descriptors only 0, 1, 2 (redirected as ``output`` says) and ``keep`` stay open in it.
    """
    actions: list[tuple[int, ...]] = []
    if output.stdout >= 0:
        actions.append((os.POSIX_SPAWN_DUP2, output.stdout, 1))
    if output.stderr >= 0:
        actions.append((os.POSIX_SPAWN_DUP2, output.stderr, 2))
    actions += [(os.POSIX_SPAWN_CLOSE, descriptor) for descriptor in leaking if descriptor not in keep]
    # Onto itself: that only takes the close-on-exec mark away.
    actions += [(os.POSIX_SPAWN_DUP2, descriptor, descriptor) for descriptor in keep]
    return os.posix_spawn(
        path,
        argv,
        environment,
        file_actions=actions,
        setsid=True,
        setsigmask=[],
        setsigdef=_signals_to_reset(),
    )


@lru_cache(maxsize=1)
def _signals_to_reset() -> tuple[int, ...]:
    return tuple(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})


def leaking_descriptors() -> list[int]:
    """Return the descriptors above 2 that an exec'd child would inherit."""
    result = []
    for name in os.listdir("/proc/self/fd"):
        descriptor = int(name)
        with suppress(OSError):  # the listing's own descriptor, closed by now
            if descriptor > 2 and os.get_inheritable(descriptor):
                result.append(descriptor)
    return result
