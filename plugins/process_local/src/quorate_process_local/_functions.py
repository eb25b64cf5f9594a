"""The start methods ``spawn``, ``fork`` and ``forkserver``: a function per worker, by the parts of ``multiprocessing``.

``Process.start`` is not used: it refuses to work in a daemonic process, has no options for session, environment and
descriptors, and waits for the process in its own way.  What a user sees inside the worker (``current_process``, the
main module, what can be passed as argument) is the same.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing import (
    context as contexts,
    forkserver,
    popen_forkserver,
    popen_spawn_posix,
    reduction,
    resource_tracker,
    spawn,
)
from multiprocessing.process import BaseProcess
from typing import Any, final

from quorate import notices
from quorate.affinity import bound_thread
from quorate.errors import StartError
from quorate.files import write_all
from quorate.proc import hold, is_alive
from quorate.records import WorkerLaunch
from quorate.starter import ProcessContext, StarterRequest

from ._commands import working_folder, wrapper_for
from ._context import LocalContext
from ._exec import leaking_descriptors, spawn_program
from ._group import start_group
from ._results import STALL_SECONDS
from ._setup import Setup
from ._streams import Output
from ._task import Task
from ._torch_import import PROLOGUE
from ._workers import ChildProcess, Process


@final
class FunctionStarter:
    """Starts functions.  ``fork`` copies the agent; ``forkserver`` keeps a server until the agent ends.

    A worker whose result stops on its way for ``stall_seconds`` is killed.
    """

    def __init__(self, request: StarterRequest, stall_seconds: float = STALL_SECONDS) -> None:
        self._request, self._stall_seconds = request, stall_seconds
        self._starts: dict[str, Callable[..., Process]] = {
            "spawn": _spawn,
            "fork": _fork,
            "forkserver": _fork_by_server,
        }

    def start(self, launches: Sequence[WorkerLaunch]) -> ProcessContext:
        """See :class:`quorate.starter.Starter`."""
        for launch in launches:
            if not callable(launch.entrypoint):
                raise StartError(
                    f"the start method {self._request.start_method} calls functions, but the entrypoint is "
                    f"{launch.entrypoint!r}; use --start-method=exec for a command",
                    local_rank=launch.local_rank,
                )
        start_one = self._starts[self._request.start_method]

        def launch_all(context: LocalContext) -> None:
            address = context.expect_results(self._stall_seconds)
            for launch in launches:
                context.launch(launch, partial(start_one, address=address))

        return start_group(self._request, launch_all)


def _check_main(launch: WorkerLaunch, method: str) -> None:
    """Refuse a function of a program that no other process can import: one from stdin or from ``python -c``.

    Raises:
        StartError: it is one.
    """
    main = sys.modules.get("__main__")
    path = getattr(main, "__file__", None)
    function: Any = launch.entrypoint
    while isinstance(function, partial):
        function = function.func
    is_importable = getattr(main, "__spec__", None) is not None or (path is not None and os.path.exists(path))
    if not is_importable and getattr(function, "__module__", None) == "__main__":
        raise StartError(
            f"{getattr(function, '__qualname__', repr(function))} is part of a program from stdin, python -c or an "
            f"interactive session, which a worker of the start method {method} cannot import; "
            "put it into a module, or use the start method fork",
            local_rank=launch.local_rank,
        )


def prepare_call(method: str, launch: WorkerLaunch, setup: Setup | None, address: bytes) -> tuple[Task, BaseProcess]:
    """Return the task that calls ``launch``'s function, and a process object that runs it."""
    assert not isinstance(launch.entrypoint, str)
    if method != "fork":
        working_folder(method, launch.local_rank)
        _check_main(launch, method)
    task = Task((launch.entrypoint, launch.args), address, setup, launch.error_file)
    # Process is there in every start method's context, whatever the stubs of the base class say.
    make: Any = multiprocessing.get_context(method)
    process: BaseProcess = make.Process(target=task, name=f"worker-{launch.local_rank}", daemon=False)
    return task, process


def _fork(launch: WorkerLaunch, environment: dict[str, str], output: Output, address: bytes) -> Process:
    agent = os.getpid()
    _, process = prepare_call("fork", launch, Setup(environment, agent, True, output.stdout, output.stderr), address)
    notices.flush()  # or the worker would print again what the agent has printed
    # A signal for the worker must not run the agent's handlers in it; Setup unblocks signals again.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        with bound_thread(launch.cpus, launch.memory_node):
            pid = os.fork()
            if pid == 0:
                _run_worker(process, agent)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return ChildProcess(pid)


def _run_worker(process: Any, agent: int) -> None:
    """In the forked child: run the worker and never return."""
    exit_code = 1
    try:
        try:
            sentinel = os.pidfd_open(agent)  # readable once the agent is dead
        except (AttributeError, OSError):
            sentinel = None
        exit_code = process._bootstrap(parent_sentinel=sentinel)
    finally:
        os._exit(exit_code)


