"""What a launch over ssh will do: which hosts, which command on each, which variables.  No connection is made here."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from typing import Any, final

from attrs import frozen

from quorate.catalogue import PluginKind, RunRequest
from quorate.errors import UsageError
from quorate.flags import all_flags
from quorate.job_token import TOKEN_VARIABLES
from quorate.net import format_endpoint, is_literal, is_local_name
from quorate.plugins import get_host

from ._console import prefix_template
from ._hosts import Host, parse_hostfile, parse_hosts
from ._variables import ALL, chosen_variables

_OWN_FLAGS = frozenset({"hosts", "hostfile", "ssh-command", "ssh-env", "detach", "cluster"})
_PREFIX_VARIABLE = "TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE"
_LARGEST_HOSTFILE_BYTES = 1 << 20
_ON = frozenset({"1", "true", "yes", "on"})


@final
@frozen
class Plan:
    """A launch; ``texts`` are the user's flags for the agents."""

    job: str
    hosts: tuple[Host, ...]
    ssh: tuple[str, ...]
    texts: Mapping[str, str]
    script: str | None
    arguments: tuple[str, ...]
    folder: str
    variables: Mapping[str, str]
    min_nodes: int
    max_nodes: int
    is_detached: bool

    @property
    def is_elastic(self) -> bool:
        return self.min_nodes < self.max_nodes

    def check(self) -> dict[str, Any]:
        """Return what each host is asked to check."""
        is_file = self.script and not self._is_on("module") and not self._is_on("no-python") and "$" not in self.script
        return {"folder": self.folder, "script": self.script if is_file else None}

    def _is_on(self, name: str) -> bool:
        return self.texts.get(name, "0").lower() in _ON

    @property
    def chooses_endpoint(self) -> bool:
        """Whether the nodes meet at the first host, rather than where the user has said."""
        if {"rdzv-endpoint", "master-addr"} & self.texts.keys():
            return False
        backend = get_host().catalogue(PluginKind.RENDEZVOUS).get(self.texts.get("rdzv-backend", "tcp"))
        return self.max_nodes > 1 and (backend is None or backend.hosted_by_job)

    def endpoint_at(self, host: Host, hello: Mapping[str, Any], others: list[Mapping[str, Any]]) -> str:
        """Return where the nodes meet: at ``host``, which has said ``hello``.

        Raises:
            UsageError: only this machine reaches the host's address.
        """
        address = str(hello.get("address") or "") or host.name.rpartition("@")[2]
        if is_local_name(address) and any(not is_local_name(str(other.get("address") or "")) for other in others):
            raise UsageError(
                f"the nodes would meet at {host.name}, which is reached at {address} from here, and not from the other "
                "hosts; name it by an address that they reach, or add --rdzv-endpoint=HOST:PORT"
            )
        return format_endpoint(address, int(hello.get("port") or 29400))

    def start(
        self, index: int, hello: Mapping[str, Any], endpoint: str, token: str, *, is_first: bool
    ) -> dict[str, Any]:
        """Return the message that starts the agent of the host with this index; the first host serves the store."""
        host, flags = self.hosts[index], dict(self.texts)
        address = str(hello.get("address") or "")
        defaults = {"nnodes": _range(self.min_nodes, self.max_nodes), "rdzv-id": self.job}
        if self.max_nodes > 1:
            if not self.is_elastic:  # there, ranks follow from which hosts are left
                defaults["node-rank"] = str(index)
            if is_literal(address):
                defaults["local-addr"] = address
            if endpoint:
                defaults.update({"rdzv-backend": "tcp", "rdzv-endpoint": endpoint})
                # Several names may be one machine, and any agent on it could serve the store.
                own = f"is_host={int(is_first)}"
                flags["rdzv-conf"] = ",".join(part for part in (own, flags.get("rdzv-conf", "")) if part)
        if host.workers is not None:
            flags["nproc-per-node"] = str(host.workers)
        words = [f"--{name}={text}" for name, text in {**defaults, **flags, "cluster": "none"}.items()]
        script = [] if self.script is None else [self.script]
        environment = {_PREFIX_VARIABLE: prefix_template(host.name), **self.variables}
        if endpoint and token:
            environment["QUORATE_JOB_TOKEN"] = token
        return {
            "arguments": [*words, "--", *script, *self.arguments],
            "environment": environment,
            "detach": self.job if self.is_detached else "",
        }

    @property
    def has_token(self) -> bool:
        return bool(TOKEN_VARIABLES & self.variables.keys()) or "rdzv-auth" in self.texts


