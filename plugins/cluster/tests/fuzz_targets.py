"""What schedulers and launchers say by variables, files and commands; found by ``core.tests.fuzz``."""

from __future__ import annotations

from collections.abc import Mapping

from core.tests.fuzz.target import Target

from quorate.errors import UsageError
from quorate_cluster import plugin
from quorate_cluster._hosts import counts_of, expand_hosts
from quorate_cluster._slurm import parse_time_left


class _Machine:
    """A machine whose files and commands all say the same."""

    host = "m"

    def __init__(self, text: str) -> None:
        self._text = text

    def read(self, path: str) -> str:
        return self._text

    def output(self, *command: str) -> str:
        return self._text


def _ask(data: bytes) -> None:
    """Ask every scheduler; NULs separate what the machine says and the variables."""
    text, *pairs = data.decode("utf-8", "surrogateescape").split("\0")
    environment = dict(pair.partition("=")[::2] for pair in pairs)
    refused = None
    for backend in plugin.quorate_register_environment():
        try:
            job = backend.find(environment, _Machine(text))
        except UsageError as error:
            refused = error
            continue
        if job is not None:
            job.time_left()
            job.described(1, 2, "a:1")
    if refused is not None:
        raise refused


def _read_text(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    left = parse_time_left(text)
    assert left is None or 0 <= left < 1e10
    assert len(counts_of(text)) <= 1 << 16


_SLURM = (b"KillWait=30", b"SLURM_JOB_ID=7", b"SLURM_STEP_ID=0", b"SLURM_PROCID=1", b"SLURM_NTASKS=2")
_SLURM += (b"SLURM_JOB_NODELIST=n[1-2]", b"SLURM_STEP_TASKS_PER_NODE=1(x2)", b"SLURM_STEP_RESV_PORTS=5-6")
_HOSTS = b'{"hosts":["algo-1","algo-2"],"current_host":"algo-2"}'
_ONES = (
    _SLURM,
    (_HOSTS, b"TRAINING_JOB_NAME=x"),
    (b"", b'SM_HOSTS=["a","b"]', b"SM_CURRENT_HOST=a", b"SM_NUM_GPUS=8"),
    (b"", b"OMPI_COMM_WORLD_SIZE=2", b"OMPI_COMM_WORLD_RANK=0", b"PMIX_NAMESPACE=prterun-h-5@1", b"PMIX_RANK=1")
    + (b"OMPI_MCA_orte_hnp_uri=1.0;tcp://192.0.2.1,192.0.2.2:5",),
    (b"", b"PMI_SIZE=2", b"PMI_RANK=0", b"PMI_PORT=h:5", b"PMIX_NAMESPACE=4294967295"),
    (b"192.0.2.1 m.s.ns m", b"KUBERNETES_SERVICE_HOST=x", b"JOB_COMPLETION_INDEX=1", b"HOSTNAME=m", b"PET_NNODES=2"),
    (b'jobset.sigs.k8s.io/jobset-name="a"', b"JOB_COMPLETION_INDEX=1", b"KUBERNETES_SERVICE_HOST=x", b"NNODES=4"),
    (b"", b"SKYPILOT_NODE_IPS=a\nb", b"SKYPILOT_NODE_RANK=1"),
    (b"", b"MASTER_ADDR=a", b"MASTER_PORT=5", b"RANK=0", b"WORLD_SIZE=2", b"RAY_JOB_ID=1"),
    (b"n1\nn2\n", b"PBS_JOBID=1.s", b"PBS_NODEFILE=/x", b"PBS_NODENUM=0", b"LSB_JOBID=1", b"LSB_DJOB_HOSTFILE=/x"),
    (b"n[1-2]", b"FLUX_JOB_ID=f5", b"FLUX_JOB_SIZE=2", b"FLUX_TASK_RANK=1", b"FLUX_JOB_NNODES=2"),
)

TARGETS: Mapping[str, Target] = {
    "what schedulers say": Target(_ask, tuple(map(b"\0".join, _ONES)), (UsageError,)),
    "times and counts": Target(
        _read_text, (b"1-02:03:04\n", b"UNLIMITED", b"2(x3),1", b"\xc2\xb2", b"9" * 5000, b"1(x65536)," * 99)
    ),
    "lists of hosts": Target(
        lambda data: expand_hosts(data.decode("utf-8", "replace")),
        (b"n[1-3,07],m04", b"rack[1-2]n[1-4]"),
        (UsageError,),
        (b"a[1]" * 3000, b"[1-60000][1-60000]", b"[[", b"a[x]"),
    ),
}
