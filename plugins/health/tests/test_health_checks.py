"""The node's checks against real conditions: full and read-only file systems, low limits, commands of every kind.

Agents are real and run by the command line.  Mounts live in a mount namespace of the agent's own, so that nothing of
them is left, whatever happens.
"""

from __future__ import annotations

import gc
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from quorate.cli import ExitCode, main
from quorate.errors import StoreUnavailableError
from quorate.services import AgentSnapshot
from quorate_health._check_flags import names_of
from quorate_health._checks import DEFAULTS, NAMES, CheckStates
from quorate_health._disk import check_disk, check_log_dir
from quorate_health._resources import available_memory
from quorate_health._watches import ClockWatch, StoreWatch

from .health_runs import UNHEALTHY, refused, run


class StubAgent:
    """As much of an agent as the quick checks look at."""

    def __init__(self, log_dir: str = "", environment: Mapping[str, str] | None = None) -> None:
        self.environment = environment or {}
        self.settings: dict[str, Any] = {}
        self.log_dir = log_dir
        self.said: list[str] = []
        self.latency: float | None = 0.001
        self.phase = "checking"

    def snapshot(self) -> AgentSnapshot:
        return AgentSnapshot("run", "node", "host", "role", self.phase, "", 0, log_dir=self.log_dir)

    def store_latency(self, timeout: float) -> float | None:
        if self.latency is not None and self.latency > timeout:
            raise StoreUnavailableError("it is frozen")
        return self.latency

    def say(self, sentence: str) -> None:
        self.said.append(sentence)


needs_mounts = pytest.mark.skipif(
    subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode != 0,
    reason="mounting, even in a namespace of one's own, is not permitted here",
)


# --- the quick ones -------------------------------------------------------------------------------------------------


def test_a_healthy_node_runs_its_workers(tmp_path: Path) -> None:
    """All defaults, on whatever machine runs this: nothing is found, nothing is said."""
    done = run(path=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "worker ran\n", "")


def test_a_launch_imports_nothing_heavy_for_its_checks(tmp_path: Path) -> None:
    """Without flags neither the server's libraries, nor those of GPUs and commands, delay the first worker."""
    done = run(path=tmp_path, PYTHONPROFILEIMPORTTIME="1", worker="import os; os._exit(0)")
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "quorate_health._checks" in imported
    assert not imported & {
        "subprocess",
        "tempfile",
        "difflib",
        "pynvml",
        "waitress",
        "prometheus_client",
        "torch",
        "grpc",
    }


