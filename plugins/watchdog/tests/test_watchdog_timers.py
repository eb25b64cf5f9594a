"""Timers and heartbeats from real processes, through the pipe, to the report."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from quorate.clock import monotonic
from quorate.files import write_all
from quorate_watchdog._channels import ChannelError, named_channel
from quorate_watchdog._messages import Lines
from quorate_watchdog._service import WatchdogService
from quorate_watchdog._timers import Timer, TimerKey, Timers

from .conftest import DEADLINE_SECONDS, View, Watch, Work, timers_of, wait_until

ENABLED = "TORCHELASTIC_ENABLE_FILE_TIMER"


FILE = "TORCHELASTIC_TIMER_FILE"


#: A worker in a block that has all the time it wants.
TIMED = "from quorate_watchdog import expires, heartbeat\nwith expires(1000, 'x'): wait(); heartbeat(); wait()"


def end_now(service: Any, worker: Any, change: Callable[[TimerKey], TimerKey]) -> None:
    """Have the only timer end at once, as another's; return when it has been looked at."""
    timers = timers_of(service)
    wait_until(lambda: len(timers) == 1)
    (key,) = timers
    timers._timers[change(key)] = evolve(timers._timers.pop(key), deadline=monotonic())
    timers._rebuild()
    worker.go_on()  # to its heartbeat: the timekeeper looks after each message
    wait_until(lambda: not len(timers))


def test_a_block_that_takes_too_long_is_reported_with_its_scope(view: View, watch: Watch, work: Work) -> None:
    worker = work(watch(), "from quorate_watchdog import expires\nwith expires(after=0.2, scope='st\"ep ü'): wait()")
    report = view.report()
    assert (report.local_rank, report.pid, report.scope) == (0, worker.pid, 'st"ep ü')
    assert report.overdue_seconds >= 0.0
    assert report.problem.startswith("scope 'st\"ep ü' is ")
    assert report.problem.endswith(" s over its 0.2 s")


def test_blocks_that_end_in_time_are_not_reported(view: View, watch: Watch, work: Work) -> None:
    """The report of the last one, which was written later, shows that the earlier ones were read, and so released.

    The worker waits while its pipe is half full: where it is full, starts are dropped.
    """
    code = """
import fcntl, termios
from quorate_watchdog import _client, expires
for _ in range(2000):
    with expires(after=600), expires(after=500): pass
    while int.from_bytes(fcntl.ioctl(_client._channel.descriptor, termios.FIONREAD, bytes(4)), sys.byteorder) > 30_000:
        time.sleep(0.001)
timer = expires(after=600, scope='released')
with timer: pass
with expires(after=0.1, scope='the last'): wait()
"""
    service = watch()
    work(service, code)
    assert view.report().scope == "the last"
    assert len(timers_of(service)) == 0
    assert view.reports.empty()


def test_the_default_scope_is_file_and_line(view: View, watch: Watch, work: Work) -> None:
    work(watch(), "from quorate_watchdog import expires\nwith expires(0.1): wait()")
    assert view.report().scope == "<string>:5"


def test_a_process_that_a_worker_started_counts_as_the_worker(view: View, watch: Watch, work: Work) -> None:
    code = """
from quorate_watchdog import expires, heartbeat
with expires(after=1000): # the parent's own, which its child neither ends nor inherits
    child = os.fork()
    if child == 0:
        os.setsid()
        with expires(after=0.1, scope='loader'): time.sleep(1000)
    say(child)
    wait()
"""
    worker = work(watch(), code)
    report = view.report()
    child = int(worker.next_word())
    assert report.pid == worker.pid
    assert report.problem.startswith(f"scope 'loader' of its process {child} is ")
    os.kill(child, signal.SIGKILL)


def test_a_timer_of_a_process_that_has_died_is_not_reported(view: View, watch: Watch, work: Work) -> None:
    code = """
from quorate_watchdog import expires
child = os.fork()
if child == 0:
    expires(after=1000, scope='dead').__enter__()
    wait()
    os._exit(0)
os.waitpid(child, 0)
say('reaped'); wait()
with expires(after=0.1, scope='alive'): wait()
"""
    service = watch()
    worker = work(service, code)
    wait_until(lambda: len(timers_of(service)) == 1)
    worker.go_on()
    assert worker.next_word() == "reaped"
    (key,) = timers_of(service)
    timers_of(service).set(key, Timer(monotonic(), 1000.0, "dead"))
    worker.go_on()
    assert view.report().scope == "alive"
    assert view.reports.empty()


def test_a_later_process_of_the_same_number_is_not_reported(view: View, watch: Watch, work: Work) -> None:
    """A timer belongs to a number and a time of start."""
    service = watch()
    worker = work(service, TIMED)
    end_now(service, worker, lambda key: TimerKey(key.pid, 0, key.name))
    assert view.heartbeats.get(timeout=DEADLINE_SECONDS) == (0, worker.pid)
    assert view.reports.empty()


