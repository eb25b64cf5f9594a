"""A parent, and children of it that open a store: ``ENDPOINT RUN_ID SETTINGS PARENT CHILD COUNT``.

``SETTINGS`` is a JSON object of rendezvous settings, ``PARENT`` is one of :data:`PARENTS` and ``CHILD`` one of
:data:`CHILDREN`.  Prints one line for each child: ``ok``, or what went wrong.  A child that passes its deadline is
killed and reported.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from quorate.rendezvous import RendezvousParameters

CHILD_SECONDS = 60.0
#: How a child of ``os.fork`` ends that has come to the end of its program.
END_OF_PROGRAM = 7

Where = tuple[str, str, dict[str, Any]]  # endpoint, run id, settings
Finish = Callable[[], None]


def open_store(endpoint: str, run_id: str, settings: dict[str, Any]) -> Any:
    """Open a store of the backend ``etcd``."""
    from quorate_rendezvous_etcd import plugin

    (backend,) = (each for each in plugin.quorate_register_rendezvous() if each.name == "etcd")
    assert backend.open_store is not None
    return backend.open_store(RendezvousParameters("etcd", endpoint, run_id, 1, 8, **settings))


def use_everything(store: Any) -> None:
    """Read, write, count, wait, be woken, and keep the leases alive."""
    key = os.urandom(4).hex()
    assert store.create(f"{key}/created", b"1")
    assert not store.create(f"{key}/created", b"2")
    store.put(f"{key}/put", b"x" * 100_000)
    assert store.get([f"{key}/put", "absent"]) == [b"x" * 100_000, None]
    assert [store.add(f"{key}/count", 1), store.add(f"{key}/count", 2)] == [1, 3]
    writer = threading.Timer(0.05, store.put, (f"{key}/awaited", b"come"))
    writer.start()
    assert store.wait(f"{key}/awaited", CHILD_SECONDS) == b"come"
    writer.join()
    assert store.wait("never", 0.05) is None
    store.interrupt()
    assert store.wait("never", CHILD_SECONDS) is None
    store._membership.renew(time.monotonic() + 5.0)


# --- parents: each returns what to do once its children have ended ----------------------------------------------------


def unused(where: Where) -> Finish:
    """It has not even imported the backend."""
    return lambda: None


def opened(where: Where) -> Finish:
    """Its store is open, and works as before when the children have ended."""
    store = open_store(*where)
    use_everything(store)

    def finish() -> None:
        use_everything(store)
        store.close()

    return finish


def closed(where: Where) -> Finish:
    """It has just closed its store."""
    store = open_store(*where)
    use_everything(store)
    store.close()
    return lambda: None


_leaked: list[Any] = []


def leaked(where: Where) -> Finish:
    """It has lost a store that it never closed, and keeps another to its very end."""
    use_everything(open_store(*where))
    _leaked.append(open_store(*where))
    return lambda: None


def _repeat(*acts: Callable[[], Any]) -> Finish:
    """Do each of ``acts`` again and again on a thread of its own."""
    ends = threading.Event()

    def repeat(act: Callable[[], Any]) -> None:
        while not ends.is_set():
            act()

    threads = [threading.Thread(target=repeat, args=(act,)) for act in acts]
    for thread in threads:
        thread.daemon = True
        thread.start()

    def finish() -> None:
        ends.set()
        for thread in threads:
            thread.join()

    return finish


def busy(where: Where) -> Finish:
    """Its other threads work, wait, and open and close stores at the moment of the fork."""
    store = open_store(*where)
    stop = _repeat(
        lambda: store.add("busy", 1),
        lambda: store.wait("never", 0.2),
        lambda: open_store(*where).close(),
    )

    def finish() -> None:
        stop()
        use_everything(store)
        store.close()

    return finish


def importing(where: Where) -> Finish:
    """Another thread of it is importing the backend, and all that it needs, at the moment of the fork."""
    has_begun = threading.Event()

    class Notice:
        """Sees the first import of a library."""

        def find_spec(self, name: str, *more: Any) -> None:
            if name.startswith(("h2", "google")):
                has_begun.set()

    sys.meta_path.insert(0, Notice())  # type: ignore[arg-type] # only what is needed here
    thread = threading.Thread(target=lambda: open_store(*where).close(), daemon=True)
    thread.start()
    assert has_begun.wait(CHILD_SECONDS)
    return thread.join


def _open_grpc(endpoint: str) -> Any:
    import grpc

    channel = grpc.insecure_channel(endpoint.split(",")[0])
    grpc.channel_ready_future(channel).result(CHILD_SECONDS)
    return channel


def grpc_of_its_own(where: Where) -> Finish:
    """Its program has used gRPC before quorate was imported, as gRPC comes, and its channel is open."""
    assert not any(name.startswith("quorate_rendezvous") for name in sys.modules)
    channel = _open_grpc(where[0])
    channel.unary_unary("/etcdserverpb.KV/Range")(b"\x0a\x01k", timeout=CHILD_SECONDS)
    finish: Finish = channel.close
    return finish


def busy_grpc_of_its_own(where: Where) -> Finish:
    """Another thread of its program is inside gRPC at the moment of the fork.

    gRPC's own fork handlers crash such children, whatever they do; a program that does this has to turn them off.
    """
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    call = _open_grpc(where[0]).unary_unary("/etcdserverpb.KV/Range")
    return _repeat(lambda: call(b"\x0a\x01k", timeout=CHILD_SECONDS))


_PARENTS = (unused, opened, closed, leaked, busy, importing, grpc_of_its_own, busy_grpc_of_its_own)
PARENTS = {each.__name__: each for each in _PARENTS}


# --- children ---------------------------------------------------------------------------------------------------------


def work(sender: Connection, where: Where, grandchildren: int = 0) -> None:
    """Do everything, and say ``ok`` or what went wrong."""
    try:
        store = open_store(*where)
        use_everything(store)
        for number in range(grandchildren):
            # This child's own store is open meanwhile.
            run_child("fork", (where[0], f"{where[1]}-{number}", where[2]))
        if grandchildren:
            use_everything(store)
        store.close()
        sender.send("ok")
    except BaseException:
        sender.send(traceback.format_exc())


def run_child(method: str, where: Where, grandchildren: int = 0) -> None:
    """Run one child.  Raises AssertionError with what it has said, or how it ended, unless all was well."""
    if method == "os.fork":
        run_forked(where)
        return
    context: Any = multiprocessing.get_context(method)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(sender, where, grandchildren))
    process.start()
    sender.close()
    try:
        hear(receiver)
        process.join(CHILD_SECONDS)
        assert process.exitcode == 0, f"exit code {process.exitcode}"
    finally:
        process.kill()
        process.join()
        process.close()


def hear(receiver: Connection) -> None:
    """Raise AssertionError unless the child says ``ok`` in time."""
    try:
        said = receiver.recv() if receiver.poll(CHILD_SECONDS) else f"nothing for {CHILD_SECONDS:g} s"
    except EOFError:
        said = "nothing, and ended"
    receiver.close()
    assert said == "ok", said


class EndOfProgram(BaseException):
    """Takes a child of ``os.fork`` out of its parent's program, to where interpreters end."""


