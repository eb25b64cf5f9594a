"""Laws about reading and writing: each operation alone, then many members at once.

What does not live here: waiting (``_wait_laws``), and what happens when the server is away (``_fault_laws``).
"""

from __future__ import annotations

import random
from functools import partial

from ..rendezvous import BatchStore, Store
from ._abilities import Ability, LawBrokenError
from ._history import History, explain, is_linearizable
from ._law import Tier, law
from ._subject import Subject, race, require

_MEBIBYTE = 1 << 20
#: Values that real stores have changed, lost or misread.
_VALUES = (b"", b"\x00", b"0", b"-1", b"null", b"\r\n\r\n", b"\xff\xfe\x80", bytes(range(256)), b"x" * _MEBIBYTE)


def _shown(value: bytes | None) -> str:
    return repr(value) if value is None or len(value) <= 60 else f"{value[:30]!r}… of {len(value)} bytes"


@law(Tier.STORE)
def create_has_one_winner(subject: Subject) -> None:
    """If several members create a key at once, create returns True for exactly one, even if all bytes are equal.

    A create that reads the key and compares the bytes gives one round two sealers. Use the server's own set-if-absent
    (Redis: SET NX; a file: O_EXCL or link), and never decide by the value.
    """
    job = subject.job()
    stores = [job.open() for _ in range(4)]
    for attempt in range(8):
        key = f"race/{attempt}"
        won = race([partial(store.create, key, b"same") for store in stores], subject.timeout)
        require(all(isinstance(answer, bool) for answer in won), f"create answers {won}, not booleans")
        require(won.count(True) == 1, f"create returned True for {won.count(True)} of {len(won)} racing writers")
    for index, store in enumerate(stores):
        require(not store.create("race/0", b"%d" % index), "create wrote over a key that existed")
    require(stores[0].get(["race/0"]) == [b"same"], "a create that lost has changed the value")


@law(Tier.STORE)
def create_respects_every_kind_of_write(subject: Subject) -> None:
    """create returns False and changes nothing if put or add has made the key; after a delete it writes again.

    Keep counters, values and created keys in one namespace.
    """
    job = subject.job()
    store, other = job.open(), job.open()
    store.put("put", b"")
    store.add("count", 1)
    for key, value in (("put", b""), ("count", b"1")):
        require(not other.create(key, b"new"), f"create wrote over a key that {key} had made")
        require(other.get([key]) == [value], f"after a create that lost, {key!r} reads {other.get([key])}")
    store.delete("put")
    require(other.create("put", b"again"), "create does not write a key that was deleted")


@law(Tier.STORE)
def counters_are_exact(subject: Subject) -> None:
    """However many members add to a counter at once, nothing is lost or counted twice, and each gets its own total.

    Use the server's own atomic increment, or compare-and-swap in a loop. Tickets are such totals: two equal totals are
    two nodes with one ticket.
    """
    job = subject.job()
    stores = [job.open() for _ in range(4)]

    def count(store: Store) -> list[int]:
        return [store.add("n", 1) for _ in range(10)]

    counts = race([partial(count, store) for store in stores], subject.timeout)
    totals = sorted(total for each in counts for total in each)
    require(totals == list(range(1, 41)), f"40 additions of 1 returned the totals {totals}")
    require(stores[0].add("n", -41) == -1, "adding a negative amount is wrong")
    require(stores[1].add("n", 0) == -1, "adding 0 does not return the total")


@law(Tier.STORE)
def counters_read_as_decimal(subject: Subject) -> None:
    """The value of a counter is its total in decimal digits, for get and for wait.

    Nodes read the number of the job's round from a counter. Store b"12", not eight bytes.
    """
    store = subject.job().open()
    store.add("n", 12)
    require(store.get(["n"]) == [b"12"], f"a counter of 12 reads {store.get(['n'])}")
    require(store.wait("n", 0.0) == b"12", "wait does not return an existing counter")


@law(Tier.STORE)
def values_come_back_unchanged(subject: Subject) -> None:
    """Any bytes from 0 B to 1 MiB are a value, and get and wait return them unchanged.

    An empty value is not an absent key: test for None. Look for text encodings, trimming and size limits of the client
    library.
    """
    store = subject.job().open()
    for index, value in enumerate(_VALUES):
        store.put(f"put/{index}", value)
        require(store.create(f"created/{index}", value), "create does not write a fresh key")
        for key in (f"put/{index}", f"created/{index}"):
            got = (store.get([key])[0], store.wait(key, 0.0))
            require(
                got == (value, value), f"{_shown(value)} came back as {_shown(got[0])} (get), {_shown(got[1])} (wait)"
            )


@law(Tier.STORE)
def keys_are_kept_apart(subject: Subject) -> None:
    """Keys differ if any character differs (case, slashes, dots, blanks, signs); one key may be a prefix of another.

    Where keys become names of files, tables or paths, encode them without loss.
    """
    store = subject.job().open()
    keys = ["1", "1/", "1/a", "1/A", "1/a/b", "1//a", "1%2Fa", "1/..", "..", "a b", "a*", "a?", "a_", "[a]", "a\\", "~"]
    for key in [*keys, "k" * 100]:
        require(store.create(key, key.encode()), f"the key {key!r} is confused with another one")
    for key in [*keys, "k" * 100]:
        require(store.get([key]) == [key.encode()], f"the key {key!r} reads {store.get([key])}")


