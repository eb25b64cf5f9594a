"""Functions that the tests run in workers; importable by name, so that they can be passed to a new interpreter."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import socket
import stat
import struct
import sys
import threading
from typing import Any


def nothing() -> None:
    return None


def echo(*arguments: Any) -> Any:
    return arguments


def blob(size: int) -> bytes:
    return b"x" * size


def tensor() -> Any:
    import torch
    import torch.multiprocessing  # its picklers hand tensors over as descriptors, which must not happen here

    return torch.arange(10_000, dtype=torch.float32).reshape(100, 100)


def boom() -> None:
    raise ValueError("a reason")


def leave(code: int | None) -> None:
    sys.exit(code)


def leave_at_once() -> None:
    os._exit(0)


def unpicklable() -> Any:
    return threading.Lock()


def surroundings() -> dict[str, Any]:
    """What a worker finds."""
    print("to stdout", flush=True)
    print("to stderr", file=sys.stderr)
    parent = multiprocessing.parent_process()
    return {
        "sid": os.getsid(0) == os.getpid(),
        "env": {name: os.environ.get(name) for name in ("A", "QUORATE_AGENT_TOKEN", "NOT_GIVEN")},
        "mask": set(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "term": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
        "int": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
        "daemon": multiprocessing.current_process().daemon,
        "parent": parent is not None and parent.is_alive(),
    }


def child_of_worker() -> int | None:
    """A worker may start processes of its own."""
    process = multiprocessing.get_context("fork").Process(target=nothing)
    process.start()
    process.join(30)
    return process.exitcode


def put(queue: Any, value: Any) -> None:
    queue.put(value)
    queue.close()
    queue.join_thread()


def sleep_in_child(path: str) -> None:
    """Leave a forked child in the worker's session, say its pid, and wait for the end."""
    pid = os.fork()
    if pid == 0:
        signal.pause()
    with open(path, "w") as ear:
        ear.write(f"{pid}\n")
    signal.pause()


def be_an_agent(method: str, answer: Any) -> None:
    """Run a group in this process, whatever it is itself, and send the returned values."""
    import select
    import time

    from quorate.records import WorkerLaunch
    from quorate.starter import StarterRequest
    from quorate_process_local import plugin

    backend = {backend.name: backend for backend in plugin.quorate_register_starter()}[method]
    values = []
    for turn in range(2):
        context = backend.create(StarterRequest(method, "inner")).start(
            [WorkerLaunch(rank, rank, "t", echo, (turn, rank), dict(os.environ), "") for rank in range(2)]
        )
        while not context.is_gone():
            wake_at = context.wake_at()
            select.select([context], [], [], None if wake_at is None else max(0.0, wake_at - time.monotonic()))
            values += [event.return_value for event in context.advance(time.monotonic())]
        context.close()
    answer.send(sorted(values))


def sleep_as_a_function(ear: str) -> None:
    """Tell ``ear``, and never end."""
    import time

    with open(ear, "w") as file:
        file.write("here\n")
    time.sleep(1000)


def put_simply(queue: Any, value: Any) -> None:
    queue.put(value)


def inheritable(*_: Any) -> list[int]:
    """The descriptors that a program started here would have."""
    there = [int(name) for name in os.listdir("/proc/self/fd")]
    return sorted(
        number for number in there if os.path.exists(f"/proc/self/fd/{number}") and os.get_inheritable(number)
    )


# --- what functions do around their end -----------------------------------------------------------------------------


def pass_door(door: str, value: Any) -> Any:
    """Return ``value`` once the named pipe ``door`` has been opened and closed."""
    with open(door) as pipe:
        pipe.read()
    return value


def swallow(number: int, value: Any) -> Any:
    """Return ``value``; signals of this number are caught from now on, and mean nothing."""
    signal.signal(number, lambda *_: None)
    return value


def _raise_time_out(*_: Any) -> None:
    raise TimeoutError("nothing to do with results")


def raise_on(number: int, value: Any) -> Any:
    signal.signal(number, _raise_time_out)
    return value


def _at_the_end(call: Any, *arguments: Any) -> None:
    # Not atexit: a forked worker runs none.
    from multiprocessing import util

    util.Finalize(None, call, args=arguments, exitpriority=1)


def abort_at_the_end(value: Any) -> Any:
    _at_the_end(os.abort)
    return value


def fail_at_the_end(value: Any) -> Any:
    _at_the_end(os._exit, 3)
    return value


def hang_at_the_end(value: Any, ignored: int) -> Any:
    import time

    if ignored:
        signal.signal(ignored, signal.SIG_IGN)
    _at_the_end(time.sleep, 1000)
    return value


def leave_a_thread(value: Any) -> Any:
    threading.Thread(target=threading.Event().wait).start()
    return value


