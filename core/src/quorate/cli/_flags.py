"""The table of flags of ``quorate run``.  Parsing, ``--help``, ``--show-config`` and the docs are derived from it.

The value of a flag goes to the field of that name in :class:`quorate.LaunchConfig`, if there is one, or to
``LaunchConfig.settings`` (``is_setting``); ``_run`` makes something else of the others.  What does not live here: how
the command line is read (``_parse``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, final

from attrs import evolve, frozen

from .._default_backends import FIXED_RANKS
from ..catalogue import RunRequest
from . import _values as kind


@final
@frozen
class Flag:
    """One flag.

    ``default`` is text, read like any other; ``None`` stands for "not set".  ``metavar`` is empty for a switch, which
    takes no value.  ``is_setting``: agents, services and starters find the value, if there is one, in their
    ``settings`` under :attr:`field`; ``apply`` puts it there in a plugin's own way.  ``plugin_only`` is a flag that
    works once a plugin offers an option of the same name; ``run`` takes the launch over.
    """

    name: str
    metavar: str
    default: str | None
    parse: Callable[[str], Any]
    help: str
    short: str = ""
    section: str = ""
    is_setting: bool = False
    plugin_only: bool = False
    run: Callable[[RunRequest], int] | None = None
    apply: Callable[[str, dict[str, Any]], None] | None = None

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return "PET_" + self.field.upper()

    @property
    def field(self) -> str:
        """The name of the field or setting that it sets."""
        return self.name.replace("-", "_")

    @property
    def is_switch(self) -> bool:
        """Whether it takes no value."""
        return not self.metavar

    @property
    def is_torchruns(self) -> bool:
        """Whether torchrun has it too: a beginning that only one of these has means that one."""
        return self.name in _TORCHRUNS


# fmt: off
_TORCHRUNS = frozenset((
    "nnodes", "nproc-per-node", "node-rank", "role", "rdzv-backend", "rdzv-endpoint",
    "rdzv-id", "rdzv-conf", "standalone", "master-addr", "master-port", "local-addr",
    "module", "no-python", "run-path", "start-method", "virtual-local-rank", "numa-binding",
    "max-restarts", "monitor-interval", "shutdown-timeout", "signals-to-handle", "log-dir", "redirects",
    "tee", "local-ranks-filter", "duplicate-stdout-filters", "duplicate-stderr-filters", "logs-specs",
    "event-log-handler",
))
# fmt: on


_SECTIONS: Mapping[str, tuple[Flag, ...]] = {
    "Nodes and workers": (
        Flag("nnodes", "N|MIN:MAX", "1", kind.nodes, "number of nodes of the job, or the range in which it may vary"),
        Flag(
            "nproc-per-node",
            "N|KIND",
            "1",
            kind.workers,
            "number of workers on this node, or a kind of device (cpu, gpu or another one of torch): one worker per "
            "device; auto: gpu if there is any, else cpu",
        ),
        Flag(
            "node-rank",
            "N",
            None,
            kind.whole,
            "group rank of this node (static), or the group rank that this node prefers (other backends)",
        ),
        Flag("role", "NAME", "default", kind.text, "role name of this node's workers"),
        Flag(
            "cluster",
            "NAME",
            "auto",
            kind.text,
            "scheduler that gives the defaults of the job; auto: the one that started this process; none: only flags "
            "and PET_* variables count; see docs/clusters.md",
        ),
    ),
    "Rendezvous": (
        Flag(
            "rdzv-backend",
            "NAME",
            FIXED_RANKS,
            kind.text,
            "rendezvous backend; a job of one node without an endpoint uses standalone; see: quorate plugins",
        ),
        Flag(
            "rdzv-endpoint",
            "HOST:PORT",
            None,
            kind.text,
            "endpoint of the rendezvous backend; IPv6 addresses in brackets",
        ),
        Flag(
            "rdzv-id",
            "NAME",
            None,
            kind.text,
            "name of the job, the same on all its nodes; default: a new one for a single node",
        ),
        Flag("rdzv-conf", "K=V,...", "", kind.settings, "settings of the rendezvous backend; see docs/timeouts.md"),
        Flag(
            "rdzv-auth",
            "MODE",
            None,
            kind.auth,
            "job token: auto (used if there is one), required (no start without one), off; default: auto. "
            "The token is in the file that QUORATE_JOB_TOKEN_FILE names; see docs/security.md",
        ),
        Flag("share-job-token", "", "0", kind.switch, "give the variables of the job token to the workers"),
        Flag("standalone", "", "0", kind.switch, "a job of this node alone: no endpoint, no port"),
        Flag("master-addr", "HOST", None, kind.text, "static only: address of the node with rank 0"),
        Flag(
            "master-port",
            "PORT",
            None,
            kind.whole,
            "static only: MASTER_PORT of the workers. The nodes meet at the next higher port, or at this port if no "
            "other is open. Default and 0: 29500; for one node: a free port",
        ),
        Flag(
            "master-port-range",
            "LOW:HIGH",
            None,
            kind.ports,
            "ports from which MASTER_PORT is taken, such as those that a firewall lets through; default: any free port",
        ),
        Flag(
            "local-addr",
            "HOST",
            None,
            kind.text,
            "address at which other nodes reach this node; or the interface (eth0) or network (10.1.0.0/16) that "
            "has this address",
        ),
    ),
    "The program": (
        Flag("module", "", "0", kind.switch, "SCRIPT is a module, run as by python -m", "m"),
        Flag("no-python", "", "0", kind.switch, "SCRIPT is a program, run without Python"),
        Flag("run-path", "", "0", kind.switch, "run SCRIPT by runpy, as a function that --start-method starts"),
        Flag(
            "start-method",
            "NAME",
            "spawn",
            kind.text,
            "how functions (--run-path) are started: spawn, fork, forkserver or warm; warm also starts scripts",
        ),
        Flag("virtual-local-rank", "", "0", kind.switch, "each worker sees one device, as local rank 0"),
        Flag(
            "numa-binding",
            "MODE",
            None,
            kind.text,
            "bind workers to the CPUs near their device; needs a plugin that offers it",
            plugin_only=True,
        ),
    ),
    "Running and stopping": (
        Flag(
            "max-restarts", "N", "0", kind.whole, "maximum number of restarts after failures, counted for the whole job"
        ),
        Flag(
            "monitor-interval", "SECONDS", "0.1", kind.seconds, "maximum polling interval where no event is available"
        ),
        Flag(
            "shutdown-timeout",
            "SECONDS",
            None,
            kind.seconds,
            "time that workers get to stop; default: TORCH_ELASTIC_SHUTDOWN_TIMEOUT, else 30",
        ),
        Flag(
            "health-interval",
            "SECONDS",
            "0",
            kind.seconds,
            "interval of the checks of this node while workers run; 0: only before each join",
        ),
        Flag(
            "exit-barrier-timeout",
            "SECONDS",
            None,
            kind.seconds,
            "how long a node whose workers succeeded waits for the other nodes; "
            "default: TORCH_ELASTIC_EXIT_BARRIER_TIMEOUT, else 300",
        ),
        Flag(
            "requeue",
            "",
            "0",
            kind.switch,
            "once the scheduler's warning has ended the job, ask the scheduler to run it again (Slurm, PBS, LSF)",
        ),
        Flag(
            "signals-to-handle",
            "NAMES",
            None,
            kind.text,
            "signals after which this node stops its workers and leaves the job; "
            "default: TORCHELASTIC_SIGNALS_TO_HANDLE, else SIGTERM,SIGINT,SIGHUP,SIGQUIT",
        ),
        Flag(
            "forward-signals",
            "NAMES",
            "USR1,USR2",
            kind.text,
            "signals that are passed on to the workers that handle them; they do not stop the job",
        ),
        Flag(
            "exit-code",
            "WHOSE",
            "quorate",
            kind.whose_code,
            "exit code if workers fail; quorate: see docs/exit-codes.md; worker: that of the worker that failed first",
        ),
    ),
    "Output": (
        Flag("log-dir", "FOLDER", None, kind.text, "folder of the log files; each run makes a folder of its own in it"),
        Flag(
            "redirects",
            "STREAMS",
            "0",
            kind.streams,
            "streams that go to files: 1 stdout, 2 stderr, 3 both; per local rank: 0:1,12:2",
            "r",
        ),
        Flag(
            "tee", "STREAMS", "0", kind.streams, "streams that go to files and to the console; as for --redirects", "t"
        ),
        Flag(
            "local-ranks-filter", "RANKS", None, kind.ranks, "local ranks whose output the console shows, such as 0,1"
        ),
        Flag("console-ranks", "RANKS", None, kind.ranks, "global ranks whose output the console shows, such as 0"),
        Flag(
            "capture-stderr",
            "",
            None,
            kind.switch,
            "keep the last lines of stderr for the report of a failure (the default); no: workers write straight to "
            "the console",
            is_setting=True,
        ),
        Flag(
            "duplicate-stdout-filters",
            "WORDS",
            None,
            kind.words,
            "lines of stdout with one of these words also go to a file: WORD,...; a comma in a word is written twice",
        ),
        Flag("duplicate-stderr-filters", "WORDS", None, kind.words, "as for --duplicate-stdout-filters, for stderr"),
        Flag(
            "logs-specs",
            "NAME",
            None,
            kind.text,
            "where output goes: name of an entry point of the group torchrun.logs_specs",
        ),
        Flag(
            "event-log-handler", "NAME", "null", kind.text, "destination of events: null, console, or a plugin's name"
        ),
    ),
}

FLAGS = tuple(evolve(flag, section=section) for section, flags in _SECTIONS.items() for flag in flags)

#: Flags that do something else than run; they are never read from the environment.
ACTIONS = {
    "help": "show this help and exit",
    "show-config": "show each value and where it came from, and exit",
}
