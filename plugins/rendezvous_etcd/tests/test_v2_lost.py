"""What happens when etcd is dead, frozen, foreign or unwilling: one clear error, in time."""

from __future__ import annotations

import base64
import shutil
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from quorate.clock import monotonic
from quorate.errors import (
    QuorateError,
    StoreCorruptError,
    StoreLostError,
    StoreUnavailableError,
    UsageError,
)
from quorate.testing import answered, settles
from quorate_rendezvous_etcd import EtcdServer

from .certificates import Certificates
from .etcd_harness import DEADLINE_SECONDS
from .v2_harness import LossyProxy, OpenV2, in_background, is_waiting, v2, v2_tree

StartEtcd = Callable[..., EtcdServer]


@pytest.fixture
def open_at(nothing_left: None) -> Iterator[OpenV2]:
    """Opens stores at endpoints that the test names."""
    opener = OpenV2("", "job")
    yield opener
    opener.close()


def _fails(operation: Callable[[], Any], kind: type[QuorateError]) -> str:
    with pytest.raises(kind) as caught:
        operation()
    assert type(caught.value) is kind
    return str(caught.value)


# --- away for a while -----------------------------------------------------------------------------------------------


def test_a_dead_server_is_named_in_time_and_used_again_when_it_is_back(start_etcd: StartEtcd, open_at: OpenV2) -> None:
    server = start_etcd(enable_v2=True)
    endpoint = server.get_endpoint()
    store = open_at(endpoint=endpoint, operation_timeout=0.5)
    answered(lambda: store.put("key", b"value"))
    waiting = in_background(store.wait, "absent", 3600.0)
    assert settles(lambda: is_waiting(store))
    server.kill()
    for call in (lambda: store.get(["key"]), lambda: store.create("new", b""), lambda: store.wait("absent", 3600.0)):
        if call is not None:
            message = _fails(call, StoreUnavailableError)
            assert endpoint in message
            assert "Connection refused" in message
    with pytest.raises(StoreUnavailableError):
        waiting.result(DEADLINE_SECONDS)
    server.restart()
    assert answered(lambda: store.get(["key", "new"])) == [b"value", None]
    assert answered(lambda: store.create("new", b""))
    assert answered(lambda: store.wait("new", DEADLINE_SECONDS)) == b""


def test_a_wait_bridges_a_short_absence(start_etcd: StartEtcd, open_at: OpenV2) -> None:
    server = start_etcd(enable_v2=True)
    store = open_at(endpoint=server.get_endpoint(), operation_timeout=DEADLINE_SECONDS)
    waiting = in_background(store.wait, "key", 3600.0)
    assert settles(lambda: is_waiting(store))
    server.kill()
    server.restart()
    store.put("key", b"value")
    assert waiting.result(DEADLINE_SECONDS) == b"value"


def test_a_frozen_server_costs_one_operation_time_out(start_etcd: StartEtcd, open_at: OpenV2) -> None:
    """python-etcd by itself would ask four times."""
    server = start_etcd(enable_v2=True)
    store = open_at(endpoint=server.get_endpoint(), operation_timeout=2.0)
    answered(lambda: store.put("key", b"value"))
    server.pause()
    started = monotonic()
    assert "no answer in time" in _fails(lambda: store.get(["key"]), StoreUnavailableError)
    assert 2.0 <= monotonic() - started < 6.0
    assert "no answer in time" in _fails(lambda: store.wait("absent", 3600.0), StoreUnavailableError)
    server.resume()
    assert answered(lambda: store.get(["key"])) == [b"value"]


def test_a_frozen_server_does_not_hold_up_an_interrupt(start_etcd: StartEtcd, open_at: OpenV2) -> None:
    server = start_etcd(enable_v2=True)
    store = open_at(endpoint=server.get_endpoint())
    waiting = in_background(store.wait, "absent", 3600.0)
    assert settles(lambda: is_waiting(store))
    server.pause()
    store.interrupt()
    assert waiting.result(DEADLINE_SECONDS) is None
    server.resume()


def test_members_that_expired_while_etcd_was_away_come_back(start_etcd: StartEtcd, open_at: OpenV2) -> None:
    server = start_etcd(enable_v2=True)
    endpoint = server.get_endpoint()
    store = open_at(endpoint=endpoint, operation_timeout=0.5, member_ttl=2)
    answered(lambda: store.put("key", b"value"))
    (entry,) = [path for path in v2_tree(endpoint) if "/members/" in path]
    v2(endpoint, f"keys{entry}", "DELETE")
    # Another agent that comes just now does not take the job for dead.
    other = open_at(endpoint=endpoint)
    assert other.get(["key"]) == [b"value"]
    assert settles(lambda: entry in v2_tree(endpoint))
    assert answered(lambda: store.get(["key"])) == [b"value"]


