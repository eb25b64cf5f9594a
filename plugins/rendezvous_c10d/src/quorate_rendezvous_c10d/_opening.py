"""Opening the store: host it or find its host; and find it again when a connection breaks.

Host names do not decide which node hosts.  The first node that owns the endpoint's address and listens on its port is
the host, every other node is a client.
"""

from __future__ import annotations

import random
from typing import final

from attrs import frozen

from quorate.clock import monotonic, sleep
from quorate.errors import StoreLostError, StoreUnavailableError, UsageError
from quorate.net import format_endpoint
from quorate.notices import warn

from ._connection import Connection, connect, host, load_tcp_store, starting
from ._endpoint import (
    REFUSED,
    Listening,
    NotLocalError,
    PortTakenError,
    addresses_to_listen_on,
    find_answering,
    listen_on,
)
from ._hosting import (
    ENDED_SECONDS,
    SILENT,
    Found,
    end_local_host,
    has_ended,
    leave_note,
    look,
    look_beside,
    still_there,
)
from ._settings import Settings
from ._values import first_line, identify, read_identity

_ATTEMPT_SECONDS = 15.0
_SETTLE_SECONDS = 0.05


@final
@frozen
class Opened:
    """A working connection to a store, where that store is, and how to recognise it."""

    connection: Connection
    address: str
    port: int
    identity: bytes
    is_host: bool


def open_connections(settings: Settings) -> Opened:
    """Host the store or connect to it.

    Raises:
        UsageError: ``is_host`` is true, and this node may not listen on the port or finds something else there.
        StoreUnavailableError: neither worked within ``connect_timeout``; the message says what was tried.
    """
    # The import takes seconds; a host does it before others can connect to its port, and wait for its answer.
    load_tcp_store()
    started = monotonic()
    deadline = started + settings.connect_timeout_seconds
    pause = 0.05
    while True:
        tried: list[str] = []
        if settings.is_host is not False:
            with starting(settings.port):
                listening = _try_to_listen(settings, tried)
                if listening is not None:
                    return _host_unless_hosted(settings, listening) if settings.is_host else _host(settings, listening)
        if settings.is_host and tried == [_taken(settings)]:
            opened = _join_or_refuse(settings, monotonic() - started)
            if opened is not None:
                return opened
        if settings.is_host is not True:
            opened = _try_to_connect(settings, started, deadline, tried)
            if opened is not None:
                return opened
        left = deadline - monotonic()
        if left <= 0:
            raise StoreUnavailableError(_unreachable(settings, monotonic() - started, tried))
        # Jittered, so that many nodes that wait for one host do not connect to it together.
        sleep(min(left, pause * random.uniform(0.5, 1.0)))
        pause = min(1.0, pause * 1.6)


def _unreachable(settings: Settings, seconds: float, tried: list[str]) -> str:
    endpoint = settings.endpoint
    what = "; ".join(tried) or "nothing"
    if settings.is_host:
        return (
            f"this node cannot host the c10d store at {endpoint} ({seconds:.1f} s): {what}. "
            "Stop what listens there, choose another port in --rdzv-endpoint, or leave is_host out to join it"
        )
    return (
        f"no c10d store at {endpoint} after {seconds:.1f} s; tried {what}. Start the node that owns this address (or "
        "give it --rdzv-conf is_host=true), check --rdzv-endpoint and the firewall, or raise connect_timeout"
    )


def _try_to_listen(settings: Settings, tried: list[str]) -> Listening | None:
    must_host = settings.is_host is True
    try:
        addresses = addresses_to_listen_on(settings.host, settings.port, settings.connect_timeout_seconds)
    except OSError as error:
        if not must_host:
            return None  # connecting reports it
        tried.append(f"the name {settings.host!r} does not resolve ({error.strerror or error})")
        addresses = []
    try:
        return listen_on(addresses, settings.port, any_address=must_host)
    except PortTakenError:
        if must_host:
            tried.append(_taken(settings))
        return None
    except NotLocalError:
        return None
    except PermissionError as error:
        raise UsageError(
            f"this node may not listen on port {settings.port} ({error.strerror}); "
            "choose a port above 1023 in --rdzv-endpoint"
        ) from error
    except OSError as error:
        tried.append(f"listening on port {settings.port}: {error.strerror or error}")
        return None


def _taken(settings: Settings) -> str:
    return f"port {settings.port} is in use on this node"


def _join_or_refuse(settings: Settings, seconds: float) -> Opened | None:
    """Join the store that is in this host's way if it is this job's; ``None`` if it may be gone in a moment.

    Raises:
        UsageError: it is not this job's, and will stay.
    """
    found = look(settings, settings.host)
    if found is None:
        return None  # it has just gone
    if found.connection is not None:
        return _joined(settings, found)
    if found.ended and seconds >= ENDED_SECONDS and end_local_host(found.ended):
        return None
    if seconds >= min(found.wait_seconds, settings.connect_timeout_seconds):
        raise UsageError(
            f"this node must host the c10d store at {settings.endpoint} (is_host is true) and cannot: "
            f"{_taken(settings)}: {found.problem}. Stop what listens there, or choose another port in --rdzv-endpoint"
        )
    return None


def _joined(settings: Settings, found: Found) -> Opened | None:
    assert found.connection is not None
    try:
        identity = identify(found.connection.store)
    except RuntimeError:
        found.connection.close()
        return None  # its host has ended meanwhile
    warn(
        f"is_host is true on this node, but {found.hosted_by} hosts the c10d store at {settings.endpoint} for this job "
        "already; this node joins it. Set is_host=true on one node only"
    )
    return Opened(found.connection, found.address, settings.port, identity, is_host=False)


