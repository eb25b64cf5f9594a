"""``docs/hooks.md`` and ``docs/events.md`` are rendered from the code; rewrite both with ``--rewrite``:

python core/tests/test_hook_docs.py --rewrite
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

import pytest
from attrs import fields

from quorate import PluginHost, events, hookspecs, starter
from quorate.catalogue import PluginKind
from quorate.events import EventName
from quorate.records import (
    Assignment,
    Cause,
    Event,
    FailureRecord,
    NodeRecord,
    RendezvousWaiting,
    RestartBudget,
    RestartDecision,
    RoundSummary,
    Verdict,
    WorkerLaunch,
)

sys.path.insert(0, str(Path(__file__).parent))

import hook_examples

DOCS = Path(__file__).parents[2] / "docs"
HOOKS = sorted(
    (value for name, value in vars(hookspecs).items() if name.startswith("quorate_")),
    key=lambda hook: int(hook.__code__.co_firstlineno),
)
BASES = (starter.Starter, starter.ProcessContext)
FACTS = ("Called", "Thread", "Answer", "If it raises")

ABILITIES_HEAD = """\
## Abilities of starters and process contexts

A starter starts the workers of one node and returns a process context. The process context watches and stops the
workers (`quorate.starter.Starter`, `ProcessContext`). Both may have more abilities. The core uses an ability if the
object has its methods.

| ability | what it is for | methods |
|---|---|---|
"""

HOOKS_HEAD = """\
# Hooks

A plugin is a module or an object. An entry point of the group `quorate` names it. It implements hooks: functions marked
with `quorate.hookimpl`. The verb in a hook's name tells how the hook is called.

| verb | how it is called |
|---|---|
| `register` | once, into a catalogue; users choose from it by name |
| `decide` | the first answer that is not `None` wins; the core answers last |
| `observe` | all plugins are called, and answers are ignored |

The hooks below are in the order in which a job calls them.

```mermaid
flowchart LR
    options[register_cli_options] --> environment[register_environment] --> registers
    registers[register_rendezvous, _starter, _health_check, ...]
    registers --> ranks[decide_ranks] --> launch[decide_launch] --> run((workers run))
    run -- a worker failed --> cause[decide_cause] --> restart[decide_restart] --> ranks
    run -- nodes wait --> rescale[decide_rescale] --> ranks
```

- Plugins are called in the alphabetical order of their entry-point names. So the order is the same on every host.
- An implementation may leave out trailing parameters that it does not need.
- A plugin with a misspelt hook is not used. A warning names the hook, and the job goes on. `quorate plugins` shows
  which plugins were loaded and which were not.
- If a plugin raises in a decision, or answers with the wrong type, a warning names the plugin. Then the next plugin is
  called, and after the last plugin the core. The job goes on.
- A plugin answers by what it returns. Decisions get copies of records, and a launch whose environment is read-only. An
  answer is copied too. A coroutine (`async def`) is not awaited but reported.
- A hook takes a second at most. If it takes longer when the agent is told to stop by a signal, it is interrupted by the
  exception `PluginInterrupted`, and reported. So are a service's `observe` and an event sink; `close` of a service has
  ten seconds.
- `QUORATE_DISABLE_PLUGINS=name,...` disables plugins.

The types in the examples are in `quorate.records` and `quorate.catalogue`. The examples are functions of a module.
Methods of an object work too. Tests call the examples. Their imports are in
[hook_examples.py](../core/tests/hook_examples.py).
"""

EVENTS_HEAD = """\
# Events

Observers (`quorate_observe_event`), services and the sink chosen with `--event-log-handler` receive the events of an
agent. An event has these fields:

| field | content |
|---|---|
| `name` | one of the names below (`quorate.events.EventName`) |
| `reason` | one sentence for people |
| `node_id` | the agent's id |
| `timestamp_ns` | wall time, for people |
| `details` | a record with typed fields; `details["round"]` reads the same as `details.round` |

| name | when | details |
|---|---|---|
"""

EVENTS_TAIL = """
`--event-log-handler=console` writes events to stderr as JSON lines. `null`, the default, writes no events. A plugin
offers more destinations with `quorate_register_event_sink`.

The agent also prints one line for each important event, whatever the destination of events. `QUORATE_LOG=quiet`
disables these lines. `QUORATE_LOG=debug` prints a line for every event.
"""


def facts_of(hook: Any) -> tuple[str, dict[str, str]]:
    """Return the text of a hook's docstring, and its facts."""
    text = (inspect.getdoc(hook) or "").replace("``", "`")
    body, _, rest = text.partition("\n\nCalled:")
    items: list[str] = []
    for line in ("Called:" + rest).splitlines():
        if line.startswith(" "):
            items[-1] += " " + line.strip()
        else:
            items.append(line)
    return body, {item.partition(":")[0]: item.partition(":")[2].strip() for item in items}


def example_of(hook: Any) -> str:
    return inspect.getsource(getattr(hook_examples, hook.__name__))


def render_hooks() -> str:
    parts = [HOOKS_HEAD]
    for hook in HOOKS:
        body, facts = facts_of(hook)
        rows = "\n".join(f"| **{name}** | {fact} |" for name, fact in facts.items())
        parts.append(
            f"## `{hook.__name__}`\n\n{body}\n\n| | |\n|---|---|\n{rows}\n\n```python\n{example_of(hook)}```\n"
        )
    parts.append(render_abilities())
    return "\n".join(parts)


