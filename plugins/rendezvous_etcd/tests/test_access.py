"""Who may use an etcd: TLS, users and passwords, permissions, and servers that are no etcd."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from quorate.clock import monotonic
from quorate.errors import StoreUnavailableError, UsageError
from quorate_rendezvous_etcd import EtcdServer

from .certificates import Certificates
from .etcd_harness import DEADLINE_SECONDS, Admin, InThread

Open = Callable[..., Any]
Start = Callable[..., EtcdServer]
MakeAdmin = Callable[..., Admin]


# --- TLS ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


def test_tls_with_a_client_certificate(start_etcd: Start, open_store: Open, certificates: Certificates) -> None:
    server = start_etcd(cert=certificates.cert, key=certificates.key, ca_cert=certificates.ca_cert)
    settings = {"ca_cert": certificates.ca_cert, "cert": certificates.client_cert, "key": certificates.client_key}
    first, second = (open_store(endpoint=server.get_endpoint(), **settings) for _ in range(2))
    waiting = InThread(second.wait, "key", 3600.0)
    assert first.create("key", b"value")
    assert waiting.result() == b"value"
    # Without a certificate of its own, a client does not even get to talk.
    with pytest.raises(StoreUnavailableError, match=r"cannot reach etcd.*TLS"):
        open_store(endpoint=server.get_endpoint(), ca_cert=certificates.ca_cert, connect_timeout=0.5)


def test_tls_is_told_from_none(
    start_etcd: Start, open_store: Open, shared_etcd: EtcdServer, certificates: Certificates, tmp_path: Path
) -> None:
    server = start_etcd(cert=certificates.cert, key=certificates.key)
    good = f"https://{server.get_endpoint()}"
    assert open_store(endpoint=good, ca_cert=certificates.ca_cert).add("count", 1) == 1
    stranger = Certificates(tmp_path)
    for endpoint, settings in (
        (server.get_endpoint(), {}),
        (good, {}),
        (good, {"ca_cert": stranger.ca_cert}),
        (f"https://{shared_etcd.get_endpoint()}", {"ca_cert": certificates.ca_cert}),
    ):
        with pytest.raises(StoreUnavailableError, match=r"cannot reach etcd at 127\.0\.0\.1:\d+ within 0\.3 s.*TLS"):
            open_store(endpoint=endpoint, connect_timeout=0.3, **settings)


def test_certificates_that_cannot_be_read(open_store: Open, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"ca_cert='/nowhere/ca\.pem' cannot be read: No such file"):
        open_store(ca_cert="/nowhere/ca.pem")
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(UsageError, match="is not a PEM file"):
        open_store(ca_cert=str(tmp_path / "ca.pem"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="cannot be read: it is not a file"):
        open_store(ca_cert=str(tmp_path / "pipe"))


def test_an_expired_certificate_is_named(start_etcd: Start, open_store: Open, certificates: Certificates) -> None:
    server = start_etcd(cert=certificates.cert, key=certificates.key, ca_cert=certificates.ca_cert)
    cert, key = certificates.issue("expired", days=-1)
    with pytest.raises(StoreUnavailableError, match=rf"TLS or not.*cert='{cert}' would be refused: .*expired"):
        open_store(
            endpoint=server.get_endpoint(), ca_cert=certificates.ca_cert, cert=cert, key=key, connect_timeout=0.5
        )


# --- users ------------------------------------------------------------------------------------------


@pytest.fixture
def guarded(start_etcd: Start, admin: MakeAdmin, run_id: str) -> EtcdServer:
    """An etcd that asks for users: ``root`` may do everything, ``trainer`` may use ``quorate/``."""
    server = start_etcd()
    operator = admin(server)
    operator.add_user("trainer", "secret", "quorate/")
    operator.enable_auth("root secret")
    return server


def test_a_user_with_a_password_works(
    guarded: EtcdServer, open_store: Open, admin: MakeAdmin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUORATE_ETCD_PASSWORD", "secret")
    first, second = (open_store(endpoint=guarded.get_endpoint(), user="trainer") for _ in range(2))
    waiting = InThread(second.wait, "key", 3600.0)
    assert first.create("key", b"value")
    assert waiting.result() == b"value"
    assert [first.add("count", 1), second.add("count", 1)] == [1, 2]
    for store in (first, second):
        store.close()
    root = admin(guarded, "root", "root secret")
    assert root.stored() == {}
    assert root.leases() == set()


def test_an_expired_token_is_replaced(guarded: EtcdServer, open_store: Open) -> None:
    store = open_store(endpoint=guarded.get_endpoint(), user="trainer", password="secret")
    store.put("key", b"value")
    # Tokens live in the memory of the server.
    guarded.kill()
    guarded.restart()
    assert store.get(["key"]) == [b"value"]
    assert store.wait("key", 5.0) == b"value"
    store._client._token = "never valid"
    store._membership.renew(monotonic() + 5.0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "asks for a user and password.*QUORATE_ETCD_PASSWORD"),
        ({"user": "trainer", "password": "wrong"}, "does not accept user 'trainer'.*QUORATE_ETCD_PASSWORD"),
        ({"user": "nobody", "password": "secret"}, "does not accept user 'nobody'"),
        (
            {"user": "trainer", "password": "secret", "prefix": "elsewhere"},
            "does not permit user 'trainer' to use the keys below 'elsewhere'.*grant-permission",
        ),
    ],
    ids=["none", "wrong password", "unknown", "another prefix"],
)
def test_wrong_credentials_are_told_at_once(
    guarded: EtcdServer, open_store: Open, settings: dict[str, Any], words: str
) -> None:
    """Wrong credentials: one clear error that names the remedy, and never the password."""
    with pytest.raises(UsageError, match=words) as caught:
        open_store(endpoint=guarded.get_endpoint(), **settings)
    assert str(settings.get("password", "secret")) not in str(caught.value).replace("QUORATE_ETCD_PASSWORD", "")


def test_credentials_for_an_etcd_that_has_no_users(open_store: Open) -> None:
    with pytest.raises(UsageError, match=r"no authentication enabled.*leave out"):
        open_store(user="trainer", password="secret")


def test_a_permission_that_is_withdrawn(guarded: EtcdServer, open_store: Open, admin: MakeAdmin) -> None:
    store = open_store(endpoint=guarded.get_endpoint(), user="trainer", password="secret")
    root = admin(guarded, "root", "root secret")
    root.call(
        "Auth",
        "UserRevokeRole",
        "AuthUserRevokeRoleRequest",
        "AuthUserRevokeRoleResponse",
        name="trainer",
        role="trainer",
    )
    with pytest.raises(UsageError, match="does not permit user 'trainer'"):
        store.put("key", b"value")
    with pytest.raises(UsageError, match="does not permit"):
        store.wait("key", 60.0)


# --- no etcd ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def talker() -> Iterator[tuple[str, list[bytes]]]:
    """A server that answers every connection with what is in the list, and closes it."""
    answers: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    for answer in answers:
                        connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{port}", answers
        server.shutdown(socket.SHUT_RDWR)
    thread.join(DEADLINE_SECONDS)


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 404 Not Found\r\n\r\n"])
def test_a_server_that_is_not_etcd(open_store: Open, talker: tuple[str, list[bytes]], answer: bytes) -> None:
    endpoint, answers = talker
    answers.append(answer)
    with pytest.raises(StoreUnavailableError, match=f"cannot reach etcd at {endpoint} within 0.5 s"):
        open_store(endpoint=endpoint, connect_timeout=0.5)


def test_nobody_answers(open_store: Open) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{holder.getsockname()[1]}"
        with pytest.raises(StoreUnavailableError, match=f"cannot reach etcd at {endpoint}.*refused"):
            open_store(endpoint=endpoint, connect_timeout=0.3)
    with pytest.raises(StoreUnavailableError, match=r"cannot reach etcd at no-such-host\.invalid:2379"):
        open_store(endpoint="no-such-host.invalid", connect_timeout=0.3)


def test_a_grpc_server_that_is_not_etcd(nothing_left: None, open_store: Open) -> None:
    import grpc

    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        with pytest.raises(UsageError, match=r"is not an etcd with API v3.*--rdzv-backend=etcd-v2"):
            open_store(endpoint=f"127.0.0.1:{port}")
        server.stop(0).wait(DEADLINE_SECONDS)


def test_the_first_of_the_list_need_not_be_there(open_store: Open, shared_etcd: EtcdServer) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        gone = f"127.0.0.1:{holder.getsockname()[1]}"
        for endpoint in (f"{gone},{shared_etcd.get_endpoint()}", f"{shared_etcd.get_endpoint()},{gone}"):
            store = open_store(endpoint=endpoint)
            assert store.add("count", 1) > 0
            store.interrupt()
            assert store.wait("absent", 60.0) is None
