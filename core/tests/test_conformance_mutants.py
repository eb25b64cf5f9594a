"""Every law of the conformance kit catches its mutant, and every law has one.

The table of ``docs/conformance.md`` is rendered from the laws and the mutants; rewrite it with:

python -m core.tests.test_conformance_mutants --rewrite
"""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from quorate import PluginHost
from quorate.testing import Ability, Outcome, Subject, Verdict, all_laws, check

from .honest_store import FakeServer, Honest
from .mutant_handlers import HonestHandler
from .mutant_stores import LeaksAThread
from .mutants import MUTANTS, Mutant, backend_of

PAGE = Path(__file__).parents[2] / "docs" / "conformance.md"
ABSENT = {"entry_point": "a mutant is not installed", "endpoint": "a mutant lives in the test's own process"}
#: How long a mutant may hang; an honest store needs a fraction of this.
TIMEOUT_SECONDS = 3.0
#: These check the whole process, or measure a time, so that nothing else may run.
ALONE = {"nothing_is_left_behind", "wake_ups_are_prompt"}

INSTALLED = """
import fcntl, os, time
from quorate import RendezvousBackend, hookimpl
from quorate.clock import sleep
from quorate.rendezvous import CellStore

SUMMARY = "one cell in a file"
def spoil_put(value): return value
def spoil_value(key, value): return value
%s

class FileCell:
    def __init__(self, path):
        self.path = path
        open(path, "ab").close()
    def read(self):
        with open(self.path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            version, _, value = file.read().partition(b"\\n")
        return value, version.decode() or "0"
    def swap(self, version, value):
        with open(self.path, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if (file.readline().decode().strip() or "0") != version:
                return False
            file.seek(0)
            file.truncate()
            file.write(b"%%d\\n" %% (int(version) + 1) + value)
        return True
    def wait_for_change(self, version, timeout):
        sleep(min(0.02, timeout))
    def close(self):
        pass

class Store(CellStore):
    def put_many(self, items):
        super().put_many([(key, spoil_put(value) if "/heartbeat/" in key else value) for key, value in items])
    def get(self, keys):
        return [value and spoil_value(key, value) for key, value in zip(keys, super().get(keys))]

class plugin:
    @staticmethod
    @hookimpl
    def quorate_register_rendezvous():
        return [RendezvousBackend("mutant", SUMMARY, open_store=lambda p: Store(
            FileCell(os.path.join(p.endpoint, p.run_id)), 30.0))]
"""


def install(folder: Path, source: str) -> PluginHost:
    """Write a distribution with the mutant as its plugin; returns a host that has found it."""
    folder.mkdir(parents=True)
    (folder / "quorate_mutant.py").write_text(INSTALLED % source)
    metadata = folder / "quorate_mutant-1.0.dist-info"
    metadata.mkdir()
    (metadata / "entry_points.txt").write_text("[quorate]\nmutant = quorate_mutant:plugin\n")
    sys.modules.pop("quorate_mutant", None)
    sys.path.insert(0, str(folder))  # also the path of the processes that the kit starts
    return PluginHost(paths=[str(folder)])


def subject_of(mutant: Mutant, folder: Path, timeout: float) -> Subject:
    if mutant.installed:
        host = install(folder, mutant.installed)
        return Subject("mutant", str(folder), timeout=timeout, lenient=True, host=host)
    server = FakeServer()
    host = PluginHost(paths=[], extra=mutant.plugins)
    absent = {key: why for key, why in ABSENT.items() if "endpoint" not in mutant.law or key != "endpoint"}
    settings = {"timeout": timeout, "host": host, "dead_endpoint": "dead", "bad_endpoint": "bad"}
    return Subject(backend_of(mutant, server), server, absent=absent, **settings)  # type: ignore[arg-type] # mixed values


def try_mutant(mutant: Mutant, folder: Path) -> Outcome:
    """Try it again with more time where a busy machine hid what is wrong.

    A lease that runs out by itself hides one that never would, and a time-out hides what would have come after it.
    """
    for attempt, timeout in enumerate((TIMEOUT_SECONDS, 4 * TIMEOUT_SECONDS)):
        (outcome,) = check(subject_of(mutant, folder / f"{attempt}", timeout), [mutant.law])
        if outcome.verdict is Verdict.BROKEN and re.search(mutant.seen, problem_of(outcome)):
            break
    return outcome


