"""How hooks are called: wrappers, the order, decisions, observers, and answers that cannot be used."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from attrs import evolve
from core.tests.conftest import GOOD, Tree, deciding

from quorate import QuorateError, hookimpl
from quorate.catalogue import EventSink, PluginKind
from quorate.records import (
    Assignment,
    Cause,
    Event,
    FailureRecord,
    NodeRecord,
    RestartBudget,
    RestartDecision,
    RoundSummary,
    Verdict,
    WorkerLaunch,
)

# --- pluggy's own options -----------------------------------------------------------------------------------------


def test_a_wrapper_may_change_what_others_offer(tree: Tree) -> None:
    class Wrapper:
        @hookimpl(wrapper=True)
        def quorate_register_event_sink(self) -> Iterator[Any]:
            offered = yield
            return [[evolve(sink, summary="wrapped") for sink in sinks] for sinks in offered]

    tree.install("good-plug", GOOD.format(sink="good"))
    host = tree.host(extra=[("wrapper", Wrapper())])
    assert host.choose(PluginKind.EVENT_SINK, "good").summary == "wrapped"
    assert [plugin.found.name for plugin, _, _ in host.offers()] == ["good-plug"]


def test_a_wrapper_may_overrule_a_decision(tree: Tree) -> None:
    class Wrapper:
        @hookimpl(wrapper=True)
        def quorate_decide_rescale(self, summary: RoundSummary) -> Iterator[Any]:
            answer = yield
            return not answer

    host = tree.host(extra=[("a", deciding(lambda: True)), ("wrapper", Wrapper())])
    assert host.decide("rescale", RoundSummary(1, 2, 2, 1, 2, 0), 1) is False


@pytest.mark.parametrize(("option", "order"), [("tryfirst", ["b", "a", "c"]), ("trylast", ["a", "c", "b"])])
def test_an_observer_may_ask_to_be_called_first_or_last(tree: Tree, option: str, order: list[str]) -> None:
    heard: list[str] = []

    def observer(name: str, **options: bool) -> tuple[str, Any]:
        class Plugin:
            @hookimpl(**options)
            def quorate_observe_event(self) -> None:
                heard.append(name)

        return name, Plugin()

    host = tree.host(extra=[observer("a"), observer("b", **{option: True}), observer("c")])
    host.observe(Event("one", "because"))
    assert heard == order


def test_the_first_answer_in_alphabetical_order_wins_and_the_core_answers_last(tree: Tree) -> None:
    summary = RoundSummary(1, 2, 2, 1, 2, 0)
    asked: list[str] = []

    def answering(name: str, value: bool | None) -> tuple[str, Any]:
        def answer() -> bool | None:
            asked.append(name)
            return value

        return name, deciding(answer)

    host = tree.host(extra=[answering("c", False), answering("a", None), answering("b", True)])
    assert host.decide("rescale", summary, 1) is True
    assert asked == ["a", "b"]
    full = tree.host()
    assert full.decide("rescale", summary, 1) is False
    assert full.decide("rescale", RoundSummary(1, 1, 1, 1, 2, 0), 1) is True


ROUND = RoundSummary(1, 1, 1, 1, 2, 0)


NODES = [NodeRecord("a", "r", 1), NodeRecord("b", "r", 1)]


LAUNCH = WorkerLaunch(0, 0, "r", "true", (), {}, "")


ASSIGNMENT = Assignment(0, "a", "r", 1, 0, 1, 0, 1, 0, 1, "127.0.0.1", 1)


FAILURE = FailureRecord(0, 0, 7, -9, Cause.SIGNAL, "killed", 0)


def raising() -> Any:
    raise OSError("scheduler gone")


def test_a_decision_that_raises_is_reported_once_and_the_next_plugin_is_asked(tree: Tree) -> None:
    """Both plugins have the same code, and the second one would raise if it were not asked on its own."""
    asked: list[str] = []

    def answer() -> bool:
        asked.append("b")
        return False

    host = tree.host(extra=[("a", deciding(raising)), ("b", deciding(answer))])
    assert host.decide("rescale", ROUND, 1) is False
    assert host.decide("rescale", ROUND, 1) is False
    assert asked == ["b", "b"]
    assert tree.sentences == [
        "plugin a: quorate_decide_rescale raised OSError: scheduler gone; the decision is made without it"
    ]
    assert list(host.misbehaving) == [("a", "quorate_decide_rescale")]


def test_the_cores_own_answer_is_always_left(tree: Tree) -> None:
    host = tree.host(extra=[(name, deciding(raising)) for name in ("a", "b", "c")])
    assert host.decide("rescale", ROUND, 1) is True
    assert [sentence.split()[1] for sentence in tree.sentences] == ["a:", "b:", "c:"]


def test_a_default_is_the_answer_where_nobody_else_gives_one(tree: Tree) -> None:
    class Raises:
        @hookimpl
        def quorate_decide_launch(self) -> Any:
            raise OSError("no NUMA here")

    host = tree.host(extra=[("a", Raises())])
    assert host.decide_or(LAUNCH, "launch", LAUNCH, ASSIGNMENT) is LAUNCH
    assert "no NUMA here" in tree.sentences[0]


def test_what_the_core_raises_is_raised(tree: Tree) -> None:
    """A duplicate node rank is the caller's mistake, whatever plugins think of it."""
    twins = [evolve(node, rank_hint=0) for node in NODES]

    class Silent:
        @hookimpl
        def quorate_decide_ranks(self) -> None:
            return None

    with pytest.raises(QuorateError):
        tree.host(extra=[("a", Silent())]).decide("ranks", twins, [])


