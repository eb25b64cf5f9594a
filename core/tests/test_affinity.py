"""Lists of CPUs, and threads that are bound for a while: what they start stays bound, they themselves do not."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from quorate.affinity import bind_thread, bound_thread, format_cpus, parse_cpus
from quorate.memory_policy import can_prefer_node, get_policy, prefer_node, preferring_call, set_policy

CPUS = sorted(os.sched_getaffinity(0))
FORBIDDEN = 65_000
COMMAND = [sys.executable, "-c", "import os; print(*sorted(os.sched_getaffinity(0)))"]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("", []), ("\n", []), ("0\n", [0]), ("0-3,8", [0, 1, 2, 3, 8]), ("7,5-6", [5, 6, 7]), ("2-2", [2])],
)
def test_lists_are_read_as_the_kernel_writes_them(text: str, numbers: list[int]) -> None:
    assert parse_cpus(text) == frozenset(numbers)


@pytest.mark.parametrize("text", ["x", "1-", "-1", "3-1", "1,,2", "0-99999999999", "0x3", "1 2"])
def test_what_is_no_list_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_cpus(text)


@given(st.frozensets(st.integers(0, 5000)))
def test_a_list_that_was_written_is_read_as_it_was(numbers: frozenset[int]) -> None:
    text = format_cpus(numbers)
    assert parse_cpus(text) == numbers
    assert text.count(",") + text.count("-") <= max(0, 2 * len(numbers) - 1)


def test_what_a_bound_thread_starts_stays_bound_and_the_thread_does_not() -> None:
    others: list[list[int]] = []
    stop = threading.Event()
    other = threading.Thread(target=lambda: (stop.wait(), others.append(sorted(os.sched_getaffinity(0)))))
    other.start()
    with bound_thread(CPUS[-1:]):
        assert sorted(os.sched_getaffinity(0)) == CPUS[-1:]
        stop.set()
        other.join()
        done = subprocess.run(COMMAND, capture_output=True, text=True, check=True)
    assert [int(word) for word in done.stdout.split()] == CPUS[-1:]
    assert sorted(os.sched_getaffinity(0)) == CPUS
    assert others == [CPUS], "only the thread that asked for it is bound"


def test_a_thread_is_released_whatever_happens() -> None:
    before = get_policy()
    with pytest.raises(KeyError), bound_thread(CPUS[:1], 0):
        raise KeyError
    assert sorted(os.sched_getaffinity(0)) == CPUS
    assert get_policy() == before


def test_cpus_that_may_not_be_used_are_named() -> None:
    with pytest.raises(OSError, match=f"the CPUs {FORBIDDEN} cannot be used by this process"):
        bind_thread([FORBIDDEN])
    with pytest.raises(OSError), bound_thread([FORBIDDEN], 0):
        pass
    assert sorted(os.sched_getaffinity(0)) == CPUS
    assert get_policy() in (0, None)


def test_a_binding_for_good_is_for_the_calling_thread() -> None:
    found: list[tuple[list[int], int | None]] = []

    def bind() -> None:
        bind_thread(CPUS[:1], 0)
        found.append((sorted(os.sched_getaffinity(0)), get_policy()))

    thread = threading.Thread(target=bind)
    thread.start()
    thread.join()
    assert found == [(CPUS[:1], 1 if can_prefer_node() else get_policy())]
    assert sorted(os.sched_getaffinity(0)) == CPUS
    bind_thread(None, None)
    assert sorted(os.sched_getaffinity(0)) == CPUS


def test_memory_is_preferred_as_the_kernel_shows_it() -> None:
    if not can_prefer_node():
        pytest.skip("this system lets no process have a memory policy")
    with bound_thread(None, 0):
        assert Path("/proc/thread-self/numa_maps").read_text().split("\n", 1)[0].split()[1] == "prefer:0"
        assert not can_prefer_node(), "it has a policy of its own now"
    assert get_policy() == 0


def test_a_node_that_does_not_exist_changes_nothing() -> None:
    assert preferring_call(-1) is None
    assert preferring_call(1 << 20) is None
    assert not prefer_node(1023)
    with bound_thread(None, 1023):
        assert get_policy() in (0, None)
    assert set_policy(0) == (get_policy() is not None)