def test_a_worker_that_has_ended_or_was_of_an_earlier_round_is_not_reported(
    view: View, watch: Watch, work: Work
) -> None:
    service = watch()
    worker = work(service, TIMED)
    view.has(worker.pid, exit_code=0)
    end_now(service, worker, lambda key: key)
    assert view.reports.empty()


def test_a_timer_of_a_process_that_is_not_a_workers_is_ignored(view: View, watch: Watch, work: Work) -> None:
    service = watch()
    worker = work(service, "from quorate_watchdog import expires\nwait()\nwith expires(0.1, 'its own'): wait()")
    line = {"pid": os.getpid(), "namespace": 0, "agent": "", "rank": 10, "round": 0, "timer": 1, "after": 0.0}
    write(service._channels[0].path, json.dumps(line).encode() + b"\n")
    worker.go_on()
    assert view.report().scope == "its own"  # which was written later
    assert view.reports.empty()


def test_a_worker_in_another_namespace_is_known_by_its_rank(view: View, watch: Watch, work: Work) -> None:
    """Its pid is another process's here; agent, rank and round name the timer's worker."""
    service = watch()
    worker = work(service, "wait()")
    line = {"pid": os.getpid(), "namespace": 1, "agent": "node-of-the-test", "rank": 10, "round": 0, "timer": 1}
    for changed, after in (({"round": 7}, 0.0), ({"agent": "another"}, 0.0), ({}, 0.1)):
        message = {**line, **changed, "after": after, "scope": json.dumps(changed)}
        write(service._channels[0].path, json.dumps(message).encode() + b"\n")
    report = view.report()
    assert (report.pid, report.scope) == (worker.pid, "{}")
    assert view.reports.empty()


def test_a_thousand_timers_end_in_their_order(view: View, watch: Watch, work: Work) -> None:
    code = """
from quorate_watchdog import expires
timers = [expires(after=2.0 + i % 7 / 10, scope=str(i)) for i in range(1000)]
for timer in timers: timer.__enter__()
for timer in timers[7:]: timer.__exit__(None, None, None)
wait()
"""
    work(watch(), code)
    scopes = [view.report().scope for _ in range(7)]
    assert scopes == [str(i) for i in range(7)]
    assert view.reports.empty()


def write(path: str, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        write_all(descriptor, data)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\n\n",
        b"no json\n",
        b"\xff\x00\xfe\n",
        b"[1]\n{}\n",
        b'{"pid":1e999,"scope_id":"x","expiration_time":1}\n',
        b'{"pid":true,"timer":1,"after":1}\n',
        b'{"pid":1,"scope_id":"x","expiration_time":NaN,"signal":9}\n',
        b"[" * 5000 + b"\n",
        b"x" * 100_000 + b"\n",
        b'{"pid":12,"scope_id":"torn',
    ],
    ids=lambda garbage: repr(garbage[:14]),
)
def test_garbage_is_skipped(view: View, watch: Watch, work: Work, garbage: bytes) -> None:
    """The next whole line counts, also behind one that a dying process left unfinished."""
    service = watch()
    worker = work(service, "from quorate_watchdog import expires\nwait()\nwith expires(0.1, 'whole'): wait()")
    write(service._channels[0].path, garbage)
    worker.go_on()
    assert view.report().scope == "whole"


def test_a_line_without_an_end_is_not_kept() -> None:
    lines = Lines()
    for _ in range(100):
        assert lines.feed(b"x" * 1000) == []
    assert len(lines._rest) < 10_000
    assert lines.feed(b"its end\nthe next\nand") == [b"the next"]
    assert lines.feed(b" so on\n") == [b"and so on"]


def test_a_timer_that_is_prolonged_ends_at_its_new_time() -> None:
    timers = Timers()
    key = TimerKey(1, 2, None)
    for deadline in (1.0, 5.0):
        timers.set(key, Timer(deadline, 1.0, "heartbeat"))
    assert timers.pop_expired(2.0) == []
    assert timers.next_deadline() == 5.0
    timers.prolong_all(10.0)
    assert timers.pop_expired(14.9) == []
    assert [key for key, _ in timers.pop_expired(15.0)] == [key]
    assert timers.next_deadline() is None


def test_released_timers_leave_nothing() -> None:
    timers = Timers()
    for number in range(10_000):
        timers.set(TimerKey(1, 2, number), Timer(1e6 + number, 1.0, "step"))
        timers.release(TimerKey(1, 2, number))
    assert len(timers._heap) <= 100


# --- heartbeats -----------------------------------------------------------------------------------------------------


def test_heartbeats_are_noted_for_their_worker(view: View, watch: Watch, work: Work) -> None:
    code = "from quorate_watchdog import heartbeat\nwhile True: [heartbeat() for _ in range(1000)]; time.sleep(0.05)"
    worker = work(watch(), code)
    assert [view.heartbeats.get(timeout=DEADLINE_SECONDS) for _ in range(3)] == 3 * [(0, worker.pid)]


