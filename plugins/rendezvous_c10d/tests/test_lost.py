"""What happens when the host is gone, frozen, or was never there: one clear error, in time."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from quorate.clock import monotonic
from quorate.errors import StoreLostError, StoreUnavailableError, UsageError
from quorate.testing import CuttableProxy, answered, open_descriptors, settles

from .c10d_harness import DEADLINE_SECONDS, Member


def test_a_killed_host_ends_a_blocked_wait(
    endpoint: str, open_store: Callable[..., Any], member: Callable[..., Member]
) -> None:
    host = member(endpoint)
    assert host.opened()
    store = open_store(endpoint)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(store.wait, "absent", 3600.0)
        assert settles(lambda: bool(store._waiting and store._waiter is not None))
        host.kill()
        with pytest.raises(StoreLostError, match="the node that hosted the c10d store") as caught:
            waiting.result(DEADLINE_SECONDS)
    assert endpoint in str(caught.value)
    # The verdict is final: it is not looked for again, also where another program has taken the port.
    replacement = member(endpoint)
    assert replacement.opened()
    for name, arguments in (("get", (["key"],)), ("create", ("key", b"")), ("wait", ("key", 3600.0))):
        with pytest.raises(StoreLostError, match="the node that hosted the c10d store"):
            getattr(store, name)(*arguments)


def test_a_killed_host_fails_the_next_operation(
    endpoint: str, open_store: Callable[..., Any], member: Callable[..., Member]
) -> None:
    host = member(endpoint)
    assert host.opened()
    store = open_store(endpoint)
    host.kill()
    with pytest.raises(StoreLostError, match="refuses connections"):
        store.add("count", 1)


def test_another_store_in_its_place_is_recognised(
    endpoint: str, open_store: Callable[..., Any], member: Callable[..., Member]
) -> None:
    host = member(endpoint)
    assert host.opened()
    store = open_store(endpoint)
    host.kill()
    assert member(endpoint).opened()
    with pytest.raises(StoreLostError, match="another store listens"):
        store.put("key", b"value")


def test_a_frozen_host_is_unavailable_and_then_there_again(
    endpoint: str, open_store: Callable[..., Any], member: Callable[..., Member]
) -> None:
    host = member(endpoint)
    assert host.opened()
    store = open_store(endpoint, operation_timeout=0.5)
    answered(lambda: store.put("key", b"value"))
    host.signal(signal.SIGSTOP)

    def use() -> None:
        # The signal is not carried out at once: the host may still answer a few, and some of them late.
        for number in range(1_000_000):
            try:
                store.create(f"frozen/{number}", b"mine")
            except StoreUnavailableError as error:
                if "opened again" not in str(error):
                    raise

    for _ in range(2):
        with pytest.raises(StoreUnavailableError, match="does not answer") as caught:
            use()
        assert not isinstance(caught.value, StoreLostError)
    host.signal(signal.SIGCONT)
    assert answered(lambda: store.get(["key"])) == [b"value"]


def test_a_create_without_an_answer_can_be_repeated(endpoint: str, open_store: Callable[..., Any]) -> None:
    host = open_store(endpoint)
    with CuttableProxy(endpoint) as proxy:
        store = open_store(proxy.endpoint)
        with (
            proxy.losing_answers(),
            pytest.raises(StoreUnavailableError, match="may or may not have been applied"),
        ):
            store.create("key", b"value")
        assert store.create("key", b"value")
        assert not store.create("key", b"value")
        assert not host.create("key", b"value")
        store.close()


def test_a_dropped_connection_does_not_end_a_wait(endpoint: str, open_store: Callable[..., Any]) -> None:
    host, store = open_store(endpoint), open_store(endpoint)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(store.wait, "key", 3600.0)
        assert settles(lambda: bool(store._waiting and store._waiter is not None))
        first = store._waiter
        first.shut()
        assert settles(lambda: store._waiter is not None and store._waiter is not first)
        host.put("key", b"value")
        assert waiting.result(DEADLINE_SECONDS) == b"value"


# --- never there ----------------------------------------------------------------------------------------------------


def test_an_endpoint_without_a_listener(endpoint: str, open_store: Callable[..., Any]) -> None:
    started = monotonic()
    with pytest.raises(StoreUnavailableError) as caught:
        open_store(endpoint, is_host=False, connect_timeout=0.5)
    assert 0.5 <= monotonic() - started < DEADLINE_SECONDS
    for word in (endpoint, "connection refused", "--rdzv-endpoint", "is_host=true"):
        assert word in str(caught.value)


def test_a_name_that_does_not_resolve(open_store: Callable[..., Any]) -> None:
    with pytest.raises(StoreUnavailableError, match=r"no-such-host\.invalid.*does not resolve"):
        open_store("no-such-host.invalid:29400", connect_timeout=0.2)


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Accepts connections, by the kernel's hand alone, and never says a word."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(64)
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_a_server_that_is_no_tcpstore_is_given_up_in_time(silent_server: str, open_store: Callable[..., Any]) -> None:
    before = open_descriptors()
    with pytest.raises(StoreUnavailableError, match="does not answer as a TCPStore"):
        open_store(silent_server, connect_timeout=0.5)
    assert settles(lambda: open_descriptors() <= before)  # what earlier tests left may have closed meanwhile


def test_a_host_that_finds_its_port_taken_says_so(silent_server: str, open_store: Callable[..., Any]) -> None:
    with pytest.raises(UsageError, match=r"must host.*is_host is true.*is in use on this node.*another port"):
        open_store(silent_server, is_host=True, connect_timeout=0.2)


def test_members_that_come_before_the_host_wait_for_it(endpoint: str, member: Callable[..., Member]) -> None:
    early = [member(endpoint, is_host=False) for _ in range(2)]
    host = member(endpoint, is_host=True)
    assert host.opened()
    assert not any(process.opened() for process in early)


def test_a_closed_store_refuses(endpoint: str, open_store: Callable[..., Any]) -> None:
    store = open_store(endpoint)
    store.close()
    with pytest.raises(StoreLostError, match="closed"):
        store.get(["key"])


def test_wrong_settings_are_refused_before_anything_is_opened(open_store: Callable[..., Any]) -> None:
    with pytest.raises(UsageError):
        open_store("")


# --- what people see ------------------------------------------------------------------------------------------------


def test_ordinary_ends_print_nothing_and_workers_inherit_nothing(endpoint: str) -> None:
    """torch logs timeouts and closed connections with C++ stack traces; none of it reaches stderr."""
    script = f"""
