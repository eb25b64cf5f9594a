"""The settings, refused before anything is opened."""

from __future__ import annotations

from typing import Any

import pytest

from quorate.errors import UsageError
from quorate.net import Endpoint
from quorate.rendezvous import RendezvousParameters
from quorate_rendezvous_etcd import plugin
from quorate_rendezvous_etcd._settings import Settings, parse_endpoints


def settings(endpoint: str = "h:1", **config: Any) -> Settings:
    return Settings.from_parameters(RendezvousParameters("etcd", endpoint, "job", 2, 4, **config))


def test_defaults() -> None:
    made = settings()
    assert (made.endpoints, made.secure, made.prefix, made.keep) == ((Endpoint("h", 1),), False, "quorate", False)
    assert (made.min_nodes, made.max_nodes, made.run_id) == (2, 4, "job")
    assert (made.key_ttl_seconds, made.member_ttl_seconds) == (600, 30)


@pytest.mark.parametrize(
    ("text", "is_https", "endpoints"),
    [
        ("host", None, ["host:2379"]),
        ("a:1,b:2, c:3 ,", None, ["a:1", "b:2", "c:3"]),
        ("a:1,a:1", None, ["a:1"]),
        ("[::1]:5,[fe80::1%eth0]", None, ["[::1]:5", "[fe80::1%eth0]:2379"]),
        ("https://a:1,https://b:2/", True, ["a:1", "b:2"]),
        ("http://10.0.0.1:2379", False, ["10.0.0.1:2379"]),
    ],
)
def test_endpoints(text: str, is_https: bool | None, endpoints: list[str]) -> None:
    secure, found = parse_endpoints(text)
    assert secure is is_https
    assert [str(endpoint) for endpoint in found] == endpoints


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no endpoint"),
        (" , ", "no endpoint"),
        ("a:", "no port from 1 to 65535"),
        ("a:0", "no port from 1 to 65535"),
        ("a:65536", "from 1 to 65535"),
        (":1", "it has no host"),
        ("a b:1", "'a b' is not a host"),
        ("a/b:1", "'a/b' is not a host"),
        ("user@a:1", "takes no scheme, user or password"),
        ("a:b", "no port from 1 to 65535"),
        ("a:" + "0" * 5 + "80", "no port from 1 to 65535"),
        ("a:" + "9" * 5000, "no port from 1 to 65535"),
        ("::1:2379", "needs brackets"),
        ("[::1", "brackets do not match"),
        ("ftp://a:1", "'ftp' is neither"),
        ("http://a:1,b:2", "mixes protocols"),
    ],
)
def test_wrong_endpoints(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        settings(text)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"cert": "c.pem"}, "cert is given without key"),
        ({"key": "k.pem"}, "key is given without cert"),
        ({"user": "u"}, "QUORATE_ETCD_PASSWORD"),
        ({"password": "p"}, "without user"),
        ({"prefix": "/"}, "prefix"),
        ({"prefix": "a b"}, "prefix"),
        ({"dial_timeout": 0}, "dial_timeout must be more than 0"),
        ({"operation_timeout": "0"}, "operation_timeout must be more than 0"),
        ({"connect_timeout": "soon"}, "connect_timeout"),
        ({"protocol": "gopher"}, "http or https"),
        ({"protocol": "http", "ca_cert": "ca.pem"}, "certificates are given"),
        ({"key_ttl": "nan"}, "key_ttl"),
        ({"member_ttl": 1}, "etcd grants no lease below 2 s"),
        ({"key_ttl": 100}, "must not be below store_outage_timeout=300"),
        ({"key_ttl": 5, "store_outage_timeout": 4, "member_ttl": 6}, "member_ttl=6"),
        ({"keep": "perhaps"}, "keep"),
    ],
)
def test_wrong_settings(config: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QUORATE_ETCD_PASSWORD", raising=False)
    with pytest.raises(UsageError, match=words):
        settings(**config)


def test_certificates_do_not_go_with_http() -> None:
    assert settings(ca_cert="ca.pem").secure
    assert settings("https://h:1").secure
    moved = settings(cacert="ca.pem", ssl_cert="c.pem", ssl_cert_key="k.pem")
    assert (moved.ca_cert, moved.cert, moved.key) == ("ca.pem", "c.pem", "k.pem")
    assert settings(protocol="https").protocol == "https"
    with pytest.raises(UsageError, match="http://"):
        settings("http://h:1", ca_cert="ca.pem")
    with pytest.raises(UsageError, match="contradicts the endpoint, which says https"):
        settings("https://h:1", protocol="http")


def test_the_password_comes_from_the_environment_and_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUORATE_ETCD_PASSWORD", "from outside")
    assert settings(user="u").password == "from outside"
    assert settings(user="u", password="given").password == "given"
    assert settings().password == ""
    assert "from outside" not in repr(settings(user="u"))


def test_keys_outlive_the_outage_that_the_job_outlives() -> None:
    assert settings(store_outage_timeout=1000).key_ttl_seconds == 2000
    assert settings(key_ttl=10, store_outage_timeout=10).member_ttl_seconds == 10


def test_the_backend_checks_before_it_opens() -> None:
    (backend,) = (backend for backend in plugin.quorate_register_rendezvous() if backend.name == "etcd")
    assert backend.check is not None
    with pytest.raises(UsageError, match="no endpoint"):
        backend.check(RendezvousParameters("etcd", "", "job", 1, 1))
