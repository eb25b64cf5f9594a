"""Stores that are each wrong in a way that has been seen, made from one that keeps every law (``honest_store``).

What does not live here: which law has to catch which (``mutants``).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from core.tests.honest_store import FakeServer, Honest

from quorate.clock import monotonic, sleep
from quorate.errors import StoreLostError, StoreUnavailableError
from quorate.rendezvous import RendezvousParameters

# --- stores that are wrong ------------------------------------------------------------------------------------------


class ComparesBytes(Honest):
    def create(self, key: str, value: bytes) -> bool:
        with self.changed:
            return self.values.setdefault(key, value) == value


class CreatesInItsOwnSpace(Honest):
    def create(self, key: str, value: bytes) -> bool:
        return super().create(f"created:{key}", value)


class LosesAdditions(Honest):
    def add(self, key: str, amount: int) -> int:
        count = int(self.get([key])[0] or b"0") + amount
        sleep(0.001)
        self.put(key, b"%d" % count)
        return count


class RepeatsInSecret(Honest):
    def add(self, key: str, amount: int) -> int:
        try:
            return super().add(key, amount)
        except StoreUnavailableError:
            return super().add(key, amount)


class CountsInBinary(Honest):
    def add(self, key: str, amount: int) -> int:
        with self.changed:
            count = int.from_bytes(self.values.get(key, b""), "big", signed=True) + amount
            self.write(key, count.to_bytes(8, "big", signed=True))
            return count


class StripsValues(Honest):
    def write(self, key: str, value: bytes) -> None:
        super().write(key, value.strip())


class IgnoresCase(Honest):
    def create(self, key: str, value: bytes) -> bool:
        return super().create(key.lower(), value)


class SortsAnswers(Honest):
    def get(self, keys: Sequence[str]) -> list[bytes | None]:
        return super().get(sorted(keys))


class CachesReads(Honest):
    def get(self, keys: Sequence[str]) -> list[bytes | None]:
        cache: dict[str, bytes | None] = self.__dict__.setdefault("cache", {})
        return [cache.setdefault(key, value) for key, value in zip(keys, super().get(keys), strict=True)]


class DeletesPatterns(Honest):
    def delete(self, prefix: str) -> None:
        super().delete(prefix.rstrip("*/"))


class SplitsBatches(Honest):
    def put_many(self, items: Sequence[tuple[str, bytes]]) -> None:
        super().put_many(items[:256])


class ReadsBehind(Honest):
    """A replica answers every third read, and has not heard of the last write yet."""

    old: dict[str, bytes]
    reads = 0

    def write(self, key: str, value: bytes) -> None:
        old = self.server.__dict__.setdefault("old", {})
        if key in self.values:
            old[key] = self.values[key]
        super().write(key, value)

    def get(self, keys: Sequence[str]) -> list[bytes | None]:
        self.reads += 1
        if self.reads % 3:
            return super().get(keys)
        return [self.server.__dict__.get("old", {}).get(key, self.values.get(key)) for key in keys]


class TakesEmptyForAbsent(Honest):
    def wait(self, key: str, timeout: float) -> bytes | None:
        return super().wait(key, timeout) or None


class ForgetsWakeUps(Honest):
    """Counters wake nobody."""

    def add(self, key: str, amount: int) -> int:
        with self.changed:
            self.values[key] = b"%d" % (int(self.values.get(key, b"0")) + amount)
            return int(self.values[key])


class LooksEverySecond(Honest):
    def wait(self, key: str, timeout: float) -> bytes | None:
        deadline = monotonic() + timeout
        while True:
            value = self.get([key])[0]
            left = deadline - monotonic()
            if value is not None or left <= 0:
                return value
            sleep(min(left, 1.0))


class RegistersTooLate(Honest):
    """Looks, does something else, and only then listens for changes, without a second look."""

    def wait(self, key: str, timeout: float) -> bytes | None:
        value = self.get([key])[0]
        if value is not None or timeout == 0:
            return value
        sleep(0.002)
        deadline = monotonic() + timeout
        with self.changed:
            while not self.closed and self.changed.wait(max(0.0, deadline - monotonic())):
                if key in self.values:
                    return self.values[key]
        return None


class IgnoresTheTimeout(Honest):
    def wait(self, key: str, timeout: float) -> bytes | None:
        return super().wait(key, 3600.0)


class EndsWaitsOnDelete(Honest):
    def delete(self, prefix: str) -> None:
        super().delete(prefix)
        with self.changed:
            self.server.__dict__["deletes"] = self.server.__dict__.get("deletes", 0) + 1
            self.changed.notify_all()

    def wait(self, key: str, timeout: float) -> bytes | None:
        before = self.server.__dict__.get("deletes", 0)
        deadline = monotonic() + timeout
        with self.changed:
            while key not in self.values and self.server.__dict__.get("deletes", 0) == before and not self.closed:
                if not self.changed.wait(max(0.0, deadline - monotonic())):
                    break
            return self.values.get(key)


class HasOneConnection(Honest):
    """A wait keeps the only connection busy."""

    def __init__(self, server: FakeServer, parameters: RendezvousParameters) -> None:
        super().__init__(server, parameters)
        self.connection = threading.Lock()

    def wait(self, key: str, timeout: float) -> bytes | None:
        with self.connection:
            return super().wait(key, timeout)

    def add(self, key: str, amount: int) -> int:
        with self.connection:
            return super().add(key, amount)


class DropsEarlyInterrupts(Honest):
    def wait(self, key: str, timeout: float) -> bytes | None:
        sleep(0.02)
        self.interrupted = False
        return super().wait(key, timeout)


# --- stores that do not bear faults ---------------------------------------------------------------------------------


class AnswersNoneWhenCutOff(Honest):
    def get(self, keys: Sequence[str]) -> list[bytes | None]:
        return [None] * len(keys) if self.server.is_away else super().get(keys)


class HangsWhenStopped(Honest):
    def get(self, keys: Sequence[str]) -> list[bytes | None]:
        with self.changed:
            self.changed.wait_for(lambda: not self.server.is_away)
        return super().get(keys)


class WaitsOnADeadConnection(Honest):
    def wait(self, key: str, timeout: float) -> bytes | None:
        deadline = monotonic() + timeout
        with self.changed:
            while not self.closed and (key not in self.values or self.__dict__.get("dead")):
                if self.server.is_away:
                    self.__dict__["dead"] = True
                if not self.changed.wait(max(0.0, deadline - monotonic())):
                    return None
            return self.values.get(key)


class ForgetsOnRestart(Honest):
    def reach(self) -> None:
        super().reach()
        if self.server.restarts:
            self.server.restarts = 0
            self.values.clear()


class GivesUpAtOnce(Honest):
    def reach(self) -> None:
        if self.server.is_away:
            raise StoreLostError("the server did not answer once")


# --- stores that spoil the protocol ---------------------------------------------------------------------------------


class SealsTwice(Honest):
    """How a round ended is what each node has itself created."""

    def spell(self, key: str) -> str:
        return f"{key} {id(self)}" if key.endswith("/ended") else key

    def create(self, key: str, value: bytes) -> bool:
        return super().create(self.spell(key), value)

    def get(self, keys: Sequence[str]) -> list[bytes | None]:
        return super().get([self.spell(key) for key in keys])

    def wait(self, key: str, timeout: float) -> bytes | None:
        return super().wait(self.spell(key), timeout)


class GivesEveryoneTheFirstTicket(Honest):
    def add(self, key: str, amount: int) -> int:
        return min(1, super().add(key, amount)) if key.endswith("/tickets") else super().add(key, amount)


class MixesHeartbeatsUp(Honest):
    """The last character of a heartbeat's key is lost, so that a node that is done speaks for all."""

    def spell(self, key: str) -> str:
        return key[:-1] if "/heartbeat/r" in key else key

    def put(self, key: str, value: bytes) -> None:
        if b" done " not in self.values.get(self.spell(key), b""):
            super().put(self.spell(key), value)

    def get(self, keys: Sequence[str]) -> list[bytes | None]:
        return super().get([self.spell(key) for key in keys])