def abilities() -> list[type]:
    """Return the protocols that the core asks a starter or a process context for besides the two that each has."""
    named = (getattr(starter, name) for name in starter.__all__)
    return [each for each in named if getattr(each, "_is_protocol", False) and each not in BASES]


def render_abilities() -> str:
    rows = []
    for ability in abilities():
        text = (inspect.getdoc(ability) or "").partition("\n\n")[0].replace("\n", " ").replace("``", "`")
        methods = ", ".join(
            f"`{name}({', '.join(list(inspect.signature(value).parameters)[1:])})`"
            for name, value in vars(ability).items()
            if inspect.isfunction(value) and not name.startswith("_")
        )
        rows.append(f"| `{ability.__name__}` | {text} | {methods} |")
    return ABILITIES_HEAD + "\n".join(rows) + "\n"


def render_events() -> str:
    rows = []
    for name in EventName:
        record: Any = name.details
        types = get_type_hints(record)
        details = ", ".join(f"`{own.name}` ({_type_name(types[own.name])})" for own in fields(record))
        when = " ".join((record.__doc__ or "").split()).rstrip(".").replace("``", "`")
        rows.append(f"| `{name}` | {when[0].lower()}{when[1:]} | {details} |")
    return EVENTS_HEAD + "\n".join(rows) + "\n" + EVENTS_TAIL


def _type_name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not hasattr(kind, "__args__") else str(kind).replace("|", "or")


PAGES = {"hooks.md": render_hooks, "events.md": render_events}


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_what_the_code_says(page: str) -> None:
    assert (DOCS / page).read_text(encoding="utf-8") == PAGES[page]()


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.__name__)
def test_every_hook_says_when_where_and_what_if(hook: Any) -> None:
    assert tuple(facts_of(hook)[1]) == FACTS
    parameters = inspect.signature(hook).parameters.values()
    assert len(parameters) <= 3
    assert all(p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty for p in parameters)


def test_every_event_has_details_of_its_own() -> None:
    assert [name.details.name for name in EventName] == list(EventName)
    assert {name.details.__name__ for name in EventName} == set(events.__all__) - {"EventName", "EventDetails"}


def test_details_are_read_by_name_and_by_key() -> None:
    details = events.RoundEndedDetails(3, Cause.SIGNAL, Verdict.RESTART, None, "alpha", 1)
    assert json.loads(json.dumps(dict(details))) == {
        "round": 3,
        "cause": "signal",
        "verdict": "restart",
        "rank": None,
        "host": "alpha",
        "restart_count": 1,
    }
    assert details["cause"] is details.cause
    assert len(details) == 6
    with pytest.raises(KeyError):
        details["name"]


# --- the examples ---------------------------------------------------------------------------------------------------

FAILURE = FailureRecord(0, 0, 7, 1, Cause.EXCEPTION, "no", 0, stderr_tail=("RuntimeError: CUDA out of memory.",))
NODES = [NodeRecord("one", "r", 1, host="b-1"), NodeRecord("two", "r", 1, host="a-1")]
LAUNCH = WorkerLaunch(1, 1, "r", "true", (), {}, "")
ASSIGNMENT = Assignment(0, "one", "r", 2, 0, 1, 0, 2, 0, 2, "127.0.0.1", 1)


@pytest.fixture
def host() -> Iterator[PluginHost]:
    sentences: list[str] = []
    plugin: ModuleType = hook_examples
    yield PluginHost(paths=[], extra=[("examples", plugin)], warn=sentences.append)
    assert sentences == []


def test_an_example_implements_each_hook_in_a_few_lines() -> None:
    for hook in HOOKS:
        lines = [line for line in example_of(hook).splitlines() if line]
        assert lines[0] == "@hookimpl"
        assert len(lines) <= 8, hook.__name__
        assert inspect.signature(getattr(hook_examples, hook.__name__)) == inspect.signature(hook)


@pytest.mark.parametrize("kind", PluginKind)
def test_what_the_examples_offer_is_taken(host: PluginHost, kind: PluginKind) -> None:
    (name,) = host.catalogue(kind)
    assert host.choose(kind, name).name == name


def test_what_the_examples_decide_counts(host: PluginHost) -> None:
    assert host.decide("ranks", NODES, ["", ""]) == ["two", "one"]
    assert host.decide("waiting", RendezvousWaiting(0, 700.0, nodes=1, missing=3)) is False
    assert host.decide("rescale", RoundSummary(1, 1, 1, 1, 2, 0), 1) is False
    assert host.decide("launch", LAUNCH, ASSIGNMENT).environment == {"GLOO_SOCKET_IFNAME": "eth1"}
    assert host.decide("cause", FAILURE) is Cause.OUT_OF_MEMORY
    decision = host.decide("restart", FAILURE, RestartBudget(0, 3))
    assert (type(decision), decision.verdict) == (RestartDecision, Verdict.RESTART)


def test_what_the_examples_observe_is_printed(host: PluginHost, capsys: pytest.CaptureFixture[str]) -> None:
    details = events.RoundEndedDetails(3, Cause.SIGNAL, Verdict.RESTART, 0, "alpha", 1)
    host.observe(Event(details.name, "rank 0 failed", details=details))
    assert capsys.readouterr().err == "round 3 ended by signal\n"


if __name__ == "__main__" and "--rewrite" in sys.argv:
    for page, render in PAGES.items():
        (DOCS / page).write_text(render(), encoding="utf-8")
