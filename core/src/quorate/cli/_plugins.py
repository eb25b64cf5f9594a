"""``quorate plugins``: which plugins are installed, what each offers, and what is wrong with the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .._discovery import COMMANDS_GROUP, find_plugins
from .._isolation import described
from ..catalogue import PluginKind
from ..errors import PluginError, UsageError
from ..notices import write_output
from ..plugins import PluginHost
from ._exit import ExitCode
from ._help import table_text
from ._run import flags_of

_USAGE = """\
usage: quorate plugins

Shows the installed plugins and what they offer. Exit code 4 if one of them is broken.
QUORATE_DISABLE_PLUGINS=NAME,... leaves plugins out, by entry point or distribution."""


def show(argv: Sequence[str]) -> int:
    """Carry out ``quorate plugins ARGV`` and return the exit code."""
    if any(word in ("-h", "--help") for word in argv):
        write_output(_USAGE)
        return ExitCode.OK
    if argv:
        raise UsageError(f"'quorate plugins' takes no argument, but got {argv[0]!r}; remove it")
    # What is broken stands in the table; the usual warnings would only repeat it.
    text, healthy = describe(PluginHost(warn=lambda sentence: None))
    write_output(text)
    return ExitCode.OK if healthy else ExitCode.PLUGIN


def describe(host: PluginHost) -> tuple[str, bool]:
    """Return what is installed, for people, and whether nothing is wrong with it."""
    conflict = ""
    try:
        plugins = host.described()
        flags_of(host)
    except PluginError as error:
        plugins, conflict = list(host.loaded), str(error)
    commands: dict[str, list[str]] = {}
    for command in find_plugins(host.paths, group=COMMANDS_GROUP):
        commands.setdefault(command.distribution, []).append(f"command: {command.name}")
    rows = [("PLUGIN", "DISTRIBUTION", "VERSION", "OFFERS")]
    for plugin in plugins:
        found = plugin.found
        offers = _offers(plugin.offers) + commands.pop(found.distribution, []) + _hooks(host, plugin.plugin)
        rows.append((found.name, found.distribution or "-", found.version or "-", "; ".join(offers) or "nothing"))
    lines = (
        [table_text(rows)]
        if len(rows) > 1
        else ["no plugins are installed; install the usual ones: pip install quorate"]
    )
    for name in sorted(host.disabled):
        lines.append(f"disabled by QUORATE_DISABLE_PLUGINS: {name}")
    for broken in host.broken:
        found = broken.found
        where = f" ({found.distribution} {found.version})" if found.distribution else ""
        lines.append(f"broken: {found.name}{where}: {described(broken.error)}")
    if conflict:
        lines.append(f"conflict: {conflict}")
    return "\n".join(lines), not host.broken and not conflict


def _offers(offers: Sequence[tuple[PluginKind, str]]) -> list[str]:
    kinds: dict[PluginKind, list[str]] = {}
    for kind, name in offers:
        kinds.setdefault(kind, []).append(name)
    return [f"{kind}: {', '.join(names)}" for kind, names in kinds.items()]


def _hooks(host: PluginHost, plugin: Any) -> list[str]:
    """Return the decisions that a plugin takes part in and the events that it observes."""
    prefixes = ("quorate_decide_", "quorate_observe_")
    return [name.removeprefix("quorate_") for name in host.hooks_of(plugin) if name.startswith(prefixes)]
