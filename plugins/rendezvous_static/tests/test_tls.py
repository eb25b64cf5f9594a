"""A store whose connections are encrypted, with certificates that openssl has made."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from quorate.errors import RendezvousConnectionError, RendezvousStateError, StoreUnavailableError, UsageError
from quorate.rendezvous import RendezvousParameters
from quorate_rendezvous_static import TcpStore, TcpStoreServer
from quorate_rendezvous_static._backends import check_tcp, open_tcp
from quorate_rendezvous_static._limits import Limits
from quorate_rendezvous_static._tls import Tls
from quorate_rendezvous_static._wire import MAGIC, PROTOCOL_VERSION, Code, FrameBuffer, decode, encode

DEADLINE_SECONDS = 30.0
KEY = b"k" * 32

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")


class Certificates:
    """Two authorities; a host's certificate for 127.0.0.1 from the first, and a node's from each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.ca_cert = self._authority("ca")
        self._authority("other")
        self.host = self._issue("host", "127.0.0.1", "ca")
        self.node = self._issue("node", "192.0.2.1", "ca")
        self.stranger = self._issue("stranger", "192.0.2.1", "other")
        self.expired = self._issue("expired", "127.0.0.1", "ca", days=-1)

    def _path(self, name: str) -> str:
        return str(self._folder / name)

    def _authority(self, name: str) -> str:
        self._openssl(
            *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}"),
            *("-keyout", self._path(f"{name}.key"), "-out", self._path(f"{name}.pem")),
        )
        return self._path(f"{name}.pem")

    def _issue(self, name: str, address: str, authority: str, days: int = 2) -> dict[str, str]:
        cert, key, request, extra = (self._path(f"{name}.{suffix}") for suffix in ("pem", "key", "csr", "ext"))
        Path(extra).write_text(f"subjectAltName=IP:{address}\nextendedKeyUsage=serverAuth,clientAuth\n")
        self._openssl(
            *("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}", "-keyout", key, "-out", request)
        )
        signer = ("-CA", self._path(f"{authority}.pem"), "-CAkey", self._path(f"{authority}.key"), "-CAcreateserial")
        self._openssl("x509", "-req", "-in", request, *signer, "-extfile", extra, "-days", str(days), "-out", cert)
        return {"cert": cert, "key": key}

    @staticmethod
    def _openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=DEADLINE_SECONDS)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


Serve = Callable[..., TcpStoreServer]


@pytest.fixture
def serve(nothing_left: None, certificates: Certificates) -> Iterator[Serve]:
    """``serve(**settings)`` → a server with TLS; ``tls_...`` go to Tls."""
    servers: list[TcpStoreServer] = []

    def make(tls: Tls | None = None, **changes: Any) -> TcpStoreServer:
        tls = tls or Tls("127.0.0.1", certificates.ca_cert, **certificates.host)
        servers.append(TcpStoreServer("127.0.0.1", 0, "job", tls=tls, **changes))
        return servers[-1]

    yield make
    for server in servers:
        server.close(0.0)


@pytest.fixture
def join(nothing_left: None) -> Iterator[Callable[..., TcpStore]]:
    """``join(server, tls, **changes)`` → a client."""
    stores: list[TcpStore] = []

    def make(server: TcpStoreServer, tls: Tls | None, **changes: Any) -> TcpStore:
        arguments = {"connect_timeout": 2.0, **changes}
        stores.append(TcpStore("127.0.0.1", server.port, "job", tls=tls, **arguments))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


@pytest.mark.parametrize("key", [None, KEY], ids=["TLS alone", "with a token"])
def test_the_store_works_as_ever(serve: Serve, join: Any, certificates: Certificates, in_thread: Any, key: Any) -> None:
    server = serve(key=key)
    one, two = (join(server, Tls("127.0.0.1", certificates.ca_cert), key=key) for _ in range(2))
    waiting = in_thread(lambda: two.wait("key", DEADLINE_SECONDS))
    assert one.create("key", b"value")
    assert waiting.result() == b"value"
    large = [(f"large/{index}", bytes([index]) * (1 << 20)) for index in range(5)]
    one.put_many(large)
    assert two.get([name for name, _ in large]) == [value for _, value in large]
    assert two.wait("absent", 0.05) is None
    assert [one.add("n", 1), two.add("n", 1)] == [1, 2]
    two.interrupt()
    assert two.wait("absent", DEADLINE_SECONDS) is None
    assert two.wait("key", 1.0) == b"value"


