"""PluginHost: finds, checks, orders and calls plugins.  The only caller of pluggy's hooks.

What does not live here: the hooks themselves (:mod:`quorate.hookspecs`), the records that plugins offer
(:mod:`quorate.catalogue`), how distributions are searched (:mod:`quorate._discovery`), and the core's own answers
(:mod:`quorate._core_plugin`).
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar, final

import pluggy
from attrs import evolve, field, frozen

from . import _core_plugin, hookspecs, notices
from ._decisions import DecisionMaker
from ._discovery import FoundPlugin, find_plugins
from ._isolation import call_here, described, raise_if_interrupted, shown
from ._offers import WrongAnswerError, answers_in, is_unreadable, records_in
from ._poll import Poll
from .catalogue import PluginKind
from .errors import DuplicatePluginError, PluginError, UnknownBackendError
from .files import read_bytes
from .records import Event

__all__ = [
    "BrokenPlugin",
    "FoundPlugin",
    "LoadedPlugin",
    "PluginHost",
    "PluginKind",
    "find_plugins",
    "get_host",
    "usual_package",
    "usual_packages_of_commands",
]

_T = TypeVar("_T")
_CORE = "quorate-core"
_PREFIX = "quorate_"
_KNOWN_PLUGINS = os.path.join(os.path.dirname(__file__), "known_plugins.txt")


@final
@frozen
class LoadedPlugin:
    """A plugin that was imported and registered.  ``offers`` are filled in by :meth:`PluginHost.described`."""

    found: FoundPlugin
    plugin: Any = field(repr=False)
    offers: tuple[tuple[PluginKind, str], ...] = ()


@final
@frozen
class BrokenPlugin:
    """A plugin that did not import or does not fit its hooks, with the original exception."""

    found: FoundPlugin
    error: BaseException


@final
@frozen
class _Offer:
    owner: LoadedPlugin
    record: Any


@final
class PluginHost:
    """The installed plugins of one process.

    Every hook is called through pluggy, so ``tryfirst``, ``trylast`` and wrappers mean what pluggy's documentation
    says.  Hooks that collect answers (``register``, ``observe``) are called once for each plugin, so that one plugin's
    exception costs only its own answer.  A wrapper therefore wraps each plugin's answer; one that raises is left out
    from then on, and what it wrapped is called again.

    Arguments:
        paths: where to look for distributions (default ``sys.path``).
        disabled: entry-point or distribution names to leave out (default ``QUORATE_DISABLE_PLUGINS``).
        extra: ``(name, plugin)`` pairs to register as well, for programs that have plugins of their own.
        warn: called with one sentence for each problem that is not fatal.
    """

    def __init__(
        self,
        paths: Sequence[str] | None = None,
        disabled: Iterable[str] | None = None,
        extra: Sequence[tuple[str, Any]] = (),
        warn: Callable[[str], None] | None = None,
    ) -> None:
        if disabled is None:
            disabled = os.environ.get("QUORATE_DISABLE_PLUGINS", "").split(",")
        #: Where to look for distributions; ``None``: on ``sys.path``.
        self.paths = paths
        self.disabled = frozenset(name.strip() for name in disabled if name.strip())
        self.loaded: list[LoadedPlugin] = []
        self.broken: list[BrokenPlugin] = []
        self._left_out: list[FoundPlugin] = []
        self._warn = warn or notices.warn
        self._catalogues: dict[PluginKind, dict[str, _Offer]] = {}
        self._failed: dict[str, list[Any]] = {}  # hook -> observers and wrappers that are not called again
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._manager.register(_core_plugin, _CORE)
        self._decisions = DecisionMaker(self._manager, self._warn)
        found = [(plugin, None) for plugin in find_plugins(paths)]
        found += [(FoundPlugin(name, "", "", ""), value) for name, value in extra]
        # pluggy calls the last one registered first: register in reverse for alphabetical order of the calls.
        for plugin, value in sorted(found, key=lambda pair: (pair[0].name, pair[0].distribution), reverse=True):
            if plugin.name in self.disabled or plugin.distribution in self.disabled:
                self._left_out.append(plugin)
            else:
                self._load(plugin, value)
        self.loaded.reverse()

    def _load(self, found: FoundPlugin, value: Any) -> None:
        name = _name_of(found)
        try:
            plugin = call_here(found.load) if value is None else value
        except BaseException as error:
            raise_if_interrupted(error)
            self._note_broken(found, error, f"plugin {name} could not be loaded: {described(error)}")
            return
        is_registered = False
        try:
            first = name if self._manager.has_plugin(name) else self._manager.get_name(plugin)
            if first is not None:
                raise PluginError(f"plugin {name} is not used: {first} is the same; remove one of the two entry points")
            is_registered = True
            self._manager.register(plugin, name)
            problem = self._problem_with(plugin)
            if problem:
                raise PluginError(f"plugin {name} is not used: it {problem}")
        except BaseException as error:
            raise_if_interrupted(error)
            if is_registered and self._manager.has_plugin(name):
                self._manager.unregister(name=name)
            sentence = (
                str(error)
                if type(error) is PluginError  # a plugin's own class need not have a text
                else f"plugin {name} could not be loaded: {described(error)}"
            )
            self._note_broken(found, error, sentence)
            return
        self.loaded.append(LoadedPlugin(found, plugin))

    def _problem_with(self, plugin: Any) -> str:
        """Return what is wrong with a registered plugin's hooks, ``""`` if nothing is."""
        names = {name for name in dir(plugin) if name.startswith(_PREFIX) and callable(getattr(plugin, name, None))}
        names = {name for name in names if hasattr(hookspecs, name) or not self._is_optional(plugin, name)}
        unknown = sorted(name for name in names if not hasattr(hookspecs, name))
        if unknown:
            return f"implements hooks that do not exist: {', '.join(unknown)}; docs/hooks.md has the names"
        unmarked = sorted(names.difference(self.hooks_of(plugin)))
        if unmarked:
            return f"does not mark {', '.join(unmarked)} as hooks; put @quorate.hookimpl before each of them"
        bound = sorted(name for name in names if isinstance(plugin, type) and _wants_an_instance(plugin, name))
        if bound:
            return f"is a class, and {', '.join(bound)} needs an instance; name an instance in the entry point"
        return ""

    def _is_optional(self, plugin: Any, name: str) -> bool:
        options: Mapping[str, Any] | None = self._manager.parse_hookimpl_opts(plugin, name)
        return bool(options and options.get("optionalhook"))

    def _note_broken(self, found: FoundPlugin, error: BaseException, sentence: str) -> None:
        self.broken.append(BrokenPlugin(found, error))
        self._warn(sentence)

    def hooks_of(self, plugin: Any) -> list[str]:
        """Return the hooks that a registered plugin implements, sorted."""
        return sorted({caller.name for caller in self._manager.get_hookcallers(plugin) or ()})

    # --- register -------------------------------------------------------------------------------------------------

    def catalogue(self, kind: PluginKind) -> Mapping[str, Any]:
        """Return name -> record of everything that plugins offer of this kind.

        Raises:
            DuplicatePluginError: two plugins offer one name.
        """
        return {name: offer.record for name, offer in self._offers(kind).items()}

    def offers(self) -> list[tuple[LoadedPlugin, PluginKind, str]]:
        """Return ``(plugin, kind, name)`` of everything that is offered, for people."""
        return [(offer.owner, kind, name) for kind in PluginKind for name, offer in sorted(self._offers(kind).items())]

    def _offers(self, kind: PluginKind) -> dict[str, _Offer]:
        if kind in self._catalogues:
            return self._catalogues[kind]
        result: dict[str, _Offer] = {}
        for plugin, call in self._calls(kind.hook, read=partial(records_in, kind)):
            owner = self._owner(plugin)
            try:
                records = call()
            except BaseException as error:
                raise_if_interrupted(error)
                what = str(error) if type(error) is WrongAnswerError else f"raised {described(error)}"
                sentence = f"plugin {owner.found.name}: {kind.hook} {what}"
                self._note_broken(owner.found, error, sentence)
                continue
            for record in records:
                if record.name in result:
                    raise _duplicate(kind, record.name, result[record.name].owner.found, owner.found)
                result[record.name] = _Offer(owner, record)
        self._catalogues[kind] = result
        return result

    def _owner(self, plugin: Any) -> LoadedPlugin:
        """Return what was loaded; one that another plugin has registered has only a name."""
        for each in self.loaded:
            if each.plugin is plugin:
                return each
        return LoadedPlugin(FoundPlugin(self._manager.get_name(plugin) or shown(plugin), "", "", ""), plugin)

    def choose(self, kind: PluginKind, name: str) -> Any:
        """Return the record called ``name``.

        Raises:
            UnknownBackendError: no plugin offers it; says what is installed and what to install.
            PluginError: the only plugin that might offer it is broken.
        """
        offers = self._offers(kind)
        if name in offers:
            return offers[name].record
        package = usual_package(kind, name)
        for broken in self.broken:
            if broken.found.distribution == package or name == broken.found.name:
                raise PluginError(
                    f"{kind} {name!r} belongs to {broken.found}, which could not be loaded: {described(broken.error)}"
                ) from broken.error
        remedy = f"Install it with: pip install {package}" if package else "Run 'quorate plugins' to see all plugins"
        for found in self._left_out:
            if found.distribution == package:
                remedy = f"QUORATE_DISABLE_PLUGINS leaves out {found}, which offers it; remove it from there"
        raise UnknownBackendError(kind.value, name, sorted(offers), remedy)

    def owner_of(self, kind: PluginKind, name: str) -> str:
        """Return what offers ``name``, for messages: distribution, version and plugin."""
        return str(self._offers(kind)[name].owner.found)

    # --- decide ---------------------------------------------------------------------------------------------------

    @property
    def misbehaving(self) -> Mapping[tuple[str, str], str]:
        """``(plugin, hook)`` -> sentence, for each plugin that raised or gave a wrong answer to a decision."""
        return dict(self._decisions.misbehaving)

    def decide(self, question: str, *arguments: Any) -> Any:
        """Ask ``quorate_decide_<question>`` and return the first answer that is not ``None``.

        A plugin that raises, or whose answer is not of the hook's type, is reported once, and the others are asked
        again without it.  What the core's own answer raises is raised here.
        """
        return self._decisions.decide(question, arguments)

    def decide_or(self, default: _T, question: str, *arguments: Any) -> _T:
        """As :meth:`decide`, with ``default`` where no plugin answers; never raises."""
        try:
            answer = self.decide(question, *arguments)
        except BaseException as error:
            raise_if_interrupted(error)
            self._warn(f"quorate_decide_{question} raised {described(error)}")
            return default
        return default if answer is None else answer

    # --- observe --------------------------------------------------------------------------------------------------

    def observe(self, event: Event) -> None:
        """Hand ``event`` to every observer; one that raises is reported once and not called again."""
        for plugin, call in self._calls("quorate_observe_event", event):
            try:
                call()
            except BaseException as error:
                raise_if_interrupted(error)
                self._failed.setdefault("quorate_observe_event", []).append(plugin)
                self._warn(
                    f"observer {self._manager.get_name(plugin)} raised {described(error)}; it will not be called again"
                )

    def has_observers(self) -> bool:
        """Return whether a plugin observes events; without observers they need not be made."""
        return bool(self._manager.hook.quorate_observe_event.get_hookimpls())

    def _calls(
        self, hook: str, *arguments: Any, read: Callable[[list[Any]], list[Any]] = list
    ) -> Iterator[tuple[Any, Callable[[], list[Any]]]]:
        """Yield, in call order, each plugin that answers a collecting hook, and what calls it within its wrappers.

        The call returns what ``read`` makes of the plugin's own answers, without ``None``.  Wrappers alone are called
        once, for the first one.
        """
        implementations = getattr(self._manager.hook, hook).get_hookimpls()[::-1]
        answering = {id(each.plugin): each.plugin for each in implementations if not each.wrapper | each.hookwrapper}
        wrapping = {id(each.plugin): each.plugin for each in implementations}
        failed = {id(plugin) for plugin in self._failed.get(hook, ())}
        for key, plugin in list((answering or wrapping).items())[: None if answering else 1]:
            if key not in failed:
                others = [other for other in answering.values() if other is not plugin]
                yield plugin, partial(self._call, hook, arguments, plugin, others, read)

    def _call(
        self,
        hook: str,
        arguments: Sequence[Any],
        plugin: Any,
        others: Sequence[Any],
        read: Callable[[list[Any]], list[Any]],
    ) -> list[Any]:
        """Call ``plugin`` alone within its wrappers; raise what it raises, and leave out wrappers that misbehave."""
        poll = Poll(self._manager, hook, arguments, [*others, *self._failed.get(hook, ())])
        limit = poll.count_answers()
        while True:
            is_asked = True
            try:
                answers = poll.ask()
                is_asked = False
                return read(answers_in(answers, limit))
            except BaseException as error:
                raise_if_interrupted(error)
                culprit = poll.culprit(error) if is_asked else None
                if culprit is None or poll.wraps(culprit):  # it may have failed over what it wraps
                    culprit = poll.find(is_unreadable(read, limit))
                if culprit is None or culprit is plugin:
                    raise
                problem = str(error) if type(error) is WrongAnswerError else f"raised {described(error)}"
            poll.left_out.append(culprit)
            self._failed.setdefault(hook, []).append(culprit)
            self._decisions.report(hook, culprit, f"{problem}; it will not be called again")

    # --- identity -------------------------------------------------------------------------------------------------

    def digest(self) -> str:
        """Return names and versions of the plugins, which nodes compare."""
        return ",".join(
            sorted(f"{plugin.found.distribution or plugin.found.name}={plugin.found.version}" for plugin in self.loaded)
        )

    def described(self) -> list[LoadedPlugin]:
        """Return the loaded plugins with what each offers."""
        offers: dict[int, list[tuple[PluginKind, str]]] = {}
        for plugin, kind, name in self.offers():
            offers.setdefault(id(plugin), []).append((kind, name))
        return [evolve(plugin, offers=tuple(offers.get(id(plugin), ()))) for plugin in self.loaded]


