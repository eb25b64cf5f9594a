"""Laws about the plugin: how it is found, what it imports, what it refuses, and that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from ..catalogue import PluginKind
from ..clock import monotonic, sleep
from ..errors import RendezvousConnectionError, RendezvousStateError, UsageError
from ..proc import children_of
from ..rendezvous import RendezvousBackend, Store
from ._abilities import Ability, LawBrokenError
from ._law import Tier, law
from ._subject import Job, Subject, require, result_of, settle, start
from ._waiting import open_descriptors

_KIND = PluginKind.RENDEZVOUS
_CONNECT_SECONDS = 0.5
#: How much later than its timeout a call may end on a busy machine.
_SLACK_SECONDS = 8.0


@law(Tier.PLUGIN, Ability.ENTRY_POINT)
def found_by_its_entry_point(subject: Subject) -> None:
    """A distribution with an entry point offers the backend under its name and with a summary.

    Run `quorate plugins`: it must list the plugin with its version and offers, and not as broken. The entry point
    belongs in the group `quorate` of pyproject.toml: name = "package:plugin".
    """
    name = subject.backend.name
    owners = [plugin.found for plugin, kind, offered in subject.host.offers() if (kind, offered) == (_KIND, name)]
    require(owners, f"no installed plugin offers {name!r}")
    require(owners[0].distribution and owners[0].version, f"{owners[0].name} belongs to no installed distribution")
    require(subject.backend.summary.strip(), f"the backend {name!r} has no summary")


_LIST_IMPORTS = """
import json, sys
from importlib import import_module
import quorate.plugins, quorate.rendezvous, quorate.clock, quorate.config, attrs, pluggy
before = set(sys.modules)
backend, = [r for r in import_module({module!r}).{attribute}.quorate_register_rendezvous()
            if r.name == {name!r}]
