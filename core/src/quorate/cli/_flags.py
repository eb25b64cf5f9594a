"""The table of flags of ``quorate run``.  Parsing, ``--help``, ``--show-config`` and the docs are derived from it.

What does not live here: how the command line is read (``_parse``) and what the values mean for a launch (``_run``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

from attrs import frozen

from . import _values as kind

__all__ = ["ACTIONS", "FLAGS", "Flag"]


@final
@frozen
class Flag:
    """One flag.

    ``default`` is text, read like any other; ``None`` stands for "not set".  ``metavar`` is empty for a switch, which
    takes no value.  ``plugin_only`` is a flag that works once a plugin offers an option of the same name.
    """

    name: str
    metavar: str
    default: str | None
    parse: Callable[[str], Any]
    help: str
    section: str
    short: str = ""
    plugin_only: bool = False

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return "PET_" + self.name.replace("-", "_").upper()

    @property
    def is_switch(self) -> bool:
        """Whether it takes no value."""
        return not self.metavar


_NODES = "Nodes and workers"
_RENDEZVOUS = "Rendezvous"
_PROGRAM = "The program"
_RUNNING = "Running and stopping"
_OUTPUT = "Output"

FLAGS: tuple[Flag, ...] = (
    Flag("nnodes", "N|MIN:MAX", "1", kind.nodes, "how many nodes the job has, or between how many it may vary", _NODES),
    Flag(
        "nproc-per-node",
        "N|KIND",
        "1",
        kind.workers,
        "how many workers this node runs: a number; cpu, gpu or xpu for one per device; auto for gpu if any, else cpu",
        _NODES,
    ),
    Flag(
        "node-rank", "N", None, kind.whole, "the group rank of this node (static), or the one that it asks for", _NODES
    ),
    Flag("role", "NAME", "default", kind.text, "what the workers of this node are, for names and role ranks", _NODES),
    Flag("rdzv-backend", "NAME", "static", kind.text, "through what the nodes meet; see: quorate plugins", _RENDEZVOUS),
    Flag(
        "rdzv-endpoint", "HOST:PORT", None, kind.text, "where the nodes meet; IPv6 addresses in brackets", _RENDEZVOUS
    ),
    Flag(
        "rdzv-id",
        "NAME",
        None,
        kind.text,
        "the job's name, the same on all its nodes; default: a new one for a single node",
        _RENDEZVOUS,
    ),
    Flag("rdzv-conf", "K=V,...", "", kind.settings, "settings of the rendezvous; see docs/timeouts.md", _RENDEZVOUS),
    Flag("standalone", "", "0", kind.switch, "one node on its own: no endpoint, no clash of ports", _RENDEZVOUS),
    Flag("master-addr", "HOST", None, kind.text, "static only: the address of the node with rank 0", _RENDEZVOUS),
    Flag(
        "master-port",
        "PORT",
        None,
        kind.whole,
        "static only: what workers get as MASTER_PORT (29500; the nodes meet one port above it); 0: a free one",
        _RENDEZVOUS,
    ),
    Flag("local-addr", "HOST", None, kind.text, "the address at which other nodes reach this one", _RENDEZVOUS),
    Flag("module", "", "0", kind.switch, "SCRIPT is a module, run as by python -m", _PROGRAM, "m"),
    Flag("no-python", "", "0", kind.switch, "SCRIPT is a program, run without Python", _PROGRAM),
    Flag("run-path", "", "0", kind.switch, "run SCRIPT by runpy in a process started as by --start-method", _PROGRAM),
    Flag(
        "start-method",
        "NAME",
        "spawn",
        kind.text,
        "how functions (--run-path) are started: spawn, fork, ...; warm takes scripts too",
        _PROGRAM,
    ),
    Flag("virtual-local-rank", "", "0", kind.switch, "each worker sees one device, as local rank 0", _PROGRAM),
    Flag(
        "numa-binding",
        "MODE",
        None,
        kind.text,
        "bind workers to the CPUs near their device; needs a plugin that offers it",
        _PROGRAM,
        plugin_only=True,
    ),
    Flag("max-restarts", "N", "0", kind.whole, "how often the job's workers are restarted after a failure", _RUNNING),
    Flag("monitor-interval", "SECONDS", "0.1", kind.seconds, "bounds waits that no event can end", _RUNNING),
    Flag(
        "shutdown-timeout",
        "SECONDS",
        None,
        kind.seconds,
        "time that workers get to stop; default: TORCH_ELASTIC_SHUTDOWN_TIMEOUT, else 30",
        _RUNNING,
    ),
    Flag(
        "health-interval",
        "SECONDS",
        "0",
        kind.seconds,
        "time between checks of this node while workers run; 0: only before each join",
        _RUNNING,
    ),
    Flag(
        "exit-barrier-timeout",
        "SECONDS",
        "300",
        kind.seconds,
        "how long a node that is done waits for the others",
        _RUNNING,
    ),
    Flag(
        "signals-to-handle",
        "NAMES",
        "SIGTERM,SIGINT,SIGHUP,SIGQUIT",
        kind.text,
        "signals upon which the workers are stopped",
        _RUNNING,
    ),
    Flag("log-dir", "FOLDER", None, kind.text, "where log files go; each run makes a folder of its own in it", _OUTPUT),
    Flag(
        "redirects",
        "STREAMS",
        "0",
        kind.streams,
        "what goes to files: 1 stdout, 2 stderr, 3 both; per local rank: 0:1,12:2",
        _OUTPUT,
        "r",
    ),
    Flag(
        "tee", "STREAMS", "0", kind.streams, "what goes to files and to the console; as for --redirects", _OUTPUT, "t"
    ),
    Flag(
        "local-ranks-filter", "RANKS", None, kind.ranks, "the local ranks that the console shows, such as 0,1", _OUTPUT
    ),
    Flag(
        "duplicate-stdout-filters",
        "WORDS",
        None,
        kind.words,
        "lines of stdout with one of these words also go to a file; a comma is written twice",
        _OUTPUT,
    ),
    Flag("duplicate-stderr-filters", "WORDS", None, kind.words, "the same for stderr", _OUTPUT),
    Flag("logs-specs", "NAME", None, kind.text, "an installed entry point of group torchrun.logs_specs", _OUTPUT),
    Flag("event-log-handler", "NAME", "null", kind.text, "where events go: null, console, or a plugin's name", _OUTPUT),
)

#: Flags that do something else than run; they are never read from the environment.
ACTIONS = {
    "help": "show this help and exit",
    "show-config": "show each value and where it came from, and exit",
}
