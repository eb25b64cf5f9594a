"""Jobs that the command line starts: what runs, and the exit code."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from core.tests.cli_runs import SECONDS, clean_environment, quorate, runs_a_job

from quorate import errors
from quorate.cli import ExitCode, main
from quorate.cli._exit import code_of
from quorate.rendezvous import PortReservation

pytestmark = pytest.mark.usefixtures("no_variables")


# --- jobs of one node -------------------------------------------------------------------------------------------------


@runs_a_job
def test_a_script_runs_in_every_worker_with_its_arguments(script: Path) -> None:
    result = quorate("run", "--standalone", "--nproc-per-node=2", str(script), "--nnodes=9", "rank-${local_rank}")
    assert result.returncode == 0, result.stderr
    assert sorted(result.stdout.splitlines()) == ["0 --nnodes=9 rank-0", "1 --nnodes=9 rank-1"]
    assert "OMP_NUM_THREADS=1" in result.stderr


@runs_a_job
def test_the_environment_alone_can_say_it_all(script: Path) -> None:
    result = quorate("run", str(script), PET_NPROC_PER_NODE="2", PET_STANDALONE="1", OMP_NUM_THREADS="1")
    assert sorted(result.stdout.split()) == ["0", "1"]
    assert result.stderr == ""


@runs_a_job
def test_a_module_runs_as_by_python_m(script: Path) -> None:
    result = quorate("run", "-m", "train", "a", cwd=script.parent)
    assert (result.returncode, result.stdout) == (0, "0 a\n")


@runs_a_job
def test_a_program_runs_without_python(tmp_path: Path) -> None:
    result = quorate("run", "--no-python", "sh", "-c", "echo $RANK of $WORLD_SIZE")
    assert (result.returncode, result.stdout) == (0, "0 of 1\n")


@runs_a_job
def test_master_flags_reach_the_workers_of_a_single_node(tmp_path: Path) -> None:
    result = quorate("run", "--master-port=29533", "--no-python", "sh", "-c", "echo $MASTER_PORT")
    assert (result.returncode, result.stdout) == (0, "29533\n")


@runs_a_job
def test_the_port_of_the_workers_of_a_single_node_is_from_the_range_that_was_given() -> None:
    """A round that follows at once gets the same port again, though the connections of the last one still hold it."""
    program = (
        "import os, socket, sys\n"
        "there = ('127.0.0.1', int(os.environ['MASTER_PORT']))\n"
        "print(there[1], flush=True)\n"
        "with socket.create_server(there) as server, socket.create_connection(there) as client:\n"
        "    server.accept()[0].close()\n"
        "    assert client.recv(1) == b''\n"
        "sys.exit(1 - int(os.environ['TORCHELASTIC_RESTART_COUNT']))\n"
    )
    held = PortReservation()
    port = held.reserve("127.0.0.1")
    flags = ("--max-restarts=1", f"--master-port-range={port}:{port}", "--no-python")
    argv = ("run", *flags, sys.executable, "-c", program)
    try:
        full = quorate(*argv)
        assert (full.returncode, full.stdout) == (ExitCode.RENDEZVOUS, "")
        assert f"the port {port} cannot be taken for MASTER_PORT on this machine" in full.stderr
        assert "Traceback" not in full.stderr
    finally:
        held.release()
    done = quorate(*argv)
    assert (done.returncode, done.stdout) == (0, f"{port}\n{port}\n"), done.stderr


@runs_a_job
@pytest.mark.parametrize("start_method", ["spawn", "fork"])
def test_run_path_runs_the_script_as_the_main_program(tmp_path: Path, start_method: str) -> None:
    path = tmp_path / "main.py"
    path.write_text("import sys\nif __name__ == '__main__':\n    print(sys.argv[1:], flush=True)\n")
    result = quorate("run", "--run-path", f"--start-method={start_method}", str(path), "a", "b")
    assert (result.returncode, result.stdout) == (0, "['a', 'b']\n"), result.stderr


@runs_a_job
def test_a_failed_worker_gives_exit_code_1_and_one_report(tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text("raise ValueError('a very special cause')\n")
    result = quorate("run", "--standalone", str(path))
    assert result.returncode == ExitCode.WORKER_FAILED
    assert "bad.py failed" in result.stderr
    assert result.stderr.count("root cause:") == 1
    assert "rank 0" in result.stderr
    assert "exit code 1" in result.stderr


@runs_a_job
def test_too_few_nodes_in_time_give_exit_code_3(script: Path) -> None:
    """A clear error within its deadline."""
    held = PortReservation()
    try:
        endpoint = f"--rdzv-endpoint=127.0.0.1:{held.reserve('127.0.0.1')}"
        held.activate()  # from now on a server may listen there
        result = quorate("run", "--nnodes=2", endpoint, "--rdzv-conf=join_timeout=1", str(script))
    finally:
        held.release()
    assert result.returncode == ExitCode.RENDEZVOUS, result.stderr
    assert "1 of 2 nodes" in result.stderr
    assert "Traceback" not in result.stderr


@runs_a_job
def test_two_nodes_meet_by_master_flags_alone_and_workers_get_the_master_as_written() -> None:
    """The line that torchrun's users write for fixed nodes."""
    held = PortReservation()
    try:
        port = held.reserve("127.0.0.1") - 1  # the nodes meet one port above the master's
        held.activate()  # from now on a server may listen there
        nodes = [
            subprocess.Popen(
                [sys.executable, "-m", "quorate", "run", "--nnodes=2", f"--node-rank={rank}", f"--master-port={port}"]
                + ["--master-addr=127.0.0.1", "--no-python", "sh", "-c", "echo $RANK $WORLD_SIZE $MASTER_PORT"],
                env=clean_environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in (1, 0)
        ]
        try:
            outputs = [node.communicate(timeout=SECONDS) for node in nodes]
        finally:
            for node in nodes:
                if node.poll() is None:
                    node.kill()
                    node.communicate()
    finally:
        held.release()
    assert [node.returncode for node in nodes] == [0, 0], outputs
    assert [out for out, _ in outputs] == [f"1 2 {port}\n", f"0 2 {port}\n"]


#: As sitecustomize: a person presses Ctrl-C just when a certain module is imported.
INTERRUPTED = """
import os, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["INTERRUPT_AT"]:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
"""


@pytest.mark.parametrize("module", ["attr", "pluggy", "quorate.agent"])
def test_an_interrupt_while_the_command_is_being_loaded_is_a_word(tmp_path: Path, module: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTED)
    done = quorate("run", "--standalone", "--no-python", "true", PYTHONPATH=str(tmp_path), INTERRUPT_AT=module)
    assert (done.returncode, done.stderr) == (130, "quorate: interrupted\n")


@runs_a_job
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_job_and_shows_in_the_exit_code(tmp_path: Path, number: signal.Signals) -> None:
    path = tmp_path / "wait.py"
    # The worker dies of the signal itself, without Python's own report of it.
    path.write_text(
        "import signal\nsignal.signal(signal.SIGINT, signal.SIG_DFL)\nprint('ready', flush=True)\nsignal.pause()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "quorate", "run", "--standalone", str(path)],
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, errors = process.communicate(timeout=SECONDS)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    assert process.returncode == 128 + number, errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.UsageError("x"), 2),
        (errors.UnknownBackendError("kind", "x", [], ""), 2),
        (errors.PluginError("x"), 4),
        (errors.RendezvousTimeoutError("x"), 3),
        (errors.StoreLostError("x"), 3),
        (errors.RendezvousStateError("x"), 3),
        (errors.RendezvousClosedError("done", succeeded=True), 0),
        (errors.RendezvousClosedError("failed elsewhere"), 1),
        (errors.StartError("x"), 1),
        (errors.SignalException("x", 15), 143),
        (KeyboardInterrupt(), 130),
        (ValueError("x"), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_outcome_has_its_exit_code(error: BaseException, code: int | None) -> None:
    assert code_of(error) == code


@runs_a_job
def test_ignored_flags_are_noted(script: Path) -> None:
    result = quorate("run", "--standalone", "--rdzv-backend=c10d", str(script), PET_RDZV_ENDPOINT="h:1")
    assert result.returncode == 0, result.stderr
    assert "--rdzv-backend is ignored with --standalone" in result.stderr
    assert "rdzv-endpoint" not in result.stderr


def test_a_bug_in_quorate_shows_its_traceback_and_asks_for_a_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> int:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("quorate.cli._run.parse", broken)
    assert main(["run"]) == ExitCode.INTERNAL
    errors = capsys.readouterr().err
    assert "ZeroDivisionError: ours" in errors
    assert "quorate: internal error: the traceback above is a bug in quorate; please report it" in errors


# --- what the fast path may cost --------------------------------------------------------------------------------------


def test_the_way_to_the_first_worker_imports_nothing_heavy(script: Path) -> None:
    """Each of these alone costs as much as several modules of quorate, or far more."""
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys\n"
            "import attrs, pluggy\n"  # on Python 3.10 these alone import subprocess, through platform
            "before = set(sys.modules)\n"
            "import quorate.launcher\n"
            "from quorate.cli import main\n"
            "class Stop:\n"
            "    def __init__(self, config, command, **more): pass\n"
            "    def __call__(self, *arguments): print(*sorted(set(sys.modules) - before))\n"
            "quorate.launcher.launch = Stop\n"
            "main(sys.argv[1:])\n",
            "run",
            "--standalone",
            "--nproc-per-node=1",
            str(script),
        ],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env=clean_environment(),
    )
    heavy = {"argparse", "asyncio", "email", "grpc", "http", "importlib.metadata", "logging", "multiprocessing"}
    heavy |= {"pynvml", "shutil", "subprocess", "tempfile", "torch"}
    assert heavy & set(result.stdout.split()) == set(), result.stderr