def test_nothing_readable_is_on_the_wire(serve: Serve, join: Any, certificates: Certificates, in_thread: Any) -> None:
    server, seen = serve(), bytearray()
    listener = socket.create_server(("127.0.0.1", 0))

    def relay(one: socket.socket, two: socket.socket) -> None:
        try:
            while data := one.recv(65536):
                seen.extend(data)
                two.sendall(data)
        finally:
            two.shutdown(socket.SHUT_WR)

    def pass_on() -> None:
        pairs = []
        for _ in range(2):
            near, _ = listener.accept()
            far = socket.create_connection(("127.0.0.1", server.port))
            pairs.append((near, far, in_thread(partial(relay, near, far)), in_thread(partial(relay, far, near))))
        for near, far, *relays in pairs:
            for relaying in relays:
                with suppress(OSError):
                    relaying.result()
            near.close()
            far.close()

    with listener:
        passing = in_thread(pass_on)
        tls = Tls("127.0.0.1", certificates.ca_cert)
        store = TcpStore("127.0.0.1", listener.getsockname()[1], "job", tls=tls)
        store.put("a-secret-key", b"a-secret-value")
        assert store.get(["a-secret-key"]) == [b"a-secret-value"]
        store.close()
        passing.result()
    assert len(seen) > 1000
    assert b"secret" not in seen
    assert b"quorate" not in seen


def test_what_comes_in_one_record_is_read_whole(serve: Serve, certificates: Certificates) -> None:
    """OpenSSL holds the rest of a record back, and no descriptor tells of it."""
    server, tls = serve(), Tls("127.0.0.1", certificates.ca_cert)
    plain = socket.create_connection(("127.0.0.1", server.port), DEADLINE_SECONDS)
    with tls.client_context().wrap_socket(plain, server_hostname="127.0.0.1") as sock:
        hello = encode(Code.HELLO, 0, PROTOCOL_VERSION, [MAGIC, b"job"])
        sock.sendall(hello + encode(Code.PUT, 7, 0, [b"key", bytes(10_000)]))
        frames, answers = FrameBuffer(), list[int]()
        while answers != [0, 7]:
            frames.feed(sock.recv(4096))
            while (body := frames.next()) is not None:
                answers.append(decode(body).request)


def test_a_host_with_the_wrong_certificate_is_not_used(serve: Serve, join: Any, certificates: Certificates) -> None:
    for tls, words in (
        (Tls("127.0.0.1", certificates.ca_cert, **certificates.stranger), "certificate is refused: "),
        (Tls("127.0.0.1", certificates.ca_cert, **certificates.node), "IP address mismatch"),
    ):
        with pytest.raises(StoreUnavailableError, match=words):
            join(serve(tls), Tls("127.0.0.1", certificates.ca_cert), connect_timeout=0.5)


def test_a_node_without_a_certificate_is_refused_where_one_is_needed(
    serve: Serve, join: Any, certificates: Certificates, capsys: pytest.CaptureFixture[str]
) -> None:
    server = serve(Tls("127.0.0.1", certificates.ca_cert, **certificates.host, client_cert_auth=True))
    join(server, Tls("127.0.0.1", certificates.ca_cert, **certificates.node)).put("key", b"1")
    for own in ({}, certificates.stranger):
        with pytest.raises(RendezvousConnectionError):
            join(server, Tls("127.0.0.1", certificates.ca_cert, **own), connect_timeout=0.5)
    assert "refuses 127.0.0.1: " in capsys.readouterr().err