# --- a cluster ------------------------------------------------------------------------------------------------------


def test_the_loss_of_any_member_is_bridged(start_etcd: StartEtcd, open_at: OpenV2) -> None:
    server = start_etcd(3, enable_v2=True)
    stores = [open_at(endpoint=server.get_endpoint(), operation_timeout=15.0) for _ in range(3)]
    assert sorted(store.add("count", 1) for store in stores) == [1, 2, 3]
    waiting = [in_background(store.wait, "3/sealed", 3600.0) for store in stores]
    assert settles(lambda: all(is_waiting(store) for store in stores))
    server.kill(server.leader())
    assert sorted(store.add("count", 1) for store in stores) == [4, 5, 6]
    stores[0].put("3/sealed", b"value")
    assert [wait.result(DEADLINE_SECONDS) for wait in waiting] == [b"value"] * 3


def test_a_frozen_member_is_left_by_works_and_waits(start_etcd: StartEtcd, open_at: OpenV2) -> None:
    server = start_etcd(3, enable_v2=True)
    endpoints = server.get_endpoint().split(",")
    store = open_at(endpoint=server.get_endpoint(), operation_timeout=8.0)
    other = open_at(endpoint=server.get_endpoint(), operation_timeout=8.0)
    waiting = in_background(store.wait, "key", 3600.0)
    assert settles(lambda: is_waiting(store))
    asked = str(store._wait_client._polling)
    server.pause(endpoints.index(asked))
    assert store.add("count", 1) == 1  # finds out, and tells the wait
    other.put("key", b"value")
    assert waiting.result(DEADLINE_SECONDS) == b"value"
    server.resume(endpoints.index(asked))


def test_an_endpoint_that_is_not_there_does_not_matter(
    start_etcd: StartEtcd, open_at: OpenV2, closed_port: int
) -> None:
    server = start_etcd(enable_v2=True)
    for order in (f"127.0.0.1:{closed_port},{server.get_endpoint()}", f"{server.get_endpoint()},nowhere.invalid:1"):
        assert open_at(endpoint=order).add("count", 1) > 0


# --- gone for good --------------------------------------------------------------------------------------------------


def test_an_etcd_that_lost_its_data_is_noticed(start_etcd: StartEtcd, open_at: OpenV2, tmp_path: Path) -> None:
    server = start_etcd(enable_v2=True, data_dir=str(tmp_path))
    store = open_at(endpoint=server.get_endpoint())
    store.put("key", b"value")
    server.kill()
    shutil.rmtree(tmp_path / "m0")
    server.restart()
    message = _fails(lambda: store.get(["key"]), StoreLostError)
    assert "lost its data" in message
    for call in (lambda: store.create("key", b""), lambda: store.wait("key", 3600.0)):
        assert _fails(call, StoreLostError) == message
    assert v2_tree(server.get_endpoint()) == {}


def test_another_cluster_in_its_place_is_noticed(start_etcd: StartEtcd, open_at: OpenV2) -> None:
    first, second = start_etcd(enable_v2=True), start_etcd(enable_v2=True)
    proxy = LossyProxy(first.get_endpoint(), lambda request: False)
    store = open_at(endpoint=proxy.endpoint)
    waiting = in_background(store.wait, "key", 3600.0)
    assert settles(lambda: is_waiting(store))
    proxy.lead_to(second.get_endpoint())
    with pytest.raises(StoreLostError, match="another etcd cluster"):
        waiting.result(DEADLINE_SECONDS)
    for call in (lambda: store.get(["key"]), lambda: store.wait("key", 3600.0)):
        _fails(call, StoreLostError)
    assert v2_tree(second.get_endpoint()) == {}
    store.close()
    proxy.close()


def test_a_job_that_was_removed_by_hand_is_noticed(open_v2: OpenV2) -> None:
    store = open_v2(member_ttl=2)
    store.put("key", b"value")
    waiting = in_background(store.wait, "absent", 3600.0)
    assert settles(lambda: is_waiting(store))
    v2(open_v2.endpoint, f"keys/quorate/{open_v2.run_id}", "DELETE", recursive="true")
    with pytest.raises(StoreLostError, match="no longer has the job"):
        waiting.result(DEADLINE_SECONDS)
    assert "no longer has the job" in _fails(lambda: store.get(["key"]), StoreLostError)


