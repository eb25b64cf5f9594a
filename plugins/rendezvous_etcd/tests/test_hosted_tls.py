"""The etcd that a job runs itself, with TLS: between its members, and between them and their clients."""

from __future__ import annotations

import socket

import pytest

from quorate.errors import StoreUnavailableError, UsageError
from quorate_rendezvous_etcd._hosted.life import Phase

from .certificates import Certificates
from .test_hosted import HOSTS, Cluster, cluster

__all__ = ["cluster"]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("authority"))


def settings(authority: Certificates, pair: tuple[str, str]) -> dict[str, str]:
    return {"ca_cert": authority.ca_cert, "cert": pair[0], "key": pair[1]}


def test_members_and_clients_with_certificates(cluster: Cluster, authority: Certificates) -> None:
    cluster.settings |= settings(authority, authority.issue("node", *HOSTS))
    stores = cluster.open_all()
    assert stores[0].create("key", b"value")
    assert [url.startswith("https://") for url in cluster.voters(0)] == [True, True, True]
    cluster.vanish(2)
    cluster.stores[2] = again = cluster.open(2)  # it asks the other members' peer ports, and is added
    assert again.get(["key"]) == [b"value"]
    assert again.member is not None
    assert again.member.state.phase is Phase.SERVING
    client = cluster.open(None)
    assert client.wait("key", 5.0) == b"value"
    client.close()
    cluster.stores.pop(cluster.leader()).close()
    assert len(cluster.voters(next(iter(cluster.stores)))) == 2, "it has left over TLS, too"


def test_nothing_answers_without_a_certificate(cluster: Cluster, authority: Certificates) -> None:
    cluster.settings |= settings(authority, authority.issue("node", *HOSTS))
    stores = cluster.open_all()
    assert stores[0].member is not None
    for own in (stores[0].member.endpoint, stores[0].member._names.peers[0]):
        with socket.create_connection((own.host, own.port), 5.0) as sock:
            sock.sendall(b"GET /members HTTP/1.0\r\n\r\n")
            assert b'"id"' not in sock.recv(1000)
    with pytest.raises(StoreUnavailableError, match="TLS"):
        cluster.open(None, is_host="false", connect_timeout=0.5, cert="", key="", ca_cert="")


@pytest.mark.parametrize(
    ("addresses", "usage", "days", "words"),
    [
        (HOSTS, "serverAuth", 2, "purpose"),
        (["127.0.0.9"], "serverAuth,clientAuth", 2, "mismatch"),
        (HOSTS, "serverAuth,clientAuth", -1, "expired"),
    ],
)
def test_a_certificate_that_is_of_no_use_is_named(
    cluster: Cluster, authority: Certificates, addresses: list[str], usage: str, days: int, words: str
) -> None:
    """Members are clients of each other, which a certificate may rule out; and each is called by its name."""
    pair = authority.issue("of-no-use", *addresses, usage=usage, days=days)
    cluster.settings |= settings(authority, pair)
    with pytest.raises(UsageError, match=rf"cert='{pair[0]}' would be refused: .*{words}.* ca_cert is /"):
        cluster.open(0)
