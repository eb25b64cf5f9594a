"""This machine's addresses, and what ``--local-addr`` means."""

from __future__ import annotations

import ipaddress

import pytest
from attrs import evolve

from quorate import UsageError, addresses
from quorate.addresses import (
    InterfaceAddress,
    interface_addresses,
    interface_towards,
    local_address,
    outside_address,
    problem_with_name,
)
from quorate.reach import names_local_host, why_unreachable
from quorate.records import NodeRecord
from quorate.rendezvous import assign_ranks

FOUND = [
    InterfaceAddress("lo", "127.0.0.1"),
    InterfaceAddress("eth0", "10.1.2.3"),
    InterfaceAddress("ib0", "10.9.0.3"),
    InterfaceAddress("eth0", "fe80::1"),
    InterfaceAddress("eth0", "2001:db8::3"),
]


def test_the_system_names_loopback() -> None:
    found = {each.host: each.interface for each in interface_addresses()}
    assert found["127.0.0.1"] == "lo"
    for host in found:
        ipaddress.ip_address(host)


def test_the_outside_address_is_never_loopback_or_link_local(monkeypatch: pytest.MonkeyPatch) -> None:
    here = outside_address()
    assert here == "" or InterfaceAddress("", here).is_outside
    monkeypatch.setattr(addresses, "source_towards", lambda address: "")  # no default route
    monkeypatch.setattr(addresses, "interface_addresses", lambda: FOUND)
    assert outside_address() == "10.1.2.3"
    monkeypatch.setattr(addresses, "interface_addresses", lambda: FOUND[:1])
    assert outside_address() == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.1.2.3", "10.1.2.3"),
        ("node1.cluster", "node1.cluster"),
        ("eth0", "10.1.2.3"),
        ("ib0", "10.9.0.3"),
        ("lo", "127.0.0.1"),
        ("10.9.0.0/16", "10.9.0.3"),
        ("10.1.2.99/24", "10.1.2.3"),
        ("2001:db8::/32", "2001:db8::3"),
        (" ib0\n", "10.9.0.3"),
        (" 10.9.9.9 ", "10.9.9.9"),
        ("[fd00::9]", "fd00::9"),
        ("fe80::1%eth0", "fe80::1%eth0"),
        ("node_1", "node_1"),
    ],
)
def test_a_local_address_may_be_an_interface_or_a_network(
    text: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(addresses, "interface_addresses", lambda: FOUND)
    assert local_address(text) == expected


def test_a_network_that_this_machine_is_not_in_is_refused_with_the_addresses_that_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(addresses, "interface_addresses", lambda: FOUND)
    with pytest.raises(UsageError, match=r"no address in that network; it has 127.0.0.1 \(lo\), 10.1.2.3 \(eth0\)"):
        local_address("172.16.0.0/12")
    with pytest.raises(UsageError, match="is not a network"):
        local_address("ten/8")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("0.0.0.0", "stands for all addresses"), ("::", "stands for all addresses"), ("0::0", "stands for all addresses")]
    + [
        (text, "is not an address, a name, an interface or a network; this machine has 127.0.0.1")
        for text in ("10.1.2.3:80", "eth0,ib0", "eth*", "10.1.2.3%eth0", "two words", "[node1]", "me@node1")
    ],
)
def test_what_is_no_address_of_a_node_is_refused_before_it_is_told_to_others(
    text: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(addresses, "interface_addresses", lambda: FOUND)
    with pytest.raises(UsageError, match=sentence):
        local_address(text)


def test_a_local_address_that_is_nobodys_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "interface_addresses", lambda: FOUND)
    problem = problem_with_name("nosuchif0.invalid", 20.0)
    assert "neither an address nor an interface" in problem
    assert "it does not resolve here" in problem
    assert "10.1.2.3 (eth0)" in problem
    for right in ("10.9.9.9", "fe80::1%eth0", "localhost"):
        assert problem_with_name(right, 20.0) == ""


def test_the_loopback_interface_is_named_to_nobody() -> None:
    for host in ("127.0.0.1", "::1", "a-name", ""):
        assert interface_towards(host) == ""


def test_a_round_that_spans_hosts_has_no_loopback_master() -> None:
    first = NodeRecord("a", "r", 1, host="one", address="127.0.1.1", outside_address="10.0.0.1")
    second = NodeRecord("b", "r", 1, host="two", address="10.0.0.2")
    order = ["a", "b"]
    spread = assign_ranks([first, second], order, round_number=0, restart_count=0)
    assert {each.master_addr for each in spread.values()} == {"10.0.0.1"}
    together = assign_ranks([first, evolve(second, host="one")], order, round_number=0, restart_count=0)
    assert {each.master_addr for each in together.values()} == {"127.0.1.1"}


def test_an_address_that_answers_in_any_way_is_reachable() -> None:
    assert why_unreachable("127.0.0.1", 1) == ""
    assert "cannot be looked up" in why_unreachable("no-such-host.invalid", 1)
    assert names_local_host("localhost:1")
    assert names_local_host("http://127.0.0.1:2379")
    assert not names_local_host("0.0.0.0:1")
    assert not names_local_host("/a/folder")