def _host_unless_hosted(settings: Settings, listening: Listening) -> Opened:
    """Host the store (``is_host`` is true), unless this job has one under another name of the same place.

    Raises:
        UsageError: the endpoint leads to another machine, where a store is.
    """
    if settings.port == 0:
        return _host(settings, listening)
    try:
        beside = look_beside(settings, listening.address)
        opened = _joined(settings, beside) if beside is not None else None
        if listening.is_elsewhere:
            _refuse_another(settings, look(settings, settings.host), b"")
    except BaseException:
        listening.sock.close()
        raise
    if opened is not None:
        listening.sock.close()
        return opened
    opened = _host(settings, listening)
    if listening.is_elsewhere:
        try:
            if not _refuse_another(settings, look(settings, settings.host), opened.identity):
                warn(
                    f"this node hosts the c10d store (is_host is true), but {settings.endpoint} is not an address of "
                    "this machine and does not lead to it from here; other nodes find the store only where that "
                    "address is forwarded to this machine"
                )
        except UsageError:
            opened.connection.close()
            raise
    return opened


def _refuse_another(settings: Settings, found: Found | None, own: bytes) -> bool:
    """Return whether the endpoint leads to the store that is recognised by ``own``.

    Raises:
        UsageError: it leads to another one.
    """
    if found is None or not found.is_store:
        return False
    if found.connection is not None:
        try:
            is_own = identify(found.connection.store) == own
        except RuntimeError:
            return False  # it has just ended
        finally:
            found.connection.close()
        if is_own:
            return True
    raise UsageError(
        f"this node must host the c10d store at {settings.endpoint} (is_host is true), but that is not an address of "
        f"this machine, and {found.hosted_by or 'another store'} is there already. Set is_host=true on one node only, "
        "the one that owns the address in --rdzv-endpoint, and leave it out here"
    )


def _host(settings: Settings, listening: Listening) -> Opened:
    try:
        connection = host(listening.sock, listening.address, settings.operation_timeout_seconds)
    except RuntimeError as error:
        raise StoreUnavailableError(
            f"torch could not start its TCPStore at {format_endpoint(listening.address, listening.port)}: "
            f"{first_line(error)}"
        ) from error
    identity = identify(connection.store)
    leave_note(connection.store, settings.run_id)
    return Opened(connection, listening.address, listening.port, identity, is_host=True)


def _try_to_connect(settings: Settings, started: float, deadline: float, tried: list[str]) -> Opened | None:
    address, problems = find_answering(settings.host, settings.port, deadline)
    tried += problems
    if address is None:
        return None
    where = format_endpoint(address, settings.port)
    attempt_deadline = min(max(deadline, monotonic() + 1.0), monotonic() + _ATTEMPT_SECONDS)
    try:
        connection = connect(address, settings.port, attempt_deadline, settings.operation_timeout_seconds)
    except RuntimeError as error:
        tried.append(f"{where} accepts connections but does not answer as a TCPStore ({first_line(error)})")
        return None
    try:
        identity = identify(connection.store)
        problem = still_there(settings.run_id) if has_ended(settings, connection, settings.run_id) else ""
    except RuntimeError as error:
        identity, problem = b"", first_line(error)
    if identity and problem and settings.is_host is False:
        problem = ""  # the node cannot host, so it joins and learns how the job ended
    elif identity and problem and monotonic() >= min(deadline, started + ENDED_SECONDS):
        # The store stays.  The same, unless this process hosts it and can host a new one there.
        problem = problem if end_local_host(identity, connection.local_port()) else ""
    if problem:
        connection.close()
        tried.append(f"{where}: {problem}")
        return None
    return Opened(connection, address, settings.port, identity, is_host=False)


def reconnect(
    address: str, port: int, identity: bytes, deadline: float, operation_timeout: float, has_failed: bool = True
) -> Connection:
    """Open a connection to the store that is recognised by ``identity``, by ``deadline`` (monotonic seconds).

    Where another one ``has_failed`` its host may be about to die, and whether it still answers takes a moment longer to
    find out.

    Raises:
        StoreLostError: nothing listens there any more, or another store does.
        StoreUnavailableError: no answer in time; the store may be there still.
    """
    where = format_endpoint(address, port)
    while True:
        answering, problems = find_answering(address, port, deadline, _SETTLE_SECONDS if has_failed else 0.0)
        problem = "; ".join(problems)
        if answering is None and problem.endswith(REFUSED):
            raise StoreLostError(f"{where} refuses connections")
        if monotonic() >= deadline:
            raise StoreUnavailableError(f"the host of the c10d store at {where} does not answer ({problem or SILENT})")
        if answering is not None:
            try:
                connection = connect(address, port, deadline, operation_timeout)
            except RuntimeError:
                has_failed = True  # the next look at the port tells whether its host is gone
            else:
                return _recognise(connection, identity, where)
        sleep(0.02)


def _recognise(connection: Connection, identity: bytes, where: str) -> Connection:
    try:
        present = read_identity(connection.store)
    except RuntimeError as error:
        connection.close()
        raise StoreUnavailableError(f"the c10d store at {where} does not answer ({first_line(error)})") from error
    if present != identity:
        connection.close()
        raise StoreLostError(f"another store listens at {where} now")
    return connection