import os, subprocess, sys, threading
from quorate.rendezvous import RendezvousParameters
from quorate_rendezvous_c10d import plugin
backend, = plugin.quorate_register_rendezvous()
host = backend.open_store(RendezvousParameters("c10d", {endpoint!r}, "job", 1, 2))
store = backend.open_store(RendezvousParameters("c10d", {endpoint!r}, "job", 1, 2))
assert store.wait("absent", 0.1) is None
timer = threading.Timer(0.1, store.interrupt)
timer.start()
assert store.wait("absent", 3600.0) is None
host.close()
try:
    store.get(["key"])
except Exception as error:
    assert type(error).__name__ == "StoreLostError", error
store.close()
assert "TORCH_CPP_LOG_LEVEL" not in os.environ
subprocess.run([sys.executable, "-c", "import os; assert 'TORCH_CPP_LOG_LEVEL' not in os.environ"], check=True)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=DEADLINE_SECONDS)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


FORKING_HOST = """
import os, sys, warnings
warnings.simplefilter("ignore")  # Python warns of forks beside threads; function workers are started that way
from quorate.errors import StoreUnavailableError
from quorate.rendezvous import RendezvousParameters
from quorate_rendezvous_c10d import plugin
backend, = plugin.quorate_register_rendezvous()
store = backend.open_store(RendezvousParameters("c10d", sys.argv[1], "job", 1, 8))
client = backend.open_store(RendezvousParameters("c10d", sys.argv[1], "job", 1, 8))
workers = backend.bootstrap()
port = workers.reserve("127.0.0.1")
workers.activate()
child = os.fork()
if child == 0:
    try:
        store.get(["key"])
    except StoreUnavailableError:
        os.write(1, b"refused\\n")
    sys.stdin.read()
    os._exit(0)
client.put("key", b"value")
os.write(1, f"{port} {store.get(['key'])}\\n".encode())
sys.stdin.read()
"""


def test_a_forked_child_neither_uses_nor_holds_the_stores_of_its_parent(endpoint: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", FORKING_HOST, endpoint], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        text = ""
        while text.count("\n") < 2:
            ready, _, _ = select.select([process.stdout], [], [], DEADLINE_SECONDS)
            assert ready, text
            text += os.read(process.stdout.fileno(), 4096).decode()
        lines = sorted(text.splitlines())
        assert lines[1] == "refused"
        port, value = lines[0].split(" ", 1)
        assert value == "[b'value']"
        process.kill()
        process.wait(DEADLINE_SECONDS)
        for number in (int(port), int(endpoint.rpartition(":")[2])):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", number), DEADLINE_SECONDS)
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.read()  # until the child has ended too
        process.stdout.close()