def _wants_an_instance(plugin: type, name: str) -> bool:
    """Return whether ``name`` is a method that needs an instance, where the class itself is the plugin."""
    kind = inspect.getattr_static(plugin, name)
    return inspect.isfunction(kind) and list(inspect.signature(kind).parameters)[:1] == ["self"]


def _duplicate(kind: PluginKind, name: str, first: FoundPlugin, second: FoundPlugin) -> DuplicatePluginError:
    return DuplicatePluginError(
        f"{kind} {name!r} is offered twice: by {first} and by {second}. "
        f"Uninstall one, or set QUORATE_DISABLE_PLUGINS={second.name}"
    )


def usual_package(kind: PluginKind, name: str) -> str | None:
    """Return the distribution that usually offers a name, for the remedy."""
    return _usual_packages(kind.value).get(name)


def usual_packages_of_commands() -> dict[str, str]:
    """Return the subcommands of ``quorate`` that distributions usually offer: name -> distribution."""
    return _usual_packages("command")


def _usual_packages(kind: str) -> dict[str, str]:
    """Return the names of a kind -> the distributions that usually offer them (``known_plugins.txt``)."""
    found: dict[str, str] = {}
    for line in read_bytes(_KNOWN_PLUGINS).decode().splitlines():
        if not line.startswith("#"):
            package, known_kind, names = (part.strip() for part in line.split(":"))
            if known_kind == kind:
                found.update(dict.fromkeys(names.split(), package))
    return found


def _name_of(found: FoundPlugin) -> str:
    return f"{found.name} ({found.distribution})" if found.distribution else found.name


_host: PluginHost | None = None


def get_host() -> PluginHost:
    """Return this process's host, made at the first call (the one cache of it)."""
    global _host
    if _host is None:
        _host = PluginHost()
    return _host