print(json.dumps(sorted(set(sys.modules) - before)))
"""


@law(Tier.PLUGIN, Ability.ENTRY_POINT)
def import_is_light(subject: Subject) -> None:
    """Importing the plugin imports neither torch nor its client library; opening the backend may.

    Every launch imports every installed plugin, also those that it does not use. Move the imports that are named here
    into the function that opens the store.
    """
    found = next(
        (p.found for p, kind, name in subject.host.offers() if (kind, name) == (_KIND, subject.backend.name)), None
    )
    if found is None:
        raise LawBrokenError("no installed plugin offers the backend")
    module, _, attribute = found.target.partition(":")
    code = _LIST_IMPORTS.format(module=module, attribute=attribute, name=subject.backend.name)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", code]
    limit = 2 * subject.timeout
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=limit)
    require(done.returncode == 0, f"importing {module} fails in a fresh interpreter: {done.stderr.strip()[-500:]}")
    own = {module.partition(".")[0], "quorate", "attr", "attrs", "pluggy"}
    names = {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}
    foreign = sorted(names - own - sys.stdlib_module_names)
    require(not foreign, f"importing {module} also imports {', '.join(foreign)}")


@law(Tier.PLUGIN, Ability.ENDPOINT)
def bad_endpoint_is_refused(subject: Subject) -> None:
    """A malformed endpoint raises UsageError, from `check` or from opening, at once.

    Parse the endpoint in RendezvousBackend.check, and say what it should look like. If the endpoint of this test is
    well-formed for the backend, set `bad_endpoint`.
    """
    error = _opening_fails(subject, subject.bad_endpoint)
    require(
        isinstance(error, UsageError),
        f"opening {subject.bad_endpoint!r} should raise UsageError, but {_raised(error)}",
    )


@law(Tier.PLUGIN, Ability.ENDPOINT)
def dead_endpoint_is_given_up_in_time(subject: Subject) -> None:
    """An endpoint where no server answers raises StoreUnavailableError within `connect_timeout`.

    Give the setting connect_timeout to the client library, and turn its exceptions into StoreUnavailableError, which
    the core retries. If a server of the backend could answer at this test's endpoint, set `dead_endpoint`.
    """
    _opening_fails(subject, subject.dead_endpoint)  # the first opening imports the client library, which is not timed
    started_at = monotonic()
    error = _opening_fails(subject, subject.dead_endpoint)
    took = monotonic() - started_at
    require(
        isinstance(error, RendezvousConnectionError),
        f"opening {subject.dead_endpoint!r} should raise StoreUnavailableError, but {_raised(error)}",
    )
    limit = _CONNECT_SECONDS + _SLACK_SECONDS
    require(took < limit, f"with connect_timeout={_CONNECT_SECONDS:g} it took {took:.1f} s to give up")


def _raised(error: BaseException | None) -> str:
    return "nothing was raised" if error is None else f"{type(error).__name__} was: {error}"


def _opening_fails(subject: Subject, endpoint: str) -> BaseException | None:
    job = subject.job(endpoint=endpoint)
    settings: dict[str, Any] = {"connect_timeout": _CONNECT_SECONDS, "operation_timeout": _CONNECT_SECONDS}
    opening: Future[Any]
    if subject.backend.open_store is not None:
        opening = start(lambda: job.open(**settings).get(["key"]))
    else:
        opening = start(_join, job, {**settings, "join_timeout": _CONNECT_SECONDS})
    settle(opening, _CONNECT_SECONDS + _SLACK_SECONDS + subject.timeout)
    if not opening.done():
        raise LawBrokenError(f"opening {endpoint!r} with connect_timeout={_CONNECT_SECONDS:g} does not return")
    return opening.exception()


def _join(job: Job, settings: dict[str, Any]) -> None:
    job.member(1, 1, **settings).join()


@law(Tier.PLUGIN, Ability.STORE, Ability.SEVERAL_NODES)
def jobs_are_isolated(subject: Subject) -> None:
    """Jobs with different run ids at one endpoint never see each other's keys, whatever characters the ids have.

    Put the run id into every key, encoded so that "a" with key "b/c" and "a/b" with key "c" stay apart; or refuse the
    second job with RendezvousStateError, if the endpoint can serve only one.
    """
    first = subject.job()
    stores: dict[str, Store] = {}
    for suffix in ("", "/b", "%2Fb", " b", "\u00e4", ".."):
        job: Job = subject.job(first.run_id + suffix, first.endpoint)
        try:
            stores[suffix] = job.open()
        except (RendezvousStateError, UsageError):
            break  # the second job is refused, which is allowed
    for suffix, store in stores.items():
        for key in ("b/key", "key"):
            require(store.create(key, suffix.encode()), f"{key!r} of another job is visible under the id …{suffix!r}")
    for suffix, store in stores.items():
        seen = store.get(["b/key", "key"])
        require(seen == [suffix.encode()] * 2, f"the job …{suffix!r} reads {seen} that another one has written")
    emptied, *others = stores
    stores[emptied].delete("")
    require(stores[emptied].get(["key"]) == [None], "delete('') leaves keys of the job behind")
    for suffix in others:
        require(stores[suffix].get(["key"]) == [suffix.encode()], "delete('') of one job removes keys of another")


@law(Tier.PLUGIN, Ability.STORE)
def close_is_idempotent(subject: Subject) -> None:
    """A store may be closed twice, in time; other open stores of the job keep working.

    Remember that the store is closed. A node that leaves must not close what the others share.
    """
    job = subject.job()
    other, store = job.open(), job.open()
    store.put("key", b"value")
    for which in ("first", "second"):
        closing = start(store.close)
        settle(closing, subject.timeout)
        require(closing.done(), f"the {which} close does not return")
        require(closing.exception() is None, f"the {which} close {_raised(closing.exception())}")
    require(other.get(["key"]) == [b"value"], "what one node has written is gone once it has closed the store")
    other.put("key", b"again")


def _leftovers() -> set[str]:
    """Return this process's threads, children, sockets and pipes."""
    found = {f"thread {thread.name} ({thread.ident})" for thread in threading.enumerate()}
    found |= {f"child {pid}" for pid in children_of(os.getpid())}
    targets = {descriptor.partition(" ")[2] for descriptor in open_descriptors()}
    return found | {target for target in targets if target.startswith(("socket:", "pipe:"))}


@law(Tier.PLUGIN, Ability.STORE)
def nothing_is_left_behind(subject: Subject) -> None:
    """After close, no thread, socket, pipe or child process of the store is left; a failed opening leaves none.

    What a client library opens once per process is not counted, because the store is opened and closed once before.
    Close connections explicitly, join threads, and close what was opened when a later step of opening fails.
    """
    _open_use_close(subject)
    before = _leftovers()
    _open_use_close(subject)
    left: set[str] = set()
    deadline = monotonic() + min(5.0, subject.timeout)
    while monotonic() < deadline:
        left = _leftovers() - before
        if not left:
            return
        sleep(0.02)
    raise LawBrokenError(f"left behind by a store that was closed: {', '.join(sorted(left))}")


def _open_use_close(subject: Subject) -> None:
    opener, job = subject.backend.open_store, subject.job()
    assert opener is not None
    if Ability.ENDPOINT not in subject.absent:
        dead = subject.job(endpoint=subject.dead_endpoint)
        start(_open_dead, subject.backend, dead).exception(subject.timeout)
    stores = [opener(job.parameters()) for _ in range(2)]
    waiting = start(stores[1].wait, "key", 0.05)
    stores[0].put("other", b"")
    result_of(waiting, subject.timeout, "wait('key', 0.05)")
    stores[0].delete("")
    for store in reversed(stores):
        store.close()


def _open_dead(backend: RendezvousBackend, job: Job) -> None:
    assert backend.open_store is not None
    with suppress(Exception):  # another law checks the exception
        backend.open_store(job.parameters(connect_timeout=_CONNECT_SECONDS)).close()