def test_one_side_with_tls_and_the_other_without_both_say_so(
    serve: Serve, connect: Any, server: TcpStoreServer, certificates: Certificates, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(StoreUnavailableError, match=r"closed the connection during the TLS handshake.*cert and key"):
        connect(tls=Tls("127.0.0.1", certificates.ca_cert), connect_timeout=0.5)
    with pytest.raises(RendezvousStateError, match="it takes connections with TLS only; set ca_cert"):
        connect(port=serve().port, connect_timeout=0.5)
    assert "refuses 127.0.0.1: TLS failed" in capsys.readouterr().err


def test_a_silent_connection_does_not_hold_the_server_up(serve: Serve, join: Any, certificates: Certificates) -> None:
    server = serve(limits=Limits(hello_timeout_seconds=600.0))
    silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(5)]
    store = join(server, Tls("127.0.0.1", certificates.ca_cert), connect_timeout=DEADLINE_SECONDS)
    store.put("key", b"1")
    for sock in silent:
        sock.close()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"cert": "x"}, "cert is given without key"),
        ({"key": "x"}, "key is given without cert"),
        ({"cert": "x", "key": "y", "client_cert_auth": "true"}, "client_cert_auth needs ca_cert"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        check_tcp(RendezvousParameters("tcp", "127.0.0.1:29400", "job", 1, 2, None, **settings))


def test_files_that_cannot_be_used_are_named(free_port: int, tmp_path: Path, certificates: Certificates) -> None:
    broken = tmp_path / "broken.pem"
    broken.write_text("not a certificate")
    for settings, words in (
        ({"ca_cert": "/nowhere/ca.pem", **certificates.host}, r"ca_cert \(/nowhere/ca.pem\) cannot be used: No such"),
        ({"ca_cert": str(broken), **certificates.host}, rf"ca_cert \({broken}\) cannot be used"),
        (
            {"ca_cert": certificates.ca_cert, "cert": str(broken), "key": str(broken)},
            r"cert \(.*broken.pem\) cannot be used: it is not a PEM",
        ),
        ({"ca_cert": certificates.ca_cert}, "this node hosts the rendezvous store, and TLS needs a certificate"),
    ):
        parameters = RendezvousParameters("tcp", f"127.0.0.1:{free_port}", "job", 1, 2, None, **settings)
        with pytest.raises(UsageError, match=words):
            open_tcp(parameters)


def test_a_certificate_that_the_others_would_refuse_is_named_before_they_do(
    free_port: int, tmp_path: Path, certificates: Certificates
) -> None:
    trusted = {"ca_cert": certificates.ca_cert}
    as_node = {**trusted, "is_host": "false", "client_cert_auth": "true"}
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for settings, words in (
        (
            {**trusted, **certificates.expired},
            r"every other node would refuse .*expired.pem\): certificate has expired",
        ),
        (certificates.expired, "every other node would refuse .*certificate has expired"),
        ({**trusted, **certificates.node}, "every other node would refuse .*node.pem.*mismatch"),
        ({**trusted, **certificates.stranger}, r"every other node would refuse .*stranger.pem.*issuer.* ca_cert is /"),
        ({**as_node, **certificates.expired}, r"the host would refuse .*expired.pem\): certificate has expired"),
        ({**as_node, **certificates.stranger}, "the host would refuse .*stranger.pem.*issuer"),
        (
            {**trusted, "cert": str(pipe), "key": certificates.host["key"]},
            rf"cert \({pipe}\) cannot be used: it is not",
        ),
    ):
        parameters = RendezvousParameters("tcp", f"127.0.0.1:{free_port}", "job", 1, 2, None, **settings)
        with pytest.raises(UsageError, match=words):
            open_tcp(parameters)


def test_the_backend_hosts_and_joins_with_tls(free_port: int, certificates: Certificates) -> None:
    settings = {"ca_cert": certificates.ca_cert, **certificates.host}
    parameters = RendezvousParameters("tcp", f"127.0.0.1:{free_port}", "job", 1, 2, None, **settings)
    host = open_tcp(parameters)
    node = open_tcp(
        RendezvousParameters(
            "tcp", f"127.0.0.1:{free_port}", "job", 1, 2, None, ca_cert=certificates.ca_cert, is_host="false"
        )
    )
    node.put("key", b"1")
    assert host.get(["key"]) == [b"1"]
    node.close()
    host.close()