@needs_mounts
def test_a_full_log_folder(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    fill = f"mount -t tmpfs -o size=1m none {logs}; head -c 2000000 /dev/zero > {logs}/filler 2>/dev/null || true"
    problem = refused(run(f"--log-dir={logs}", before=fill, path=tmp_path))
    assert f"log_dir: nothing can be written in {logs}: No space left on device; set --log-dir" in problem
    assert f"disk: 0 MB are free in {logs}, fewer than disk_free_mb=50; make room, or set --log-dir" in problem


@needs_mounts
def test_a_read_only_folder_for_logs(tmp_path: Path) -> None:
    """Root may write where permissions forbid it, but not on what is mounted read-only."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    mount = f"mount --bind {folder} {folder}; mount -o remount,bind,ro {folder}"
    done = run(f"--log-dir={folder}", before=mount, path=tmp_path)
    assert done.returncode == ExitCode.USAGE
    assert f"the log folder {folder} cannot be used: it is not writable; set --log-dir" in done.stderr


@needs_mounts
@pytest.mark.parametrize("option", ["ro", "size=4k,nr_inodes=1"], ids=["read-only", "full"])
def test_a_folder_for_temporary_files_that_cannot_be_used_is_replaced_with_a_word(tmp_path: Path, option: str) -> None:
    """Both the agent and the checks go on to the next place, as Python's tempfile does."""
    folder, good = tmp_path / "tmp", tmp_path / "good"
    folder.mkdir()
    good.mkdir()
    mount = f"mount -t tmpfs -o {option} none {folder}"
    done = run(before=mount, path=tmp_path, worker="print('ran')", TMPDIR=str(folder), TEMP=str(good))
    assert (done.returncode, done.stdout) == (0, "ran\n"), done.stderr
    assert f"{folder} cannot be used for temporary files" in done.stderr
    assert f"{good} is used instead" in done.stderr


@needs_mounts
def test_a_file_system_without_inodes(tmp_path: Path) -> None:
    folder = tmp_path / "tmp"
    folder.mkdir()
    mount = f"mount -t tmpfs -o size=200m,nr_inodes=2 none {folder}; touch {folder}/last"
    problem = refused(run("--health-checks=disk", f"--log-dir={folder}", before=mount, path=tmp_path))
    assert "has no free inode" in problem


def test_a_log_folder_is_judged_by_what_exists_of_it(tmp_path: Path) -> None:
    """The rest of the path is made when workers start; if it cannot be made, the start gives the better message."""
    assert check_log_dir(StubAgent(str(tmp_path / "a" / "b"))) is None
    assert check_disk(StubAgent(str(tmp_path / "a" / "b")), 0.0) is None
    (tmp_path / "file").touch()
    assert check_log_dir(StubAgent(str(tmp_path / "file" / "b"))) is None
    assert list(tmp_path.iterdir()) == [tmp_path / "file"], "looking leaves nothing behind"


def test_few_open_files(tmp_path: Path) -> None:
    problem = refused(run(before="ulimit -n 100", path=tmp_path))
    assert problem == (
        "open_files: a process may open 100 files, fewer than open_files=256; raise the limit (ulimit -n)"
    )


def test_little_memory(tmp_path: Path) -> None:
    problem = refused(run("--health-check-conf=memory_free_mb=1e9", path=tmp_path))
    assert problem.startswith("memory: ")
    assert "MB of memory" in problem
    assert "fewer than memory_free_mb=1000000000" in problem


def test_a_step_of_the_wall_clock() -> None:
    """Setting this machine's clock would affect every program on it, so the clocks that are read are passed in."""
    now = [1000.0, 10.0]
    clock = ClockWatch(lambda: now[0] - now[1])
    agent = StubAgent()
    now[:] = [2030.0, 1010.0]
    assert clock.check(agent, 60.0) is None, "30 s of 1000 are within the limit"
    now[:] = [2200.0, 1010.0]
    assert "set forward by 200.0 s" in str(clock.check(agent, 60.0))
    now[:] = [0.0, 1010.0]
    assert "set back by 2000.0 s" in str(clock.check(agent, 60.0))


def test_a_step_of_the_wall_clock_is_printed_once_and_does_not_expel_the_node_without_a_limit() -> None:
    offset = [0.0]
    clock, agent = ClockWatch(lambda: offset[0]), StubAgent()
    for step in (0.0, 50.0, 3600.0, 3610.0, -7200.0, -7200.0):
        offset[0] = step
        assert clock.check(agent, None) is None
    assert [line.partition(" since")[0] for line in agent.said] == [
        "the wall clock was set forward by 3600.0 s",
        "the wall clock was set back by 7200.0 s",
    ]


def test_a_slow_store_is_reported_once_and_judged_only_with_a_limit() -> None:
    """Otherwise every node would leave a job whose store is away for a moment."""
    agent, watch = StubAgent(), StoreWatch()
    agent.latency = 2.0
    assert watch.check(agent, None) is None
    assert not agent.said, "not before a join: joining reads the store"
    agent.phase = "running"
    assert [watch.check(agent, None), watch.check(agent, None)] == [None, None]
    assert agent.said == ["the rendezvous store took 2000 ms to answer; look at its host and the network"]
    agent.latency = 99.0
    assert "did not answer within 300 ms, more than store_latency_ms=300" in str(watch.check(agent, 300.0))
    agent.latency = None
    assert watch.check(agent, 1.0) is None, "before the first join there is no store to ask"


# --- memory and control groups --------------------------------------------------------------------------------------


@pytest.fixture
def memory_group() -> Iterator[Path]:
    """A control group of this process's own with a limit of 200 MB."""
    group, root = "", Path("/sys/fs/cgroup")
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        hierarchy, controllers, path = line.split(":", 2)
        if hierarchy == "0" and not group:
            group = path
        elif "memory" in controllers.split(","):
            group, root = path, Path("/sys/fs/cgroup/memory")
    folder = root / group.lstrip("/") / f"quorate-test-{os.getpid()}"
    version = "limit_in_bytes" if root.name == "memory" else "max"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        try:
            (folder / f"memory.{version}").write_text("200000000")
        except OSError as error:
            pytest.skip(f"no memory limit can be set here: {error}")
        yield folder
    finally:
        folder.rmdir()


def test_the_limit_of_a_control_group_counts(memory_group: Path, tmp_path: Path) -> None:
    join = f"echo $$ > {memory_group}/cgroup.procs"
    assert run("--health-checks=memory", before=join, path=tmp_path).returncode == 0
    problem = refused(
        run("--health-checks=memory", "--health-check-conf=memory_free_mb=300", before=join, path=tmp_path)
    )
    assert f"/{memory_group.name} are free, fewer than memory_free_mb=300" in problem


def _tree(root: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_the_tightest_of_nested_groups_decides_and_page_cache_is_free(tmp_path: Path) -> None:
    """Control groups v2, as the kernel documents their files."""
    files = {
        "proc/meminfo": "MemTotal: 900 kB\nMemAvailable: 800 kB\n",
        "proc/self/cgroup": "0::/job/step\n",
        "cg/job/memory.max": "500000\n",
        "cg/job/memory.current": "400000\n",
        "cg/job/memory.stat": "anon 1\ninactive_file 30000\nactive_file 20000\n",
        "cg/job/step/memory.max": "max\n",
        "cg/job/step/memory.current": "399999\n",
    }
    _tree(tmp_path, files)
    assert available_memory(str(tmp_path / "proc"), str(tmp_path / "cg")) == (150000, "/job")


def test_a_container_sees_its_group_at_the_root(tmp_path: Path) -> None:
    """Control groups v1, the path being the host's: only the root of the mount is there to be read."""
    files = {
        "proc/meminfo": "MemAvailable: 800 kB\n",
        "proc/self/cgroup": "4:cpu:/x\n3:memory:/docker/abc\n0::/\n",
        "cg/memory/memory.limit_in_bytes": "300000\n",
        "cg/memory/memory.usage_in_bytes": "310000\n",
        "cg/memory/memory.stat": "inactive_file 5\ntotal_inactive_file 4000\ntotal_active_file 0\n",
    }
    _tree(tmp_path, files)
    assert available_memory(str(tmp_path / "proc"), str(tmp_path / "cg")) == (0, "/")


def test_without_groups_the_machine_counts(tmp_path: Path) -> None:
    _tree(tmp_path, {"proc/meminfo": "MemAvailable: 800 kB\n"})
    assert available_memory(str(tmp_path / "proc"), str(tmp_path / "cg")) == (800 * 1024, "")


# --- while workers run ----------------------------------------------------------------------------------------------


@needs_mounts
def test_a_disk_that_fills_up_ends_the_run(tmp_path: Path) -> None:
    """The worker itself fills the folder and would run on for good."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    worker = (
        "import os, signal\nprint('started', flush=True)\n"
        f"open({str(folder / 'filler')!r}, 'wb').write(bytes(99 << 20))\nsignal.pause()\n"
    )
    done = run(
        "--health-interval=0.2",
        "--shutdown-timeout=5",
        before=f"mount -t tmpfs -o size=100m none {folder}",
        worker=worker,
        path=tmp_path,
        TMPDIR=str(folder),
    )
    assert done.returncode == UNHEALTHY, done.stderr
    assert done.stdout == "started\n"
    assert "is unhealthy: disk: " in done.stderr
    assert f"MB are free in {folder}, fewer than disk_free_mb=50" in done.stderr


# --- flags ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "problem"),
    [
        ("--health-checks=disk,memmory", "names no check 'memmory'; did you mean memory?"),
        ("--health-checks=,", "is empty; write all, none, or some of open_files, clock"),
        ("--health-check-conf=disk_free_mb=lots", "disk_free_mb=lots is not a number"),
        ("--health-check-conf=disk_free_mb=-1", "disk_free_mb=-1 must be a number of at least 0"),
        ("--health-check-conf=gpus=nan", "gpus=nan must be a number of at least 0"),
        ("--health-check-conf=disk_free_mb", "gives no number for disk_free_mb; write disk_free_mb=NUMBER"),
        ("--health-check-conf=disk_mb=1", "names no limit 'disk_mb'; did you mean disk_free_mb?"),
        ("--health-check-conf=command_timeout_s=0", "must be above 0 and at most 3600 seconds"),
        ("--health-check-cmd=echo 'a", "cannot be split into words: no closing quotation"),
        ("--health-check-cmd= ", "is empty; give a command, or leave the flag out"),
    ],
)
def test_wrong_values_are_one_sentence_and_exit_code_2(
    flag: str, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "worker.py"
    script.touch()
    assert main(["run", "--standalone", flag, str(script)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("quorate: error: --health-check")
    assert problem in line


def test_which_checks_are_wanted() -> None:
    every = frozenset(NAMES)
    assert names_of("all") == every
    assert names_of("none") == frozenset()
    assert names_of("disk, log-dir") == {"disk", "log_dir"}
    assert names_of("-gpu") == names_of("all,-gpu") == every - {"gpu"}


def test_a_check_that_is_switched_off_finds_nothing(tmp_path: Path) -> None:
    for flags in (["--health-checks=none"], ["--health-checks=-memory,-command"], ["--health-checks=disk"]):
        done = run(*flags, "--health-check-conf=memory_free_mb=1e9", "--health-check-cmd=false", path=tmp_path)
        assert done.returncode == 0, done.stderr


def test_the_state_of_checks_is_kept_for_each_agent_while_it_lives() -> None:
    states = CheckStates()
    one, other = StubAgent(), StubAgent()
    assert states.of(one) is states.of(one)
    assert states.of(other) is not states.of(one)
    del one
    gc.collect()
    assert len(states) == 1
    del other
    gc.collect()
    assert len(states) == 0


def test_every_limit_is_explained() -> None:
    """The guide names each check and each limit with its default."""
    guide = Path(__file__).parents[3] / "docs" / "health.md"
    if not guide.exists():
        pytest.skip("the other distributions of this repository are not here")
    text = guide.read_text()
    for name in NAMES:
        assert f"| `{name}` |" in text
    for name, default in DEFAULTS.items():
        assert f"`{name}`" in text
        if default is not None:
            assert f"`{name}` ({default:g})" in text
