"""What is derived from the table of flags for people: ``--help``, ``--show-config``, and the table in the docs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from attrs import asdict

from ._flags import ACTIONS, Flag

if TYPE_CHECKING:
    from ..config import LaunchConfig
    from ._parse import Parsed

__all__ = ["config_text", "docs_table", "help_text", "table_text"]

_INDENT = 28
_WIDTH = 100


def help_text(flags: Sequence[Flag]) -> str:
    """Return what ``quorate run --help`` prints."""
    lines = [
        "usage: quorate run [FLAGS] SCRIPT [ARGUMENTS]",
        "",
        "Runs SCRIPT in several worker processes, on this node and together with the job's other nodes.",
        "Flags may be written with dashes or underscores; each is also read from PET_NAME in the",
        "environment. ${local_rank} in an argument of the script stands for the worker's local rank.",
    ]
    for section in dict.fromkeys(flag.section for flag in flags):
        lines += ["", f"{section}:"]
        for flag in flags:
            if flag.section == section:
                lines += _entry(flag)
    lines += ["", "Other:"]
    for name, help in ACTIONS.items():
        lines += _columns(f"--{name}", help)
    return "\n".join(lines)


def _entry(flag: Flag) -> list[str]:
    return _columns(_spelling(flag), f"{flag.help}{_default_note(flag)}")


def _spelling(flag: Flag) -> str:
    short = f"-{flag.short}, " if flag.short else ""
    return f"{short}--{flag.name}" + ("" if flag.is_switch else f"={flag.metavar}")


def _default_note(flag: Flag) -> str:
    return "" if flag.is_switch or not flag.default else f" [{flag.default}]"


def _columns(left: str, right: str) -> list[str]:
    left = f"  {left}"
    lines = [] if len(left) < _INDENT - 1 else [left]
    line = " " * _INDENT if lines else left.ljust(_INDENT)
    for word in right.split():
        if len(line) + len(word) > _WIDTH and line.strip():
            lines.append(line.rstrip())
            line = " " * _INDENT
        line += word + " "
    return [*lines, line.rstrip()]


def config_text(flags: Sequence[Flag], parsed: Parsed, config: LaunchConfig) -> str:
    """Return what ``quorate run --show-config`` prints: each value, and where it came from.

    Then the time-outs that the rendezvous settings amount to.
    """
    rows = [("FLAG", "VALUE", "FROM")]
    for flag in flags:
        setting = parsed.settings[flag.name]
        shown = "-" if setting.text in (None, "") else str(setting.text)
        if flag.is_switch:
            shown = "yes" if setting.value else "no"
        elif flag.name == "nproc-per-node" and not isinstance(setting.value, int):
            shown = f"{setting.text} ({config.nproc_per_node})"
        rows.append((f"--{flag.name}", shown, setting.source))
    rows.append(("SCRIPT", " ".join([parsed.script, *parsed.arguments]) if parsed.script else "-", "argument"))
    times = [("TIME-OUT", "SECONDS")]
    times += [(name, f"{seconds:g}") for name, seconds in asdict(config.timeouts(), recurse=False).items()]
    times += [
        ("exit_barrier_timeout", f"{config.exit_barrier_timeout:g}"),
        ("shutdown_timeout", f"{config.shutdown_timeout:g}"),
    ]
    meeting = f"The nodes meet through {config.backend()}"
    meeting += f" at {config.rdzv_endpoint}." if config.rdzv_endpoint else "."
    return "\n".join([table_text(rows), "", meeting, "", table_text(times)])


def table_text(rows: Iterable[Sequence[str]]) -> str:
    """Return rows of equal length as columns."""
    rows = list(rows)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def docs_table(flags: Sequence[Flag]) -> str:
    """Return the table of ``docs/command-line.md``."""
    lines: list[str] = []
    for section in dict.fromkeys(flag.section for flag in flags):
        lines += [f"## {section}", "", "| flag | environment | default | meaning |", "|---|---|---|---|"]
        for flag in flags:
            if flag.section != section:
                continue
            default = f"`{flag.default}`" if flag.default and not flag.is_switch else ""
            spelling = _spelling(flag).replace("|", "\\|")
            lines.append(f"| `{spelling}` | `{flag.variable}` | {default} | {flag.help} |")
        lines.append("")
    return "\n".join(lines)
