"""Laws about waiting: nodes learn of each other's writes from waits that end at the right moment."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from ..clock import monotonic, sleep
from ..rendezvous import BatchStore, InterruptibleStore, Store
from ._abilities import Ability
from ._law import Tier, law
from ._subject import Subject, require, result_of, start

#: A store that polls every second or so is slower than this; one that is notified is not.
_WAKE_SECONDS = 0.35
#: Clocks and timers are not exact to the microsecond.
_EARLY_SECONDS = 0.02


@law(Tier.STORE)
def wait_finds_what_is_there(subject: Subject) -> None:
    """wait returns the value of an existing key at once, also an empty value, even with a timeout of 0.

    Read before you wait; b"" is a value, and None is not.
    """
    store = subject.job().open()
    store.put("key", b"value")
    store.put("empty", b"")
    for timeout in (0.0, 5.0):
        for key, value in (("key", b"value"), ("empty", b"")):
            got = result_of(start(store.wait, key, timeout), subject.timeout, f"wait({key!r}, {timeout:g})")
            require(got == value, f"wait({key!r}, {timeout:g}) is {got!r}, but the value is {value!r}")
    require(store.wait("absent", 0.0) is None, "wait for an absent key with a timeout of 0 is not None")


def _writers(store: Store) -> dict[str, Callable[[str], object]]:
    writers: dict[str, Callable[[str], object]] = {
        "create": lambda key: store.create(key, b"1"),
        "put": lambda key: store.put(key, b"1"),
        "add": lambda key: store.add(key, 1),
    }
    if isinstance(store, BatchStore):
        batch: BatchStore = store
        writers["put_many"] = lambda key: batch.put_many([("other", b""), (key, b"1")])
    return writers


@law(Tier.STORE)
def every_write_wakes_every_waiter(subject: Subject) -> None:
    """A wait ends with the value soon after any member has written the key, with whichever method.

    Register for changes first, then read, then wait: a write between the read and the wait must not be lost. Several
    members may wait for one key.
    """
    job = subject.job()
    writer, waiters = job.open(), [job.open() for _ in range(3)]
    for name, write in _writers(writer).items():
        waiting = [start(store.wait, name, 2 * subject.timeout) for store in waiters]
        writer.put("unrelated", b"")
        sleep(0.05)  # most waits have begun; both cases must work
        write(name)
        for future in waiting:
            value = result_of(future, subject.timeout, f"a wait for a key that {name} has written")
            require(value == b"1", f"a wait that {name} ended returned {value!r} instead of b'1'")


@law(Tier.STORE)
def wake_ups_are_prompt(subject: Subject) -> None:
    """A write ends another member's wait after the time of a message, not after a polling interval.

    Use the server's own notification (watch, subscribe, blocking read, inotify). Where the server has none, poll about
    every 50 ms. Every failure and every restart reaches the nodes through a wait.
    """
    job = subject.job()
    writer, waiter = job.open(), job.open()
    delays: list[float] = []
    for number in range(7):
        if sum(delay > _WAKE_SECONDS for delay in delays) > 3:
            break  # most waits are late already
        key = f"key/{number}"
        waiting = start(waiter.wait, key, 2 * subject.timeout)
        sleep(0.03)
        written = monotonic()
        writer.create(key, b"")
        result_of(waiting, subject.timeout, "a wait for a key that was written")
        delays.append(monotonic() - written)
    took = median(delays)
    require(took < _WAKE_SECONDS, f"half of the waits took longer than {took:.2f} s to see the write")


@law(Tier.STORE)
def no_wake_up_is_lost(subject: Subject) -> None:
    """However close together a write and a wait begin, the wait ends: two members wait for each other's keys in turn.

    Common mistakes: to read, find nothing, and only then register for changes; or to use one event for all keys and
    clear it after the read.
    """
    job = subject.job()
    one, other = job.open(), job.open()
    rounds = 40

    def play(store: Store, mine: str, theirs: str) -> int:
        for number in range(rounds):
            store.create(f"{mine}/{number}", b"")
            if store.wait(f"{theirs}/{number}", subject.timeout / 2) is None:
                return number
        return rounds

    playing = start(play, other, "b", "a")
    reached = min(play(one, "a", "b"), result_of(playing, 2 * subject.timeout, "the other player"))
    require(reached == rounds, f"after {reached} exchanges a wait did not return a key that was written")


@law(Tier.STORE)
def wait_ends_at_its_deadline(subject: Subject) -> None:
    """A wait for a key that is not written returns None soon after the timeout has passed, and not before.

    Count the time on a monotonic clock over all retries. Writes of other keys neither end nor extend a wait.
    """
    job = subject.job()
    store, other = job.open(), job.open()
    for timeout in (0.05, 0.4):
        started_at = monotonic()
        waiting = start(store.wait, "absent", timeout)
        for number in range(5):
            other.put(f"absent/{number}", b"x")
        value = result_of(waiting, timeout + subject.timeout, f"wait('absent', {timeout:g})")
        took = monotonic() - started_at
        require(value is None, f"wait for an absent key returned {value!r}")
        require(took >= timeout - _EARLY_SECONDS, f"wait with a timeout of {timeout:g} s returned after {took:.3f} s")
    other.put("absent", b"late")
    require(
        store.wait("absent", subject.timeout) == b"late",
        "after a wait has timed out, the next wait does not find the key",
    )


@law(Tier.STORE)
def wait_survives_a_delete(subject: Subject) -> None:
    """A wait continues when its absent key or other keys are deleted, and ends when the key is written.

    Rounds that are over are deleted while nodes wait for the next round.
    """
    job = subject.job()
    store, other = job.open(), job.open()
    other.put("1/other", b"x")
    waiting = start(store.wait, "1/key", 2 * subject.timeout)
    sleep(0.05)
    other.delete("1/")
    other.delete("")
    sleep(0.05)
    require(not waiting.done(), "a delete has ended a wait for a key that is absent")
    other.create("1/key", b"value")
    value = result_of(waiting, subject.timeout, "a wait for a key written after a delete")
    require(value == b"value", f"the wait returned {value!r}")


@law(Tier.STORE)
def waiting_holds_nothing_up(subject: Subject) -> None:
    """While one thread waits, another thread uses the same store, and neither blocks the other.

    Keep one connection for calls and one for waits, and hold no lock while you wait.
    """
    store = subject.job().open()
    waiting = start(store.wait, "key", 2 * subject.timeout)
    sleep(0.05)
    result_of(start(store.add, "count", 1), subject.timeout / 2, "add, during a wait,")
    result_of(start(store.get, ["count"]), subject.timeout / 2, "get, during a wait,")
    result_of(start(store.put, "key", b"value"), subject.timeout / 2, "put, during a wait,")
    value = result_of(waiting, subject.timeout, "a wait for a key that the same store has written")
    require(value == b"value", f"the wait returned {value!r}")


@law(Tier.STORE, Ability.INTERRUPT)
def interrupt_ends_a_wait(subject: Subject) -> None:
    """interrupt makes the wait of another thread return None soon, and later waits work as before.

    An interrupt may come just before the wait begins: remember it, or that wait lasts for an hour.
    """
    store = subject.job().open()
    assert isinstance(store, InterruptibleStore)
    for pause in (0.05, 0.0, 0.05, 0.0):
        waiting = start(store.wait, "absent", 4 * subject.timeout)
        sleep(pause)
        result_of(start(store.interrupt), subject.timeout, "interrupt")
        value = result_of(waiting, subject.timeout, "a wait that was interrupted")
        require(value is None, f"an interrupted wait returned {value!r}")
    store.put("key", b"value")
    waiting = start(store.wait, "key", subject.timeout)
    value = result_of(waiting, subject.timeout, "the wait after an interrupted one")
    require(value == b"value", f"the wait after an interrupted one returned {value!r}")