def test_a_wrapper_that_raises_is_left_out_and_the_wrapped_answer_counts(tree: Tree) -> None:
    class Wrapper:
        @hookimpl(wrapper=True)
        def quorate_decide_rescale(self) -> Iterator[Any]:
            yield
            raise OSError("after")

    host = tree.host(extra=[("a", deciding(lambda: False)), ("wrapper", Wrapper())])
    assert host.decide("rescale", ROUND, 1) is False
    assert list(host.misbehaving) == [("wrapper", "quorate_decide_rescale")]


def test_one_that_raises_within_a_wrapper_is_told_from_the_wrapper(tree: Tree) -> None:
    class Wrapper:
        @hookimpl(wrapper=True)
        def quorate_decide_rescale(self) -> Iterator[Any]:
            answer = yield
            return not answer

    host = tree.host(extra=[("a", deciding(raising)), ("wrapper", Wrapper())])
    assert host.decide("rescale", ROUND, 1) is False, "the core says yes, the wrapper turns it round"
    assert list(host.misbehaving) == [("a", "quorate_decide_rescale")]


def test_the_plugin_that_raises_is_found_where_two_share_one_function(tree: Tree) -> None:
    """A traceback tells functions apart, not which of two plugins one of them was called for."""
    calls: list[str] = []

    def shared(summary: RoundSummary) -> bool:
        calls.append("call")
        return bool(raising())

    plugins = [type(name, (), {"quorate_decide_rescale": staticmethod(hookimpl(shared))}) for name in ("A", "B")]
    host = tree.host(extra=[("a", plugins[0]), ("b", plugins[1])])
    assert host.decide("rescale", ROUND, 1) is True
    assert [name for name, _ in host.misbehaving] == ["a", "b"]


@pytest.mark.parametrize(
    ("question", "arguments", "wrong", "default"),
    [
        ("ranks", (NODES, ["a", "b"]), ["a"], ["a", "b"]),
        ("ranks", (NODES, ["a", "b"]), ["a", "a"], ["a", "b"]),
        ("ranks", (NODES, ["a", "b"]), [1, 2], ["a", "b"]),
        ("ranks", (NODES, ["a", "b"]), "ab", ["a", "b"]),
        ("ranks", (NODES, ["a", "b"]), 7, ["a", "b"]),
        ("rescale", (ROUND, 1), "no", True),
        ("rescale", (ROUND, 1), 0, True),
        ("launch", (LAUNCH, ASSIGNMENT), "numactl", None),
        ("launch", (LAUNCH, ASSIGNMENT), evolve(LAUNCH, local_rank=1), None),
        ("cause", (FAILURE,), "signal", Cause.SIGNAL),
        ("restart", (FAILURE, RestartBudget(0, 0)), Verdict.RESTART, Verdict.FAILED),
        ("restart", (FAILURE, RestartBudget(0, 0)), True, Verdict.FAILED),
    ],
)
@pytest.mark.parametrize("by_wrapper", [False, True])
def test_an_answer_of_the_wrong_type_is_reported_and_the_next_one_counts(
    tree: Tree, question: str, arguments: tuple[Any, ...], wrong: Any, default: Any, by_wrapper: bool
) -> None:
    hook = f"quorate_decide_{question}"

    def answer() -> Any:
        return wrong

    def wrap() -> Iterator[Any]:
        yield
        return wrong

    marked = hookimpl(wrapper=True)(wrap) if by_wrapper else hookimpl(answer)
    host = tree.host(extra=[("odd", type("Plugin", (), {hook: staticmethod(marked)}))])
    for _ in range(2):
        found = host.decide(question, *arguments)
        assert getattr(found, "verdict", found) == default
    (sentence,) = tree.sentences
    assert sentence.startswith(f"plugin odd: {hook} answered ")


@pytest.mark.parametrize("decision", [("restart",), (Verdict.RESTART, 7), (Verdict.RESTART, "", float("inf"))])
def test_a_restart_decision_checks_itself(decision: tuple[Any, ...]) -> None:
    with pytest.raises((TypeError, ValueError)):
        RestartDecision(*decision)


