"""A real Slurm on this machine: munged, slurmctld and three slurmd, in namespaces of their own.

Run as a program, this module is the first process of the namespaces (network, mounts, processes): whatever happens in
them ends with it.  ``n1`` to ``n3`` are names of addresses of the namespace's loopback interface.  No tests.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from quorate.clock import monotonic, sleep

PROGRAMS = (
    "munged",
    "slurmctld",
    "slurmd",
    "srun",
    "sbatch",
    "scancel",
    "scontrol",
    "squeue",
    "unshare",
    "nsenter",
    "ip",
)
NODES = {"n1": "198.18.0.1", "n2": "198.18.0.2", "n3": "198.18.0.3"}  # the range of RFC 2544
KILL_WAIT_SECONDS = 4
DEADLINE_SECONDS = 30.0
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin", "/usr/local/sbin"])

CONFIGURATION = """\
ClusterName=quorate
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,requeue_delay=0
SlurmdParameters=config_overrides
ReturnToService=2
SwitchType=switch/none
MpiDefault=none
KillWait={kill_wait}
OverTimeLimit=0
MinJobAge=60
{nodes}
PartitionName=all Nodes={names} Default=YES State=UP
"""


def why_not() -> str:
    """Return why Slurm cannot be started here, ``""`` if it can."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (make slurm)"
    probe = ["unshare", "--net", "--mount", "--pid", "--fork", "true"]
    if subprocess.run(probe, env={**os.environ, "PATH": PATH}, capture_output=True).returncode:
        return "namespaces cannot be made here (they need root)"
    return ""