class KeepsTheDeadAlive(Honest):
    """The counters that are read rise with each read, so that nothing ever stands still."""

    reads = 0

    def get(self, keys: Sequence[str]) -> list[bytes | None]:
        self.reads += 1
        values = zip(keys, super().get(keys), strict=True)
        return [v and self.raised(v) if "/heartbeat/" in key else v for key, v in values]

    def raised(self, heartbeat: bytes) -> bytes:
        _, space, rest = heartbeat.partition(b" ")
        return b"%d" % (10**6 + self.reads) + space + rest


class MissesWhatEndedMeanwhile(Honest):
    """Who has waited for the end of a round, and was away when it came, never sees it."""

    def __init__(self, server: FakeServer, parameters: RendezvousParameters) -> None:
        super().__init__(server, parameters)
        self.awaited = set[str]()

    def wait(self, key: str, timeout: float) -> bytes | None:
        if key.endswith("/ended") and timeout:
            self.awaited.add(key)
            if key in self.values:
                return super().wait("never", timeout)
        return super().wait(key, timeout)

    def get(self, keys: Sequence[str]) -> list[bytes | None]:
        return [None if key in self.awaited else value for key, value in zip(keys, super().get(keys), strict=True)]

    #: Makes the core wait in slices, between which the end comes.
    interrupt = None  # type: ignore[assignment] # there is none