def test_an_observer_that_raises_is_reported_once_and_not_called_again(tree: Tree) -> None:
    heard: list[str] = []

    class Bad:
        @hookimpl
        def quorate_observe_event(self, event: Event) -> None:
            raise OSError("disk full")

    class Good:
        @hookimpl
        def quorate_observe_event(self, event: Event) -> None:
            heard.append(event.name)

    host = tree.host(extra=[("bad", Bad()), ("good", Good())])
    assert host.has_observers()
    assert not tree.host().has_observers()
    for name in ("one", "two"):
        host.observe(Event(name, "because"))
    assert heard == ["one", "two"]
    assert len(tree.sentences) == 1
    assert "disk full" in tree.sentences[0]


# --- wrappers that misbehave, and other spellings of a hook ---------------------------------------------------------


class _Sink:
    @hookimpl
    def quorate_register_event_sink(self) -> list[EventSink]:
        return [EventSink("own", "summary", print)]


class _Hears:
    def __init__(self) -> None:
        self.heard: list[str] = []

    @hookimpl
    def quorate_observe_event(self, event: Event) -> None:
        self.heard.append(event.name)


def _no_answer() -> Iterator[Any]:
    yield


def _one_more_answer() -> Iterator[Any]:
    answers = yield
    return [*answers, [EventSink("more", "summary", print)]]


def _raises_before() -> Iterator[Any]:
    raise OSError("before")
    yield


def _raises_after() -> Iterator[Any]:
    yield
    raise OSError("after")


def wrapping(hook: str, function: Any, **options: bool) -> tuple[str, Any]:
    marked = hookimpl(**(options or {"wrapper": True}))(function)
    return "wrapper", type("Plugin", (), {hook: staticmethod(marked)})


@pytest.mark.parametrize("function", [_raises_before, _raises_after, _no_answer, _one_more_answer])
def test_a_wrapper_of_offers_that_misbehaves_is_left_out_and_the_wrapped_plugins_keep_theirs(
    tree: Tree, function: Any
) -> None:
    hook = "quorate_register_event_sink"
    host = tree.host(extra=[("sink", _Sink()), wrapping(hook, function)])
    assert list(host.catalogue(PluginKind.EVENT_SINK)) == ["own"]
    assert host.broken == []
    assert list(host.misbehaving) == [("wrapper", hook)]
    (sentence,) = tree.sentences
    assert sentence.startswith(f"plugin wrapper: {hook} ")


@pytest.mark.parametrize("function", [_raises_before, _raises_after])
@pytest.mark.parametrize("option", ["wrapper", "hookwrapper"])
@pytest.mark.filterwarnings("error")  # pluggy's own, of an old-style wrapper, is no further report
def test_a_wrapper_of_observers_that_raises_costs_no_observer_its_events(
    tree: Tree, function: Any, option: str
) -> None:
    observers = _Hears(), _Hears()
    wrapper = wrapping("quorate_observe_event", function, **{option: True})
    host = tree.host(extra=[("a", observers[0]), wrapper, ("z", observers[1])])
    for name in ("one", "two"):
        host.observe(Event(name, "because"))
    assert [list(dict.fromkeys(each.heard)) for each in observers] == [["one", "two"]] * 2
    (sentence,) = tree.sentences
    assert sentence.startswith("plugin wrapper: quorate_observe_event raised OSError: ")


def test_an_observer_that_only_wraps_sees_every_event_once(tree: Tree) -> None:
    seen: list[str] = []

    def wrap(event: Event) -> Iterator[Any]:
        seen.append(event.name)
        return (yield)

    host = tree.host(extra=[wrapping("quorate_observe_event", wrap)])
    assert host.has_observers()
    host.observe(Event("one", "because"))
    assert seen == ["one"]


def test_a_plugin_may_answer_a_hook_by_two_functions(tree: Tree) -> None:
    class Plugin(_Sink):
        @hookimpl(specname="quorate_register_event_sink")
        def more_sinks(self) -> list[EventSink]:
            return [EventSink("more", "summary", print)]

    assert sorted(tree.host(extra=[("two", Plugin())]).catalogue(PluginKind.EVENT_SINK)) == ["more", "own"]


def test_a_hook_of_a_later_version_may_be_optional(tree: Tree) -> None:
    class Plugin(_Sink):
        @hookimpl(optionalhook=True)
        def quorate_decide_what_comes_later(self) -> None:
            pass

    host = tree.host(extra=[("early", Plugin())])
    assert tree.sentences == []
    assert list(host.catalogue(PluginKind.EVENT_SINK)) == ["own"]


def test_a_class_whose_hooks_need_an_instance_is_not_a_plugin(tree: Tree) -> None:
    host = tree.host(extra=[("sink", _Sink)])
    assert [broken.found.name for broken in host.broken] == ["sink"]
    assert tree.sentences == [
        "plugin sink is not used: it is a class, and quorate_register_event_sink needs an instance; "
        "name an instance in the entry point"
    ]
