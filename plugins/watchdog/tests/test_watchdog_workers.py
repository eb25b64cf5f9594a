"""The worker's side of the watchdog: nothing that happens to the agent or its pipe stops or harms a worker."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path

import pytest

import quorate_watchdog
from quorate.testing import open_descriptors
from quorate_watchdog import _client
from quorate_watchdog._channels import anonymous_channel

from .conftest import View, Watch, Work

# --- the writer -----------------------------------------------------------------------------------------------------


def test_without_an_agent_nothing_happens(work: Work) -> None:
    code = """
from quorate_watchdog import expires, heartbeat
with expires(after=1.0): heartbeat()
say(len(os.listdir('/proc/self/fd')))
say('quorate_watchdog._plugin' in sys.modules)
"""
    worker = work(None, code, QUORATE_TIMER_CHANNEL="")
    assert int(worker.next_word()) <= 5
    assert worker.next_word() == "False"


@pytest.mark.parametrize("after", [0, -1, float("nan"), float("inf")])
def test_a_time_that_is_not_positive_is_refused(after: float) -> None:
    with pytest.raises(ValueError, match="not a positive number of seconds"):
        quorate_watchdog.expires(after)


@pytest.mark.parametrize("path", ["/dev/null", "/nowhere", "{file}", ""])
def test_a_channel_that_is_not_the_agents_is_never_written(work: Work, path: str, tmp_path: Path) -> None:
    """In another process namespace the path may lead to anything."""
    file = tmp_path / "precious"
    file.write_text("precious")
    path = path.format(file=file)
    worker = work(
        None,
        "from quorate_watchdog import expires, heartbeat\nwith expires(after=1.0): heartbeat()\nsay('done')",
        QUORATE_TIMER_CHANNEL=f"{path}:{file.stat().st_ino}",
    )
    assert worker.next_word() == "done"
    assert file.read_text() == "precious"


def test_a_descriptor_that_is_another_files_by_now_is_never_written(watch: Watch, work: Work, tmp_path: Path) -> None:
    code = f"""
from quorate_watchdog import _client, expires, heartbeat
timer = expires(after=100.0)
timer.__enter__()
number = _client._channel.descriptor
os.closerange(3, 100)
file = os.open({str(tmp_path / "precious")!r}, os.O_CREAT | os.O_WRONLY)
os.dup2(file, number)
timer.__exit__(None, None, None)
with timer: heartbeat()
say('done')
"""
    assert work(watch(), code).next_word() == "done"
    assert (tmp_path / "precious").read_bytes() == b""


def fill(descriptor: int) -> None:
    with suppress(BlockingIOError):
        while True:
            os.write(descriptor, b"x" * 4095 + b"\n")


def test_a_full_pipe_never_stops_the_worker(view: View, watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Starts are dropped; releases are written with the next message that finds room."""
    channel = anonymous_channel()
    monkeypatch.setattr(_client, "_channel", None)
    monkeypatch.setenv("QUORATE_TIMER_CHANNEL", f"{channel.path}:{channel.inode}")
    try:
        begun = quorate_watchdog.expires(after=100.0, scope="begun")
        begun.__enter__()
        fill(channel._writer)
        started = time.monotonic()
        begun.__exit__(None, None, None)
        for _ in range(100):
            with quorate_watchdog.expires(after=100.0, scope="dropped"):
                pass
        assert time.monotonic() - started < 10.0
        assert len(os.read(channel.reader, 1 << 20)) >= 1 << 15
        with quorate_watchdog.expires(after=100.0, scope="later"):
            pass
        lines = os.read(channel.reader, 1 << 16).splitlines()
        assert [(json.loads(line)["timer"], json.loads(line)["after"]) for line in lines] == [
            (json.loads(lines[0])["timer"], -1),
            (json.loads(lines[1])["timer"], 100.0),
            (json.loads(lines[1])["timer"], -1),
        ]
    finally:
        assert _client._channel is not None
        os.close(_client._channel.descriptor)
        channel.close()


def test_an_agent_that_dies_is_not_noticed_by_its_worker(work: Work) -> None:
    channel = anonymous_channel()
    code = """
from quorate_watchdog import expires
with expires(9.0): say(1); wait()
say(2)
"""
    worker = work(None, code, QUORATE_TIMER_CHANNEL=f"{channel.path}:{channel.inode}")
    assert worker.next_word() == "1"
    channel.close()
    worker.go_on()
    assert worker.next_word() == "2"


def test_a_forked_process_has_no_end_of_the_agents_pipe() -> None:
    channel = anonymous_channel()
    inode = channel.inode
    child = os.fork()
    if child == 0:
        try:
            os._exit(any(f"[{inode}]" in link for link in open_descriptors()))
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    channel.close()
