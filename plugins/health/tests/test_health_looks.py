"""What the server reads of logs and processes, with any content."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from quorate_health._page import _bytes, _duration
from quorate_health._status import usage_of
from quorate_health._tail import clean, tail_of

REPLACED = "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("plain", "plain"),
        ("a\tb", "a   b"),
        ("10%\r50%\r100%", "100%"),
        ("done\r", "done"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]0;a title\x07text", "text"),
        ("\x1b]8;;http://example\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("bell\x07 null\x00", f"bell{REPLACED} null{REPLACED}"),
        ("\u202egnithgir\u202c", f"{REPLACED}gnithgir{REPLACED}"),
        ("naïve — 日本語 🎉", "naïve — 日本語 🎉"),
        ("x" * 1000, "x" * 399 + "…"),
    ],
)
def test_a_line_is_shown_as_a_terminal_leaves_it(raw: str, shown: str) -> None:
    assert clean(raw) == shown


def test_the_tail_is_the_end_of_the_file_in_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("".join(f"line {number}\n" for number in range(10_000)))
    assert tail_of(str(path), 3) == ["line 9997", "line 9998", "line 9999"]
    assert len(tail_of(str(path), 10_000) or []) > 100
    assert all(line.startswith("line ") for line in tail_of(str(path), 10_000) or [])
    path.write_bytes(b"one\n\xff\xfe two")
    assert tail_of(str(path), 8) == ["one", f"{REPLACED}{REPLACED} two"]
    path.write_bytes(b"")
    assert tail_of(str(path), 8) == []
    path.write_bytes(b"x" * 100_000)
    assert tail_of(str(path), 8) == ["x" * 399 + "…"]
    assert tail_of(str(tmp_path / "none"), 8) is None


def test_memory_is_that_of_a_process_and_its_descendants() -> None:
    child = "import os; os.read(0, 1)"
    script = (
        f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}]); print(); sys.stdout.flush(); "
    )
    script += "x = bytearray(50_000_000); print(flush=True); import os; os.read(0, 1)"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == process.stdout.readline() == b"\n"
        usage = usage_of(process.pid)
        assert usage is not None
        assert usage.processes == 2
        assert usage.memory_bytes > 50_000_000
    assert usage_of(process.pid) is None
    own = usage_of(os.getpid())
    assert own is not None


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.0004, "0 ms"), (0.45, "450 ms"), (9.94, "9.9 s"), (59.9, "59 s"), (61, "1 min 01 s"), (3661, "1 h 01 min")],
)
def test_durations_are_short(seconds: float, shown: str) -> None:
    assert _duration(seconds) == shown


@pytest.mark.parametrize(
    ("number", "shown"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (16_400_000, "16 MB"), (2.17e10, "22 GB")]
)
def test_sizes_are_short(number: int, shown: str) -> None:
    assert _bytes(number) == shown