@final
class _Spawn(popen_spawn_posix.Popen):
    """A new interpreter that runs the standard library's own main function for spawned processes.

    Unlike the standard library's, it starts no resource tracker: one that runs is shared, else nothing needs one.
    """

    def __init__(self, process: BaseProcess, environment: dict[str, str], output: Output) -> None:
        self._environment, self._output = environment, output
        self.child: ChildProcess | None = None
        super().__init__(process)

    _fds: list[int]  # of the base class: what the pickled task refers to

    def _launch(self, process_obj: BaseProcess) -> None:
        message = io.BytesIO()
        contexts.set_spawning_popen(self)
        try:
            preparation = spawn.get_preparation_data(process_obj.name)
            if not os.path.exists(preparation.get("init_main_from_path", os.sep)):
                del preparation["init_main_from_path"]  # "<stdin>": nothing that could be imported
            reduction.dump(preparation, message)
            reduction.dump(process_obj, message)
        finally:
            contexts.set_spawning_popen(None)
        read_end, write_end = os.pipe()
        try:
            tracker = getattr(getattr(resource_tracker, "_resource_tracker", None), "_fd", None)
            argv = spawn.get_command_line(tracker_fd=tracker, pipe_handle=read_end)
            if "-c" in argv:
                argv[argv.index("-c") + 1] = PROLOGUE + argv[argv.index("-c") + 1]
            argv = [*wrapper_for(argv[0]), *argv]
            keep = [read_end, *self._fds, *([] if tracker is None else [tracker])]
            pid = spawn_program(argv[0], argv, self._environment, self._output, leaking_descriptors(), keep)
        except BaseException:
            os.close(write_end)
            raise
        finally:
            os.close(read_end)
        # The write end stays open as long as the agent lives: the worker sees by it whether its parent lives.
        self.child = ChildProcess(pid, hold(write_end))
        with suppress(BrokenPipeError):  # it has already ended, which is noticed as an exit
            write_all(write_end, message.getbuffer())


def _spawn(launch: WorkerLaunch, environment: dict[str, str], output: Output, address: bytes) -> Process:
    if launch.error_file:
        environment.setdefault("TORCHELASTIC_ERROR_FILE", launch.error_file)
    task, process = prepare_call("spawn", launch, None, address)
    try:
        with bound_thread(launch.cpus, launch.memory_node):
            child = _Spawn(process, environment, output).child
        assert child is not None
        return child
    except Exception as error:
        raise unpicklable(launch, "spawn", error) from error
    finally:
        task.close()


def unpicklable(launch: WorkerLaunch, method: str, error: Exception) -> Exception:
    """Return what to raise for an error in pickling a worker's call."""
    if isinstance(error, OSError):
        return error
    name = getattr(launch.entrypoint, "__qualname__", repr(launch.entrypoint))
    return StartError(
        f"{name} or its arguments cannot be passed to a worker by the start method {method}: {error}. "
        "Define the function at the top level of a module and pass what can be pickled, or use --start-method=fork",
        local_rank=launch.local_rank,
    )


def _fork_by_server(launch: WorkerLaunch, environment: dict[str, str], output: Output, address: bytes) -> Process:
    _disown_server()
    # The worker is the server's child and binds itself.  This thread stays unbound, because it may start the server.
    setup = Setup(environment, os.getpid(), False, output.stdout, output.stderr, launch.cpus, launch.memory_node)
    task, process = prepare_call("forkserver", launch, setup, address)
    try:
        return _ServedProcess(popen_forkserver.Popen(process))
    except Exception as error:
        raise unpicklable(launch, "forkserver", error) from error
    finally:
        task.close()


_server_owner = os.getpid()


def _disown_server() -> None:
    """Forget a fork server that this process inherited by being forked: it belongs to the parent process."""
    global _server_owner
    if os.getpid() != _server_owner:
        _server_owner = os.getpid()
        server: Any = getattr(forkserver, "_forkserver", None)
        if server is not None:
            preloaded = server._preload_modules
            server.__init__()
            server.set_forkserver_preload(preloaded)


@final
class _ServedProcess:
    """A child of the fork server, which reaps it at once and reports its exit code through a pipe."""

    is_held = False

    def __init__(self, popen: popen_forkserver.Popen) -> None:
        self.pid: int = popen.pid
        self.descriptor: int = popen.sentinel
        self.problem = ""
        self._popen = popen

    def poll(self) -> int | None:
        """See :class:`._workers.Process`."""
        exit_code: int | None = self._popen.poll()
        if exit_code == 255 and is_alive(self.pid):
            self.problem = "the fork server ended before its worker, which was killed"
            os.kill(self.pid, signal.SIGKILL)
        return exit_code

    def release(self) -> None:
        """See :class:`._workers.Process`."""
        if self.descriptor >= 0:
            self._popen.close()
            self.descriptor = -1
