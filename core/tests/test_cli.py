"""The command ``quorate`` as a process: outcomes, exit codes and sentences.

How single flags are read is in ``test_parse``, what they amount to in ``test_cli_config``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from core.tests.cli_runs import SECONDS, quorate, runs_a_job

from quorate.cli import ExitCode
from quorate.cli._flags import FLAGS

pytestmark = pytest.mark.usefixtures("no_variables")


DOCS = Path(__file__).parents[2] / "docs"


# --- wrong use: one sentence, exit code 2 -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], ["a command is missing", "quorate run SCRIPT"]),
        (["rum"], ["'rum'", "did you mean 'quorate run'?"]),
        (["--nnodes=2", "x.py"], ["did you mean 'quorate run --nnodes=2"]),
        (["train.py"], ["did you mean 'quorate run train.py"]),
        (["plugins", "all"], ["takes no argument", "'all'"]),
        (["run"], ["a script is missing", "quorate run [FLAGS] SCRIPT"]),
        (["run", "--nnodez=2", "x.py"], ["unknown flag --nnodez", "--nnodes"]),
        (["run", "--nnodes=4:2", "x.py"], ["minimum", "(4)", "maximum (2)", "--nnodes=MIN:MAX"]),
        (["run", "--nnodes=0", "x.py"], ["min_nodes is 0", "--nnodes"]),
        (["run", "absent.py"], ["the script absent.py does not exist"]),
        (["run", "absent"], ["the script absent does not exist", "-m", "--no-python"]),
        (["run", "--no-python", "no-such-program"], ["no-such-program", "PATH"]),
        (["run", "--no-python", "-m", "x"], ["--no-python and --module"]),
        pytest.param(
            ["run", "--rdzv-backend=nowhere", "-m", "x"],
            ["'nowhere'", "standalone, static", "quorate plugins"],
            marks=runs_a_job,
        ),
        (
            ["run", "--rdzv-backend=etcd", "--rdzv-id=j", "--nnodes=2", "-m", "x"],
            ["unknown rendezvous backend 'etcd'", "quorate-rendezvous-etcd"],
        ),
        pytest.param(
            ["run", "--rdzv-backend=tcp", "--rdzv-endpoint=a:b:c", "--nnodes=2", "-m", "x"],
            ["'a:b:c'", "--rdzv-endpoint"],
            marks=runs_a_job,
        ),
        (["run", "--nnodes=2", "--node-rank=2", "-m", "x"], ["node_rank is 2", "--nnodes"]),
        (["run", "--nnodes=2", "--master-port=65535", "-m", "x"], ["--master-port=65535", "65534"]),
        (["run", "--nnodes=2", "--master-addr=h:29500", "-m", "x"], ["--master-addr=h:29500", "--master-port"]),
        (["run", "--standalone", "--nnodes=2", "-m", "x"], ["--standalone", "--nnodes"]),
        (["run", "--numa-binding=node", "-m", "x"], ["--numa-binding is not available", "quorate-numa"]),
        (["run", "--logs-specs=none-such", "-m", "x"], ["'none-such'", "torchrun.logs_specs"]),
        pytest.param(["run", "--start-method=teleport", "-m", "x"], ["'teleport'", "spawn"], marks=runs_a_job),
        pytest.param(["run", "--event-log-handler=pigeon", "-m", "x"], ["'pigeon'"], marks=runs_a_job),
        (["run", "--signals-to-handle=SIGKILL", "-m", "x"], ["SIGKILL", "--signals-to-handle"]),
        (["run", "--log-dir=/dev/null/logs", "-m", "x"], ["/dev/null/logs", "--log-dir"]),
    ],
    ids=lambda value: " ".join(value) if value and str(value[0]).islower() else "",
)
def test_wrong_use_gives_one_sentence_and_exit_code_2(argv: list[str], words: list[str], tmp_path: Path) -> None:
    # These plugins are not there, whether or not somebody has installed them.
    result = quorate(*argv, cwd=tmp_path, QUORATE_DISABLE_PLUGINS="quorate-rendezvous-etcd,quorate-numa")
    assert result.returncode == ExitCode.USAGE, result.stderr
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if not line.startswith("quorate: warning: ")]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("quorate: error: ")
    assert all(word in lines[0] for word in words), lines[0]


@runs_a_job
def test_a_store_that_other_jobs_may_use_needs_a_name_for_the_job(tmp_path: Path) -> None:
    result = quorate("run", "--rdzv-backend=etcd", "--nnodes=2", "-m", "x", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (ExitCode.USAGE, ""), result.stderr
    assert [line for line in result.stderr.splitlines() if "set --rdzv-id" in line], result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr


def test_a_variable_of_the_wrong_form_is_named(script: Path) -> None:
    result = quorate("run", str(script), PET_MAX_RESTARTS="many")
    assert result.returncode == ExitCode.USAGE
    assert "PET_MAX_RESTARTS=many" in result.stderr


# --- what the command shows -------------------------------------------------------------------------------------------


def test_help_names_every_flag_and_command() -> None:
    top, run, plugins = quorate("--help"), quorate("run", "-h"), quorate("plugins", "--help")
    assert {top.returncode, run.returncode, plugins.returncode} == {0}
    assert all(command in top.stdout for command in ("run", "plugins"))
    assert [flag.name for flag in FLAGS if f"--{flag.name}" not in run.stdout] == []
    assert max(len(line) for line in run.stdout.splitlines()) <= 100
    assert (top.stdout + run.stdout + plugins.stdout).isascii(), "a terminal of any encoding can show it"


def test_the_version_is_printed() -> None:
    import quorate as package

    assert quorate("--version").stdout == f"quorate {package.__version__}\n"


def test_python_m_quorate_is_the_same_command() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "quorate", "--version"], capture_output=True, text=True, timeout=SECONDS
    )
    assert (result.returncode, result.stdout) == (0, quorate("--version").stdout)


def test_the_process_ends_with_its_exit_handlers_run_and_its_output_written() -> None:
    program = "import atexit, sys; atexit.register(print, 'bye'); from quorate.cli import main; main(); print('never')"
    result = subprocess.run(
        [sys.executable, "-c", program, "--version"], capture_output=True, text=True, timeout=SECONDS
    )
    assert (result.returncode, result.stdout.split()[2:], result.stderr) == (0, ["bye"], "")


def test_show_config_shows_no_secret() -> None:
    secret = "a-token-that-nobody-may-see"
    result = quorate(
        "run",
        "--show-config",
        "--rdzv-auth=required",
        "--rdzv-conf=user=me,password=hunter2,prefix=p",
        QUORATE_JOB_TOKEN=secret,
    )
    assert result.returncode == ExitCode.OK, result.stderr
    assert "hunter2" not in result.stdout
    assert secret not in result.stdout + result.stderr
    assert "user=me,password=********,prefix=p" in result.stdout
    assert "Job token: ******** (QUORATE_JOB_TOKEN); --rdzv-auth=required" in result.stdout
    assert "Job token: none; --rdzv-auth=auto" in quorate("run", "--show-config").stdout


def test_a_wrong_word_for_the_use_of_the_token_is_refused() -> None:
    result = quorate("run", "--rdzv-auth=maybe", "script.py")
    assert result.returncode == ExitCode.USAGE
    assert "is not one of auto, required, off" in result.stderr


@pytest.mark.needs("quorate-rendezvous-static")
def test_a_job_that_must_be_protected_does_not_start_without_a_token(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("print('started')")
    result = quorate("run", "--rdzv-auth=required", str(script))
    assert result.returncode == ExitCode.USAGE
    assert "no job token is set; set QUORATE_JOB_TOKEN_FILE" in result.stderr
    assert "started" not in result.stdout
    short = quorate("run", str(script), QUORATE_JOB_TOKEN="short")
    assert short.returncode == ExitCode.USAGE
    assert "at least 16" in short.stderr


def test_show_config_prints_each_value_and_where_it_came_from() -> None:
    result = quorate("run", "--show-config", "--nnodes", "2:4", "--rdzv_conf=join_timeout=9", PET_MAX_RESTARTS="7")
    assert result.returncode == 0, result.stderr
    rows = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines() if line.strip()}
    assert rows["--nnodes"] == ["2:4", "argument"]
    assert rows["--max-restarts"] == ["7", "environment", "PET_MAX_RESTARTS"]
    assert rows["--monitor-interval"] == ["0.1", "default"]
    assert rows["--capture-stderr"] == ["-", "default"], "without it stderr is captured"
    assert [flag.name for flag in FLAGS if f"--{flag.name}" not in rows] == []
    assert rows["join_timeout"] == ["9"]
    assert rows["connect_timeout"] == ["9"]


def test_a_closed_pipe_is_not_an_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as gone:
        result = subprocess.run(
            [sys.executable, "-m", "quorate", "run", "--help"], stdout=gone, stderr=subprocess.PIPE, timeout=SECONDS
        )
    assert (result.returncode, result.stderr) == (0, b"")


def test_the_docs_explain_every_exit_code() -> None:
    text = (DOCS / "exit-codes.md").read_text(encoding="utf-8")
    assert [code.name for code in ExitCode if f"| {code.value} | `{code.name}` |" not in text] == []
