"""EtcdServer: a private etcd cluster on this machine, for tests and for jobs that run on one machine.

What does not live here: one etcd process (:mod:`._process`) and what outlives a killed owner (:mod:`._guardian`).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from http.client import HTTPConnection, HTTPException
from types import TracebackType
from typing import IO, Any, final

from quorate.clock import monotonic, sleep
from quorate.errors import StoreUnavailableError, UsageError

from ._guardian import Guardian
from ._process import Member, Ports, features_of, find_binary

_PORTS_PER_MEMBER = 3  # clients, peers, metrics
_LOOK_SECONDS = 0.05
_CLIENT_READ_SECONDS = 10
# Not "localhost": the name may resolve to an IPv6 address, where another process may have the same port.
_HOST = "127.0.0.1"


@final
class EtcdServer:
    """An etcd cluster of one or three processes on free ports of 127.0.0.1.  Also a context manager.

    Everything is removed by :meth:`stop`, and when this process dies, even by SIGKILL.  The server belongs to its
    process: in a forked child :meth:`stop` ends nothing.

    Arguments:
        members: 1, or 3 for a cluster that survives the loss of one.
        enable_v2: whether to serve API v2 beside v3.  Default: where the etcd can (3.4 and 3.5 can, 3.6 cannot).
        binary: the etcd program; default ``QUORATE_ETCD_BINARY``, else ``etcd`` on ``PATH``.
        data_dir: where to keep data; :meth:`stop` leaves it there.  Default: a private folder, removed by :meth:`stop`.
        cert, key: the server's certificate and key (PEM files); clients then have to use TLS.
        ca_cert: clients have to show a certificate signed by this one (PEM file).
        arguments: further options for each etcd.
        start_timeout: seconds that :meth:`start` and :meth:`restart` wait until the members serve clients.

    Raises:
        UsageError: another number of members, no etcd program, or one without a feature that is asked for.
    """

    def __init__(
        self,
        members: int = 1,
        enable_v2: bool | None = None,
        binary: str | None = None,
        data_dir: str | None = None,
        *,
        cert: str = "",
        key: str = "",
        ca_cert: str = "",
        arguments: Sequence[str] = (),
        start_timeout: float = 30.0,
    ) -> None:
        if members not in (1, 3):
            raise UsageError(f"EtcdServer(members={members}): a private etcd has 1 member or 3")
        if bool(cert) != bool(key):
            raise UsageError("EtcdServer needs cert and key together")
        self._count = members
        self._binary = find_binary(binary)
        self._features = features_of(self._binary)
        can_serve_v2 = "--enable-v2" in self._features
        if enable_v2 and not can_serve_v2:
            raise self._without_v2()
        self._serves_v2 = can_serve_v2 if enable_v2 is None else enable_v2
        self._tls = (cert, key, ca_cert)
        self._extra = list(arguments)
        self._data_dir = data_dir
        self._start_timeout = start_timeout
        self._folder = ""
        self._ports: Ports | None = None
        self._guardian: Guardian | None = None
        self._members: dict[int, Member] = {}
        self._owner = 0
        self._log = -1

    def __enter__(self) -> EtcdServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # --- the whole ----------------------------------------------------------------------------------------------------

    def start(self, timeout: float | None = None, num_retries: int = 0, stderr: int | IO[Any] | None = None) -> None:
        """Start all members and wait until they serve clients; does nothing if it has been started.

        Arguments:
            timeout: seconds to wait; default is ``start_timeout``.
            num_retries: how often to try again, with other ports, after a failure.  Ports are reserved before etcd
                starts, so a retry rarely helps.
            stderr: a file or descriptor to copy etcd's log to.  ``None`` and ``subprocess.DEVNULL``: nowhere.

        Raises:
            StoreUnavailableError: a member ended or was not ready in time; the message has its last lines.
        """
        if self._ports is not None:
            return
        if timeout is not None:
            self._start_timeout = timeout
        self._log = _descriptor_of(stderr)
        for left in range(max(0, num_retries), -1, -1):
            try:
                self._start()
                return
            except StoreUnavailableError:
                if left == 0:
                    raise

    def _start(self) -> None:
        self._owner = os.getpid()
        try:
            self._folder = self._data_dir or tempfile.mkdtemp(prefix="quorate-etcd-")
            self._ports = Ports(_PORTS_PER_MEMBER * self._count)
            self._guardian = Guardian("" if self._data_dir else self._folder)
            for index in range(self._count):
                self._launch(index)
            for index in range(self._count):
                self._await(index)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End all members and remove their data.  May be called twice."""
        if self._owner != os.getpid():
            return  # a forked child's copy, or it has not been started
        # SIGKILL: a member that ends in order waits for the others.
        for index in list(self._members):
            self.kill(index)
        if self._guardian is not None:
            self._guardian.close()
            self._guardian = None
        if self._ports is not None:
            self._ports.close()
            self._ports = None
        if self._folder and not self._data_dir:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = ""

    def get_endpoint(self) -> str:
        """Return ``host:port`` of each member, with commas between them: what ``--rdzv-endpoint`` takes.

        Raises:
            UsageError: it has not been started.
        """
        return ",".join(f"{_HOST}:{port}" for port in self._client_ports())

    def get_host(self) -> str:
        """Return the address at which every member serves clients."""
        return _HOST

    def get_port(self) -> int:
        """Return the port at which the first member serves clients.  Raises UsageError before :meth:`start`."""
        return self._port(0, 0)

    def get_client(self, **options: Any) -> Any:
        """Return a client of API v2: an ``etcd.Client`` of the package ``python-etcd``.

        Arguments:
            options: further keyword arguments of ``etcd.Client``, such as ``ca_cert`` where the server has TLS.

        Raises:
            UsageError: it has not been started, or does not serve API v2.
        """
        ports = self._client_ports()
        if not self._serves_v2:
            raise self._without_v2()
        from ._v2.transport import load_etcd  # python-etcd is imported only where it is needed

        several = self._count > 1
        arguments: dict[str, Any] = {
            "host": tuple((_HOST, port) for port in ports) if several else _HOST,
            "port": ports[0],
            "allow_reconnect": several,
            "protocol": "https" if self._tls[0] else "http",
            "version_prefix": "/v2",
            "read_timeout": _CLIENT_READ_SECONDS,
        }
        return load_etcd().Client(**{**arguments, **options})

    @property
    def serves_v2(self) -> bool:
        """Whether it serves API v2, too."""
        return self._serves_v2

    @property
    def pids(self) -> list[int]:
        """The process ids of the members that run, in order."""
        return [member.pid for _, member in sorted(self._members.items())]

    # --- one member: what can happen to a cluster ---------------------------------------------------------------------

    def kill(self, index: int = 0) -> None:
        """Kill a member with SIGKILL, as a power cut would, and wait until it is gone."""
        self._end(index, signal.SIGKILL)

    def terminate(self, index: int = 0) -> None:
        """End a member in an orderly way (SIGTERM), and wait until it is gone."""
        self._end(index, signal.SIGTERM)

    def restart(self, index: int = 0, *, wait: bool = True) -> None:
        """Start a member again, with its data and ports; ``wait`` until it serves clients.

        Without a quorum it cannot serve: start several with ``wait=False`` and then :meth:`await_ready`.
        """
        self._check_owner()
        if index not in self._members:
            self._launch(index)
        if wait:
            self._await(index)

    def await_ready(self) -> None:
        """Wait until every member that runs serves clients.  Raises StoreUnavailableError."""
        for index in list(self._members):
            self._await(index)

    def pause(self, index: int = 0) -> None:
        """Freeze a member (SIGSTOP): it keeps its connections and does not answer."""
        self._members[index].freeze()

    def resume(self, index: int = 0) -> None:
        """Resume a frozen member (SIGCONT)."""
        self._members[index].send_signal(signal.SIGCONT)

    def leader(self, timeout: float = 10.0) -> int:
        """Return the index of the member that leads.

        Raises:
            StoreUnavailableError: there is no leader within ``timeout`` seconds.
        """
        deadline = monotonic() + timeout
        while monotonic() < deadline:
            for index in self._members:
                if "\netcd_server_is_leader 1\n" in self._metrics(index):
                    return index
            # etcd offers no way to wait for an election.
            sleep(_LOOK_SECONDS)
        raise StoreUnavailableError(f"the etcd cluster at {self.get_endpoint()} has had no leader for {timeout:g} s")

    # --- the rest -----------------------------------------------------------------------------------------------------

    def _metrics(self, index: int) -> str:
        connection = HTTPConnection(_HOST, self._port(index, 2), timeout=1.0)
        try:
            connection.request("GET", "/metrics")
            return connection.getresponse().read().decode(errors="replace")
        except (OSError, HTTPException):
            return ""  # a frozen or dead member is not the leader
        finally:
            connection.close()

    def _without_v2(self) -> UsageError:
        if "--enable-v2" in self._features:
            return UsageError("this EtcdServer has enable_v2=False; leave that out for etcd's API v2")
        return UsageError(
            f"{self._binary} does not serve etcd's API v2, which etcd 3.6 has removed; "
            "use etcd 3.4 or 3.5, or the rendezvous backend 'etcd', which speaks API v3"
        )

    def _client_ports(self) -> list[int]:
        return [self._port(index, 0) for index in range(self._count)]

    def _port(self, index: int, which: int) -> int:
        if self._ports is None:
            raise UsageError("the EtcdServer has not been started; call start()")
        return self._ports.numbers[_PORTS_PER_MEMBER * index + which]

    def _check_owner(self) -> None:
        if self._owner != os.getpid():
            raise UsageError("this EtcdServer belongs to the process that started it; only that one can change it")

    def _end(self, index: int, number: int) -> None:
        self._check_owner()
        member = self._members.pop(index, None)
        if member is not None:
            pid = member.pid
            member.end(number)
            if self._guardian is not None:
                self._guardian.remove(pid)

    def _await(self, index: int) -> None:
        self._members[index].wait_until_ready(self._start_timeout)

    def _launch(self, index: int) -> None:
        assert self._guardian is not None
        self._guardian.expect()
        member = Member(f"m{index}", self._binary, self._arguments(index), self._guardian.environment, self._log)
        self._members[index] = member
        self._guardian.add(member.pid)

    def _arguments(self, index: int) -> list[str]:
        cert, key, ca_cert = self._tls
        scheme = "https" if cert else "http"
        client = f"{scheme}://{_HOST}:{self._port(index, 0)}"
        peers = [f"m{i}=http://{_HOST}:{self._port(i, 1)}" for i in range(self._count)]
        own_peer = peers[index].partition("=")[2]
        options = {
            "--name": f"m{index}",
            "--data-dir": os.path.join(self._folder, f"m{index}"),
            "--listen-client-urls": client,
            "--advertise-client-urls": client,
            "--listen-peer-urls": own_peer,
            "--initial-advertise-peer-urls": own_peer,
            "--initial-cluster": ",".join(peers),
            "--listen-metrics-urls": f"http://{_HOST}:{self._port(index, 2)}",
            # On one machine messages take microseconds, so a dead leader can be noticed soon.
            "--heartbeat-interval": "10",
            "--election-timeout": "100",
            # Heartbeats of nodes are many small writes, whose history is not used.
            "--auto-compaction-mode": "periodic",
            "--auto-compaction-retention": "5m",
            "--logger": "zap",
            "--log-outputs": "stderr",
        }
        if cert:
            options |= {"--cert-file": cert, "--key-file": key}
        if ca_cert:
            options |= {"--client-cert-auth": "true", "--trusted-ca-file": ca_cert}
        if "--enable-v2" in self._features:
            options["--enable-v2"] = "true" if self._serves_v2 else "false"
        if "--unsafe-no-fsync" in self._features:
            options["--unsafe-no-fsync"] = "true"
        return [f"{name}={value}" for name, value in options.items()] + self._extra


def _descriptor_of(stderr: int | IO[Any] | None) -> int:
    """Return where to copy etcd's log; -1: nowhere.  Raises UsageError."""
    if stderr is None or stderr == subprocess.DEVNULL:
        return -1
    descriptor = stderr if isinstance(stderr, int) else stderr.fileno()
    if descriptor < 0:
        raise UsageError(f"EtcdServer.start(stderr={stderr!r}): give a file, a descriptor, or subprocess.DEVNULL")
    return descriptor
