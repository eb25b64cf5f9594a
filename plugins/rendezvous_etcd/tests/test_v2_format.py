"""Keys, values and settings of ``etcd-v2``, without a server."""

from __future__ import annotations

import string
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorate.errors import StoreCorruptError, UsageError
from quorate.rendezvous import RendezvousParameters
from quorate_rendezvous_etcd._settings import Settings
from quorate_rendezvous_etcd._v2_format import Counter, Value, escape, key_path, new_stamp, pack, split_prefix, unpack

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


def test_counters_come_back_as_they_were() -> None:
    counter = Counter(0, 0, ()).plus(5, "a").plus(-7, "b")
    assert unpack(pack(counter), "path") == counter == Counter(-2, 2, ("b", "a"))
    assert counter.data == b"-2"


@pytest.mark.parametrize(
    "text",
    [None, "", "7", "garbage", "v1:", "v1:stamp", "v1:stamp:\u00e4", "v1:stamp:AB!=", "v2:s:AAAA", "n1:1", "n1:a:b:c"],
)
def test_what_is_not_ours_is_refused(text: object) -> None:
    with pytest.raises(StoreCorruptError) as caught:
        unpack(text, "/quorate/job/key")
    assert caught.value.key == "/quorate/job/key"


def test_a_counter_tells_which_of_its_last_writes_were_applied() -> None:
    counter = Counter(0, 0, ())
    for number in range(100):
        counter = counter.plus(1, f"s{number + 1}")
    assert counter.holds("s100", 100) is True
    assert counter.holds("s80", 80) is True
    assert counter.holds("mine", 80) is False
    assert counter.holds("mine", 101) is False  # it would have been the next
    assert counter.holds("s10", 10) is None  # so long ago that nobody knows
    assert len(pack(counter)) < 512


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
    """BEHAVIOUR D; what both backends share is tested with the settings."""
    with pytest.raises(UsageError, match=problem):
        _settings(**config)


def test_nothing_is_imported_before_the_backend_is_opened() -> None:
    script = """
import sys
from quorate.rendezvous import RendezvousParameters
from quorate_rendezvous_etcd import plugin
backend, = (one for one in plugin.quorate_register_rendezvous() if one.name == "etcd-v2")
backend.check(RendezvousParameters("etcd-v2", "a:1", "job", 1, 2))
loaded = {"etcd", "urllib3", "dns", "ssl", "json", "logging", "http"} & set(sys.modules)
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
