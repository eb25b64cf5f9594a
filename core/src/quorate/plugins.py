"""PluginHost: finds, checks, orders and calls plugins.  The only module that touches pluggy's manager.

What does not live here: the hooks themselves (:mod:`quorate.hookspecs`) and any default answer that is more than a
line (ranks: :mod:`quorate.rendezvous`, restart policy: :mod:`quorate.policy`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, final

from attrs import evolve, field, frozen

from . import hookspecs
from ._discovery import FoundPlugin, find_plugins
from .errors import DuplicatePluginError, PluginError, UnknownBackendError
from .records import Event

if TYPE_CHECKING:
    import pluggy

__all__ = ["BrokenPlugin", "LoadedPlugin", "PluginHost", "get_host"]

_T = TypeVar("_T")

#: kind -> (hook, what to install for a name of ours that is missing)
_KINDS: Mapping[str, str] = {
    "cli option": "quorate_register_cli_options",
    "rendezvous backend": "quorate_register_rendezvous",
    "start method": "quorate_register_starter",
    "health check": "quorate_register_health_check",
    "watchdog": "quorate_register_watchdog",
    "service": "quorate_register_service",
    "error recorder": "quorate_register_error_recorder",
    "event log handler": "quorate_register_event_sink",
}

_OURS: Mapping[tuple[str, str], str] = {
    ("rendezvous backend", "c10d"): "quorate-rendezvous-c10d",
    ("rendezvous backend", "etcd"): "quorate-rendezvous-etcd",
    ("rendezvous backend", "etcd-v2"): "quorate-rendezvous-etcd",
    ("rendezvous backend", "static"): "quorate-rendezvous-static",
    ("rendezvous backend", "standalone"): "quorate-rendezvous-static",
    ("rendezvous backend", "tcp"): "quorate-rendezvous-static",
    ("start method", "exec"): "quorate-process-local",
    ("start method", "spawn"): "quorate-process-local",
    ("start method", "fork"): "quorate-process-local",
    ("start method", "forkserver"): "quorate-process-local",
    ("error recorder", "file"): "quorate-errors",
}


@final
@frozen
class LoadedPlugin:
    """A plugin that was imported and registered.  ``offers`` are ``kind name`` pairs, filled in as they are asked."""

    found: FoundPlugin
    plugin: Any = field(repr=False)
    offers: tuple[tuple[str, str], ...] = ()


@final
@frozen
class BrokenPlugin:
    """A plugin that did not import or does not fit its hooks, with the original exception."""

    found: FoundPlugin
    error: BaseException


class _Defaults:
    """The core runs on its own hooks: its answers are an ordinary plugin, asked last."""

    @staticmethod
    @hookspecs.hookimpl(trylast=True)
    def quorate_decide_ranks(nodes: Sequence[Any], previous: Sequence[str]) -> Sequence[str]:
        from .rendezvous import order_nodes

        return order_nodes(nodes, previous)

    @staticmethod
    @hookspecs.hookimpl(trylast=True)
    def quorate_decide_rescale(summary: Any, waiting: int) -> bool:
        return waiting > 0 and summary.group_world_size < summary.max_nodes

    @staticmethod
    @hookspecs.hookimpl(trylast=True)
    def quorate_decide_cause(failure: Any) -> Any:
        from .policy import default_cause

        return default_cause(failure)

    @staticmethod
    @hookspecs.hookimpl(trylast=True)
    def quorate_decide_restart(failure: Any, budget: Any) -> Any:
        from .policy import default_restart

        return default_restart(failure, budget)


@final
class PluginHost:
    """The installed plugins of one process.

    Arguments:
        paths: where to look for distributions (default ``sys.path``).
        disabled: entry-point or distribution names to leave out (default ``QUORATE_DISABLE_PLUGINS``).
        extra: ``(name, plugin)`` pairs to register besides, for programs that bring their own.
        warn: called with one sentence for everything that is broken but not fatal.
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
        self.disabled = frozenset(name.strip() for name in disabled if name.strip())
        self.loaded: list[LoadedPlugin] = []
        self.broken: list[BrokenPlugin] = []
        self._warn = warn or _to_stderr
        self._catalogues: dict[str, dict[str, tuple[LoadedPlugin, Any]]] = {}
        self._muted: set[int] = set()
        self._is_loading = True
        self._made: pluggy.PluginManager | None = None
        self._implemented: set[str] = set()
        found = [(plugin, None) for plugin in find_plugins(paths)]
        found += [(FoundPlugin(name, "", "", ""), value) for name, value in extra]
        # pluggy calls the last one registered first: register in reverse for alphabetical order of the calls.
        for plugin, value in sorted(found, key=lambda pair: (pair[0].name, pair[0].distribution), reverse=True):
            if plugin.name not in self.disabled and plugin.distribution not in self.disabled:
                self._load(plugin, value)
        self.loaded.reverse()
        self._is_loading = False

    def _load(self, found: FoundPlugin, value: Any) -> None:
        name = _name_of(found)
        try:
            plugin = _import_target(found.target) if value is None else value
            hooks = {attribute for attribute in dir(plugin) if attribute.startswith("quorate_")}
            if self._made is not None or not all(_is_plain(plugin, hook) for hook in hooks):
                _register(self._manager(), plugin, name)  # which says what is wrong with it
        except Exception as error:
            self.broken.append(BrokenPlugin(found, error))
            self._warn(f"plugin {name} could not be loaded: {type(error).__name__}: {error}")
            return
        unknown = sorted(hook for hook in hooks if not hasattr(hookspecs, hook) and callable(getattr(plugin, hook)))
        if unknown:
            if self._made is not None:
                self._made.unregister(plugin)
            misfit = PluginError(
                f"{name} implements unknown hooks: {', '.join(unknown)}; see docs/hooks.md for their names"
            )
            self.broken.append(BrokenPlugin(found, misfit))
            self._warn(str(misfit))
            return
        self.loaded.append(LoadedPlugin(found, plugin))
        self._implemented |= hooks

    def get_ready(self) -> None:
        """Load what a plugin's first decision needs, if any decides; what is wrong with it is told by the decision."""
        if any(hook.startswith("quorate_decide_") for hook in self._implemented):
            try:
                self._manager()
            except Exception:
                pass

    def _manager(self) -> pluggy.PluginManager:
        """Return pluggy's manager, made when first needed: a job in which nobody but the core decides needs none."""
        if self._made is None:
            import pluggy

            manager = pluggy.PluginManager(hookspecs.PROJECT)
            spec = pluggy.HookspecMarker(hookspecs.PROJECT)
            for hook in _all_hooks():
                spec(getattr(hookspecs, hook), **getattr(getattr(hookspecs, hook), hookspecs.MARK))
            manager.add_hookspecs(hookspecs)
            _register(manager, _Defaults, "quorate-core")
            # In the order of loading: while that goes on as it stands, afterwards it has been turned round.
            for plugin in self.loaded if self._is_loading else reversed(self.loaded):
                _register(manager, plugin.plugin, _name_of(plugin.found))
            self._made = manager
        return self._made

    # --- register -------------------------------------------------------------------------------------------------

    def catalogue(self, kind: str) -> Mapping[str, Any]:
        """Return name -> record of everything offered for ``kind`` (a key of the hooks' catalogue).

        Raises:
            DuplicatePluginError: two plugins offer one name.
        """
        return {name: record for name, (_, record) in self._catalogue(kind).items()}

    def offers(self) -> list[tuple[LoadedPlugin, str, str]]:
        """Return ``(plugin, kind, name)`` of everything that is offered, for people."""
        return [(plugin, kind, name) for kind in _KINDS for name, (plugin, _) in sorted(self._catalogue(kind).items())]

    def _catalogue(self, kind: str) -> dict[str, tuple[LoadedPlugin, Any]]:
        if kind in self._catalogues:
            return self._catalogues[kind]
        hook = _KINDS[kind]
        result: dict[str, tuple[LoadedPlugin, Any]] = {}
        for plugin in self.loaded:
            implementation = getattr(plugin.plugin, hook, None)
            if implementation is None:
                continue
            try:
                records = list(implementation() or ())
                names = [record.name for record in records]
            except Exception as error:
                self.broken.append(BrokenPlugin(plugin.found, error))
                self._warn(f"plugin {plugin.found.name}: {hook} raised {type(error).__name__}: {error}")
                continue
            for name, record in zip(names, records, strict=True):
                if name in result:
                    first, second = result[name][0].found, plugin.found
                    raise DuplicatePluginError(
                        f"{kind} {name!r} is offered twice: by {_describe(first)} and by {_describe(second)}. "
                        f"Uninstall one, or set QUORATE_DISABLE_PLUGINS={second.name}"
                    )
                result[name] = (plugin, record)
        self._catalogues[kind] = result
        return result

    def choose(self, kind: str, name: str) -> Any:
        """Return the record called ``name``.

        Raises:
            UnknownBackendError: nobody offers it; says what is installed and what to install.
            PluginError: the only plugin that might offer it is broken.
        """
        catalogue = self._catalogue(kind)
        if name in catalogue:
            return catalogue[name][1]
        package = _OURS.get((kind, name))
        for broken in self.broken:
            if package == broken.found.distribution or name in broken.found.name:
                raise PluginError(
                    f"{kind} {name!r} belongs to {_describe(broken.found)}, which could not be loaded: "
                    f"{type(broken.error).__name__}: {broken.error}"
                ) from broken.error
        remedy = f"Install it with: pip install {package}" if package else "Run 'quorate plugins' to see all plugins"
        raise UnknownBackendError(kind, name, sorted(catalogue), remedy)

    # --- decide ---------------------------------------------------------------------------------------------------

    def decide(self, question: str, *arguments: Any) -> Any:
        """Ask ``quorate_decide_<question>``; the first answer that is not None wins.  Lets exceptions through."""
        name = f"quorate_decide_{question}"
        if name not in self._implemented:
            default = getattr(_Defaults, name, None)
            return None if default is None else default(*arguments)
        hook = getattr(self._manager().hook, name)
        names = hook.spec.argnames
        return hook(**dict(zip(names, arguments, strict=True)))

    def decide_or(self, default: _T, question: str, *arguments: Any) -> _T:
        """As :meth:`decide`; an implementation that raises is reported, and ``default`` is the answer."""
        try:
            answer = self.decide(question, *arguments)
        except Exception as error:
            self._warn(f"quorate_decide_{question} raised {type(error).__name__}: {error}")
            return default
        return default if answer is None else answer

    # --- observe --------------------------------------------------------------------------------------------------

    def observe(self, event: Event) -> None:
        """Tell every observer; one that raises is reported once and muted."""
        if not self.has_observers():
            return
        for implementation in reversed(self._manager().hook.quorate_observe_event.get_hookimpls()):
            if id(implementation) in self._muted:
                continue
            try:
                implementation.function(*([event] if implementation.argnames else []))
            except Exception as error:
                self._muted.add(id(implementation))
                self._warn(
                    f"observer {implementation.plugin_name} raised {type(error).__name__}: {error}; "
                    "it will not be called again"
                )

    def has_observers(self) -> bool:
        """Return whether anybody wants events (building them costs)."""
        return "quorate_observe_event" in self._implemented

    # --- identity -------------------------------------------------------------------------------------------------

    def digest(self) -> str:
        """Return names and versions of the plugins, so that nodes can tell that they differ."""
        return ",".join(
            sorted(f"{plugin.found.distribution or plugin.found.name}={plugin.found.version}" for plugin in self.loaded)
        )

    def described(self) -> list[LoadedPlugin]:
        """Return the loaded plugins with what each offers."""
        offers: dict[int, list[tuple[str, str]]] = {}
        for plugin, kind, name in self.offers():
            offers.setdefault(id(plugin), []).append((kind, name))
        return [evolve(plugin, offers=tuple(offers.get(id(plugin), ()))) for plugin in self.loaded]


