"""The store of the backend ``etcd-hosted``: the store of API v3, and the member that this agent runs, if it runs one.

What does not live here: the member (:mod:`.member`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar, final

from attrs import evolve

from quorate.clock import monotonic
from quorate.errors import QuorateError, StoreLostError, StoreUnavailableError, UsageError
from quorate.import_lock import import_lock
from quorate.job_token import STORE_PURPOSE, job_token_of
from quorate.rendezvous import LastWordWriter, RendezvousParameters, job_is_over

from .._settings import Settings
from .binary import REMEDY, find_hosted_binary
from .ending import Ending
from .left_alone import LeftAlone
from .member import HostedMember, MemberOptions
from .names import DEFAULT_ELECTION_SECONDS, Names, check, claim_name, parse_names, settings_of

if TYPE_CHECKING:
    from .._v3.store import EtcdStore

#: How long a member that no store uses runs on: the core opens the store again after an attempt that took too long.
_ORPHAN_SECONDS = 10.0
#: For how long nobody listens at the other names before the job's etcd counts as ended: longer than it takes to start
#: members again.
_GONE_SECONDS = 10.0
_LOOK_SECONDS, _OPEN_SECONDS = 1.0, 5.0
#: When a node that waits for the first members says how each of them answers; then at doubled intervals.
_FIRST_REPORT_SECONDS = 3.0
#: By run id and endpoint; a process may run several agents of a job.
_orphans: dict[tuple[str, str], list[tuple[HostedMember, threading.Timer]]] = {}
_orphaning = threading.Lock()
_T = TypeVar("_T")


def open_store(parameters: RendezvousParameters) -> HostedEtcdStore:
    """Run a member if one of the names is this machine's, and open the store.

    Raises:
        UsageError: settings that cannot be used, no etcd program, or ``is_host`` without a name to run.
        StoreUnavailableError: too few members answered within ``connect_timeout``.
    """
    check(parameters)
    names = parse_names(parameters)
    settings = settings_of(parameters, names)
    deadline = monotonic() + settings.connect_timeout_seconds
    member = _member_of(parameters, settings, names)
    gone_seconds = min(_GONE_SECONDS, parameters.get_as_float("member_lost_timeout", _GONE_SECONDS))
    if member is None:
        return HostedEtcdStore(_load_client()(settings), None, parameters, Ending(names.endpoints, gone_seconds))
    own = member.endpoint
    others = tuple(endpoint for endpoint in names.endpoints if endpoint != own)
    ending = Ending(others, gone_seconds)
    # This node asks its own member first.
    own_seconds = parameters.get_as_float("election_timeout", DEFAULT_ELECTION_SECONDS) / 2
    store_settings = evolve(settings, endpoints=(own, *others), begins_with_first=True, own_member_seconds=own_seconds)
    try:
        _load_client()
        _wait_until_serving(member, ending, settings, deadline, parameters.on_waiting)
        store = _open_at(member, ending, store_settings, deadline)
    except StoreLostError:
        member.close(leaves=False)
        raise
    except StoreUnavailableError:
        _leave_behind(parameters, member)
        raise
    except BaseException:
        member.close(leaves=False)
        raise
    return HostedEtcdStore(store, member, parameters, ending)


def _load_client() -> type[EtcdStore]:
    """Import what talks to etcd, and make its messages: etcd's own start takes no longer, and goes on meanwhile."""
    with import_lock:
        from .._v3.messages import load_messages  # protobuf: etcd starts meanwhile
        from .._v3.store import EtcdStore  # as said
    load_messages()
    return EtcdStore


def _wait_until_serving(
    member: HostedMember, ending: Ending, settings: Settings, deadline: float, on_waiting: Callable[[str], None]
) -> None:
    pause, told = _FIRST_REPORT_SECONDS, ""
    tell_at = monotonic() + pause
    while not member.wait_until_serving(min(deadline, monotonic() + _LOOK_SECONDS)):
        if monotonic() >= tell_at:
            pause *= 2
            tell_at = monotonic() + pause
            before, told = told, f"the job's etcd is not there yet: {member.describe()}"
            if told != before:
                on_waiting(told)
        if member.unusable:
            raise UsageError(
                f"{member.unusable}; 'etcd-hosted' needs etcd 3.4 or later: correct --rdzv-conf etcd_binary=… or "
                f"QUORATE_ETCD_BINARY, or leave them out and run {REMEDY}"
            )
        if member.has_met:
            ending.check()
        if monotonic() >= deadline or member.is_closed:
            raise StoreUnavailableError(
                f"the job's etcd at {settings.where} was not there within {settings.connect_timeout_seconds:g} s: "
                f"{member.describe()}. It needs most of its members: start the agents on those machines, and make "
                f"sure that they reach each other at the ports of --rdzv-endpoint and the ones behind"
            )


def _open_at(member: HostedMember, ending: Ending, settings: Settings, deadline: float) -> EtcdStore:
    """Open the store at a member that serves; its cluster may end meanwhile."""
    while True:
        left = max(1.0, min(_OPEN_SECONDS, deadline - monotonic()))
        try:
            return _load_client()(evolve(settings, connect_timeout_seconds=left))
        except StoreLostError:
            raise
        except StoreUnavailableError:
            ending.check()
            if monotonic() >= deadline or member.is_closed:
                raise


