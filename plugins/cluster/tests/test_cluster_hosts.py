"""Lists of hosts as schedulers write them."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from quorate import UsageError
from quorate_cluster._hosts import counts_of, expand_hosts, is_same_host, name_part
from quorate_cluster._slurm import parse_time_left


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("", []),
        ("n1", ["n1"]),
        ("n[1-3,7],m04", ["n1", "n2", "n3", "n7", "m04"]),
        ("n[08-11]", ["n08", "n09", "n10", "n11"]),
        ("n[1-2]-ib,login", ["n1-ib", "n2-ib", "login"]),
        ("rack[1-2]n[1,3]", ["rack1n1", "rack1n3", "rack2n1", "rack2n3"]),
        ("a,b , c", ["a", "b", "c"]),
        ("m2,n[3,1]", ["m2", "n3", "n1"]),
        ("ip-10-0-0-[7-8].ec2.internal", ["ip-10-0-0-7.ec2.internal", "ip-10-0-0-8.ec2.internal"]),
    ],
)
def test_a_packed_list_of_hosts(text: str, hosts: list[str]) -> None:
    assert expand_hosts(text) == hosts


@pytest.mark.parametrize(
    "text",
    ["n[1-", "n1]", "n[[1]]", "n[a-b]", "n[3-1]", "n[]", "n[1-99999999]", "n[1-9999999999]"]
    + ["n[\N{SUPERSCRIPT TWO}]", "a[1]" * 3000, f"{'x' * 2000}[1-60000]"],
)
def test_what_is_not_a_list_of_hosts_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"n\[1-3,7\],m04"):
        expand_hosts(text)


def test_no_list_fills_the_memory() -> None:
    with pytest.raises(UsageError, match="more than 65536"):
        expand_hosts("a[1-60000]b[1-60000]")


@given(st.text(alphabet="n1239[]-,x ", max_size=30))
def test_any_text_is_a_list_or_refused(text: str) -> None:
    try:
        hosts = expand_hosts(text)
    except UsageError:
        return
    assert all(host and host == host.strip() for host in hosts)


@given(st.lists(st.integers(1, 400), min_size=1, max_size=20, unique=True))
def test_ranges_say_what_the_single_numbers_say(numbers: list[int]) -> None:
    packed = ",".join(f"{number}-{number}" for number in numbers)
    assert expand_hosts(f"n[{packed}]") == [f"n{number}" for number in numbers]


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("", []),
        ("1(x2)", [1, 1]),
        ("2(x2),1", [2, 2, 1]),
        ("4", [4]),
        ("x", []),
        ("1(x", []),
        ("\N{SUPERSCRIPT TWO}", []),
    ]
    + [("9" * 5000, []), ("1(x65536)," * 100 + "1", [])],
)
def test_tasks_per_node(text: str, counts: list[int]) -> None:
    assert counts_of(text) == counts


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0:58\n", 58.0),
        ("1:02:03", 3723.0),
        ("2-00:00:01", 172801.0),
        ("UNLIMITED", None),
        ("INVALID", None),
        ("1:\N{SUPERSCRIPT TWO}", None),
        ("9" * 400, None),
        ("1:2:3:4", None),
        ("", None),
    ],
)
def test_the_time_that_slurm_leaves(text: str, seconds: float | None) -> None:
    assert parse_time_left(text) == seconds


def test_names_with_and_without_a_domain() -> None:
    assert is_same_host("n1", "n1.cluster")
    assert is_same_host("n1.cluster", "n1.cluster")
    assert not is_same_host("n1.a", "n1.b")
    assert not is_same_host("n1", "n10")


def test_a_name_becomes_a_part_of_a_run_id() -> None:
    assert name_part("my job / 3") == "my-job-3"
    assert name_part("\u01923ETx") == "f3ETx"