def _all_hooks() -> list[str]:
    return [name for name in dir(hookspecs) if name.startswith("quorate_")]


def _is_plain(plugin: Any, hook: str) -> bool:
    """Return whether pluggy would certainly take this implementation; where it might not, it is asked at once."""
    spec, function = getattr(hookspecs, hook, None), getattr(plugin, hook)
    if spec is None or not hasattr(function, hookspecs.MARK):
        return False
    bound = getattr(function, "__func__", function)
    code = getattr(bound, "__code__", None)
    if code is None or code.co_kwonlyargcount or bound.__defaults__ or getattr(function, hookspecs.MARK)["wrapper"]:
        return False
    arguments = code.co_varnames[int(bound is not function) : code.co_argcount]
    return set(arguments) <= set(spec.__code__.co_varnames)


def _register(manager: pluggy.PluginManager, plugin: Any, name: str) -> None:
    """Give ``plugin`` to pluggy, with its own marks in place of ours."""
    import pluggy

    impl = pluggy.HookimplMarker(hookspecs.PROJECT)
    for hook in dir(plugin):
        if hook.startswith("quorate_"):
            function = getattr(plugin, hook)
            options = getattr(function, hookspecs.MARK, None)
            if options is not None:
                impl(getattr(function, "__func__", function), **options)
    manager.register(plugin, name)


def _name_of(found: FoundPlugin) -> str:
    return f"{found.name} ({found.distribution})" if found.distribution else found.name


def _describe(found: FoundPlugin) -> str:
    return f"{found.distribution} {found.version} ({found.name})" if found.distribution else found.name


def _import_target(target: str) -> Any:
    module_name, _, attribute = target.partition(":")
    module = __import__(module_name, fromlist=["__name__"])
    for part in attribute.split(".") if attribute else ():
        module = getattr(module, part)
    return module


def _to_stderr(sentence: str) -> None:
    import sys

    sys.stderr.write(f"quorate: warning: {sentence}\n")


_host: PluginHost | None = None


def get_host() -> PluginHost:
    """Return this process's host, made at the first call (the one cache of it)."""
    global _host
    if _host is None:
        _host = PluginHost()
    return _host