def run_forked(where: Where) -> None:
    """Run a child that ends as programs do: its exit functions run, its modules are torn down."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    pid = os.fork()
    if pid == 0:
        receiver.close()
        work(sender, where)
        raise EndOfProgram
    sender.close()
    watchdog = threading.Timer(CHILD_SECONDS, os.kill, (pid, 9))
    watchdog.start()
    try:
        hear(receiver)
    finally:
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        watchdog.cancel()
        watchdog.join()
    assert code == END_OF_PROGRAM, f"exit code {code}"


CHILDREN = {
    "fork": ("fork", 0),
    "spawn": ("spawn", 0),
    "forkserver": ("forkserver", 0),
    "os.fork": ("os.fork", 0),
    "grandchildren": ("fork", 3),
}


def main() -> None:
    """Be the parent."""
    warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of what is tried here
    endpoint, run_id, settings, parent, child, count = sys.argv[1:]
    method, grandchildren = CHILDREN[child]
    finish = PARENTS[parent]((endpoint, f"{run_id}-parent", json.loads(settings)))
    for number in range(int(count)):
        said = "ok"
        try:
            run_child(method, (endpoint, f"{run_id}-{number}", json.loads(settings)), grandchildren)
        except AssertionError as error:
            said = " | ".join(str(error).split("\n"))
        print(said, flush=True)
    finish()


def run() -> NoReturn:
    """Run :func:`main`, in the child of ``os.fork`` up to its end."""
    try:
        main()
    except EndOfProgram:
        sys.exit(END_OF_PROGRAM)
    sys.exit()


if __name__ == "__main__":
    run()