def _member_of(parameters: RendezvousParameters, settings: Settings, names: Names) -> HostedMember | None:
    is_host = parameters.get_as_bool("is_host")
    if is_host is False:
        return None
    with _orphaning:
        orphans = _orphans.get((parameters.run_id, parameters.endpoint))
        if orphans:
            member, timer = orphans.pop()
            timer.cancel()
            return member
    claim = claim_name(names, parameters.get_as_int("rank"), str(parameters.get("bind_address", "")))
    if claim is None:
        if is_host:
            raise UsageError(
                f"is_host is true on this node, but none of {settings.where} is an address of this machine that no "
                "other agent uses; correct --rdzv-endpoint, or leave is_host out"
            )
        return None
    try:
        options = MemberOptions(
            find_hosted_binary(str(parameters.get("etcd_binary", ""))),
            str(parameters.get("data_dir", "")),
            parameters.get_as_float("election_timeout", DEFAULT_ELECTION_SECONDS),
            parameters.get_as_float("member_lost_timeout", 30.0),
        )
        member = HostedMember(settings, names, claim, options)
    except BaseException:
        claim.close()
        raise
    member.start()
    return member


def _leave_behind(parameters: RendezvousParameters, member: HostedMember) -> None:
    """Keep a member for the next attempt: what it has voted for must not be forgotten."""
    key = (parameters.run_id, parameters.endpoint)

    def end() -> None:
        with _orphaning:
            mine = [orphan for orphan in _orphans.get(key, []) if orphan[0] is member]
            _orphans[key] = [orphan for orphan in _orphans.get(key, []) if orphan[0] is not member]
        if mine:
            member.close(leaves=False)

    timer = threading.Timer(_ORPHAN_SECONDS, end)
    timer.daemon = True
    with _orphaning:
        _orphans.setdefault(key, []).append((member, timer))
    timer.start()


@final
class HostedEtcdStore:
    """Implements Store with the abilities ``batch``, ``interrupt``, ``last word`` and ``hosted``."""

    def __init__(
        self, store: EtcdStore, member: HostedMember | None, parameters: RendezvousParameters, ending: Ending
    ) -> None:
        self._store, self.member, self._parameters, self._ending = store, member, parameters, ending
        token = job_token_of(parameters.config)
        self._key = None if token is None else token.key(parameters.run_id, STORE_PURPOSE)
        self._left_alone = LeftAlone(store)
        self._has_ended = self._closed = False

    @property
    def is_host(self) -> bool:
        """Whether a member runs here: it stays until the other nodes have left."""
        return self.member is not None

    @property
    def ends_with_this_node(self) -> bool:
        """Whether the member of this node is the only one."""
        return self.is_host and "," not in self._parameters.endpoint

    def create(self, key: str, value: bytes) -> bool:
        """See :class:`quorate.rendezvous.Store`, as for all methods below."""
        return self._perform(lambda store: store.create(key, value))

    def put(self, key: str, value: bytes) -> None:
        self._perform(lambda store: store.put(key, value))

    def put_many(self, items: Sequence[tuple[str, bytes]]) -> None:
        self._perform(lambda store: store.put_many(items))

    def add(self, key: str, amount: int) -> int:
        return self._perform(lambda store: store.add(key, amount))

    def get(self, keys: Sequence[str]) -> list[bytes | None]:
        return self._perform(lambda store: store.get(keys))

    def wait(self, key: str, timeout: float) -> bytes | None:
        return self._perform(lambda store: store.wait(key, timeout))

    def interrupt(self) -> None:
        self._store.interrupt()
        self._left_alone.interrupt()

    def last_word_writer(self) -> LastWordWriter:
        write = self._store.last_word_writer()
        if self.member is None:
            return write
        from .last_word import LastWord  # with the client

        return LastWord(write, self.member.identity)

    def delete(self, prefix: str) -> None:
        self._store.delete(prefix)

    def close(self) -> None:
        """Leave; the cluster goes on without the member of this node if the job does."""
        if self._closed:
            return
        self._closed = True
        if self.member is None:
            self._store.close()
            return
        goes_on = self._job_goes_on()
        if goes_on:
            self._store.close()
        else:
            # What the cluster holds ends with it, and its other members may have ended.
            self._store.abandon()
        self.member.close(leaves=goes_on)

    def _job_goes_on(self) -> bool:
        try:
            return not self._has_ended and not job_is_over(self._store, self._key)
        except QuorateError:
            return False

    # --- the end of the job, where this node was away -----------------------------------------------------------------

    def _perform(self, operation: Callable[[EtcdStore | LeftAlone], _T]) -> _T:
        """Carry ``operation`` out, at the member that is left alone once that one knows the job's end.

        Raises:
            StoreLostError: the job's etcd has ended, and what became of the job is not known here.
        """
        try:
            return operation(self._left_alone if self._has_ended else self._store)
        except StoreLostError:
            raise
        except StoreUnavailableError:
            if self._has_ended or not self._knows_the_end():
                self._ending.check()
                raise
        return operation(self._left_alone)

    def _knows_the_end(self) -> bool:
        """Return whether the member of this node, which may be left alone, has recorded the job's end."""
        with suppress(QuorateError):
            self._has_ended = self._has_ended or job_is_over(self._left_alone, self._key)
        return self._has_ended
