"""The parts of the documentation that are derived from the code.

``python -m quorate.cli._reference FOLDER`` brings the pages in FOLDER up to date; a test checks that they are.  A page
marks such a part by ``<!-- generated: NAME -->`` and ``<!-- end -->``.  What does not live here: the text around them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import fields

from ..catalogue import PluginKind
from ..plugins import PluginHost
from ..timeouts import ALIASES, RELATIONS, Timeouts
from ._flags import FLAGS, Flag
from ._help import spelling_of
from ._run import flags_with

_PART = re.compile(r"(?s)(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end -->\n)")
#: Only these distributions' plugins are documented, whatever else is installed.
_OURS = "quorate-"


def _table(*rows: Sequence[str]) -> str:
    head, *body = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in rows]
    return "".join([head, "|---" * len(rows[0]) + "|\n", *body])


def _offered(kind: PluginKind) -> dict[str, tuple[str, Any]]:
    """Return name -> (distribution, record) of what this repository's plugins offer."""
    host = PluginHost()
    records = host.catalogue(kind)
    return {
        name: (plugin.found.distribution, records[name])
        for plugin, offered, name in host.offers()
        if offered is kind and plugin.found.distribution.startswith(_OURS)
    }


def _plugin_flags() -> list[tuple[str, Flag]]:
    options = _offered(PluginKind.CLI_OPTION)
    flags = {flag.name: flag for flag in flags_with(option for _, option in options.values())}
    return [(distribution, flags[name.replace("_", "-")]) for name, (distribution, _) in options.items()]


def _row(flag: Flag) -> list[str]:
    default = f"`{flag.default}`" if flag.default and not flag.is_switch else ""
    return [f"`{spelling_of(flag)}`", f"`{flag.variable}`", default]


def _flags() -> str:
    tables = {
        section: _table(
            ["flag", "environment", "default", "meaning"],
            *([*_row(flag), flag.help] for flag in FLAGS if flag.section == section),
        )
        for section in dict.fromkeys(flag.section for flag in FLAGS)
    }
    tables["From plugins"] = _table(
        ["flag", "environment", "default", "meaning", "distribution"],
        *([*_row(flag), flag.help, f"`{distribution}`"] for distribution, flag in _plugin_flags()),
    )
    return "\n".join(f"## {section}\n\n{table}" for section, table in tables.items())


def _timeouts() -> str:
    spellings = {name: alias for alias, name in ALIASES.items()}
    return _table(
        ["setting", "default", "what it bounds"],
        *(
            [
                f"`{each.name}`" + (f" (or `{spellings[each.name]}`)" if each.name in spellings else ""),
                f"{each.default:g}",
                each.metadata["help"],
            ]
            for each in fields(Timeouts)
        ),
    )


def _backend_settings() -> str:
    readers: dict[tuple[str, str], list[str]] = {}
    for name, (_, backend) in _offered(PluginKind.RENDEZVOUS).items():
        for setting in backend.settings.items():
            readers.setdefault(setting, []).append(f"`{name}`")
    return _table(
        ["setting", "backends", "meaning [default]"],
        *([f"`{setting}`", ", ".join(names), text] for (setting, text), names in readers.items()),
    )


def _time_flags() -> str:
    flags = [*FLAGS, *(flag for _, flag in _plugin_flags())]
    return _table(
        ["flag", "default", "what it bounds"],
        *([f"`--{flag.name}`", flag.default or "", flag.help] for flag in flags if flag.metavar == "SECONDS"),
    )


def _relations() -> str:
    return _table(
        ["setting", "is at most", "because"], *([f"`{low}`", f"`{high}`", why] for low, high, why in RELATIONS)
    )


#: Name of a part -> what writes it.
PARTS: Mapping[str, Callable[[], str]] = {
    "flags": _flags,
    "timeouts": _timeouts,
    "timeouts-of-backends": _backend_settings,
    "timeouts-of-flags": _time_flags,
    "timeout-relations": _relations,
}


def updated(text: str) -> str:
    """Return the text of a page with its generated parts as they should be."""
    return _PART.sub(lambda part: f"{part[1]}\n{PARTS[part[2]]()}\n{part[3]}", text)


def main(folder: str) -> None:
    """Bring every page in ``folder`` up to date."""
    for page in sorted(Path(folder).glob("*.md")):
        text = page.read_text(encoding="utf-8")
        if updated(text) != text:
            page.write_text(updated(text), encoding="utf-8")
            print(f"updated {page}")


if __name__ == "__main__":
    main(sys.argv[1])
