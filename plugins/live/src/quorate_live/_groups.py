"""torch's process groups of one world: breaking what blocks in them, and taking them down without hanging.

Three facts of torch 2.13 shape this module.  A collective of gloo that waits for another worker ends when its sockets
are shut down, and not by its ``abort``; those that go on all the same are ended by :mod:`._gloo`.  Destroying a group
of gloo joins threads that may need the interpreter's lock, which the destroying thread holds; so the objects of a world
that has ended stay referenced until the next one ends, when those threads are idle.  And a DDP module keeps hooks on
its parameters, which would act in the next world's backward pass; so it is taken apart.

What does not live here: when this is done (:mod:`._world`).
"""

from __future__ import annotations

import gc
import os
import resource
import socket
import stat
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from types import FrameType
from typing import Any, final

from quorate.notices import warn

from ._gloo import Waits

_TCP = (socket.AF_INET, socket.AF_INET6)
#: More are not looked at where the kernel does not list those that are open.
_MOST_DESCRIPTORS = 1 << 16
_MAKER = "_new_process_group_helper"

#: What is left of the world that ended last.
_remains: list[Any] = []


def _c10d() -> Any:
    """Return torch's module of process groups if the program has imported it and it works here, else ``None``."""
    return sys.modules.get("torch.distributed.distributed_c10d")


@final
class Groups:
    """The process groups that are made in one world; begins to note their sockets at once."""

    def __init__(self) -> None:
        self._before = set(_sockets())
        self._owned: set[tuple[int, int]] = set()
        self._making: list[set[tuple[int, int]]] = []
        self._lock = threading.Lock()
        self._waits = Waits()
        self._restore: Callable[[], None] = lambda: None
        self._watch_makers()

    def _watch_makers(self) -> None:
        """Have the sockets noted that are opened while torch makes a group."""
        c10d = _c10d()
        real = getattr(c10d, _MAKER, None)
        if real is None:
            return

        def make(*arguments: Any, **keywords: Any) -> Any:
            before = set(_sockets())
            with self._lock:
                self._making.append(before)
            try:
                return real(*arguments, **keywords)
            finally:
                with self._lock:
                    self._owned |= set(_sockets()) - before
                    self._making.remove(before)

        def restore() -> None:
            if getattr(c10d, _MAKER) is make:
                setattr(c10d, _MAKER, real)

        setattr(c10d, _MAKER, make)
        self._restore = restore

    # --- on the thread of the channel -------------------------------------------------------------------------------

    def break_collectives(self) -> None:
        """End all collectives that wait for other workers; those to come fail.  To be called until they have ended."""
        for group in self._all():
            for backend in _backends_of(group):
                if hasattr(backend, "abort") and "gloo" not in type(backend).__name__.lower():
                    try:
                        backend.abort()  # NCCL and its like; the seam for a backend that can leave its peers otherwise
                    except Exception as error:
                        warn(f"{type(backend).__name__} could not be aborted ({error})")
        self._shut_sockets()
        self._waits.end()

    def _shut_sockets(self) -> None:
        """Shut down the TCP connections of gloo and of the store, and only those of this world."""
        with self._lock:
            here = set(_sockets())
            ours = self._owned & here
            for before in self._making:
                ours |= here - before
        port = os.environ.get("MASTER_PORT", "")
        for descriptor, inode in (here - self._before) | ours:
            _shut(descriptor, inode, (descriptor, inode) in ours, port)

    @staticmethod
    def _all() -> list[Any]:
        world = getattr(_c10d(), "_world", None)
        return list(getattr(world, "pg_map", ()))

    # --- on the main thread -----------------------------------------------------------------------------------------

    def close(self) -> None:
        """Note no further sockets."""
        self._restore()

    def take_down(self) -> None:
        """Take the groups of this world down, so that new ones can be made."""
        self.close()
        remains: list[Any] = []
        c10d = _c10d()
        if c10d is not None and c10d.is_initialized():
            world = c10d._world
            for group in self._all():
                remains += [group, *_backends_of(group)]
            remains += list(world.pg_map.values())
            for module in _parallel_modules():
                reducer = module.__dict__.pop("reducer", None)
                if reducer is not None:
                    # It lives on among the remains, and one that was interrupted in a backward pass waits for the rest.
                    reducer._remove_autograd_hooks()
                remains += [reducer, module.__dict__.pop("logger", None)]
            try:
                c10d.destroy_process_group()
            except Exception as error:
                warn(f"torch's process groups could not be destroyed ({type(error).__name__}: {error})")
        _remains[:] = remains  # what was left of the world before goes now

    def holders(self) -> list[str]:
        """Return the names of other threads that use this world's groups."""
        names = [_holder_of(thread) for thread in threading.enumerate() if thread is not threading.current_thread()]
        return [name for name in names if name]


def destroy() -> None:
    """At the end of the last world: destroy the groups as any program does."""
    c10d = _c10d()
    if c10d is not None and c10d.is_initialized():
        c10d.destroy_process_group()
    _remains.clear()


def _backends_of(group: Any) -> Iterator[Any]:
    for device in getattr(group, "_device_types", ()):
        with suppress(RuntimeError):  # it has none for that device yet
            yield group._get_backend(device)


def _parallel_modules() -> Iterator[Any]:
    parallel = getattr(sys.modules.get("torch.nn.parallel.distributed"), "DistributedDataParallel", None)
    if parallel is not None:
        yield from [
            each for each in gc.get_objects() if isinstance(type(each), type) and issubclass(type(each), parallel)
        ]


def _sockets() -> Iterator[tuple[int, int]]:
    """Yield descriptor and inode of each socket of this process."""
    for descriptor in _descriptors():
        try:
            status = os.fstat(descriptor)
        except OSError:
            continue
        if stat.S_ISSOCK(status.st_mode):
            yield descriptor, status.st_ino


def _descriptors() -> Iterable[int]:
    """Return the descriptors that may be open."""
    try:
        return [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:  # the program has used up its descriptors, or has changed its root folder
        return range(min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], _MOST_DESCRIPTORS))


def _shut(descriptor: int, inode: int, is_ours: bool, master_port: str) -> None:
    """Shut a connection down if it is ours, or one to the store that the world meets at."""
    try:
        used = os.dup(descriptor)  # so that it cannot become another one meanwhile
    except OSError:
        used = descriptor  # the program has used up its descriptors
    connection = None
    try:
        # Not socket.socket: the program may have replaced that.
        connection = socket.SocketType(fileno=used)
        if os.fstat(used).st_ino != inode or connection.family not in _TCP:
            return
        peer = connection.getpeername()
        if is_ours or str(peer[1]) == master_port:
            connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it is not connected, or not open any more
    finally:
        if connection is not None:
            connection.detach()
        if used != descriptor:
            os.close(used)


def _holder_of(thread: threading.Thread) -> str:
    frame: FrameType | None = sys._current_frames().get(thread.ident or 0)
    while frame is not None:
        if str(frame.f_globals.get("__name__", "")).startswith("torch.distributed."):
            return thread.name
        frame = frame.f_back
    return ""