class LocksDieWithNobody(Honest):
    """Whoever takes a ticket holds a lock until its next call."""

    def reach(self) -> None:
        super().reach()
        owner = self.server.__dict__.get(self.parameters.run_id, self)
        if owner is not self:
            raise StoreUnavailableError("another node holds the lock")
        self.server.__dict__.pop(self.parameters.run_id, None)

    def add(self, key: str, amount: int) -> int:
        count = super().add(key, amount)
        if amount and key.endswith("/tickets"):
            self.server.__dict__[self.parameters.run_id] = self
        return count


# --- plugins that are wrong -----------------------------------------------------------------------------------------


class SharesKeys(Honest):
    def job_of(self, parameters: RendezvousParameters) -> str:
        return parameters.run_id.partition("/")[0]


class ClosesOnce(Honest):
    def close(self) -> None:
        if self.closed:
            raise RuntimeError("closed already")
        super().close()


class LeaksAThread(Honest):
    stopping = threading.Event()

    def __init__(self, server: FakeServer, parameters: RendezvousParameters) -> None:
        super().__init__(server, parameters)
        threading.Thread(target=self.stopping.wait, args=(60.0,), name="leaked", daemon=True).start()


class RaisesWhatItLikes(Honest):
    def __init__(self, server: FakeServer, parameters: RendezvousParameters) -> None:
        super().__init__(server, parameters)
        if parameters.endpoint == "dead":
            raise ConnectionRefusedError("connection refused")


class _Renames(Honest):
    """A store that has fewer names than there are keys."""

    @staticmethod
    def name(key: str) -> str:
        raise NotImplementedError

    def create(self, key: str, value: bytes) -> bool:
        return super().create(self.name(key), value)

    def put(self, key: str, value: bytes) -> None:
        super().put(self.name(key), value)

    def add(self, key: str, amount: int) -> int:
        return super().add(self.name(key), amount)

    def get(self, keys: Sequence[str]) -> list[bytes | None]:
        return super().get([self.name(key) for key in keys])

    def wait(self, key: str, timeout: float) -> bytes | None:
        return super().wait(self.name(key), timeout)


class CutsKeysAfterFourParts(_Renames):
    @staticmethod
    def name(key: str) -> str:
        return "/".join(key.split("/")[:4])


class EndsTheNewestJob(Honest):
    """Hides from a job's own nodes, which have written heartbeats, that it is over, and moves the end they write."""

    has_written = False

    def put(self, key: str, value: bytes) -> None:
        self.has_written |= "heartbeat/" in key
        super().put(key, value)

    def get(self, keys: Sequence[str]) -> list[bytes | None]:
        values = super().get(keys)
        if not self.has_written:
            return values
        return [None if key.endswith("/over") else value for key, value in zip(keys, values, strict=True)]

    def create(self, key: str, value: bytes) -> bool:
        is_moved = key == "0/ended" and self.get(["incarnation/1/job"]) != [None]
        return super().create(f"incarnation/1/data/{key}" if is_moved else key, value)


class FreezesHeartbeats(Honest):
    """Each handle caches the heartbeats that it has read."""

    def get(self, keys: Sequence[str]) -> list[bytes | None]:
        cache: dict[str, bytes] = self.__dict__.setdefault("cache", {})
        values = []
        for key, value in zip(keys, super().get(keys), strict=True):
            if value is not None and "/heartbeat/" in key:
                value = cache.setdefault(key, value)
            values.append(value)
        return values
