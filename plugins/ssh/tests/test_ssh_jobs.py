"""Jobs on several hosts from one command, over a real sshd."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from quorate.files import read_bytes
from quorate.proc import children_of, is_alive

if TYPE_CHECKING:
    from conftest import Cluster

WORKER = str(Path(__file__).with_name("ssh_worker.py"))


def test_one_command_runs_all_hosts(cluster: Cluster) -> None:
    done = cluster.run("--hosts=a,b:2", WORKER, "where")
    assert done.returncode == 0, done.stderr
    tail = f"of 3 {cluster.folder} {cluster.mark}"
    assert sorted(done.stdout.splitlines()) == [f"[a 0] rank 0 {tail}", f"[b 1] rank 1 {tail}", f"[b 2] rank 2 {tail}"]
    assert {"[a 0] an error of 0", "[b 1] an error of 1", "[b 2] an error of 2"} <= set(done.stderr.splitlines())


def test_a_hostfile_says_the_same(cluster: Cluster) -> None:
    (cluster.folder / "hosts").write_text("# MPI's and DeepSpeed's\na slots=1\nb slots=2\n")
    done = cluster.run("--hostfile=hosts", WORKER, "where")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3


def test_what_a_hosts_shell_prints_before_does_not_matter(cluster: Cluster) -> None:
    wrapper = cluster.folder / "ssh-banner"
    wrapper.write_text(
        '#!/bin/bash\nwords=("$@")\nwords[-1]="echo hello; echo >&2 note; printf prompt; ${words[-1]}"\n'
        f'exec ssh -F {cluster.server.config} "${{words[@]}}"\n'
    )
    wrapper.chmod(0o755)
    done = cluster.run(f"--ssh-command={wrapper}", "--hosts=a", WORKER, "where")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[a 0] rank 0 of 1"), done.stdout


def test_the_exit_code_and_the_reason_are_the_jobs(cluster: Cluster) -> None:
    done = cluster.run("--hosts=a,b", WORKER, "fail")
    assert done.returncode == 1
    assert "exit code 7" in done.stderr
    assert "[b] quorate: error:" in done.stderr


def test_signals_reach_all_workers_with_their_grace(cluster: Cluster) -> None:
    launch = cluster.begin("--hosts=a,b", WORKER, "stay")
    cluster.wait(lambda: len(list(cluster.folder.glob("worker-*"))) == 2, "the workers do not start")
    assert launch.stdout is not None
    assert {launch.stdout.readline() for _ in range(2)} == {"[a 0] stays 0\n", "[b 1] stays 1\n"}
    launch.send_signal(signal.SIGTERM)
    out, err = launch.communicate(timeout=60)
    assert launch.returncode == 143, err
    assert sorted(line for line in out.splitlines() if "saved" in line) == ["[a 0] saved 0", "[b 1] saved 1"]
    assert (cluster.folder / "saved-0").exists()
    assert (cluster.folder / "saved-1").exists()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_a_terminal_that_is_closed_or_interrupted_ends_the_job(cluster: Cluster, number: signal.Signals) -> None:
    launch = cluster.begin("--hosts=a,b", WORKER, "until")
    cluster.wait(lambda: len(list(cluster.folder.glob("worker-*"))) == 2, "the workers do not start")
    launch.send_signal(number)
    _, err = launch.communicate(timeout=30)
    assert launch.returncode == 128 + number
    assert f"node {socket.gethostname()} was stopped by {number.name}" in err
    cluster.wait(lambda: not cluster.left(), "processes are left")


def test_nothing_is_left_when_the_launching_side_is_killed(cluster: Cluster) -> None:
    launch = cluster.begin("--hosts=a,b", WORKER, "until")
    cluster.wait(lambda: len(list(cluster.folder.glob("worker-*"))) == 2, "the workers do not start")
    launch.kill()
    cluster.wait(lambda: not cluster.left(), "processes are left")


def test_nothing_is_left_when_the_connections_are_cut(cluster: Cluster) -> None:
    launch = cluster.begin("--hosts=a,b", WORKER, "until")
    cluster.wait(lambda: len(list(cluster.folder.glob("worker-*"))) == 2, "the workers do not start")
    for pid in children_of(launch.pid):
        os.kill(pid, signal.SIGKILL)
    _, err = launch.communicate(timeout=60)
    assert launch.returncode == 3
    assert "a is lost" in err
    cluster.wait(lambda: not cluster.left(), "processes are left")


def test_nothing_is_left_when_the_first_agent_is_killed(cluster: Cluster) -> None:
    launch = cluster.begin("--hosts=a,b", WORKER, "until")
    cluster.wait(lambda: len(list(cluster.folder.glob("worker-*"))) == 2, "the workers do not start")
    (agent,) = [pid for pid in cluster.left() if b"--node-rank=0" in read_bytes(f"/proc/{pid}/cmdline")]
    os.kill(agent, signal.SIGKILL)
    _, err = launch.communicate(timeout=60)
    assert launch.returncode == 3, err
    assert "a is lost" in err
    cluster.wait(lambda: not cluster.left(), "processes are left")


@pytest.mark.slow  # the hosts wait 15 s for a sign of life
def test_nothing_is_left_when_the_launching_side_falls_silent(cluster: Cluster) -> None:
    launch = cluster.begin("--hosts=a,b", WORKER, "until")
    cluster.wait(lambda: len(list(cluster.folder.glob("worker-*"))) == 2, "the workers do not start")
    workers = [int(path.read_text()) for path in cluster.folder.glob("worker-*")]
    launch.send_signal(signal.SIGSTOP)  # as a laptop that sleeps: no connection is closed
    try:
        cluster.wait(lambda: not any(is_alive(pid) for pid in workers), "the workers run on")
    finally:
        launch.send_signal(signal.SIGCONT)
    launch.communicate(timeout=60)
    assert launch.returncode in (3, 143)


# --- before anything starts -------------------------------------------------------------------------------------------


def test_every_host_that_does_not_fit_is_named_and_nothing_starts(cluster: Cluster) -> None:
    done = cluster.run("--hosts=a,nowhere,other.invalid", WORKER, "where")
    assert done.returncode == 3
    assert "nothing was started" in done.stderr
    assert "nowhere: it cannot be reached: ssh: connect to host 127.0.0.9 port 1: Connection refused" in done.stderr
    assert "other.invalid: it cannot be reached" in done.stderr
    assert done.stdout == ""
    assert not list(cluster.folder.glob("worker-*"))


def fake_python(folder: Path, script: str) -> str:
    """Return a command like ssh that runs on its host with another ``python3`` first on the PATH."""
    tools = folder / "tools"
    tools.mkdir()
    for name in ("python3", "python"):
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)
    return str(tools)


def test_a_host_without_quorate_is_named(cluster: Cluster) -> None:
    wrapper = cluster.folder / "ssh-without"
    # The host's end runs in an environment in which no Python has quorate.
    wrapper.write_text(
        "#!/bin/sh\nfor last; do :; done\n"
        f'exec sh -c "$(printf %s "$last" | sed \'s#{sys.executable}#/nonexistent/python#\')"\n'
    )
    wrapper.chmod(0o755)
    tools = fake_python(cluster.folder, "echo No module named quorate_ssh >&2; exit 1")
    path = f"{tools}:{os.environ['PATH']}"
    done = cluster.run(f"--ssh-command={wrapper}", "--hosts=a,b", WORKER, "where", PATH=path)
    assert done.returncode == 3
    assert "a: quorate with the plugin quorate-ssh is not installed there (pip install quorate-ssh)" in done.stderr


def test_a_host_with_another_version_is_named(cluster: Cluster) -> None:
    wrapper = cluster.folder / "ssh-other"
    mark = "\\036quorate-ssh "
    hello = '{"hello":{"version":"0.0.1","address":"127.0.0.1","port":1}}'
    wrapper.write_text(f"#!/bin/sh\nprintf '{mark}%s\\n' '{hello}'\nexec cat >/dev/null\n")
    wrapper.chmod(0o755)
    done = cluster.run(f"--ssh-command={wrapper}", "--hosts=a", WORKER, "where")
    assert done.returncode == 3
    assert "a: it has quorate 0.0.1, and this machine has" in done.stderr


def test_a_script_or_a_folder_that_a_host_lacks_is_named(cluster: Cluster) -> None:
    done = cluster.run("--hosts=a,b", "gone.py")
    assert done.returncode == 3
    assert f"a: the script gone.py does not exist in {cluster.folder}; b: the script" in done.stderr


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--hosts=a,a"], "names a twice"),
        (["--hosts=,"], "names no host"),
        (["--hosts=a", "--hostfile=x"], "contradict each other"),
        (["--hostfile=absent"], "cannot be read: No such file"),
        (["--hosts=a,b", "--nnodes=3"], "asks for 3 nodes, but --hosts names 2"),
        (["--hosts=a", "--standalone"], "--standalone is for one node"),
        (["--hosts=a", "--ssh-env=x y"], "is not a name of variables"),
        (["--hosts=-oProxyCommand=x"], "is not a host"),
    ],
)
def test_wrong_use_is_told(cluster: Cluster, argv: list[str], sentence: str) -> None:
    done = cluster.run(*argv, WORKER, "where")
    assert (done.returncode, sentence in done.stderr) == (2, True), done.stderr


def test_a_shared_connection_is_used_and_stays(cluster: Cluster) -> None:
    path = cluster.folder / "control"
    ssh = f"ssh -F {cluster.server.config} -o ControlPath={path}"
    master = subprocess.Popen([*ssh.split(), "-M", "-N", "a"], stdin=subprocess.DEVNULL)
    try:
        cluster.wait(path.exists, "the connection is not made")
        done = cluster.run(f"--ssh-command={ssh}", "--hosts=a", WORKER, "where")
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("[a 0] rank 0 of 1")
        assert master.poll() is None
    finally:
        master.terminate()
        master.wait()


# --- elastic ----------------------------------------------------------------------------------------------------------


def test_an_elastic_job_goes_on_without_a_lost_host_and_takes_it_back(cluster: Cluster) -> None:
    launch = cluster.begin("--hosts=a,b", "--nnodes=1:2", "--rdzv-conf=lease_timeout=2", WORKER, "until")
    assert launch.stdout is not None
    first = {launch.stdout.readline().strip() for _ in range(2)}
    # In an elastic job the node that comes first has rank 0.
    assert first in ({"[a 0] waits 0 2", "[b 1] waits 1 2"}, {"[b 0] waits 0 2", "[a 1] waits 1 2"})
    (connection,) = [pid for pid in children_of(launch.pid) if b"\0b\0" in read_bytes(f"/proc/{pid}/cmdline")]
    os.kill(connection, signal.SIGKILL)
    assert launch.stdout.readline().strip() == "[a 0] waits 0 1"
    lines = {launch.stdout.readline().strip() for _ in range(2)}
    assert lines == {"[a 0] waits 0 2", "[b 1] waits 1 2"}
    (cluster.folder / "finish").touch()
    _, err = launch.communicate(timeout=60)
    assert launch.returncode == 0, err
    assert "b is lost" in err
    assert "b takes part again" in err


def test_an_elastic_job_begins_without_a_host_that_cannot_be_reached(cluster: Cluster) -> None:
    done = cluster.run("--hosts=a,nowhere", "--nnodes=1:2", "--rdzv-conf=last_call_timeout=0.1", WORKER, "where")
    assert done.returncode == 0, done.stderr
    assert "nowhere: it cannot be reached" in done.stderr
    assert done.stdout.startswith("[a 0] rank 0 of 1")


# --- detached ---------------------------------------------------------------------------------------------------------


def ask(cluster: Cluster, *arguments: str) -> list[str]:
    command = [
        sys.executable,
        "-m",
        "quorate",
        "detached",
        f"--ssh-command=ssh -F {cluster.server.config}",
        "--hosts=a",
    ]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith(cluster.mark)]


def test_a_detached_job_goes_on_and_can_be_found_and_ended(cluster: Cluster) -> None:
    done = cluster.run("--hosts=a,b", "--detach=1", f"--rdzv-id={cluster.mark}", WORKER, "until")
    assert done.returncode == 0, done.stderr
    assert f"end it with: quorate detached --hosts=a,b --end={cluster.mark}" in done.stderr
    cluster.wait(lambda: len(list(cluster.folder.glob("worker-*"))) == 2, "the workers do not start")
    runs = ask(cluster)
    assert [line.split()[4] for line in runs] == ["runs", "runs"]  # both names are this machine
    log = Path(runs[0].split()[-1])
    assert f"job {cluster.mark}" in done.stderr
    ask(cluster, f"--end={cluster.mark}")
    cluster.wait(lambda: not cluster.left(), "the agents do not stop")
    assert "waits" in log.read_text()
    ended = ask(cluster)
    assert ["has ended" in line for line in ended] == [True, True], ended
    assert ask(cluster, f"--forget={cluster.mark}") == []
    assert not log.exists()


# --- the environment --------------------------------------------------------------------------------------------------


def test_the_rule_for_variables_can_be_changed(cluster: Cluster) -> None:
    done = cluster.run("--hosts=a", "--ssh-env=-MA*", WORKER, "where")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith(f"{cluster.folder} None")