def _range(low: int, high: int) -> str:
    return str(low) if low == high else f"{low}:{high}"


def make_plan(request: RunRequest, environment: Mapping[str, str]) -> Plan:
    """Return the plan for a command line.

    Raises:
        UsageError: a value cannot be used, or contradicts another.
    """
    texts = dict(request.texts)
    hosts = _hosts(texts)
    if request.script is None:
        raise UsageError("a script is missing; write: quorate run --hosts=a,b SCRIPT [ARGUMENTS]")
    if request.script == "-":
        raise UsageError("the hosts cannot read this machine's standard input; put the script into a file")
    for name in ("standalone", "node-rank", "local-addr"):
        if texts.get(name, "0") not in ("", "0") or (name == "node-rank" and name in texts):
            raise UsageError(f"--{name} is for one node, but --hosts starts all of them; remove one of the two")
    ssh = split_command(texts.get("ssh-command", "ssh"))
    flags = {flag.name: flag for flag in all_flags()}
    own = {name: text for name, text in texts.items() if name not in _OWN_FLAGS}
    low, high = flags["nnodes"].parse(own["nnodes"]) if "nnodes" in own else (len(hosts), len(hosts))
    if not 1 <= low <= high:
        raise UsageError(f"--nnodes={own['nnodes']} is not a number of nodes; write N or MIN:MAX, from 1")
    if low > len(hosts):
        raise UsageError(f"--nnodes={own['nnodes']} asks for {low} nodes, but --hosts names {len(hosts)}; add hosts")
    if texts.get("detach", "0").lower() in _ON and high < len(hosts):
        hosts = hosts[:high]
    try:
        folder = os.getcwd()
    except OSError as error:
        raise UsageError(f"the current directory cannot be used: {error.strerror}; change to another one") from None
    return Plan(
        job=own.get("rdzv-id") or f"ssh-{os.urandom(4).hex()}",
        hosts=tuple(hosts),
        ssh=ssh,
        texts=own,
        script=request.script,
        arguments=request.arguments,
        folder=folder,
        variables=chosen_variables(environment, texts.get("ssh-env", ALL)),
        min_nodes=low,
        max_nodes=high,
        is_detached=texts.get("detach", "0").lower() in _ON,
    )


def split_command(text: str) -> tuple[str, ...]:
    """Return the words of ``--ssh-command``.

    Raises:
        UsageError: it has none, or a quotation mark that is not closed.
    """
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise UsageError(f"--ssh-command={text} is not a command: {str(error).lower()}") from None
    if not words:
        raise UsageError("--ssh-command is empty; write --ssh-command=ssh")
    return words


def _hosts(texts: Mapping[str, str]) -> list[Host]:
    if "hosts" in texts and "hostfile" in texts:
        raise UsageError("--hosts and --hostfile contradict each other; remove one of the two")
    if "hosts" in texts:
        return parse_hosts(texts["hosts"])
    path = texts["hostfile"]
    try:
        # Opened without waiting: a FIFO that no program writes to is empty.  One that is written is read to its end.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        os.set_blocking(descriptor, True)
        with open(descriptor, encoding="utf-8-sig") as file:  # Windows's editors begin a file with a mark
            text = file.read(_LARGEST_HOSTFILE_BYTES + 1)
    except UnicodeDecodeError:
        raise UsageError(f"--hostfile={path} cannot be read: it is not text in UTF-8; save it as such") from None
    except OSError as error:
        raise UsageError(f"--hostfile={path} cannot be read: {error.strerror}") from None
    if len(text) > _LARGEST_HOSTFILE_BYTES:
        raise UsageError(f"--hostfile={path} has more than {_LARGEST_HOSTFILE_BYTES >> 20} MiB; is it a list of hosts?")
    return parse_hostfile(text, path)
