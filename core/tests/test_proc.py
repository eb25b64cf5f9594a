"""``quorate.proc`` on real processes: what the kernel says of them, and what it says once they are gone."""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from quorate import proc
from quorate.errors import remedy_for

SECONDS = 60.0
#: Starts a child in a thread (so that another thread is its parent) and a grandchild, and prints their pids.
FAMILY = """
import subprocess, sys, threading
def child():
    line = "import subprocess, sys; p = subprocess.Popen(['sleep', '1000']); print(p.pid, flush=True); p.wait()"
    process = subprocess.Popen([sys.executable, "-c", line], stdout=subprocess.PIPE, text=True)
    print(process.pid, process.stdout.readline().strip(), flush=True)
    process.wait()
thread = threading.Thread(target=child)
thread.start()
thread.join()
"""


@pytest.fixture
def family() -> Iterator[tuple[int, int, int]]:
    """Yield the pids of a process, its child and its grandchild."""
    parent = subprocess.Popen([sys.executable, "-c", FAMILY], stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert parent.stdout is not None
        child, grandchild = map(int, parent.stdout.readline().split())
        yield parent.pid, child, grandchild
    finally:
        os.killpg(parent.pid, signal.SIGKILL)
        parent.communicate(timeout=SECONDS)


def ended() -> int:
    """Return the pid of a process that has ended and was waited for."""
    process = subprocess.Popen(["true"])
    process.wait(SECONDS)
    return process.pid


def test_questions_about_an_ended_process_are_answered() -> None:
    pid = ended()
    assert (proc.stat_of(pid), proc.start_time_of(pid), proc.resident_bytes(pid)) == (None, None, None)
    assert (proc.state_of(pid), proc.environment_of(pid), proc.is_alive(pid)) == ("", b"", False)
    assert (proc.children_of(pid), proc.descendants_of(pid), proc.ancestor_among(pid, {1})) == (set(), [pid], None)
    assert proc.kernel_wait_of(pid) == "unknown"
    assert proc.send_signal(pid, -1, signal.SIGTERM)
    with pytest.raises(ProcessLookupError):
        proc.open_pidfd(pid)


def test_a_command_named_like_the_fields_of_stat_is_read_all_the_same(tmp_path: Path) -> None:
    program = tmp_path / "a) R 1 (b"
    program.symlink_to("/bin/sleep")
    process = subprocess.Popen([str(program), "1000"], executable=str(program))
    try:
        stat = proc.stat_of(process.pid)
        assert stat is not None
        assert (stat.parent, stat.session) == (os.getpid(), os.getsid(0))
        assert stat.virtual_bytes > 0
    finally:
        process.kill()
        process.wait(SECONDS)


def test_a_zombie_has_ended_although_it_has_a_number() -> None:
    process = subprocess.Popen(["true"])
    try:
        assert os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT) is not None
        assert (proc.state_of(process.pid), proc.is_alive(process.pid)) == ("Z", False)
        assert proc.start_time_of(process.pid) is None
    finally:
        process.wait(SECONDS)


def test_descendants_are_found_parents_first_whichever_thread_started_them(family: tuple[int, int, int]) -> None:
    parent, child, grandchild = family
    assert proc.children_of(parent) == {child}
    assert proc.descendants_of(parent) == [parent, child, grandchild]
    assert proc.descendants_of(parent, most=2) == [parent, child]


def test_the_ancestor_is_found_by_descent_and_by_session(family: tuple[int, int, int]) -> None:
    parent, child, grandchild = family
    assert proc.ancestor_among(grandchild, {parent}) == parent
    assert proc.ancestor_among(grandchild, {child, grandchild}) == grandchild
    assert proc.ancestor_among(grandchild, {child}) == child
    os.kill(child, signal.SIGKILL)  # the grandchild now belongs to init; its session's leader still counts
    assert proc.ancestor_among(grandchild, {parent}) == parent
    assert proc.ancestor_among(os.getpid(), {parent}) is None


def test_start_time_identifies_a_process(family: tuple[int, int, int]) -> None:
    parent, child, _ = family
    first, second = proc.start_time_of(parent), proc.start_time_of(child)
    assert first is not None
    assert second is not None
    assert proc.start_time_of(parent) == first <= second


def test_memory_environment_and_kernel_wait_of_a_process() -> None:
    process = subprocess.Popen(["cat"], env={"MARK": "here"}, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"x\n")
        process.stdin.flush()
        process.stdout.readline()  # it runs: amid the exec its environment is not there yet
        assert b"MARK=here" in proc.environment_of(process.pid).split(b"\0")
        resident = proc.resident_bytes(process.pid)
        assert resident is not None
        assert resident > 0
        assert proc.kernel_wait_of(process.pid)
    finally:
        process.kill()
        process.communicate(timeout=SECONDS)