class Slurm:
    """A running cluster."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "PET_", "QUORATE"))},
            "PATH": PATH,
            "SLURM_CONF": str(folder / "slurm.conf"),
        }
        command = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        with open(folder / "init.log", "wb") as log:
            self._outer = subprocess.Popen(
                [*command, sys.executable, __file__, str(folder)], stdin=subprocess.PIPE, stdout=log, stderr=log
            )
        try:
            self._begin()
        except BaseException:
            self.close()
            raise

    def _begin(self) -> None:
        self._wait((self.folder / "ready").exists, "the daemons have not started")
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children").read_text().split()
        self._enter = ["nsenter", f"--target={children[0]}", "--net", "--mount", "--pid", f"--wd={os.getcwd()}"]
        self._wait(lambda: "idle*" not in self.states() and self.states().count("idle") == 3, "the nodes are not up")

    def _wait(self, is_true: Callable[[], bool], problem: str, seconds: float = DEADLINE_SECONDS) -> None:
        deadline = monotonic() + seconds
        while not is_true():
            if monotonic() > deadline or self._outer.poll() is not None:
                logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in self.folder.glob("*.log"))
                raise RuntimeError(f"{problem}\n{logs}")
            sleep(0.05)  # Slurm announces nothing to programs that are not its own

    def states(self) -> list[str]:
        """Return the state of each node."""
        return self.run("sinfo", "--noheader", "-N", "--format=%t").stdout.split()

    def popen(self, *command: str, **variables: str) -> subprocess.Popen[str]:
        """Start a command in the cluster's namespaces."""
        return subprocess.Popen(
            [*self._enter, *command],
            env={**self.environment, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the cluster's namespaces, and return its output and exit code."""
        process = self.popen(*command, **variables)
        try:
            out, err = process.communicate(timeout=DEADLINE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise RuntimeError(f"{command} does not end\n{out}\n{err}\n{self.run_queue()}") from None
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def run_queue(self) -> str:
        return subprocess.run(
            [*self._enter, "squeue"], env=self.environment, capture_output=True, text=True, timeout=DEADLINE_SECONDS
        ).stdout

    def submit(self, script: str, *options: str, **variables: str) -> str:
        """Submit a batch script and return the job's id."""
        path = self.folder / f"batch-{os.urandom(4).hex()}.sh"
        path.write_text("#!/bin/sh\n" + script)
        done = self.run(
            "sbatch", "--parsable", f"--output={self.folder}/job-%A_%a.out", *options, str(path), **variables
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def output(self, job: str, task: str = "4294967294") -> str:
        """Return what a batch job has printed so far; an array's task by its number."""
        path = self.folder / f"job-{job}_{task}.out"
        return path.read_text(errors="replace") if path.exists() else ""

    def state(self, job: str) -> str:
        """Return the state of a job, such as ``COMPLETED``."""
        text = self.run("scontrol", "show", "job", job).stdout
        return text.partition("JobState=")[2].split(" ")[0].strip()

    def wait_for(self, job: str, *states: str) -> str:
        """Wait until a job is in one of ``states``, and return it."""
        self._wait(lambda: self.state(job) in states, f"job {job} is not {' or '.join(states)}\n{self.output(job)}")
        return self.state(job)

    def wait_for_text(
        self, job: str, text: str, count: int = 1, task: str = "4294967294", seconds: float = DEADLINE_SECONDS
    ) -> None:
        """Wait until a batch job has printed ``text``."""
        try:
            self._wait(lambda: self.output(job, task).count(text) >= count, f"job {job} is too slow", seconds)
        except RuntimeError as error:
            raise RuntimeError(f"job {job} has not printed {text!r} but:\n{self.output(job, task)}\n{error}") from None

    def processes(self, word: str) -> list[str]:
        """Return the command lines of the cluster's processes that contain ``word``."""
        done = self.run("sh", "-c", "for each in /proc/[0-9]*; do tr '\\0' ' ' <$each/cmdline 2>/dev/null; echo; done")
        return [line for line in done.stdout.splitlines() if word in line and "/proc/[0-9]" not in line]

    def wait_until_free(self) -> None:
        """Wait until no job is left."""
        self._wait(lambda: not self.run("squeue", "--noheader").stdout.strip(), "jobs are left")

    def close(self) -> None:
        """End everything in the namespaces."""
        self._outer.kill()
        self._outer.wait()
        assert self._outer.stdin is not None
        self._outer.stdin.close()


def main(folder: Path) -> None:
    """Be the first process of the namespaces: start the daemons, and end with the one who started this."""
    os.environ["PATH"] = PATH
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for address in NODES.values():
        subprocess.run(["ip", "address", "add", f"{address}/32", "dev", "lo"], check=True)
    hosts = Path("/etc/hosts").read_text() + "::ffff:127.0.0.1 loopback-mapped\n"
    (folder / "hosts").write_text(hosts + "".join(f"{address} {name}\n" for name, address in NODES.items()))
    # tests/with-private-hosts has mounted a file that has no name any more, and nothing can be mounted upon it.
    subprocess.run(["umount", "/etc/hosts"], check=False, stderr=subprocess.DEVNULL)
    subprocess.run(["mount", "--bind", str(folder / "hosts"), "/etc/hosts"], check=True)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    host = os.uname().nodename
    nodes = "\n".join(
        f"NodeName={name} NodeHostname={host} NodeAddr={address} Port={17821 + at} CPUs=4 RealMemory=1000"
        for at, (name, address) in enumerate(NODES.items())
    )
    (folder / "slurm.conf").write_text(
        CONFIGURATION.format(host=host, folder=folder, nodes=nodes, names=",".join(NODES), kill_wait=KILL_WAIT_SECONDS)
    )
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    munge = [
        f"--{name}={folder}/munge.{name.split('-')[0]}"
        for name in ("socket", "key-file", "pid-file", "log-file", "seed-file")
    ]
    daemons = [
        ["munged", "--foreground", "--force", "--num-threads=2", *munge],
        ["slurmctld", "-D", "-i", "-f", str(folder / "slurm.conf")],
        *(["slurmd", "-D", "-N", name, "-f", str(folder / "slurm.conf")] for name in NODES),
    ]
    for daemon in daemons:
        with open(folder / f"{os.path.basename(daemon[0])}.out.log", "ab") as log:
            subprocess.Popen(daemon, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        while daemon[0] == "munged" and not (folder / "munge.socket").exists():
            sleep(0.02)  # nothing announces a socket's file
    (folder / "ready").touch()
    # The first process of a namespace gets its orphans, and has to wait for them.
    reader = sys.stdin.fileno()
    os.set_blocking(reader, False)
    while True:
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        try:
            if not os.read(reader, 1):
                return
        except BlockingIOError:
            sleep(0.1)  # an orphan's end may come as late


if __name__ == "__main__":
    main(Path(sys.argv[1]))
