"""What a cluster's scheduler says of a job and of this node: the records, and what may be asked to find it out.

A plugin offers a :class:`ClusterEnvironment` for each scheduler (hook ``quorate_register_environment``).  What does not
live here: the schedulers (the distribution ``quorate-cluster``), and how their answers become values of flags
(:mod:`quorate.cli`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, final

from attrs import Attribute, evolve, field, frozen
from attrs.validators import and_, deep_iterable, ge, in_, instance_of, is_callable, le, optional

from ._bounded import is_word
from .text import printable, without_passwords

__all__ = ["ClusterEnvironment", "ClusterJob", "Machine", "grace_before"]


_DEFAULT_PORT = 29400
_LONGEST_MARGIN_SECONDS = 2.0
_LONGEST_SHOWN_ID = 100
#: More is not a time of a job: ten years.
_LONGEST_SECONDS = 10 * 366 * 86_400.0
_text = instance_of(str)
_texts = deep_iterable(instance_of(str), instance_of(tuple))
#: Of a job, and of workers of a node.
_MOST_COUNTED = 1 << 20
#: Signals that no program can handle.
_NOT_HANDLED = frozenset({"SIGKILL", "SIGSTOP"})


def _is_whole(record: object, attribute: Attribute[Any], value: object) -> None:
    if type(value) is not int:
        raise TypeError(f"the {attribute.name} of a {type(record).__name__} is {value!r:.80}, not a whole number")


_port = and_(_is_whole, in_(range(1, 65536)))


def _whole(least: int) -> Callable[[object, Attribute[Any], Any], None]:
    return optional(and_(_is_whole, ge(least), le(_MOST_COUNTED)))


def _can_warn(record: object, attribute: Attribute[Any], value: tuple[str, ...]) -> None:
    if found := _NOT_HANDLED.intersection(value):
        raise ValueError(f"{min(found)} cannot be a warning: no program can handle it")


def _is_time(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= _LONGEST_SECONDS


def _time(record: object, attribute: Attribute[Any], value: object) -> None:
    if not _is_time(value):
        raise ValueError(f"the {attribute.name} of a {type(record).__name__} is {value!r:.80}, not a time")


def grace_before(seconds: float) -> float:
    """Return how long workers may take to stop where the machine is taken in ``seconds``: the agent ends after them."""
    return max(0.0, seconds - min(_LONGEST_MARGIN_SECONDS, seconds / 4))


class Machine(Protocol):
    """What a cluster environment may ask besides the environment variables."""

    @property
    def host(self) -> str:
        """The machine's name."""
        ...

    def read(self, path: str) -> str:
        """Return the content of a text file, ``""`` where it cannot be read."""
        ...

    def output(self, *command: str) -> str:
        """Return what a command of the scheduler prints, ``""`` where it cannot be run, fails or takes too long."""
        ...


