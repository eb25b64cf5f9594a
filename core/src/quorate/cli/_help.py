"""``--help`` and ``--show-config`` of ``quorate run``, derived from the table of flags."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from textwrap import TextWrapper

from attrs import asdict

from ..config import LaunchConfig
from ..job_token import HIDDEN, is_secret, token_note
from ..text import without_passwords
from . import _values
from ._flags import ACTIONS, Flag
from ._parse import Parsed

_INDENT = 28
_WIDTH = 100


def help_text(flags: Sequence[Flag]) -> str:
    """Return what ``quorate run --help`` prints."""
    lines = [
        "usage: quorate run [FLAGS] SCRIPT [ARGUMENTS]",
        "",
        "Runs SCRIPT in one or more workers on this node, together with the job's other nodes.",
        "Flags may be written with dashes or underscores; each is also read from PET_NAME in the",
        "environment. ${local_rank} in an argument of the script stands for the worker's local rank.",
    ]
    for section in dict.fromkeys(flag.section for flag in flags):
        lines += ["", f"{section}:"]
        for flag in flags:
            if flag.section == section:
                default = "" if flag.is_switch or not flag.default else f" [{flag.default}]"
                lines += _columns(spelling_of(flag), f"{flag.help}{default}")
    lines += ["", "Other:"]
    for name, help in ACTIONS.items():
        lines += _columns(f"--{name}", help)
    return "\n".join(lines)


def spelling_of(flag: Flag) -> str:
    short = f"-{flag.short}, " if flag.short else ""
    return f"{short}--{flag.name}" + ("" if flag.is_switch else f"={flag.metavar}")


def _columns(left: str, right: str) -> list[str]:
    left = f"  {left}"
    lines = [] if len(left) < _INDENT - 1 else [left]
    first = " " * _INDENT if lines else left.ljust(_INDENT)
    wrapper = TextWrapper(_WIDTH, first, " " * _INDENT, break_on_hyphens=False, break_long_words=False)
    return [*lines, *(wrapper.wrap(" ".join(right.split())) or [first.rstrip()])]


def config_text(parsed: Parsed, config: LaunchConfig) -> str:
    """Return what ``--show-config`` prints: each value, where it came from, and the timeouts that follow."""
    rows = [("FLAG", "VALUE", "FROM")]
    for flag in parsed.flags:
        setting = parsed.settings[flag.name]
        shown = "-" if setting.text in (None, "") else str(setting.text)
        if flag.is_switch and setting.text is not None:
            shown = "yes" if setting.value else "no"
        elif flag.name == "nproc-per-node" and not isinstance(setting.value, int):
            shown = f"{setting.text} ({config.nproc_per_node})"
        elif flag.parse is _values.settings and setting.text:
            shown = ",".join(_shown(part) for part in setting.text.split(","))
        elif flag.name == "rdzv-endpoint":
            shown = without_passwords(shown)
        rows.append((f"--{flag.name}", shown, setting.source))
    rows.append(("SCRIPT", " ".join([parsed.script, *parsed.arguments]) if parsed.script else "-", "argument"))
    times = [("TIMEOUT", "SECONDS")]
    times += [(name, f"{seconds:g}") for name, seconds in asdict(config.timeouts()).items()]
    times += [(name, f"{getattr(config, name):g}") for name in ("exit_barrier_timeout", "shutdown_timeout")]
    backend = f"Rendezvous backend: {config.backend()}"
    backend += f", endpoint {without_passwords(config.rdzv_endpoint)}" if config.rdzv_endpoint else ""
    if config.cluster is not None:
        backend = f"{config.cluster.sentence}\n{backend}"
    token = f"Job token: {token_note(config.auth())}"
    return "\n".join([table_text(rows), "", backend, token, "", table_text(times)])


def _shown(part: str) -> str:
    """Return ``KEY=VALUE`` without the value of a password."""
    name, equals, _ = part.partition("=")
    return f"{name}={HIDDEN}" if equals and is_secret(name) else part


def table_text(rows: Iterable[Sequence[str]]) -> str:
    """Return rows of equal length as columns."""
    rows = list(rows)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
