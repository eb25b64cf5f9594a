"""What a cluster's scheduler says, as values of flags: which scheduler counts, and what stays the user's decision.

What does not live here: the schedulers themselves (plugins), and the order of precedence (``_parse``).
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Mapping
from typing import Any, TypeGuard, final

from .._default_backends import SEVERAL_NODES
from .._isolation import checked_answer, described
from ..catalogue import PluginKind
from ..clock import monotonic
from ..clusters import ClusterEnvironment, ClusterJob, Machine
from ..errors import PluginError, PreemptedError, QuorateError, UsageError
from ..files import read_bytes
from ..job_token import without_token
from ..net import format_endpoint, host_name
from ..notices import note, warn
from ..plugins import PluginHost
from ._parse import Parsed

AUTO, NONE = "auto", "none"
#: Every worker of an agent has it: an agent that runs inside a worker is not a node of the scheduler's job.
_WORKERS_VARIABLE = "TORCHELASTIC_RUN_ID"


_MOST_BYTES = 16 << 20  # of a file, or of a command's output
_COMMAND_SECONDS = 10.0
#: A SIGTERM with more time left than this is a person's.
_CANCELLED_EARLY_SECONDS = 60.0


@final
class ThisMachine:
    """The machine that this process runs on; a command may take ``timeout_seconds``."""

    def __init__(self, timeout_seconds: float = _COMMAND_SECONDS) -> None:
        self._timeout_seconds = timeout_seconds

    @property
    def host(self) -> str:
        return host_name()

    def read(self, path: str) -> str:
        return read_bytes(path, _MOST_BYTES, regular=True).decode("utf-8", "replace")

    def output(self, *command: str) -> str:
        output = self._run(command)
        return "" if output is None else output.decode("utf-8", "replace")

    def run(self, *command: str) -> bool:
        """Run a command; return whether it succeeded."""
        return self._run(command) is not None

    def _run(self, command: tuple[str, ...]) -> bytes | None:
        """Return what a command prints; ``None`` where it fails, prints too much or takes too long."""
        import subprocess  # a slow import that few schedulers need

        deadline = monotonic() + self._timeout_seconds
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=without_token(os.environ),
                start_new_session=True,
            )
        except (OSError, ValueError):  # ValueError: a NUL in a word
            return None
        assert process.stdout is not None
        try:
            with process.stdout as pipe:
                output = _read_until(pipe.fileno(), deadline)
            return output if output is not None and process.wait(max(0.0, deadline - monotonic())) == 0 else None
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _read_until(pipe: int, deadline: float) -> bytes | None:
    """Return what comes until the end of ``pipe``; ``None`` if that does not come in time, or more than is kept."""
    output = bytearray()
    poller = select.poll()
    poller.register(pipe, select.POLLIN)
    while len(output) <= _MOST_BYTES and poller.poll(1000 * max(0.0, deadline - monotonic())):
        part = os.read(pipe, 1 << 16)
        if not part:
            return bytes(output)
        output += part
    return None


def find_cluster(name: str, host: PluginHost, environment: Mapping[str, str], machine: Machine) -> ClusterJob | None:
    """Return what the scheduler ``name`` says (``auto``: the one that started this process), if there is one.

    Raises:
        UsageError: the scheduler that was asked for is not installed, or has not started this process.
    """
    if name == NONE or (name == AUTO and environment.get(_WORKERS_VARIABLE)):
        return None
    if name != AUTO:
        backend: ClusterEnvironment = host.choose(PluginKind.ENVIRONMENT, name)
        job = _ask(backend, environment, machine)
        if job is None:
            raise UsageError(
                f"--cluster={name}, but {backend.summary} has not started this process; "
                "remove --cluster, or start quorate through it"
            )
        return job
    known: list[ClusterEnvironment] = list(host.catalogue(PluginKind.ENVIRONMENT).values())
    found, within = None, 0
    for backend in sorted(known, key=lambda each: (-each.precedence, each.name)):
        try:
            job = _ask(backend, environment, machine)
        except PluginError as error:
            warn(f"{error}; it is left out")
            continue
        if job is not None and found is None:
            found, within = job, backend.precedence
        elif job is not None and found is not None and job.job_id and backend.precedence < within:
            return found.within(job)
    return found


def _ask(backend: ClusterEnvironment, environment: Mapping[str, str], machine: Machine) -> ClusterJob | None:
    try:
        return checked_answer(
            f"cluster {backend.name!r}", _is_job_or_none, "a ClusterJob", backend.find, environment, machine
        )
    except UsageError as error:
        raise UsageError(f"what {backend.summary} says cannot be used: {error}. --cluster=none ignores it") from None
    except PluginError:
        raise
    except QuorateError as error:  # of a rendezvous, which this is not
        raise PluginError(f"cluster {backend.name!r} raised {described(error)}") from error


def _is_job_or_none(answer: Any) -> TypeGuard[ClusterJob | None]:
    return answer is None or isinstance(answer, ClusterJob)


def with_cluster(parsed: Parsed, job: ClusterJob, host: PluginHost) -> Parsed:
    """Return ``parsed`` with what the scheduler says in the place of defaults.

    Raises:
        UsageError: the scheduler's job cannot be formed from what it says, and the user has not said how.
    """
    if parsed["standalone"]:
        return parsed
    if job.problem and parsed.settings["nnodes"].is_default:
        raise _refusal(job)
    texts = {"local-addr": job.local_addr, "rdzv-id": job.run_id}
    if job.max_nodes is not None:
        low = job.min_nodes or job.max_nodes
        texts["nnodes"] = str(low) if low == job.max_nodes else f"{low}:{job.max_nodes}"
    if job.workers is not None:
        texts["nproc-per-node"] = str(job.workers)
    source = job.title
    filled = parsed.filled({name: text for name, text in texts.items() if text}, source)
    low, high = filled["nnodes"]
    if high > 1:
        return filled.filled(_meeting(filled, job, host, is_fixed=low == high), source)
    if job.run_id and (job.max_nodes or 1) > 1:
        # The user wants jobs of one node each: each needs a name of its own.
        own = f"{job.run_id}-node{job.node_rank or 0}"
        return parsed.filled({**{name: text for name, text in texts.items() if text}, "rdzv-id": own}, source)
    return filled


def _refusal(job: ClusterJob) -> UsageError:
    return UsageError(f"{job.title}: {job.problem}. --cluster=none starts a job without the scheduler")


def _meeting(parsed: Parsed, job: ClusterJob, host: PluginHost, *, is_fixed: bool) -> dict[str, str]:
    """Return where and how the nodes meet, as far as the user has not said it."""
    is_set = {name for name, setting in parsed.settings.items() if not setting.is_default}
    texts: dict[str, str] = {}
    # A node of a smaller round could not have its rank.
    if is_fixed and job.node_rank is not None and job.node_rank < parsed["nnodes"][1]:
        texts["node-rank"] = str(job.node_rank)
    if is_set & {"rdzv-endpoint", "master-addr"}:
        return texts
    if job.problem and job.node_rank is None:
        raise _refusal(job)  # others of this job are not started by what has started this process
    if not job.endpoint_host:
        if "rdzv-backend" in is_set or job.max_nodes is None:
            return texts
        raise UsageError(
            f"{job.title} does not say where its nodes can meet; "
            "add --rdzv-endpoint=HOST:29400, with the host of rank 0, on every node"
        )
    endpoint = format_endpoint(job.endpoint_host, job.endpoint_port)
    if "rdzv-backend" in is_set:
        backend = host.catalogue(PluginKind.RENDEZVOUS).get(parsed["rdzv-backend"])
        if backend is not None and backend.hosted_by_job:
            texts["rdzv-endpoint"] = endpoint
        return texts
    port = parsed["master-port"] or (None if parsed["master-port-range"] else job.master_port)
    if port and is_fixed:  # the workers' port is promised to them: ranks are fixed, as the backend static has them
        return {**texts, "master-addr": job.endpoint_host, "master-port": str(port)}
    return {**texts, "rdzv-backend": SEVERAL_NODES, "rdzv-endpoint": endpoint}


def requeue(job: ClusterJob | None, error: PreemptedError, machine: ThisMachine) -> None:
    """Ask the scheduler to run the job again, from the node with rank 0; say what came of it."""
    if not error.is_first:
        return
    if job is None or not job.requeue:
        known = "no scheduler is known here" if job is None else f"{job.scheduler} has no command for an agent"
        warn(f"--requeue: {known} that puts the job in the queue again")
        return
    if error.signal_number == signal.SIGTERM and job.seconds_left is not None:
        left = job.time_left()
        if left is None:
            note(f"{job.title} is not put in the queue again: nothing says that its time was over, so it was cancelled")
            return
        if left > (job.kill_seconds or 0.0) + _CANCELLED_EARLY_SECONDS:
            note(f"{job.title} is not put in the queue again: it was cancelled, {left:.0f} s before its time was over")
            return
    note(f"{job.title} is put in the queue again: {' '.join(job.requeue)}")
    if not machine.run(*job.requeue):
        warn(f"--requeue: {' '.join(job.requeue)} failed; is the job a batch job that may be requeued?")