def problem_of(outcome: Outcome) -> str:
    return outcome.text.partition("\nlaw ")[0]


@pytest.fixture(scope="module", autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """The threads of the kit end, whatever a backend does."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(30)
        assert not thread.is_alive(), f"{thread.name} is left"


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Outcome]]]:
    """The mutants that mostly wait are tried all at once."""
    folder = tmp_path_factory.mktemp("mutants")
    together = [mutant for mutant in MUTANTS if mutant.law not in ALONE and not mutant.installed]
    with ThreadPoolExecutor(12) as pool:
        yield {mutant.law: pool.submit(try_mutant, mutant, folder / mutant.law) for mutant in together}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.law)
def test_mutant_is_caught(
    mutant: Mutant, trials: dict[str, Future[Outcome]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    if mutant.law in trials:
        outcome = trials[mutant.law].result(60)
    else:
        for trial in trials.values():
            trial.result(60)
        outcome = try_mutant(mutant, tmp_path / "plugin")
        if mutant.store is LeaksAThread:
            LeaksAThread.stopping.set()
    assert outcome.verdict is Verdict.BROKEN, f"{mutant.what}: {outcome}"
    problem = problem_of(outcome)
    assert re.search(mutant.seen, problem), problem
    assert outcome.law.text in outcome.text
    assert outcome.law.advice in outcome.text


def test_every_law_has_its_mutant_and_no_other() -> None:
    assert sorted(mutant.law for mutant in MUTANTS) == sorted(law.name for law in all_laws())


def test_what_the_mutants_spoil_keeps_the_laws_about_faults() -> None:
    """The other laws are kept by the in-memory store; no server of the core's own can be away."""
    faults = {Ability.PARTITION, Ability.PAUSE, Ability.RESTART}
    names = [law.name for law in all_laws() if faults & set(law.needs)]
    server, honest = FakeServer(), Mutant("", "honest", "", Honest)
    subject = Subject(backend_of(honest, server), server, absent=ABSENT, timeout=10.0)
    assert [(outcome.law.name, outcome.text) for outcome in check(subject, names)] == [(name, "") for name in names]


def test_what_the_mutants_of_handlers_spoil_keeps_every_law() -> None:
    server, honest = FakeServer(), Mutant("", "honest", "", handler=HonestHandler)
    subject = Subject(backend_of(honest, server), server, absent=ABSENT)
    for outcome in check(subject):
        assert outcome.verdict in (Verdict.KEPT, Verdict.ABSENT), outcome.text


# --- the page -------------------------------------------------------------------------------------------------------


def render() -> str:
    what = {mutant.law: mutant.what for mutant in MUTANTS}
    laws: list[Any] = list(all_laws())
    lines = [
        "# The laws of the conformance kit",
        "",
        f"{len(laws)} laws and {len(MUTANTS)} mutants. A mutant is a backend that is wrong in one way; a test proves",
        "that the law in the same row catches it. [Write a rendezvous plugin](write-a-rendezvous-plugin.md) explains",
        "how to use the kit. `quorate conformance --list` also prints the laws. *Needs* are abilities that a backend",
        "may declare absent.",
    ]
    for tier in dict.fromkeys(law.tier for law in laws):
        lines += [
            "",
            f"## {tier.value.capitalize()}",
            "",
            "| law | text | needs | catches |",
            "|---|---|---|---|",
        ]
        for law in (law for law in laws if law.tier is tier):
            needs = ", ".join(f"`{need.value}`" for need in law.needs if need is not Ability.STORE) or "-"
            lines.append(f"| `{law.name}` | {law.text} | {needs} | {what.get(law.name, '**no mutant needs it**')} |")
    return "\n".join(lines) + "\n"


def test_the_page_is_what_the_code_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == render()


if __name__ == "__main__" and "--rewrite" in sys.argv:
    PAGE.write_text(render(), encoding="utf-8")