# --- what programs pass that were written for torchrun ----------------------------------------------------------------


@runs_a_job
def test_a_script_on_stdin_runs_in_every_worker_and_again_after_a_restart(tmp_path: Path) -> None:
    text = (
        "import os, sys\n"
        "sys.stdout.write(f\"{os.environ['RANK']} {os.environ['TORCHELASTIC_RESTART_COUNT']} {sys.argv[1:]}\\n\")\n"
        "sys.exit(os.environ['TORCHELASTIC_RESTART_COUNT'] == '0')\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "quorate", "run", "--nproc-per-node=2", "--max-restarts=1", "--role=", "-", "a"],
        input=text,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env=clean_environment(TMPDIR=str(tmp_path)),
    )
    assert done.returncode == 0, done.stderr
    assert {"0 1 ['a']", "1 1 ['a']"} <= set(done.stdout.splitlines())
    assert list(tmp_path.iterdir()) == [], "no file is left"


def test_a_command_that_a_plugin_offers_is_found(tmp_path: Path) -> None:
    (tmp_path / "offered.py").write_text("def hello(argv):\n    print('hello', *argv)\n    return 7\n")
    info = tmp_path / "offered-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: offered\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[quorate.commands]\nhello = offered:hello\nbroken = offered:gone\n")
    done = quorate("hello", "a", PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (7, "hello a\n"), done.stderr
    help_text = quorate("--help", PYTHONPATH=str(tmp_path)).stdout
    assert "  hello        of offered; see: quorate hello --help\n" in help_text
    assert "\n  exec         run a program that calls torchrun" in help_text
    assert "did you mean 'quorate hello'?" in quorate("helo", PYTHONPATH=str(tmp_path)).stderr
    done = quorate("broken", PYTHONPATH=str(tmp_path))
    assert done.returncode == ExitCode.PLUGIN
    assert "'broken' of offered could not be loaded: it raised AttributeError" in done.stderr
