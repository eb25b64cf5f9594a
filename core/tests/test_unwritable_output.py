"""Output that cannot be written changes neither what runs nor the exit code; places that cannot be written are named.

Real descriptors: closed, /dev/full, pipes without a reader; folders that are missing, full or deleted.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from core.tests.cli_runs import clean_environment, runs_a_job
from core.tests.test_hook_answers import run_with_plugin

from quorate import DefaultLogsSpecs, Std, notices

SECONDS = 120.0
KINDS = ("closed", "full", "broken")
WORKER = "import os, pathlib; pathlib.Path(os.environ['OUT'], os.environ['RANK']).write_text('ran')"


@contextmanager
def unwritable(kind: str) -> Iterator[int]:
    """Yield a descriptor that takes nothing."""
    if kind == "full":
        descriptor = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, descriptor = os.pipe()
        os.close(reader)
    yield descriptor
    os.close(descriptor)


def run_with(stream: str, kind: str, argv: list[str], **environment: str) -> int:
    """Run ``quorate ARGV`` with a standard stream (or both) that takes nothing; return the exit code."""
    command = [str(Path(sys.executable).with_name("quorate")), *argv]
    streams = ("stdout", "stderr") if stream == "both" else (stream,)
    if kind == "closed":
        closing = " ".join(f"{1 if name == 'stdout' else 2}>&-" for name in streams)
        command = ["/bin/sh", "-c", f'exec "$@" {closing}', "sh", *command]
    with unwritable(kind) as descriptor:
        outputs = {name: descriptor if name in streams else subprocess.DEVNULL for name in ("stdout", "stderr")}
        done = subprocess.run(
            command, env=clean_environment(**environment), stdin=subprocess.DEVNULL, timeout=SECONDS, **outputs
        )
    return done.returncode


@runs_a_job
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stream", ["stdout", "stderr", "both"])
def test_a_job_runs_whatever_becomes_of_its_console(tmp_path: Path, stream: str, kind: str) -> None:
    script = tmp_path / "train.py"
    script.write_text(WORKER)
    argv = ["run", "--standalone", "--nproc-per-node=2", str(script)]
    assert run_with(stream, kind, argv, OUT=str(tmp_path), QUORATE_LOG="debug") == 0
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["ran", "ran"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["run", "--help"], 0),
        (["run", "--standalone", "--show-config", "train.py"], 0),
        (["conformance", "--list"], 0),
        (["run", "--nonsense"], 2),
        (["run", "does-not-exist.py"], 2),
        (["nonsense"], 2),
    ],
)
def test_the_exit_code_is_that_of_the_command(argv: list[str], code: int, kind: str) -> None:
    assert run_with("both", kind, argv) == code


@runs_a_job
def test_a_failed_job_fails_without_a_console(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text("raise SystemExit(7)")
    for kind in KINDS:
        assert run_with("both", kind, ["run", "--standalone", "--max-restarts=0", str(script)]) == 1


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_closed_streams_are_replaced_so_that_no_file_takes_their_numbers(closed: tuple[int, ...]) -> None:
    program = (
        "import os; from quorate.notices import open_missing_streams; open_missing_streams();"
        "import sys; sys.stdout.write('x'); sys.stderr.write('x'); os._exit(os.open('/', os.O_RDONLY))"
    )
    closing = " ".join(f"{number}>&-" for number in closed)
    done = subprocess.run(["/bin/sh", "-c", f'exec "$@" {closing}', "sh", sys.executable, "-c", program])
    assert done.returncode >= 3


def test_what_the_stream_cannot_encode_is_written_as_escapes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "out"
    with path.open("w", encoding="ascii") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        notices.write_output("a … b")
        assert path.read_text() == "a \\u2026 b\n"


@pytest.mark.parametrize("error", [AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError])
def test_a_stream_of_a_programs_own_that_fails_is_no_problem(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stream:
        def write(self, text: str) -> None:
            raise error

        flush = write

    monkeypatch.setattr(sys, "stderr", Stream())
    notices.warn("x")
    notices.flush()


REPLACED = """
import sys
from quorate import hookimpl

class Stream:
    def write(self, *text): raise RuntimeError("reentrant call")
    flush = fileno = isatty = write

@hookimpl
def quorate_register_service():
    sys.stdout = sys.stderr = {stream}
    return []
"""


@runs_a_job
@pytest.mark.parametrize("stream", ["3", "Stream()"])
def test_a_job_runs_whatever_a_plugin_puts_in_the_place_of_the_streams(tmp_path: Path, stream: str) -> None:
    script = "import os; open(os.environ['OUT'], 'w'); print('trained')"
    done = run_with_plugin(tmp_path, REPLACED.format(stream=stream), script=script)
    assert done.returncode == 0
    assert (tmp_path / "done").exists()


# --- places for files -------------------------------------------------------------------------------------------------


def _folder_for_logs() -> str:
    specs = DefaultLogsSpecs(redirects=Std.ALL)
    specs.reify({0: {}})
    assert specs.run_log_dir is not None
    return specs.run_log_dir


@pytest.mark.parametrize("kind", ["missing", "a file", "empty"])
def test_a_tmpdir_that_cannot_be_used_is_replaced_with_a_word(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "tmp"
    if kind == "a file":
        place.write_text("")
    good = tmp_path / "good"
    good.mkdir()
    monkeypatch.setenv("TMPDIR", "" if kind == "empty" else str(place))
    monkeypatch.setenv("TEMP", str(good))
    assert os.path.dirname(_folder_for_logs()) == str(good)
    errors = capsys.readouterr().err
    if kind == "empty":
        assert errors == ""
    else:
        assert f"{place} cannot be used for temporary files" in errors
        assert f"{good} is used instead" in errors


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_a_tmpdir_that_is_full_is_replaced_with_a_word(tmp_path: Path) -> None:
    full, good = tmp_path / "full", tmp_path / "good"
    full.mkdir()
    good.mkdir()
    program = (
        "import os\n"
        "from quorate import DefaultLogsSpecs, Std\n"
        f"descriptor = os.open({str(full / 'ballast')!r}, os.O_CREAT | os.O_WRONLY)\n"
        "try:\n    while os.write(descriptor, bytes(4096)): pass\nexcept OSError: pass\n"
        "specs = DefaultLogsSpecs(redirects=Std.ALL); specs.reify({0: {}}); print(specs.run_log_dir)\n"
    )
    mount = f'mount -t tmpfs -o size=64k tmpfs {full} || exit 77; exec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "/bin/sh", "-c", mount, "sh", sys.executable, "-c", program],
        env=clean_environment(TMPDIR=str(full), TEMP=str(good)),
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("no file system can be mounted here")
    assert done.stdout.startswith(str(good)), done.stderr
    assert "No space left on device" in done.stderr


def test_a_current_directory_that_was_deleted_is_named(tmp_path: Path) -> None:
    place = tmp_path / "gone"
    place.mkdir()
    command = str(Path(sys.executable).with_name("quorate"))
    for flags in ("", "--run-path", "--log-dir=logs"):
        done = subprocess.run(
            [
                "/bin/sh",
                "-c",
                f"mkdir -p {place}; cd {place}; rmdir {place}; exec {command} run --standalone {flags} train.py",
            ],
            env=clean_environment(),
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        assert done.returncode == 2, done.stderr
        assert "the current directory cannot be used" in done.stderr
