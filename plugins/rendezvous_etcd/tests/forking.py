"""A parent that has used what it has used, and children that open a store: ``ENDPOINT RUN_ID SETTINGS PARENT CHILD COUNT``.

``SETTINGS`` is a JSON object of rendezvous settings, ``PARENT`` one of :data:`PARENTS`, ``CHILD`` one of
:data:`CHILDREN`.  Prints one line for each child: ``ok``, or what went wrong.  Each child has a deadline; one that
passes it is killed.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

from quorate.rendezvous import RendezvousParameters

CHILD_SECONDS = 6.0


def open_store(endpoint: str, run_id: str, settings: dict[str, Any]) -> Any:
    """Open a store of the backend ``etcd``."""
    from quorate_rendezvous_etcd import plugin

    (backend,) = (each for each in plugin.quorate_register_rendezvous() if each.name == "etcd")
    assert backend.open_store is not None
    return backend.open_store(RendezvousParameters("etcd", endpoint, run_id, 1, 8, **settings))


def use_everything(store: Any) -> None:
    """Read, write, count, watch, renew the leases; every one of them must be answered as promised."""
    assert store.create("created", b"1")
    assert not store.create("created", b"2")
    store.put("put", b"x" * 100_000)
    assert store.get(["put", "absent"]) == [b"x" * 100_000, None]
    assert [store.add("count", 1), store.add("count", 2)] == [1, 3]
    writer = threading.Timer(0.1, store.put, ("awaited", b"come"))
    writer.start()
    assert store.wait("awaited", 20.0) == b"come"
    writer.join()
    assert store.wait("never", 0.1) is None
    store.interrupt()
    assert store.wait("never", 20.0) is None
    store._membership.renew(time.monotonic() + 5.0)


# --- parents ----------------------------------------------------------------------------------------------------------


@contextmanager
def unused(*where: Any) -> Iterator[None]:
    """The parent has not even imported the backend."""
    yield


@contextmanager
def opened(*where: Any) -> Iterator[None]:
    """The parent's store is open, and still works when the children have been."""
    store = open_store(*where)
    use_everything(store)
    yield
    assert store.get(["created"]) == [b"1"]
    store.close()


@contextmanager
def closed(*where: Any) -> Iterator[None]:
    """The parent has just closed its store."""
    store = open_store(*where)
    use_everything(store)
    store.close()
    yield


_leaked: list[Any] = []


@contextmanager
def leaked(*where: Any) -> Iterator[None]:
    """The parent has lost a store that it never closed, and ends with another that it never closes."""
    use_everything(open_store(*where))
    _leaked.append(open_store(*where))
    yield


@contextmanager
def busy(*where: Any) -> Iterator[None]:
    """Other threads of the parent work, wait, and open and close stores at the moment of the fork."""
    store, ends = open_store(*where), threading.Event()

    def repeat(act: Callable[[], Any]) -> None:
        while not ends.is_set():
            act()

    def come_and_go() -> None:
        open_store(*where).close()

    acts = [lambda: store.add("busy", 1), lambda: store.wait("never", 0.2), come_and_go]
    threads = [threading.Thread(target=repeat, args=(act,)) for act in acts]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ends.set()
        for thread in threads:
            thread.join()
        store.close()


@contextmanager
def grpc_of_its_own(*where: Any) -> Iterator[None]:
    """The parent's own program has used gRPC before quorate was imported, and still does on another thread."""
    import grpc

    channel = grpc.insecure_channel(where[0].split(",")[0])
    grpc.channel_ready_future(channel).result(20.0)
    call, ends = channel.unary_unary("/etcdserverpb.KV/Range"), threading.Event()

    def work() -> None:
        while not ends.is_set():
            call(b"\x0a\x01k", timeout=20.0)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        ends.set()
        thread.join()
        channel.close()


PARENTS = {each.__name__: each for each in (unused, opened, closed, leaked, busy, grpc_of_its_own)}


# --- children ---------------------------------------------------------------------------------------------------------


def work(sender: Connection, where: Any, grandchildren: int = 0) -> None:
    """What a child does: everything, and says so."""
    try:
        store = open_store(*where)
        use_everything(store)
        if grandchildren:
            # Its own store is open meanwhile.
            for number in range(grandchildren):
                run_child("fork", (where[0], f"{where[1]}-{number}", where[2]))
            assert store.get(["created"]) == [b"1"]
        store.close()
        sender.send("ok")
    except BaseException:
        sender.send(traceback.format_exc())


def run_child(method: str, where: Any, grandchildren: int = 0) -> None:
    """Run one child; raises AssertionError with what it has said, or how it ended, unless all was well."""
    if method == "os.fork":
        run_forked(where)
        return
    context: Any = multiprocessing.get_context(method)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(sender, where, grandchildren))
    process.start()
    sender.close()
    judge(receiver, process.pid)
    process.join(CHILD_SECONDS)
    exitcode, alive = process.exitcode, process.is_alive()
    if alive:
        process.kill()
        process.join()
    assert exitcode == 0, f"exit code {exitcode}"
    process.close()


def judge(receiver: Connection, pid: int) -> None:
    """Raise unless the child says ``ok`` in time."""
    try:
        said = receiver.recv() if receiver.poll(CHILD_SECONDS) else f"nothing for {CHILD_SECONDS} s"
    except EOFError:
        said = "nothing, and ended"
    receiver.close()
    if said.startswith("nothing for"):
        os.kill(pid, 9)
    assert said == "ok", said


class _Ends(Exception):  # noqa: N818 - it is a way out, not an error
    """Takes a child of os.fork out of its parent's program."""


def run_forked(where: Any) -> None:
    """Run a child that ends as an interpreter ends: its modules are torn down, its exit functions run."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    pid = os.fork()
    if pid == 0:
        receiver.close()
        work(sender, where)
        raise _Ends
    sender.close()
    judge(receiver, pid)
    end = time.monotonic() + CHILD_SECONDS
    ticker = threading.Event()
    while (found := os.waitpid(pid, os.WNOHANG)) == (0, 0):
        if time.monotonic() > end:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            raise AssertionError("it did not end")
        ticker.wait(0.01)
    code = os.waitstatus_to_exitcode(found[1])
    assert code == 7, f"exit code {code}"


CHILDREN = {
    "fork": ("fork", 0),
    "spawn": ("spawn", 0),
    "forkserver": ("forkserver", 0),
    "os.fork": ("os.fork", 0),
    "grandchildren": ("fork", 3),
}


def main() -> None:
    endpoint, run_id, settings_text, parent, child, count = sys.argv[1:]
    settings = json.loads(settings_text)
    method, grandchildren = CHILDREN[child]
    with PARENTS[parent](endpoint, f"{run_id}-parent", settings):
        for number in range(int(count)):
            try:
                run_child(method, (endpoint, f"{run_id}-{number}", settings), grandchildren)
                print("ok", flush=True)
            except AssertionError as error:
                print(str(error).strip().replace("\n", " | "), flush=True)


if __name__ == "__main__":
    try:
        main()
    except _Ends:
        sys.exit(7)