@final
@frozen(kw_only=True)
class ClusterJob:
    """What a scheduler says of the job that this process belongs to, and of this node; the rest is left out.

    Arguments:
        scheduler: the scheduler's name for people.
        job_id, job_name: the scheduler's own.
        run_id: a name that all nodes of this start of the job share, and no other job; empty: none is known.
        min_nodes, max_nodes: how many agents the scheduler has started.
        node_rank: which of them this is, from 0.
        node_name: this node's name.
        endpoint_host, endpoint_port: where the agents can meet: an address of the node with rank 0.
        master_port: the port that the scheduler has set apart for the workers' ``MASTER_PORT``.
        workers: how many workers a node is meant to run.
        local_addr: the address at which the other nodes reach this one.
        warnings: names of the signals by which the scheduler announces that it will end the job or take the node.
        warns_whole_job: whether such a warning means the whole job, rather than this node.
        kill_seconds: how long after its SIGTERM the scheduler kills.
        seconds_left: returns how many seconds are left until the job's time is over, ``None`` if that is not known.  It
            may run a command of the scheduler, and is called on a thread of its own.
        requeue: the command that puts the job in the queue again.
        problem: a sentence with a remedy: why the job cannot be formed from this alone.  The user's own ``--nnodes``
            (or ``--standalone``) overrules it.
        remark: half a sentence for people, about a job of one node.
        sentence: for people, what was found and what it led to; ``quorate run`` sets it.
    """

    scheduler: str = field(validator=is_word)
    job_id: str = field(default="", validator=_text)
    job_name: str = field(default="", validator=_text)
    run_id: str = field(default="", validator=_text)
    min_nodes: int | None = field(default=None, validator=_whole(1))
    max_nodes: int | None = field(default=None, validator=_whole(1))
    node_rank: int | None = field(default=None, validator=_whole(0))
    node_name: str = field(default="", validator=_text)
    endpoint_host: str = field(default="", validator=_text)
    endpoint_port: int = field(default=_DEFAULT_PORT, validator=_port)
    master_port: int | None = field(default=None, validator=optional(_port))
    workers: int | None = field(default=None, validator=_whole(1))
    local_addr: str = field(default="", validator=_text)
    warnings: tuple[str, ...] = field(default=(), validator=[_texts, _can_warn])
    warns_whole_job: bool = field(default=False, validator=instance_of(bool))
    kill_seconds: float | None = field(default=None, validator=optional(_time))
    seconds_left: Callable[[], float | None] | None = field(default=None, validator=optional(is_callable()))
    requeue: tuple[str, ...] = field(default=(), validator=_texts)
    problem: str = field(default="", validator=_text)
    remark: str = field(default="", validator=_text)
    sentence: str = field(default="", validator=_text)

    @property
    def title(self) -> str:
        """Scheduler and job, for people."""
        return f"{self.scheduler} job {printable(self.job_id, _LONGEST_SHOWN_ID)}" if self.job_id else self.scheduler

    def time_left(self) -> float | None:
        """Return what ``seconds_left`` answers, ``None`` where it fails or its answer is not a time.  Never raises."""
        try:
            left = None if self.seconds_left is None else self.seconds_left()
            return float(left) if left is not None and _is_time(left) else None
        except BaseException:  # a plugin's: a warning counts without it
            return None

    def to_json(self) -> dict[str, str]:
        """Return what reports say of the scheduler's job."""
        return {"scheduler": self.scheduler, "job_id": self.job_id, "job_name": self.job_name}

    def described(self, min_nodes: int, max_nodes: int, endpoint: str) -> ClusterJob:
        """Return this with the number of nodes that it led to, and the sentence on it."""
        sentence = self._describe(min_nodes, max_nodes, endpoint)
        return evolve(self, min_nodes=min_nodes, max_nodes=max_nodes, sentence=sentence)

    def within(self, outer: ClusterJob) -> ClusterJob:
        """Return this, the job of a launcher, as a part of the scheduler's job in which the launcher runs."""
        return evolve(
            self,
            scheduler=f"{self.scheduler} in {outer.scheduler}",
            job_id=outer.job_id or self.job_id,
            job_name=outer.job_name or self.job_name,
            run_id=self.run_id or outer.run_id,
            workers=self.workers or outer.workers,
            local_addr=self.local_addr or outer.local_addr,
            endpoint_host=self.endpoint_host or outer.endpoint_host,
            endpoint_port=outer.endpoint_port if self.endpoint_port == _DEFAULT_PORT else self.endpoint_port,
            warnings=self.warnings or outer.warnings,
            warns_whole_job=self.warns_whole_job or outer.warns_whole_job,
            kill_seconds=min((each for each in (self.kill_seconds, outer.kill_seconds) if each), default=None),
            seconds_left=self.seconds_left or outer.seconds_left,
            requeue=self.requeue or outer.requeue,
        )

    def _describe(self, min_nodes: int, max_nodes: int, endpoint: str) -> str:
        nodes = str(max_nodes) if min_nodes == max_nodes else f"{min_nodes} to {max_nodes}"
        which = "a node" if self.node_rank is None else f"node {self.node_rank + 1}"
        if max_nodes == 1:
            return f"{self.title}: one node" + (f"; {self.remark}" if self.remark else "")
        part = f"{which} of {nodes}"
        if self.node_rank is not None and self.node_rank >= max_nodes:
            part = f"{which}, beside a job of {nodes}"
        return f"{self.title}: {part}" + (f", meets at {without_passwords(endpoint)}" if endpoint else "")


@final
@frozen
class ClusterEnvironment:
    """A scheduler or launcher that can have started this process.

    ``find(environment, machine)`` returns what it knows, ``None`` where it has not started this process.  It decides by
    the environment variables alone whether it has; it is called by every ``quorate run`` and must be quick.
    ``precedence`` chooses between several that answer: a launcher that runs inside a scheduler's job has started this
    process last, and its number is higher.
    """

    name: str = field(validator=is_word)
    summary: str = field(validator=instance_of(str))
    find: Callable[[Mapping[str, str], Machine], ClusterJob | None] = field(validator=is_callable())
    precedence: int = field(default=0, validator=instance_of(int))
