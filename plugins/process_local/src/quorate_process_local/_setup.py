"""What a forked function worker does before its call: it puts in place what exec would have.

What does not live here: the call (:mod:`._task`).
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from typing import Any, final

from quorate.affinity import bind_thread
from quorate.proc import die_with_parent

from ._handle import Handle


@final
class Setup:
    """Sets session, parent-death signal, streams, environment and signals; called first thing in the worker.

    Arguments:
        environment: the worker's.
        agent: the agent's process id.
        is_child: whether the worker is a child of the agent (start method ``fork``) or of its fork server.
        stdout, stderr: descriptors for the worker's streams; -1: unchanged.
        cpus, memory_node: what a worker that is not the agent's child binds itself to; the agent binds its children.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        agent: int,
        is_child: bool,
        stdout: int,
        stderr: int,
        cpus: frozenset[int] | None = None,
        memory_node: int | None = None,
    ) -> None:
        self._environment, self._agent, self._is_child = dict(environment), agent, is_child
        self._cpus, self._memory_node = cpus, memory_node
        self._streams = [(Handle(source), target) for source, target in ((stdout, 1), (stderr, 2)) if source >= 0]

    def __call__(self) -> None:
        os.setsid()
        has_parent = die_with_parent(self._agent)
        # A fork server's worker has the server for its parent, and can only look whether the agent still exists.
        if not (has_parent if self._is_child else _exists(self._agent)):
            os._exit(1)
        for handle, target in self._streams:
            os.dup2(handle.descriptor, target)
            os.close(handle.descriptor)
            # New stream objects: the agent may have replaced its own (in a notebook, by a capture).
            stream = os.fdopen(
                target, "w", buffering=1 if target == 2 else -1, errors="backslashreplace", closefd=False
            )
            setattr(sys, "stdout" if target == 1 else "stderr", stream)
        os.environ.clear()
        os.environ.update(self._environment)
        bind_thread(self._cpus, self._memory_node)
        _reset_signals()


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _reset_signals() -> None:
    """Give every signal the handling that a fresh interpreter has."""
    signal.set_wakeup_fd(-1)
    fresh: dict[int, Any] = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGPIPE: signal.SIG_IGN,
        signal.SIGXFSZ: signal.SIG_IGN,
    }
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, fresh.get(number, signal.SIG_DFL))
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