@law(Tier.STORE)
def get_answers_in_order(subject: Subject) -> None:
    """get returns one value per key in the given order, None for absent keys, repeated keys each time, and [] for [].

    Do not return the server's list as it is; build the answer from the given keys.
    """
    store = subject.job().open()
    require(list(store.get([])) == [], "get([]) is not []")
    for number in range(40):
        if number % 7:
            store.put(f"key/{number}", b"%d" % number)
    asked = [f"key/{number}" for number in (39, 0, 3, 3, 38, 7, 1, 50, 2)]
    expected = [b"39", None, b"3", b"3", b"38", None, b"1", None, b"2"]
    require(list(store.get(asked)) == expected, f"get({asked}) is {store.get(asked)}")
    require(store.create("key/0", b""), "reading an absent key has created it")


@law(Tier.STORE)
def writes_are_seen_at_once(subject: Subject) -> None:
    """Every other member reads a write at once: no replica or cache lags behind.

    Read from the leader, or with the server's option for linearizable reads; keep no cache in the client.
    """
    job = subject.job()
    writer, reader = job.open(), job.open()
    for number in range(30):
        value = b"%d" % number
        writer.put("key", value)
        seen = reader.get(["key", "absent"])
        require(seen == [value, None], f"after put({number}) by another member, get returns {seen}")
        require(writer.get(["key"]) == [value], "a member does not see its own write")


@law(Tier.STORE)
def delete_removes_a_prefix(subject: Subject) -> None:
    """delete removes every key that begins with the prefix, and no other; '' means all keys of the job.

    Prefixes are plain text: '1/' is not a pattern, and '1' also matches '10'.
    """
    job = subject.job()
    store, other = job.open(), job.open()
    keys = ["1/a", "1/b/c", "10/a", "2/1/a", "*", "*/a"]
    for index, key in enumerate(keys):
        (store, other)[index % 2].put(key, b"x")
    store.add("1/count", 3)
    store.delete("nothing")
    store.delete("1/")
    present = other.get([*keys, "1/count"])
    require(present == [None, None, b"x", b"x", b"x", b"x", None], f"after delete('1/'), {keys} read {present}")
    store.delete("*")
    require(other.get(keys)[2:] == [b"x", b"x", None, None], "delete('*') treats the prefix as a pattern")
    require(store.add("1/count", 1) == 1, "a deleted counter keeps its count")
    store.delete("")
    require(other.get(keys) == [None] * len(keys), "delete('') leaves keys behind")


@law(Tier.STORE, Ability.BATCH)
def batches_write_everything(subject: Subject) -> None:
    """put_many writes all items and wakes waiters; of a repeated key the last value counts; a batch may be empty.

    If the server limits the size of a request, split the batch.
    """
    job = subject.job()
    store, other = job.open(), job.open()
    assert isinstance(store, BatchStore)
    store.put_many([])
    items = [(f"key/{number}", b"%d" % number) for number in range(300)]
    store.put_many([*items, ("key/7", b"last")])
    expected = [b"last" if key == "key/7" else value for key, value in items]
    require(other.get([key for key, _ in items]) == expected, "put_many has not written every item")
    require(other.wait("key/299", 0.0) == b"299", "wait does not see what put_many has written")


@law(Tier.STORE)
def history_is_linearizable(subject: Subject) -> None:
    """One order of the concurrent calls of all members explains all answers, and respects which call ended first.

    No such order exists for the calls shown. Look for a read from a replica or a cache, a read-modify-write that is not
    atomic, or an answer that is sent before the write is done.
    """
    for seed in range(2):
        _check_history(subject, seed)


def _check_history(subject: Subject, seed: int) -> None:
    job, history = subject.job(), History()
    stores = [job.open() for _ in range(4)]

    def play(member: int, store: Store) -> None:
        # The seed decides the calls; the machine decides how they overlap.
        choose = random.Random(1000 * seed + member)
        for number in range(30):
            _step(history, member, store, choose, b"%d.%d" % (member, number))

    race([partial(play, *pair) for pair in enumerate(stores)], subject.timeout)
    for key, entries in history.by_key().items():
        if not is_linearizable(entries):
            raise LawBrokenError(
                f"no order of these calls of the key {key!r} explains the answers (operations of seed {seed}, times "
                f"in ms):\n{explain(entries)}"
            )


def _step(history: History, member: int, store: Store, choose: random.Random, value: bytes) -> None:
    key = choose.choice(("once/", "value/", "value/", "count/"))
    operation = choose.choice(_OPERATIONS[key])
    if operation == "create":
        history.record(member, operation, key, value, lambda: store.create(key, value))
    elif operation == "put":
        history.record(member, operation, key, value, lambda: store.put(key, value))
    elif operation == "add":
        amount = choose.choice((1, 1, 5, -2))  # whether adding 0 creates a counter is not specified
        history.record(member, operation, key, amount, lambda: store.add(key, amount))
    elif operation == "get":
        history.record(member, operation, key, None, lambda: store.get([key])[0])
    elif operation == "wait":
        history.record(member, operation, key, None, lambda: store.wait(key, 0.0))
    else:
        history.record(member, operation, key, None, lambda: store.delete(key))


# Counters are deleted with their round, when no node adds to them any more.
_OPERATIONS = {
    "once/": ("create", "create", "get", "wait", "delete"),
    "value/": ("put", "put", "get", "get", "wait", "create"),
    "count/": ("add", "add", "add", "get"),
}