def write_at_the_end(path: str, seconds: float) -> None:
    """Do something that takes its time when the process ends."""
    _at_the_end(_write_later, path, seconds)


def _write_later(path: str, seconds: float) -> None:
    import time

    time.sleep(seconds)
    with open(path, "w") as file:
        file.write("done")


def close_everything(first: int, path: str, value: Any) -> Any:
    """Close every descriptor from ``first`` on, and give the numbers to other files."""
    os.closerange(first, 1 << 16)
    for _ in range(64):
        os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    return value


def use_up_descriptors(value: Any) -> Any:
    try:
        while True:
            os.open(os.devnull, os.O_RDONLY)
    except OSError:
        return value


def leave_a_child(value: Any) -> Any:
    """Leave a forked child that holds all descriptors."""
    if os.fork() == 0:
        signal.pause()
    return value


def return_twice() -> int:
    """Return in a forked child as well."""
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
    return os.getpid()


class _Unloadable:
    def __reduce__(self) -> Any:
        return int, ("no number",)


def unloadable() -> Any:
    return _Unloadable()


def wait_in_an_agent(method: str, ear: str, door: str) -> None:
    """Be an agent with two workers, the first of which has delivered and waits; tell ``ear`` their pids."""
    import select

    from quorate.records import WorkerLaunch
    from quorate.starter import StarterRequest
    from quorate_process_local import plugin

    backend = {backend.name: backend for backend in plugin.quorate_register_starter()}[method]
    calls: list[tuple[Any, tuple[Any, ...]]] = [(echo, ()), (pass_door, (door, None))]
    launches = [WorkerLaunch(rank, rank, "t", *call, dict(os.environ), "") for rank, call in enumerate(calls)]
    context: Any = backend.create(StarterRequest(method, "doomed")).start(launches)
    while not context.delivered():
        select.select([context], [], [], 1.0)
        assert not context.advance(0.0)
    with open(ear, "w") as file:
        file.write(" ".join(map(str, context.pids().values())) + "\n")
    signal.pause()


def _connection() -> int:
    """Return the descriptor of this worker's connection to its agent."""
    for name in os.listdir("/proc/self/fd"):
        descriptor = int(name)
        try:
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                continue
        except OSError:
            continue
        with socket.socket(fileno=os.dup(descriptor)) as duplicate:
            try:
                peer = duplicate.getpeername()
            except OSError:
                continue
            if isinstance(peer, bytes) and peer.startswith(b"\0quorate-"):
                return descriptor
    raise AssertionError("no connection")


def announce(announced_bytes: int, sent_bytes: int = 0) -> None:
    """Announce a result, send a part of it, and hang."""
    descriptor = _connection()
    os.set_blocking(descriptor, True)
    data = memoryview(struct.pack("!Q", announced_bytes) + bytes(sent_bytes))
    while data:
        data = data[os.write(descriptor, data) :]
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    while True:
        signal.pause()


def send_for_ever(value: Any) -> None:
    """Send a result, and then whatever the agent takes."""
    descriptor = _connection()
    os.set_blocking(descriptor, True)
    packed = pickle.dumps(value)
    data = struct.pack("!Q", len(packed)) + packed
    while True:
        os.write(descriptor, data)
        data = bytes(1 << 20)


class Exits:
    """Ends whatever unpickles it."""

    def __reduce__(self) -> Any:
        return sys.exit, (0,)


class Nested:
    """Cannot be unpickled without a recursion that never ends."""

    def __reduce__(self) -> Any:
        return _nest, (Exits.__name__,)


def _nest(name: str) -> Any:
    return _nest(name)


class EndingError(BaseException):
    """Is not an Exception, as GeneratorExit and KeyboardInterrupt are not."""


class ConfusingError(Exception):
    """Has no text."""

    def __str__(self) -> str:
        raise EndingError("no text")


class Interrupts:
    """Raises when it is unpickled what most handlers do not catch."""

    def __reduce__(self) -> Any:
        return _raise_ending, ()


def _raise_ending() -> None:
    raise EndingError("end")


class Confuses:
    """Raises when it is unpickled what has no text."""

    def __reduce__(self) -> Any:
        return _raise_confusing, ()


def _raise_confusing() -> None:
    raise ConfusingError


class Shouts:
    """Raises when it is unpickled a text that would steer a terminal, without end."""

    def __reduce__(self) -> Any:
        return _shout, ()


def _shout() -> None:
    raise ValueError("\x1b[2J" + "a\n" * 100_000)


def hostile(kind: str) -> Any:
    kinds = {"exits": Exits, "nested": Nested, "confuses": Confuses, "interrupts": Interrupts, "shouts": Shouts}
    return kinds[kind]()


def affinity() -> list[int]:
    """Return the CPUs that this process may use."""
    return sorted(os.sched_getaffinity(0))
