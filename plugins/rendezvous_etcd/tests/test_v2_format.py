"""Keys, values and settings of ``etcd-v2``, without a server."""

from __future__ import annotations

import json
import string
import subprocess
import sys

import pytest
from hypothesis import given, strategies as st

from quorate.errors import StoreCorruptError, UsageError
from quorate.rendezvous import RendezvousParameters
from quorate_rendezvous_etcd._settings import Settings
from quorate_rendezvous_etcd._v2.answers import Node, read_answer
from quorate_rendezvous_etcd._v2.counter import count_at, is_counter, pack_addition, total
from quorate_rendezvous_etcd._v2.format import Value, escape, key_path, new_stamp, pack, split_prefix, unpack

_KEYS = st.text(st.characters(min_codepoint=1, max_codepoint=126), max_size=12)


@given(_KEYS, _KEYS)
def test_different_keys_have_different_paths_and_none_is_in_the_way_of_another(one: str, other: str) -> None:
    if one != other:
        assert key_path(one) != key_path(other)
        assert not key_path(one).startswith(key_path(other) + "/")


@given(_KEYS)
def test_paths_hold_only_what_no_url_and_no_etcd_reads_in_another_way(key: str) -> None:
    for name in key_path(key).split("/"):
        assert name
        assert name[0] not in "._"
        assert set(name) <= set(string.ascii_letters + string.digits + "-_.~=")


@given(_KEYS, _KEYS)
def test_a_prefix_is_split_so_that_exactly_its_keys_are_found(prefix: str, key: str) -> None:
    def is_found(path: str) -> bool:
        directory, starts = split_prefix(prefix)
        inside = f"{directory}/" if directory else ""
        return path.startswith(inside) and (not starts[0] or path[len(inside) :].startswith(starts))

    assert is_found(key_path(prefix + key))
    assert is_found(key_path(key)) == key.startswith(prefix)


def test_names_that_people_choose_stay_readable() -> None:
    assert key_path("3/node/7") == "3/node/=7"
    assert escape("my_job-7.b") == "my_job-7.b"
    assert escape("_a") == "~5Fa"
    assert escape("\u00e4 b") == "~C3~A4~20b"


@given(st.binary(max_size=300))
def test_values_come_back_as_they_were(data: bytes) -> None:
    value = Value(data, new_stamp())
    assert unpack(pack(value), "path") == value


@pytest.mark.parametrize(
    "text",
    [None, "", "7", "garbage", "v1:", "v1:stamp", "v1:stamp:\u00e4", "v1:stamp:AB!=", "v2:s:AAAA", "v1"],
)
def test_what_quorate_has_not_written_is_refused(text: object) -> None:
    with pytest.raises(StoreCorruptError) as caught:
        unpack(text, "/quorate/job/key")
    assert caught.value.key == "/quorate/job/key"


def _entries(*texts: str) -> Node:
    nodes = [{"key": f"/c/{index}", "value": text, "createdIndex": index} for index, text in enumerate(texts)]
    body = {"action": "get", "node": {"key": "/c", "dir": True, "nodes": nodes[::-1]}}
    return read_answer(json.dumps(body).encode(), {"X-Etcd-Index": "7"}).node


def test_a_counter_is_the_sum_of_its_additions_in_their_order() -> None:
    node = _entries(pack_addition(5, "a"), pack_addition(-7, "b"), pack_addition(1, "c"))
    assert is_counter(node)
    assert [count_at(node, stamp) for stamp in "abcd"] == [5, -2, -1, None]
    assert total(node) == -1


def test_an_addition_that_was_posted_twice_counts_once_and_where_it_came_first() -> None:
    node = _entries(*(pack_addition(1, stamp) for stamp in "abacb"))
    assert [count_at(node, stamp) for stamp in "abc"] == [1, 2, 3]
    assert total(node) == 3


@pytest.mark.parametrize("text", ["", "7", "c1:1", "c1::a", "c1:1.5:a", "c2:1:a", "v1:s:AAAA"])
def test_an_addition_that_quorate_has_not_written_is_refused(text: str) -> None:
    with pytest.raises(StoreCorruptError, match="/c/1"):
        total(_entries(pack_addition(1, "a"), text))


# --- settings -------------------------------------------------------------------------------------------------------


def _settings(endpoint: str = "a:1", **config: object) -> Settings:
    return Settings.from_parameters(RendezvousParameters("etcd-v2", endpoint, "job", 1, 2, **config), is_v2=True)


def test_defaults_and_the_names_that_torchelastic_uses() -> None:
    plain = _settings()
    assert (plain.protocol, plain.prefix, plain.operation_timeout_seconds, plain.key_ttl_seconds) == (
        "http",
        "quorate",
        5.0,
        600,
    )
    moved = _settings(cacert="ca", ssl_cert="cert", ssl_cert_key="key", read_timeout="7", prefix="/a/b/")
    assert (moved.ca_cert, moved.cert, moved.key) == ("ca", "cert", "key")
    assert (moved.protocol, moved.operation_timeout_seconds, moved.prefix) == ("https", 7.0, "a/b")


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"prefix": "_hidden"}, "prefix"),
        ({"prefix": "a//b"}, "prefix"),
        ({"prefix": ""}, "prefix"),
        ({"prefix": "a b"}, "prefix"),
    ],
)
def test_unusable_settings_are_refused(config: dict[str, object], problem: str) -> None:
    """What both backends share is tested with the settings."""
    with pytest.raises(UsageError, match=problem):
        _settings(**config)


def test_nothing_is_imported_before_the_backend_is_opened() -> None:
    script = """
import sys
from quorate.rendezvous import RendezvousParameters
from quorate_rendezvous_etcd import plugin
backend, = (one for one in plugin.quorate_register_rendezvous() if one.name == "etcd-v2")
backend.check(RendezvousParameters("etcd-v2", "a:1", "job", 1, 2))
loaded = {"etcd", "urllib3", "dns", "ssl", "logging", "http", "h2", "google"} & set(sys.modules)
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
