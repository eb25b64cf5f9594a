"""Asks the hooks ``quorate_decide_…``, so that a plugin that misbehaves costs only its own answer.

A plugin that raises, or whose answer is not of the hook's type, is reported once for each hook, and the others are
asked again without it.  What does not live here: finding and registering plugins (:mod:`quorate.plugins`), and the
search for the plugin that has raised (:mod:`quorate._poll`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from types import MappingProxyType
from typing import Any, final

from attrs import evolve, frozen
from pluggy import PluginManager

from ._isolation import described, raise_if_interrupted, shown
from ._plain import plain_copy, plain_record
from ._poll import Poll
from .records import Assignment, Cause, FailureRecord, RestartDecision, Verdict, WorkerLaunch, WorkerLogs
from .text import is_environment, is_passable

_Arguments = Sequence[Any]
#: CPUs and memory nodes that a machine may have.
_MOST_PLACES = 1 << 16


@final
class DecisionMaker:
    """The decisions of one plugin manager.

    Arguments:
        manager: has the plugins, the core's own among them.
        warn: called with one sentence for each plugin and hook that misbehaves.
    """

    def __init__(self, manager: PluginManager, warn: Callable[[str], None]) -> None:
        self._manager, self._warn = manager, warn
        self.misbehaving: dict[tuple[str, str], str] = {}  # (plugin's name, hook) -> sentence

    def decide(self, question: str, arguments: _Arguments) -> Any:
        """Return the first good answer, ``None`` if no plugin gives one.

        Raises only what the core's own answer raises.
        """
        poll = Poll(self._manager, f"quorate_decide_{question}", [_copy_for_plugins(each) for each in arguments])
        kind = _KINDS[question]

        def is_wrong(answer: Any) -> bool:
            return answer is not None and bool(_take(kind, answer, arguments)[1])

        while True:
            try:
                answer = poll.ask()
            except BaseException as error:
                raise_if_interrupted(error)
                culprit = poll.culprit(error)
                if culprit is None:
                    raise
                problem = f"raised {described(error)}"
                if poll.wraps(culprit) and (wrapped := poll.find(is_wrong)) not in (None, culprit):
                    culprit, problem = wrapped, f"gave an answer that cannot be read: {described(error)}"
            else:
                if answer is None:
                    return None
                taken, problem = _take(kind, answer, arguments)
                if not problem:
                    return taken
                culprit = poll.find(is_wrong)
                if culprit is None:
                    return None  # asked again, no plugin gives the wrong answer
            poll.left_out.append(culprit)
            self.report(poll.hook, culprit, f"{problem}; the decision is made without it")

    def report(self, hook: str, plugin: Any, problem: str) -> None:
        """Warn of a plugin that misbehaves in ``hook``, once for each plugin and hook."""
        name = self._manager.get_name(plugin) or repr(plugin)
        if (name, hook) not in self.misbehaving:
            sentence = f"plugin {name}: {hook} {problem}"
            self.misbehaving[name, hook] = sentence
            self._warn(sentence)


# --- what answers have to be ----------------------------------------------------------------------------------------


def _copy_for_plugins(argument: Any) -> Any:
    """Return a copy of an argument that a plugin cannot change: it answers by what it returns."""
    if isinstance(argument, WorkerLaunch):
        return evolve(argument, environment=MappingProxyType(dict(argument.environment)))
    if isinstance(argument, (FailureRecord, Assignment)):
        return evolve(argument)
    return tuple(argument) if isinstance(argument, list) else argument


_Check = Callable[[Any, _Arguments], str]


@final
@frozen
class _Kind:
    """What answers to one question have to be.

    Attributes:
        check: returns what is wrong with an answer, "" if it is right.
        copy: returns an answer that is read once and then as a whole, of plain types.
    """

    check: _Check
    copy: Callable[[Any, _Arguments], Any] = lambda answer, arguments: answer


def _take(kind: _Kind, answer: Any, arguments: _Arguments) -> tuple[Any, str]:
    """Return a copy of an answer, and what is wrong with it, ``""`` if nothing is.

    The answer's own methods may raise anything, and answer otherwise when they are called again, so only the copy is
    checked and used.
    """
    try:
        copy = kind.copy(answer, arguments)
        return copy, kind.check(copy, arguments)
    except BaseException as error:
        raise_if_interrupted(error)
        return None, f"answered {shown(answer)}, which cannot be read: {described(error)}"


def _copy_order(answer: Any, arguments: _Arguments) -> Any:
    if isinstance(answer, (str, bytes)) or not isinstance(answer, Sequence):
        return answer
    return plain_copy(list(islice(answer, len(arguments[0]) + 1)))  # it need not end


def _copy_launch(answer: Any, arguments: _Arguments) -> Any:
    if not isinstance(answer, WorkerLaunch):
        return answer
    copy = plain_record(WorkerLaunch, answer)
    if isinstance(copy.cpus, (list, tuple, set)):
        copy = evolve(copy, cpus=frozenset(copy.cpus))
    if isinstance(copy.entrypoint, str):  # the arguments of a function are the user's own objects
        copy = evolve(copy, args=plain_copy(copy.args))
    return copy


def _copy_restart(answer: Any, arguments: _Arguments) -> Any:
    return plain_record(RestartDecision, answer) if isinstance(answer, RestartDecision) else answer


def _is_a(kind: type) -> _Check:
    def check(answer: Any, arguments: _Arguments) -> str:
        return "" if isinstance(answer, kind) else f"answered {shown(answer)}, which is not a {kind.__name__}"

    return check


def _check_order(answer: Any, arguments: _Arguments) -> str:
    """Every node id of the round, each once."""
    if isinstance(answer, (str, bytes)) or not isinstance(answer, Sequence):
        return f"answered {shown(answer)}, which is not a sequence of node ids"
    wanted = sorted(node.node_id for node in arguments[0])
    if len(answer) != len(wanted) or not all(type(each) is str for each in answer) or sorted(answer) != wanted:
        return f"answered {shown(answer)}, which does not name each node once"
    return ""


def _check_launch(answer: Any, arguments: _Arguments) -> str:
    problem = _is_a(WorkerLaunch)(answer, arguments)
    if problem:
        return problem
    asked = arguments[0]
    for name in ("local_rank", "rank", "role"):
        given, wanted = getattr(answer, name), getattr(asked, name)
        if type(given) is not type(wanted) or given != wanted:
            place = name.replace("_", " ")
            return f"answered for {place} {shown(getattr(answer, name))} instead of {getattr(asked, name)}"
    for name, is_good in _LAUNCH_FIELDS.items():
        if not is_good(getattr(answer, name)):
            return f"answered a WorkerLaunch whose {name} is {shown(getattr(answer, name))}"
    is_command = isinstance(answer.entrypoint, str)
    if is_command and not all(isinstance(each, str) and "\0" not in each for each in answer.args):
        return "answered a WorkerLaunch whose args are not all texts without a NUL, as a command needs them"
    # Most of an environment is the user's own, and some of it secret.
    if not isinstance(answer.environment, Mapping):
        return f"answered a WorkerLaunch whose environment is a {type(answer.environment).__name__}, not a mapping"
    for name, text in answer.environment.items():
        if not is_environment({name: text}):
            kind = type(text).__name__
            return (
                f"answered a WorkerLaunch whose environment has {shown(name)} of type {kind}, which cannot be passed on"
            )
    return ""


def _is_number_of_place(value: Any) -> bool:
    """Return whether ``value`` can be the number of a CPU, or of a memory node."""
    return type(value) is int and 0 <= value < _MOST_PLACES


#: Field -> whether a starter can use a value of it.
_LAUNCH_FIELDS: Mapping[str, Callable[[Any], bool]] = {
    "entrypoint": lambda value: (value != "" and is_passable(value)) or callable(value),
    "args": lambda value: isinstance(value, tuple),
    "error_file": is_passable,
    "logs": lambda value: isinstance(value, WorkerLogs),
    "cpus": lambda value: value is None or (isinstance(value, frozenset) and all(map(_is_number_of_place, value))),
    "memory_node": lambda value: value is None or _is_number_of_place(value),
}
#: What happens to rounds and jobs, not to a worker that failed.
_NOT_OF_WORKERS = frozenset(
    {
        Cause.SUCCEEDED,
        Cause.NODE_JOINED,
        Cause.NODE_LEFT,
        Cause.NODE_LOST,
        Cause.TOO_FEW_NODES,
        Cause.STORE_LOST,
        Cause.STOPPED,
    }
)


def _check_cause(answer: Any, arguments: _Arguments) -> str:
    problem = _is_a(Cause)(answer, arguments)
    if not problem and answer in _NOT_OF_WORKERS:
        problem = f"answered {answer.value!r}, by which no worker fails"
    return problem


def _check_restart(answer: Any, arguments: _Arguments) -> str:
    problem = _is_a(RestartDecision)(answer, arguments)
    if not problem and answer.verdict is Verdict.SUCCEEDED:
        problem = "answered that the job has succeeded, although a worker failed"
    budget = arguments[1]
    if not problem and answer.verdict is Verdict.RESTART and not budget.remaining:
        problem = f"answered a restart, and none is left of {budget.allowed}"
    return problem


#: question -> what its answers have to be
_KINDS: Mapping[str, _Kind] = {
    "ranks": _Kind(_check_order, _copy_order),
    "rescale": _Kind(_is_a(bool)),
    "waiting": _Kind(_is_a(bool)),
    "launch": _Kind(_check_launch, _copy_launch),
    "cause": _Kind(_check_cause),
    "restart": _Kind(_check_restart, _copy_restart),
}