def test_a_pidfd_is_readable_at_the_end_and_carries_signals() -> None:
    process = subprocess.Popen(["sleep", "1000"])
    descriptor = proc.open_pidfd(process.pid)
    try:
        assert descriptor >= 0
        assert select.select([descriptor], [], [], 0)[0] == []
        assert proc.send_signal(process.pid, descriptor, signal.SIGTERM)
        assert select.select([descriptor], [], [], SECONDS)[0] == [descriptor]
        assert proc.send_signal(process.pid, descriptor, signal.SIGTERM), "one that has ended counts as sent to"
    finally:
        os.close(descriptor)
        assert process.wait(SECONDS) == -signal.SIGTERM


# --- descriptors, death with the parent -------------------------------------------------------------------------------


def test_a_held_descriptor_is_closed_in_forked_children_and_one_that_was_forgotten_is_not() -> None:
    reader, writer = os.pipe()
    kept_reader, kept_writer = os.pipe()
    proc.hold(writer)
    proc.hold(kept_writer)
    proc.forget(kept_writer)
    try:
        child = os.fork()
        if child == 0:
            signal.pause()
            os._exit(0)
        try:
            proc.release(writer)
            os.close(kept_writer)
            assert os.read(reader, 1) == b"", "the child has no copy"
            assert select.select([kept_reader], [], [], 0)[0] == [], "the child has a copy"
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    finally:
        os.close(reader)
        os.close(kept_reader)
    proc.release(writer)  # a second time does nothing


@pytest.mark.parametrize("how", ["by itself", "by a command"])
def test_a_process_dies_with_its_parent(how: str) -> None:
    if how == "by itself":
        child = "from quorate.proc import die_with_parent; import os, sys; print(die_with_parent(int(sys.argv[1])),"
        child += " os.getpid(), flush=True); import signal; signal.pause()"
        prefix: tuple[str, ...] = ()
        command = [sys.executable, "-c", child]
    else:
        prefix = proc.parent_death_command(os.environ["PATH"])
        if not prefix:
            pytest.skip("this system has no setpriv of util-linux")
        command = ["sh", "-c", "echo True $$; read line"]
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import os, subprocess, sys, signal\n"
            "r, w = os.pipe()\n"
            "command = sys.argv[1:] + ([str(os.getpid())] if sys.argv[1] == sys.executable else [])\n"
            "process = subprocess.Popen(command, stdin=r)\n"
            "signal.pause()",
            *prefix,
            *command,
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert parent.stdout is not None
        is_parent, pid = parent.stdout.readline().split()
        assert is_parent == "True"
        descriptor = proc.open_pidfd(int(pid))
        try:
            parent.kill()
            assert select.select([descriptor], [], [], SECONDS)[0] == [descriptor]
        finally:
            os.close(descriptor)
    finally:
        parent.kill()
        parent.communicate(timeout=SECONDS)


def test_a_program_is_searched_in_the_folders_in_their_order(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        (folder / "tool").write_text("#!/bin/sh\n")
    (second / "tool").chmod(0o755)
    path = f"{first}:{second}"
    assert proc.find_program("tool", path) == str(second / "tool"), "the first is not executable"
    assert proc.find_program("tool", "") == ""
    assert proc.find_program("tool", f"{tmp_path}/absent") == ""


def test_memory_groups_are_read_from_both_versions_of_control_groups(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    lines = "12:cpu,cpuacct:/other\n5:memory:/job/worker\n0::/slice/job\n"
    (tmp_path / "self/cgroup").write_text(lines)
    groups = [(group.folder, group.name, group.version) for group in proc.memory_groups(str(tmp_path), "/mnt")]
    assert groups == [
        ("/mnt/memory/job/worker", "/job/worker", 1),
        ("/mnt/memory/job", "/job", 1),
        ("/mnt/memory", "/", 1),
        ("/mnt/slice/job", "/slice/job", 2),
        ("/mnt/slice", "/slice", 2),
        ("/mnt", "/", 2),
    ]


def test_a_remedy_is_found_for_any_error_and_keeps_none_alive() -> None:
    class OwnError(OSError):
        __hash__ = None  # type: ignore[assignment]  # as a class has that compares by value

    error = OwnError(errno.EMFILE, "Too many open files")
    assert remedy_for(error) == "raise the limit on open files (ulimit -n)"
    gone = weakref.ref(error)
    del error
    assert gone() is None


def test_only_a_child_is_killed_by_its_number() -> None:
    """Other code may have reaped a child, and its number may be that of another process by then."""
    shell = subprocess.Popen(
        ["sh", "-c", "sleep 600 & echo $!; read line"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert shell.stdout is not None
    other = int(shell.stdout.readline())
    end = select.poll()
    pidfd = os.pidfd_open(other)
    end.register(pidfd, select.POLLIN)
    try:
        proc.kill_and_reap(other)
        assert not end.poll(200), "it goes on"
        proc.kill_and_reap(shell.pid)
        assert proc.state_of(shell.pid) == ""
    finally:
        os.close(pidfd)
        os.kill(other, signal.SIGKILL)
        shell.communicate(timeout=SECONDS)
