"""What plugins answer is copied into plain types: a class of the plugin's own cannot answer otherwise later, or raise.

The objects here are right at first sight: their classes derive from the right ones.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from core.tests.test_hook_answers import ARGUMENTS, HOOKS, LAUNCH, ask, plugin_of, run_with_plugin

from quorate import PluginHost, hookimpl, hookspecs
from quorate._isolation import call_here, call_plugin, checked_answer, described, problem_of, shown
from quorate._plain import plain_copy, plain_record
from quorate.agent._guarded_context import GuardedContext
from quorate.agent._guarded_handler import GuardedHandler
from quorate.catalogue import PluginKind, ServiceBackend
from quorate.clusters import ClusterJob
from quorate.errors import PluginError, QuorateError
from quorate.records import Cause, FailureRecord, RestartBudget, RestartDecision, RoundEnd, Verdict, WorkerExited


def _raise(*arguments: Any) -> Any:
    raise SystemExit(9)


class Text(str):
    isprintable = __len__ = __getitem__ = __format__ = __str__ = __repr__ = _raise
    __eq__ = __ne__ = __lt__ = __bool__ = __iter__ = __contains__ = _raise
    __hash__ = _raise


class Number(int):
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __add__ = __index__ = __repr__ = _raise
    __hash__ = _raise


class Seconds(float):
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __sub__ = __rsub__ = __repr__ = _raise
    __hash__ = _raise


class List(list[Any]):
    __iter__ = __len__ = __getitem__ = _raise


class Mapping(dict[Any, Any]):
    __iter__ = __len__ = __getitem__ = keys = items = values = get = _raise


class Code(IntEnum):
    BAD = 3


def hook(name: str, function: Callable[..., Any]) -> Any:
    """Return a plugin whose implementation of ``quorate_<name>`` is ``function``."""
    parameters = ", ".join(inspect.signature(getattr(hookspecs, f"quorate_{name}")).parameters)
    space: dict[str, Any] = {"function": function}
    exec(f"def quorate_{name}({parameters}): return function({parameters})", space)
    return type("Plugin", (), {f"quorate_{name}": staticmethod(hookimpl(space[f"quorate_{name}"]))})()


def forms_of(value: Any) -> list[type]:
    """Return the types of ``value`` and of all that it contains."""
    inside = list(value.items()) if type(value) is dict else value if type(value) in (list, tuple) else ()
    return [type(value), *(form for item in inside for form in forms_of(item))]


def test_a_copy_has_plain_types_all_through() -> None:
    odd = List([Text("a"), (Number(1), Seconds(1.5)), Mapping({"k": List([Text("b")])}), Code.BAD, Cause.HANG])
    copy = plain_copy(odd)
    assert copy == ["a", (1, 1.5), {"k": ["b"]}, 3, Cause.HANG]
    assert set(forms_of(copy)) == {list, str, tuple, int, float, dict, Cause}


def test_objects_and_the_values_of_users_are_not_copied() -> None:
    value, result = object(), List([1])
    assert plain_copy([value])[0] is value
    assert plain_record(WorkerExited, WorkerExited(0, 1, 0, 0, return_value=result)).return_value is result
    assert plain_record(type(LAUNCH), evolve(LAUNCH, args=(result,))).args[0] is result


def test_a_copy_is_bounded() -> None:
    class Endless(Sequence[int]):
        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: Any) -> Any:
            return 1

        def __iter__(self) -> Iterator[int]:
            while True:
                yield 1

    inner: list[Any] = []
    inner += [inner, inner]  # itself
    for answer in (Endless(), inner, [Endless()]):
        with pytest.raises((ValueError, RecursionError)):
            plain_copy(answer)


def test_nothing_that_a_plugin_raises_or_answers_keeps_an_error_from_being_described() -> None:
    class Names(type):
        def __getattribute__(cls, name: str) -> Any:
            return _raise() if name == "__name__" else type.__getattribute__(cls, name)

    class OddError(QuorateError, metaclass=Names):
        def __str__(self) -> str:
            return Text("odd")

    class Answer(metaclass=Names):
        __repr__ = _raise

    assert described(OddError()) == "OddError: odd"
    assert problem_of(OddError()) == "odd"
    assert shown(Answer()) == "a Answer"
    assert shown(Text("x")) == "a Text"
    assert checked_answer("it", lambda answer: answer == "x", "right", lambda: Text("x")) == "x"


@pytest.mark.parametrize("name", [name for name in HOOKS if not name.startswith("quorate_observe")])
def test_objects_of_derived_classes_cost_only_their_own_plugin(name: str) -> None:
    for deed in (lambda: Text("x"), lambda: List([1]), lambda: Mapping({1: 2}), lambda: Number(1)):
        sentences: list[str] = []
        host = PluginHost([], (), [("bad", plugin_of(name, deed))], sentences.append)
        assert ask(host, name) == ask(PluginHost([], ()), name)
        assert len(sentences) == 1
        assert "bad" in sentences[0]


def test_names_and_records_that_plugins_offer_are_plain() -> None:
    class Derived(ServiceBackend):  # type: ignore[misc] # plugins need not heed what is final
        pass

    offers = [ServiceBackend(_Late("one"), "s", str), Derived("two", "s", str)]
    host = PluginHost([], (), [("odd", hook("register_service", lambda: offers))])
    assert set(host.catalogue(PluginKind.SERVICE)) == {"one", "two"}
    assert {type(record) for record in host.catalogue(PluginKind.SERVICE).values()} == {ServiceBackend}


class _Late(str):
    """Raises when it is compared or hashed, which no check of an attrs class does."""

    __eq__ = __hash__ = _raise


@pytest.mark.parametrize("wrong", [ServiceBackend.__new__(ServiceBackend)])
def test_a_record_without_values_costs_only_its_own_plugin(wrong: Any) -> None:
    sentences: list[str] = []
    plugins = [("odd", hook("register_service", lambda: [wrong])), ("good", hook("register_service", _good_services))]
    host = PluginHost([], (), plugins, sentences.append)
    assert set(host.catalogue(PluginKind.SERVICE)) == {"good"}
    assert re.fullmatch("plugin odd: quorate_register_service raised AttributeError: .*", sentences[0])


def _good_services() -> list[ServiceBackend]:
    return [ServiceBackend("good", "s", str)]


def test_a_wrapper_is_blamed_for_what_it_has_made_of_the_answers_of_others() -> None:
    for change in (List, lambda answers: [3], lambda answers: [[3]]):

        class Wrapper:
            @hookimpl(wrapper=True)
            def quorate_register_service(self, change: Any = change) -> Any:
                return change((yield))

        sentences: list[str] = []
        plugins = [("good", hook("register_service", _good_services)), ("odd", Wrapper())]
        host = PluginHost([], (), plugins, sentences.append)
        assert set(host.catalogue(PluginKind.SERVICE)) == {"good"}
        assert all("odd" in sentence for sentence in sentences)


def test_what_a_plugin_registers_besides_has_a_name_in_messages() -> None:
    host = PluginHost([], ())
    host._manager.register(hook("register_service", lambda: 3), "second")
    assert host.catalogue(PluginKind.SERVICE) == {}
    assert [broken.found.name for broken in host.broken] == ["second"]


# --- coroutines, and arguments that are changed -----------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
def test_a_coroutine_is_refused_where_its_answer_would_be_ignored() -> None:
    async def coroutine(*arguments: Any) -> None: ...

    for call in (call_here, lambda function: call_plugin("it", function)):
        with pytest.raises((TypeError, PluginError), match="write def in the place of async def"):
            call(coroutine)
    sentences: list[str] = []
    host = PluginHost([], (), [("odd", plugin_of("quorate_observe_event", coroutine))], sentences.append)
    for _ in range(2):
        host.observe(ARGUMENTS["event"])
    assert len(sentences) == 1
    assert "observer odd raised TypeError: it is a coroutine" in sentences[0]


def test_a_plugin_answers_by_what_it_returns_not_by_changing_what_it_is_given() -> None:
    def change(launch: Any, assignment: Any) -> None:
        object.__setattr__(assignment, "restart_count", "x")
        object.__setattr__(launch, "args", 3)
        launch.environment.clear()

    sentences: list[str] = []
    launch = evolve(LAUNCH, environment={"A": "1"})
    host = PluginHost([], (), [("odd", hook("decide_launch", change))], sentences.append)
    assert host.decide("launch", launch, ARGUMENTS["assignment"]) is None
    assert (launch.environment, launch.args) == ({"A": "1"}, ())
    assert ARGUMENTS["assignment"].restart_count == 0
    assert "odd" in sentences[0]


def test_a_policy_restarts_no_more_often_than_is_allowed() -> None:
    sentences: list[str] = []
    answer = RestartDecision(Verdict.RESTART, "again")
    host = PluginHost([], (), [("odd", hook("decide_restart", lambda failure, budget: answer))], sentences.append)
    assert host.decide("restart", ARGUMENTS["failure"], RestartBudget(0, 1)).verdict is Verdict.RESTART
    assert sentences == []
    assert host.decide("restart", ARGUMENTS["failure"], RestartBudget(1, 1)).verdict is Verdict.FAILED
    assert "plugin odd: quorate_decide_restart answered a restart, and none is left of 1" in sentences[0]


# --- process contexts, handlers, schedulers ---------------------------------------------------------------------------

GOOD_EXIT = WorkerExited(0, 1, 1, 0)
ODD_EXITS: dict[str, Any] = {
    "a code that is a text": evolve(GOOD_EXIT, exit_code="0"),
    "no code": evolve(GOOD_EXIT, exit_code=None),
    "a code of 5000 digits": evolve(GOOD_EXIT, exit_code=10**5000),
    "a code that is a bool": evolve(GOOD_EXIT, exit_code=True),
    "a rank that is a text": evolve(GOOD_EXIT, local_rank="0"),
    "a time that no clock shows": evolve(GOOD_EXIT, timestamp_ns=10**40),
    "a time before all times": evolve(GOOD_EXIT, timestamp_ns=-(10**25)),
    "a time that is not a number": evolve(GOOD_EXIT, timestamp_ns=float("nan")),
    "lines that are a number": evolve(GOOD_EXIT, stderr_tail=3),
    "lines of bytes": evolve(GOOD_EXIT, stderr_tail=(b"x",)),
    "a problem that is a number": evolve(GOOD_EXIT, problem=3),
    "a record without values": WorkerExited.__new__(WorkerExited),
}


class Context:
    """A process context of one worker; a test replaces what it answers."""

    def __init__(self, **answers: Callable[[], Any]) -> None:
        self.answers = answers

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in ("fileno", "wake_at", "advance", "is_gone", "pids", "stop", "close"):
            raise AttributeError(name)
        return lambda *arguments: self.answers[name]()


@pytest.mark.parametrize("name", ODD_EXITS)
def test_every_field_of_a_workers_end_is_checked(name: str) -> None:
    context = GuardedContext("odd", Context(advance=lambda: [ODD_EXITS[name]]))
    with pytest.raises(PluginError, match=r"^start method 'odd': advance\(\) (answered|raised) "):
        context.advance(0.0)


def test_a_workers_end_is_copied() -> None:
    odd = List([WorkerExited(Number(0), Number(1), Number(1), Number(0), problem=Text("x"))])
    (exit,) = GuardedContext("odd", Context(advance=lambda: odd)).advance(0.0)
    assert exit == evolve(GOOD_EXIT, problem="x")


def test_a_descriptor_that_cannot_be_waited_for_is_refused(tmp_path: Path) -> None:
    closed = os.dup(0)
    os.close(closed)
    with open(tmp_path / "file", "w") as regular:
        for number in (-1, 10**30, True, closed, regular.fileno()):
            with pytest.raises(PluginError, match=r"^start method 'odd': fileno\(\) answered"):
                GuardedContext("odd", Context(fileno=lambda number=number: number)).fileno()


@pytest.mark.parametrize("time", [float("nan"), 10**400, True, "1"])
def test_a_time_that_is_not_one_is_refused(time: Any) -> None:
    with pytest.raises(PluginError, match=r"^start method 'odd': wake_at\(\)"):
        GuardedContext("odd", Context(wake_at=lambda: time)).wake_at()


FAILURE = FailureRecord(0, 0, 1, 1, Cause.EXIT_CODE, "", 0)
END = RoundEnd(0, Cause.EXIT_CODE, Verdict.FAILED, "x")


@pytest.mark.parametrize(
    "end",
    [
        evolve(END, grace_seconds=float("nan")),
        evolve(END, missing=5),
        evolve(END, lost=3),
        evolve(END, host=3),
        evolve(END, failure=3),
        evolve(END, is_final="yes"),
        evolve(END, signal_number=10**400),
        evolve(END, failure=evolve(FAILURE, timestamp_ns=None)),
        evolve(END, failure=evolve(FAILURE, stderr_tail=3)),
    ],
    ids=repr,
)
def test_every_field_of_an_end_that_a_handler_tells_is_checked(end: RoundEnd) -> None:
    class Handler:
        def get_backend(self) -> str:
            return "odd"

        def wait_for_change(self, timeout: float) -> RoundEnd:
            return end

    with pytest.raises(PluginError, match=r"^rendezvous backend 'odd': wait_for_change\(\)"):
        GuardedHandler(Handler()).wait_for_change(1.0)  # type: ignore[arg-type] # has what is called


def test_what_a_scheduler_says_is_bounded() -> None:
    for wrong in (True, 10**400, 0):
        with pytest.raises((TypeError, ValueError)):
            ClusterJob(scheduler="x", min_nodes=wrong)
    with pytest.raises(ValueError, match="SIGKILL cannot be a warning"):
        ClusterJob(scheduler="x", warnings=("SIGUSR1", "SIGKILL"))


# --- whole agents -----------------------------------------------------------------------------------------------------


CLOSED_HANDLER = """
from quorate import hookimpl
from quorate.errors import RendezvousClosedError
from quorate.rendezvous import RendezvousBackend, RendezvousHandler

class Handler(RendezvousHandler):
    def get_backend(self): return "odd"
    def next_rendezvous(self): raise RendezvousClosedError.__new__(RendezvousClosedError)
    def is_closed(self): return False
    def set_closed(self): pass
    def num_nodes_waiting(self): return 0
    def get_run_id(self): return "x"
    def shutdown(self): return True

@hookimpl
def quorate_register_rendezvous():
    return [RendezvousBackend("odd", "is wrong", open_handler=lambda parameters: Handler())]
"""


@pytest.mark.needs("quorate-process-local", "quorate-rendezvous-static")
def test_the_thread_that_waits_for_rounds_does_not_end_in_silence(tmp_path: Path) -> None:
    rendezvous = ("--nnodes=1", "--rdzv-backend=odd", "--rdzv-endpoint=x:1", "--rdzv-id=1")
    done = run_with_plugin(tmp_path, CLOSED_HANDLER, script="", rendezvous=rendezvous)
    assert done.returncode == 3, done.stderr
    assert "rendezvous backend 'odd': next_rendezvous() raised RendezvousClosedError" in done.stderr
    assert "Traceback" not in done.stderr