def test_missing_heartbeats_are_a_hang_after_the_first(view: View, watch: Watch, work: Work) -> None:
    code = "from quorate_watchdog import heartbeat\nwait()\nheartbeat(); wait()"
    worker = work(watch(heartbeat_timeout=0.4), code)
    with pytest.raises(queue.Empty):
        view.reports.get(timeout=0.6)
    worker.go_on()
    report = view.report()
    assert (report.pid, report.scope) == (worker.pid, "heartbeat")
    told = re.fullmatch(r"no heartbeat for ([\d.]+) s, ([\d.]+) s more than --heartbeat-timeout", report.problem)
    assert told is not None, report.problem
    missing, over = map(float, told.groups())
    assert over == pytest.approx(report.overdue_seconds, abs=0.051)  # both are rounded to a tenth
    assert missing - over == pytest.approx(0.4, abs=0.101)


# --- torch's client -------------------------------------------------------------------------------------------------


def test_torch_finds_its_timer_server(view: View, watch: Watch, work: Work, fifo: str) -> None:
    """torch's own client, at the named pipe; released timers and those without a signal end nothing."""
    service = watch({ENABLED: "1", FILE: fifo})
    assert stat.S_ISFIFO(os.stat(fifo).st_mode)
    code = """
import torch.distributed.elastic.timer as timer
timer.configure(timer.FileTimerClient(os.environ['TORCHELASTIC_TIMER_FILE']))
with timer.expires(after=2, scope='in time'): pass
timer.configure(timer.FileTimerClient(os.environ['TORCHELASTIC_TIMER_FILE'], signal=0))
with timer.expires(after=0.1, scope='message'): wait()
timer.configure(timer.FileTimerClient(os.environ['TORCHELASTIC_TIMER_FILE']))
with timer.expires(after=0.3, scope='too late'): wait()
"""
    worker = work(service, code, **{FILE: fifo})
    sentence = view.sentences.get(timeout=DEADLINE_SECONDS)
    assert sentence.startswith("rank 10 (local rank 0): scope 'message' is ")
    worker.go_on()
    report = view.report()
    assert (report.local_rank, report.pid, report.scope) == (0, worker.pid, "too late")
    service.close()
    assert not os.path.exists(fifo)


def test_torch_is_served_without_a_file_too(view: View, watch: Watch, work: Work) -> None:
    service = watch({ENABLED: "1"})
    code = """
import torch.distributed.elastic.timer as timer
timer.configure(timer.FileTimerClient(os.environ['TORCHELASTIC_TIMER_FILE']))
with timer.expires(after=0.1, scope='unnamed'): wait()
"""
    work(service, code)
    assert view.report().scope == "unnamed"


def test_only_an_abandoned_pipe_at_the_path_is_taken_over(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("precious")
    with pytest.raises(ChannelError, match="is not a pipe"):
        named_channel(str(file))
    with pytest.raises(ChannelError, match="cannot be made"):
        named_channel(str(tmp_path / "nowhere" / "pipe"))
    os.mkfifo(tmp_path / "abandoned")
    first = named_channel(str(tmp_path / "abandoned"))
    with pytest.raises(ChannelError, match="give each agent of a machine a file of its own"):
        named_channel(str(tmp_path / "abandoned"))
    first.close()
    if os.geteuid() == 0:
        os.mkfifo(tmp_path / "foreign")
        os.chown(tmp_path / "foreign", 12345, -1)
        with pytest.raises(ChannelError, match="belongs to another user"):
            named_channel(str(tmp_path / "foreign"))
        os.unlink(tmp_path / "foreign")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_pipe_that_cannot_be_used_is_a_warning(view: View, watch: Watch, tmp_path: Path) -> None:
    watch({ENABLED: "1", FILE: str(tmp_path)})
    warning = view.sentences.get(timeout=DEADLINE_SECONDS)
    assert warning == f"warning: {FILE}: {tmp_path} is not a pipe; it is left alone; torch's timers are not watched"


def test_a_console_that_takes_nothing_does_not_delay_the_agents_end(view: View, watch: Watch, work: Work) -> None:
    """The thread is left running, with the descriptors that it may still use."""
    is_stuck, goes_on = threading.Event(), threading.Event()

    def say(sentence: str) -> None:
        is_stuck.set()
        goes_on.wait(DEADLINE_SECONDS)

    setattr(view, "say", say)  # noqa: B010 - a method, for the type checker
    service = watch()
    server, channel = service._server, service._channels[0]
    work(service, "wait()")
    write(channel.path, b"no message\n")
    assert is_stuck.wait(DEADLINE_SECONDS)
    service.close()
    assert server._thread.is_alive()
    goes_on.set()
    server._thread.join(DEADLINE_SECONDS)
    os.close(server._wake)
    channel.close_descriptors()


def test_without_workers_there_is_no_thread(view: View) -> None:
    service = WatchdogService(view)
    assert service._server is None
    service.close()
