"""One hosted member: its process, its folder, and the thread that carries its life out.

The member is a child of the agent.  A guardian ends it if the agent is killed, and removes its folder.  What does not
live here: what happens next (:mod:`.life`), what the cluster says (:mod:`.cluster`), and the process (``_process``).
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
from contextlib import suppress
from tempfile import mkdtemp
from typing import TYPE_CHECKING, final

from attrs import frozen

from quorate.clock import monotonic, sleep
from quorate.errors import QuorateError, UsageError
from quorate.files import temporary_folder
from quorate.import_lock import import_lock
from quorate.net import Endpoint, close_in_children, format_endpoint
from quorate.notices import warn
from quorate.text import printable

from .._guardian import Guardian
from .._process import Member
from .._settings import Settings
from .life import Action, Event, EventKind, Phase, State, action_of, step
from .names import Claim, Names
from .peers import Identity, Peers

if TYPE_CHECKING:
    from .cluster import Cluster

_LONGEST_PROBLEM = 300
#: etcd sets 64 MB aside for each file of its log; three may be there at once.  Containers often have 64 MB in all.
_ROOM_BYTES = 256 << 20
_WATCH_SECONDS = 2.0
_JOIN_SECONDS = 10.0
_LAST_HEARTBEATS = 4
#: How long a killed agent's member goes on at most: the agent's guardian uses it, and then has the cluster remove it,
#: which ends it.
_OUTLIVE_SECONDS = 6.0
#: One wait for the server to start, or for the end of its process; it is repeated.
_LOOK_SECONDS = 3600.0
#: What shows that the cluster was there.
_MET = {EventKind.IS_MEMBER, EventKind.IS_STRANGER, EventKind.REMOVED, EventKind.ADDED, EventKind.READY}
#: What the kernel says of a program that another attempt does not help.
_NEVER_RUNS = {errno.ENOEXEC, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.ELOOP}
_WAS_REMOVED = ("permanently removed from the cluster",)
_IS_KNOWN = ("has already been bootstrapped", "member count is unequal", "cluster ID mismatch")


@final
@frozen
class MemberOptions:
    """``folder``: where to keep data, empty: memory; times in seconds."""

    binary: str
    folder: str = ""
    election_timeout_seconds: float = 0.5
    lost_timeout_seconds: float = 30.0


@final
class HostedMember:
    """Runs the member that ``claim`` stands for, from :meth:`start` to :meth:`close`.

    Raises:
        UsageError: its data has no place on this machine, or the other members would refuse its certificate.
    """

    def __init__(self, settings: Settings, names: Names, claim: Claim, options: MemberOptions) -> None:
        self._settings, self._names, self._claim, self._options = settings, names, claim, options
        if settings.secure:
            _check_certificate(settings, names.endpoints[claim.index].host)
        self.identity = Identity(settings, names, claim.index)
        self._peers = Peers(*self.identity)
        self._cluster: Cluster | None = None
        self._folder = _make_folder(options.folder)
        self._guardian = Guardian(self._folder, _OUTLIVE_SECONDS)
        self._lock = threading.Lock()
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._is_shut = False
        self._process: Member | None = None
        self._start_with: tuple[str, str] = ("new", self._peers.first_cluster)
        self._silent_since: dict[int, float] = {}
        self._thread = threading.Thread(target=self._run, name="quorate-etcd-hosted", daemon=True)
        self._owner = os.getpid()
        self.state = State()
        #: Why the etcd program can never run here, "" while it may.
        self.unusable = ""
        self._told = ""
        #: Whether this member has been part of the cluster, or has heard of it.
        self.has_met = False
        close_in_children(self)

    @property
    def endpoint(self) -> Endpoint:
        """Where it serves clients."""
        return self._names.endpoints[self._claim.index]

    @property
    def pid(self) -> int:
        """The process id; 0 where there is no process."""
        process = self._process
        return 0 if process is None else process.pid

    def start(self) -> None:
        """Begin its life."""
        self._thread.start()

    def close_after_fork(self) -> None:
        """Forget it in a forked child."""
        self._stopping.set()

    def wait_until_serving(self, deadline: float) -> bool:
        """Wait until it serves clients, or ``deadline``; return whether it does."""
        with self._changed:
            while not self.is_serving and not self._is_given_up():
                left = deadline - monotonic()
                if left <= 0:
                    return False
                self._changed.wait(left)
        return self.is_serving

    @property
    def is_closed(self) -> bool:
        """Whether it ends, or has ended."""
        return self._stopping.is_set()

    @property
    def is_serving(self) -> bool:
        """Whether it has a vote and serves."""
        return self.state.phase is Phase.SERVING

    def describe(self) -> str:
        """Return how far it is, for messages."""
        problem = f": {self.state.problem}" if self.state.problem else ""
        others = self._peers.describe_others()
        others = f" ({others})" if others else ""
        return f"the member at {self.endpoint}, on this machine, is {self.state.phase.value}{problem}{others}"

    def close(self, leaves: bool) -> None:
        """End it and remove its data.  ``leaves``: the job goes on, and its cluster is told to go on without it."""
        if self._owner != os.getpid() or self._stopping.is_set():
            return
        self._stopping.set()
        if leaves:
            # Without a quorum it cannot be removed; the others do so once it has been away for long enough.
            with suppress(QuorateError):
                self._open_cluster().leave()
        else:
            # The other members learn what was decided last with a heartbeat of the leader, which may be this one.
            sleep(_LAST_HEARTBEATS * self._options.election_timeout_seconds / 10)
        with self._lock:
            process, self._process = self._process, None
            self._is_shut = True
            if self._cluster is not None:
                self._cluster.close()
        if process is not None:
            process.end()
            self._guardian.remove(process.pid)
        if self._thread.ident is not None:
            self._thread.join(_JOIN_SECONDS)
        # The guardian last: it removes the folder if this process ends meanwhile.
        shutil.rmtree(self._folder, ignore_errors=True)
        self._guardian.close()
        self._claim.close()
        with self._changed:
            self._changed.notify_all()

    def _open_cluster(self) -> Cluster:
        """Return what changes the cluster; a start among the first members needs none of it.

        Raises:
            UsageError: the package with etcd's messages is missing.
        """
        with import_lock:
            from .cluster import Cluster  # h2 and protobuf: etcd starts meanwhile
        with self._lock:
            if self._cluster is None:
                self._cluster = Cluster(self.identity, self._peers)
            if self._is_shut:
                self._cluster.close()
            return self._cluster

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopping.wait(self.state.pause_seconds):
                try:
                    event = self._perform(action_of(self.state))
                except UsageError as error:  # the agent fails for the same reason
                    event = Event(EventKind.REFUSED, problem=str(error))
                self._advance(event)
        except Exception as error:
            if not self._stopping.is_set():
                warn(
                    f"the thread that looks after this machine's etcd member has failed ({type(error).__name__}: "
                    f"{error}); the member runs on without it. This is a bug in quorate-rendezvous-etcd"
                )

    def _advance(self, event: Event) -> None:
        before = self.state
        with self._changed:
            self.state = step(before, event)
            self.has_met = self.has_met or event.kind in _MET
            self._changed.notify_all()
        if before.phase is Phase.SERVING and self.state.phase is not Phase.SERVING and not self._stopping.is_set():
            why = "" if self._process is None else printable(self._process.last_error, _LONGEST_PROBLEM)
            what = "has ended" + (f" ({why})" if why else "")
            if event.kind is EventKind.WAS_REMOVED:
                what = "was removed from its cluster"
            warn(f"the etcd member at {self.endpoint}, on this machine, {what}; it is started again")
        elif event.kind is EventKind.ENDED and not self._is_given_up():
            self._tell_of_failed_start(event.problem if self._process is None else self._process.last_error)

    def _tell_of_failed_start(self, problem: str) -> None:
        """Say why the process does not serve, unless it was killed, or that was said."""
        why = printable(problem, _LONGEST_PROBLEM)
        if why not in ("", self._told):
            self._told = why
            warn(f"the etcd member at {self.endpoint}, on this machine, does not start ({why}); it is tried again")

    def _is_given_up(self) -> bool:
        return bool(self.unusable) or self._stopping.is_set()

    def _perform(self, action: Action) -> Event:
        if action is Action.LOOK:
            return self._peers.look()
        if action is Action.REMOVE:
            return self._open_cluster().remove(self.state.member_id)
        if action is Action.ADD:
            event, members = self._open_cluster().add()
            self._start_with = ("existing", members)
            return event
        if action is Action.PROMOTE:
            return self._ended() or self._open_cluster().promote(self.state.member_id)
        if action is Action.WATCH:
            return self._watch()
        if action is Action.START_NEW:
            self._start_with = ("new", self._peers.first_cluster)
        if action is not Action.START_AGAIN:
            shutil.rmtree(self._data_folder, ignore_errors=True)
        return self._start()

    def _start(self) -> Event:
        with self._lock:
            self._forget_process()
            if self._stopping.is_set():
                return Event(EventKind.ENDED)
            self._guardian.expect()
            try:
                process = Member(
                    f"m{self._claim.index}", self._options.binary, self._arguments(), self._guardian.environment
                )
            except OSError as error:
                self._guardian.remove(0)
                problem = f"the etcd program {self._options.binary} cannot be run ({error.strerror})"
                self.unusable = problem if error.errno in _NEVER_RUNS else ""
                return Event(EventKind.ENDED, problem=problem)
            self._process = process
            self._guardian.add(process.pid)
        while not process.wait_for_news(_LOOK_SECONDS):
            pass
        return Event(EventKind.READY) if process.is_ready else self._ended() or Event(EventKind.ENDED)

    def _forget_process(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.end()
            self._guardian.remove(process.pid)

    def _ended(self) -> Event | None:
        """Return the event that the end of the process stands for; ``None`` while it runs."""
        process = self._process
        if process is not None and not process.wait_for_end(0):
            return None
        if process is not None and process.lacks_options:
            self.unusable = f"the etcd program {self._options.binary} is too old ({process.problem})"
        lines, problem = ("", "") if process is None else (process.last_lines, process.problem[:_LONGEST_PROBLEM])
        if any(words in lines for words in _WAS_REMOVED):
            return Event(EventKind.WAS_REMOVED, problem=problem)
        if any(words in lines for words in _IS_KNOWN):
            return Event(EventKind.IS_KNOWN, problem=problem)
        return Event(EventKind.ENDED, problem=problem)

    def _watch(self) -> Event:
        """Wait for the end of the process; meanwhile, if it leads, remove the members that are lost for good."""
        while True:
            process = self._process
            if process is None or process.wait_for_end(_WATCH_SECONDS):
                return self._ended() or Event(EventKind.ENDED)
            with suppress(QuorateError):  # the member is busy, or has no leader now
                self._remove_lost()

    def _remove_lost(self) -> None:
        cluster = self._open_cluster()
        own, leads = cluster.own_id()
        if not leads:
            self._silent_since.clear()
            return
        now = monotonic()
        silent = [member for member in cluster.unreachable() if member != own]
        self._silent_since = {member: self._silent_since.get(member, now) for member in silent}
        for member, since in self._silent_since.items():
            if now - since >= self._options.lost_timeout_seconds:
                event = cluster.remove(member)
                if event.kind is EventKind.REMOVED:
                    warn(
                        f"the job's etcd goes on without its member {member:x}, which has not answered for "
                        f"{now - since:.0f} s; it is taken back when it returns"
                    )

    # --- the process --------------------------------------------------------------------------------------------------

    @property
    def _data_folder(self) -> str:
        return os.path.join(self._folder, "data")

    def _arguments(self) -> list[str]:
        settings, index = self._settings, self._claim.index
        scheme, client, peer = settings.protocol, self._names.endpoints[index], self._names.peers[index]
        hosts = [address.host for address in self._claim.addresses]

        def listen(port: int) -> str:
            return ",".join(f"{scheme}://{format_endpoint(host, port)}" for host in hosts)

        state, members = self._start_with
        election = max(50, round(self._options.election_timeout_seconds * 1000))
        options = {
            "--name": f"m{index}",
            "--data-dir": self._data_folder,
            "--listen-client-urls": listen(client.port),
            "--advertise-client-urls": f"{scheme}://{client}",
            "--listen-peer-urls": listen(peer.port),
            "--initial-advertise-peer-urls": self._peers.own_url,
            "--initial-cluster": members,
            "--initial-cluster-state": state,
            "--initial-cluster-token": self._peers.token,
            "--heartbeat-interval": str(election // 10),
            "--election-timeout": str(election),
            "--pre-vote": "true",
            # It refuses every change in the first five seconds of a connection; Cluster takes care itself.
            "--strict-reconfig-check": "false",
            # Heartbeats of nodes are many small writes, whose history is not used.
            "--auto-compaction-mode": "periodic",
            "--auto-compaction-retention": "5m",
            "--quota-backend-bytes": str(512 << 20),
            "--logger": "zap",
            "--log-outputs": "stderr",
        }
        if settings.secure:
            for kind in ("", "peer-"):
                options |= {
                    f"--{kind}cert-file": settings.cert,
                    f"--{kind}key-file": settings.key,
                    f"--{kind}trusted-ca-file": settings.ca_cert,
                    f"--{kind}client-cert-auth": "true",
                }
        return [f"{name}={value}" for name, value in options.items()]


def _make_folder(wanted: str, in_memory: str = "/dev/shm") -> str:
    """Return a new folder that only this user can open: in ``in_memory``, if none is wanted and there is room.

    Raises:
        UsageError: no folder can be used, or it has too little room: a full disk would end etcd and the job's store.
    """
    place = wanted
    try:
        if not place:
            is_fit = os.path.isdir(in_memory) and os.access(in_memory, os.W_OK) and _has_room(in_memory)
            place = in_memory if is_fit else temporary_folder(os.environ)[0]
        if not _has_room(place):
            raise OSError(errno.ENOSPC, f"it has less than {_ROOM_BYTES >> 20} MB left")
        return mkdtemp(prefix="quorate-etcd-", dir=place)
    except OSError as error:
        raise UsageError(
            f"the folder for the job's etcd cannot be made in {place or error.filename}: {error.strerror}; set "
            "--rdzv-conf data_dir=… to one that can be written to and has room"
        ) from None


def _has_room(place: str) -> bool:
    return shutil.disk_usage(place).free >= _ROOM_BYTES


def _check_certificate(settings: Settings, host: str) -> None:
    """Raise UsageError for a certificate that the other members would refuse."""
    from .._tls import check_certificate  # ssl takes long to import

    if problem := check_certificate(settings, host):
        raise UsageError(problem)