# --- never there ----------------------------------------------------------------------------------------------------


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that nobody listens on, and that nobody else is given."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield int(holder.getsockname()[1])


def test_an_endpoint_where_nobody_listens(open_at: OpenV2, closed_port: int) -> None:
    started = monotonic()
    message = _fails(
        lambda: open_at(endpoint=f"127.0.0.1:{closed_port}", connect_timeout=0.5, operation_timeout=0.5),
        StoreUnavailableError,
    )
    assert 0.5 <= monotonic() - started < DEADLINE_SECONDS
    for word in (f"127.0.0.1:{closed_port}", "Connection refused", "--rdzv-endpoint"):
        assert word in message


def test_a_name_that_does_not_resolve(open_at: OpenV2) -> None:
    message = _fails(lambda: open_at(endpoint="nowhere.invalid:2379", connect_timeout=0.2), StoreUnavailableError)
    assert "nowhere.invalid:2379" in message


def test_something_that_takes_connections_and_says_nothing(open_at: OpenV2) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"127.0.0.1:{silent.getsockname()[1]}"
        message = _fails(lambda: open_at(endpoint=endpoint, connect_timeout=0.3), StoreUnavailableError)
    assert "no answer in time" in message


def test_an_agent_that_comes_before_etcd_waits_for_it(start_etcd: StartEtcd, open_at: OpenV2) -> None:
    server = start_etcd(enable_v2=True)
    server.kill()
    opening = in_background(lambda: open_at(endpoint=server.get_endpoint()))
    server.restart()
    assert opening.result(DEADLINE_SECONDS).add("count", 1) == 1


# --- unwilling ------------------------------------------------------------------------------------------------------


def test_a_server_without_the_api_names_the_flag_and_the_alternative(start_etcd: StartEtcd, open_at: OpenV2) -> None:
    server = start_etcd(enable_v2=False)
    message = _fails(lambda: open_at(endpoint=server.get_endpoint()), UsageError)
    for word in ("does not serve API v2", "--enable-v2=true", "3.6", "--rdzv-backend=etcd", server.get_endpoint()):
        assert word in message


@pytest.fixture
def guarded_etcd(start_etcd: StartEtcd) -> EtcdServer:
    """Users: ``root``, and ``trainer``, who may use ``/quorate`` alone.  All passwords are ``secret``."""
    server = start_etcd(enable_v2=True)
    endpoint = server.get_endpoint()

    def put(path: str, body: str) -> None:
        import urllib.request

        request = urllib.request.Request(f"http://{endpoint}/v2/auth/{path}", body.encode(), method="PUT")
        request.add_header("Authorization", "Basic " + base64.b64encode(b"root:secret").decode())
        with urllib.request.urlopen(request, timeout=DEADLINE_SECONDS):
            pass

    put("users/root", '{"user": "root", "password": "secret", "roles": ["root"]}')
    rights = '{"kv": {"read": ["/quorate/*"], "write": ["/quorate/*"]}}'
    put("roles/train", f'{{"role": "train", "permissions": {rights}}}')
    put("users/trainer", '{"user": "trainer", "password": "secret", "roles": ["train"]}')
    put("enable", "")
    put("roles/guest", '{"role": "guest", "revoke": {"kv": {"read": ["/*"], "write": ["/*"]}}}')
    return server


