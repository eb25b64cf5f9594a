"""Where output goes: consoles, files, both, copies, tails."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import pytest

from quorate.errors import StartError
from quorate_process_local import _streams

from .conftest import Ear, Group, Start, launch, starter, wait_for_end

Shell = Callable[..., Group]
Capture = pytest.CaptureFixture[bytes]


@contextmanager
def stderr_of_the_agent(descriptor: int) -> Iterator[None]:
    """Make ``descriptor`` what this process writes errors to, by its descriptor and by ``sys.stderr``."""
    saved = os.dup(2)
    os.dup2(descriptor, 2)
    try:
        with redirect_stderr(open(2, "w", closefd=False)):
            yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def test_without_wishes_bytes_go_through_as_they_are(sh: Shell, capfdbinary: Capture) -> None:
    sh(r"printf 'a\rb\rc\0\377'; printf '10%%\r20%%\r\n30%%\r' >&2").run()
    out, err = capfdbinary.readouterr()
    assert out == b"a\rb\rc\0\xff"
    assert err == b"10%\r20%\r\n30%\r"


def test_stderr_is_forwarded_at_once_even_without_a_line_end(start: Start, ear: Ear) -> None:
    os.mkfifo(f"{ear.path}.go")
    read_end, write_end = os.pipe()
    with stderr_of_the_agent(write_end):
        os.close(write_end)
        group = start("exec", [launch(0, "sh", "-c", f"printf 'name? ' >&2; read -r _ <'{ear.path}.go'")])
        assert os.read(read_end, 100) == b"name? "
    os.close(read_end)
    group.close()


def test_tee_of_many_lines_from_eight_workers_loses_and_tears_none(
    start: Start, tmp_path: Path, capfdbinary: Capture
) -> None:
    """The files hold the lines without prefix."""
    lines = 4000
    script = f"for i in range({lines}): print(i, 'x' * (i % 97))"
    group = start(
        "exec",
        [
            launch(
                rank, sys.executable, "-c", script, stdout=str(tmp_path / f"{rank}"), tee_stdout=True,
                prefix=f"[trainer{rank}]: ",
            )
            for rank in range(8)
        ],
    )  # fmt: skip
    assert [event.exit_code for event in group.run()] == [0] * 8
    shown = capfdbinary.readouterr().out.decode().splitlines()
    expected = [f"{i} {'x' * (i % 97)}" for i in range(lines)]
    for rank in range(8):
        assert (tmp_path / f"{rank}").read_text().splitlines() == expected
        prefix = f"[trainer{rank}]: "
        assert [line.removeprefix(prefix) for line in shown if line.startswith(prefix)] == expected
    assert len(shown) == 8 * lines


def test_a_redirect_alone_appends_and_shows_nothing(sh: Shell, tmp_path: Path, capfdbinary: Capture) -> None:
    for word in ("one", "two"):
        sh(f"echo {word}; echo {word} >&2; exit 1", stdout=str(tmp_path / "o"), stderr=str(tmp_path / "e")).run()
    assert (tmp_path / "o").read_text() == (tmp_path / "e").read_text() == "one\ntwo\n"
    assert capfdbinary.readouterr() == (b"", b"")


def test_tee_of_stderr_goes_both_ways(sh: Shell, tmp_path: Path, capfdbinary: Capture) -> None:
    sh("echo word >&2", stderr=str(tmp_path / "e"), tee_stderr=True).run()
    assert (tmp_path / "e").read_text() == "word\n"
    assert capfdbinary.readouterr() == (b"", b"word\n")


def test_a_hidden_worker_shows_nothing_but_keeps_its_tail_and_files(
    sh: Shell, tmp_path: Path, capfdbinary: Capture
) -> None:
    script = "echo out; echo err >&2; exit 1"
    (event,) = sh(script, console=False, prefix="x", stdout=str(tmp_path / "o"), tee_stdout=True).run()
    (other,) = sh(script, console=False).run()
    assert capfdbinary.readouterr() == (b"", b"")
    assert (tmp_path / "o").read_text() == "out\n"
    assert event.stderr_tail == other.stderr_tail == ("err",)


def test_filtered_lines_are_copied_whole(sh: Shell, tmp_path: Path, capfdbinary: Capture) -> None:
    copies = (("stdout", str(tmp_path / "c"), ("loss", "acc")), ("stderr", str(tmp_path / "d"), ("bad",)))
    scripts = [f"for i in 1 2 3; do echo loss {rank} $i; echo else; echo bad >&2; done; printf acc" for rank in (0, 1)]
    sh(*scripts, duplicates=copies, prefix="[p]: ").run()
    assert sorted((tmp_path / "c").read_text().splitlines()) == sorted(
        [f"[p]: loss {rank} {i}" for rank in (0, 1) for i in (1, 2, 3)] + ["[p]: acc"] * 2
    )
    assert (tmp_path / "d").read_text() == "[p]: bad\n" * 6
    assert capfdbinary.readouterr().out.count(b"\n") == 14


def test_a_prefix_stands_before_each_line_progress_and_partial_lines_too(sh: Shell, capfdbinary: Capture) -> None:
    sh(r"printf 'a\n\r10%%\r20%%\r\nlast'", prefix="> ").run()
    assert capfdbinary.readouterr().out == b"> a\n> \r> 10%\r> 20%\r\n> last\n"


def test_the_tail_is_the_last_twenty_lines(sh: Shell, capfdbinary: Capture) -> None:
    """FIELD 1: an error is visible without @record."""
    (event,) = sh(
        "i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done >&2; printf 'the end' >&2; exit 1"
    ).run()
    assert event.stderr_tail == (*(f"line {i}" for i in range(2981, 3000)), "the end")


def test_the_tail_is_read_from_the_file_where_stderr_goes_only_there(sh: Shell, tmp_path: Path) -> None:
    (event,) = sh("echo why >&2; exit 1", stderr=str(tmp_path / "e")).run()
    assert event.stderr_tail == ("why",)


def test_the_tail_is_complete_when_a_signal_ends_the_worker(sh: Shell, capfdbinary: Capture) -> None:
    (event,) = sh("echo last words >&2; kill -KILL $$").run()
    assert (event.exit_code, event.stderr_tail) == (-signal.SIGKILL, ("last words",))


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"", ()),
        (b"a\r\nb\r\n\n\n", ("a", "b")),
        (b"10%\r20%\r30%\nboom", ("30%", "boom")),
        (b"\xff\n", ("\ufffd",)),
        (b"x" * 5000, ("x" * 999 + "…",)),
        (b"\x1b[1;31mValueError\x1b[0m: bell\x07\tend\n", ("ValueError: bell\ufffd   end",)),
    ],
)
def test_tail_lines(data: bytes, lines: tuple[str, ...]) -> None:
    assert _streams.tail_lines(data) == lines


#: Each puts something else where the worker's stderr goes.
REPLACEMENTS = {
    "link to a secret": "ln -sf '{secret}' '{log}'",
    "FIFO": "rm '{log}'; mkfifo '{log}'",
    "device": "rm '{log}'; mknod '{log}' c 1 5 2>/dev/null || ln -s /dev/zero '{log}'",
    "folder": "rm '{log}'; mkdir '{log}'",
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", REPLACEMENTS)
def test_a_log_that_a_worker_has_replaced_is_not_read(sh: Shell, tmp_path: Path, kind: str) -> None:
    secret, log = tmp_path / "secret", tmp_path / "err"
    secret.write_text("secret\n")
    (event,) = sh(REPLACEMENTS[kind].format(secret=secret, log=log) + "; exit 3", stderr=str(log)).run()
    assert (event.exit_code, event.stderr_tail) == (3, ())


@pytest.mark.timeout(60)
def test_a_fifo_where_a_log_should_be_does_not_block_the_start(tmp_path: Path) -> None:
    path = tmp_path / "out"
    os.mkfifo(path)
    with pytest.raises(StartError, match="out of local rank 0 cannot be opened: it is a pipe that nothing reads"):
        starter("exec").start([launch(0, "true", stdout=str(path))])


@pytest.mark.timeout(60)
def test_a_fifo_that_is_read_takes_output_and_blocks_the_worker_only(sh: Shell, ear: Ear) -> None:
    group = sh("yes line | head -n 20000; echo done", stdout=str(ear.path))
    while ear.words(1)[-1] != "done":
        pass
    assert group.run()[0].exit_code == 0


def test_a_grandchild_that_holds_the_pipe_delays_nothing_but_the_end(sh: Shell, ear: Ear, capfdbinary: Capture) -> None:
    group = sh(
        f"setsid sh -c \"trap '' TERM; echo \\$\\$ >'{ear.path}'; sleep 1000\" & echo word >&2; exit 1", "sleep 1000"
    )
    ear.words(1)
    group.run_until(lambda: len(group.exits) == 1)
    assert group.exits[0].stderr_tail == ("word",)
    group.stop(grace_seconds=0.1)
    group.run()


def test_a_full_disk_costs_the_file_not_the_worker(sh: Shell, capfdbinary: Capture) -> None:
    """/dev/full answers every write as a full disk does; one warning, the console goes on."""
    script = "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done"
    (event,) = sh(script, stdout="/dev/full", tee_stdout=True).run()
    out, err = capfdbinary.readouterr()
    assert event.exit_code == 0
    assert out.count(b"\n") == 2000
    assert len(re.findall(rb"/dev/full cannot be written", err)) == 1


def test_a_log_file_that_cannot_be_opened_is_told(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="--log-dir"):
        starter("exec").start([launch(0, "true", stdout=str(tmp_path / "no" / "such"))])


def test_a_console_whose_reader_has_gone_is_no_problem(start: Start) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with stderr_of_the_agent(write_end):
        group = start("exec", [launch(0, "sh", "-c", "echo word >&2; exit 3")])
        (event,) = group.run()
    os.close(write_end)
    assert (event.exit_code, event.stderr_tail) == (3, ("word",))


def test_a_console_that_stalls_delays_the_output_not_the_stop(start: Start, ear: Ear) -> None:
    read_end, write_end = os.pipe()
    with stderr_of_the_agent(write_end):
        group = start("exec", [launch(0, "sh", "-c", f"echo ready >'{ear.path}'; yes >&2")])
        ear.words(1)
        pid = group.context.pids()[0]
        group.stop(grace_seconds=0.0)
        wait_for_end([pid])
        os.close(read_end)  # lets the stuck write fail, so that nothing stays behind
        group.run()
    os.close(write_end)