def test_wrong_credentials_are_told_at_once(
    guarded_etcd: EtcdServer, open_at: OpenV2, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = guarded_etcd.get_endpoint()
    wrong: list[dict[str, str]] = [
        {},
        {"user": "trainer", "password": "wrong"},
        {"user": "nobody", "password": "secret"},
        {"user": "trainer", "password": "secret", "prefix": "forbidden"},
    ]
    for settings in wrong:
        message = _fails(partial(open_at, endpoint=endpoint, **settings), UsageError)
        for word in (endpoint, "refuses", "QUORATE_ETCD_PASSWORD", f"/{settings.get('prefix', 'quorate')}/*"):
            assert word in message
        assert "secret" not in message
        assert "wrong" not in message
    monkeypatch.setenv("QUORATE_ETCD_PASSWORD", "secret")
    store = open_at(endpoint=endpoint, user="trainer")
    assert store.create("key", b"value")
    store.close()


# --- garbage under the prefix ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["somebodys-key", "somebodys-key/job"])
def test_a_key_where_the_job_would_be(open_v2: OpenV2, path: str) -> None:
    v2(open_v2.endpoint, f"keys/{path}", "PUT", value="precious")
    message = _fails(lambda: open_v2("job", prefix="somebodys-key"), StoreCorruptError)
    assert "somebodys-key" in message
    assert v2_tree(open_v2.endpoint, "somebodys-key") == {f"/{path}": "precious"}
    assert "ttl" not in v2(open_v2.endpoint, f"keys/{path}")["node"]
    v2(open_v2.endpoint, "keys/somebodys-key", "DELETE", recursive="true")


@pytest.mark.parametrize("garbage", ["", "7", "v9:future", "\u00fc", "v1:x:%%%"])
def test_a_value_that_is_not_ours(open_v2: OpenV2, garbage: str) -> None:
    store = open_v2()
    v2(open_v2.endpoint, f"keys{store._path('1/key')}", "PUT", value=garbage)
    calls: list[Callable[[], Any]] = [
        lambda: store.get(["1/key"]),
        lambda: store.get([f"1/{name}" for name in ("a", "b", "c", "key")]),
        lambda: store.wait("1/key", 3600.0),
        lambda: store.add("1/key", 1),
    ]
    for call in calls:
        assert "=key" in _fails(call, StoreCorruptError)
    store.put("1/key", b"value")
    assert store.get(["1/key"]) == [b"value"]


def test_a_directory_where_a_value_should_be(open_v2: OpenV2) -> None:
    store = open_v2()
    waiting = in_background(store.wait, "key", 3600.0)
    assert settles(lambda: is_waiting(store))
    v2(open_v2.endpoint, f"keys{store._path('key')}", "PUT", dir="true")
    with pytest.raises(StoreCorruptError):
        waiting.result(DEADLINE_SECONDS)
    for call in (lambda: store.get(["key"]), lambda: store.put("key", b""), lambda: store.add("key", 0)):
        _fails(call, StoreCorruptError)


# --- TLS ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificates, is not installed")
    return Certificates(tmp_path_factory.mktemp("certificates"))


def test_tls_with_certificates_on_both_sides(
    start_etcd: StartEtcd, open_at: OpenV2, certificates: Certificates, tmp_path: Path
) -> None:
    ca_cert = certificates.ca_cert
    server = start_etcd(enable_v2=True, cert=certificates.cert, key=certificates.key, ca_cert=ca_cert)
    endpoint = server.get_endpoint()
    ours = {"ca_cert": ca_cert, "cert": certificates.client_cert, "key": certificates.client_key}
    store = open_at(endpoint=endpoint, **ours)
    assert store.create("key", b"x" * 100_000)
    waiting = in_background(store.wait, "absent", 3600.0)
    assert settles(lambda: is_waiting(store))
    store.interrupt()
    assert waiting.result(DEADLINE_SECONDS) is None
    assert store.wait("key", 1.0) == b"x" * 100_000

    stranger = Certificates(tmp_path)
    assert "ca_cert" in _fails(lambda: open_at(endpoint=endpoint, **{**ours, "ca_cert": stranger.ca_cert}), UsageError)
    assert "TLS" in _fails(lambda: open_at(endpoint=endpoint, connect_timeout=0.5), StoreUnavailableError)
    missing = str(tmp_path / "none.pem")
    assert missing in _fails(lambda: open_at(endpoint=endpoint, ca_cert=missing), UsageError)
    # TLS 1.3 tells a client only afterwards that it should have shown a certificate.
    with pytest.raises((UsageError, StoreUnavailableError)):
        open_at(endpoint=endpoint, ca_cert=ca_cert, connect_timeout=0.5)
    for name, days, usage, problem in (
        ("expired", -1, "serverAuth,clientAuth", "expired"),
        ("server-only", 2, "serverAuth", "purpose"),
    ):
        cert, key = certificates.issue(name, days=days, usage=usage)
        with pytest.raises((UsageError, StoreUnavailableError), match=rf"cert='{cert}' would be refused: .*{problem}"):
            open_at(endpoint=endpoint, **{**ours, "cert": cert, "key": key}, connect_timeout=0.5)


def test_tls_asked_of_a_server_without_it(open_v2: OpenV2, certificates: Certificates) -> None:
    endpoint = open_v2.endpoint
    message = _fails(lambda: open_v2(endpoint=f"https://{endpoint}", ca_cert=certificates.ca_cert), UsageError)
    assert "no TLS connection" in message
