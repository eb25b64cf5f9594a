"""Torchrun's command line as ``argparse`` reads it, for programs that extend, fill or filter it.

What does not live here: the flags themselves (:mod:`quorate.flags`), and what a namespace leads to (``_launch``).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

from quorate.flags import Flag, all_flags, count_workers

_NUMBERS: Mapping[str, type[int | float]] = {"N": int, "PORT": int, "SECONDS": float}
#: What torchrun has in a namespace for "not given", where that is not quorate's default.
_UNSET: Mapping[str, Any] = {
    "nnodes": "1:1",
    "node-rank": 0,
    "rdzv-endpoint": "",
    "rdzv-id": "none",
    "master-addr": "127.0.0.1",
    "signals-to-handle": "SIGTERM,SIGINT,SIGHUP,SIGQUIT",
    "local-ranks-filter": "",
    "duplicate-stdout-filters": [],
    "duplicate-stderr-filters": [],
}


def _words(text: str) -> list[str]:
    """Split at commas; a doubled comma is part of a word."""
    return [each.replace("\0", ",") for each in text.replace(",,", "\0").split(",")]


@final
class _Switch(argparse.Action):
    """A switch; its value is ``True`` or ``False``, whatever the environment has."""

    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **kwargs)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, True)


@final
class _Parser(argparse.ArgumentParser):
    """A parser in which a beginning that only one of torchrun's flags has means that one."""

    def _get_option_tuples(self, option_string: str) -> list[Any]:
        found: list[Any] = super()._get_option_tuples(option_string)
        fields = {flag.field for flag in all_flags() if flag.is_torchruns} | {"help"}
        torchruns = [each for each in found if each[0].dest in fields]
        return torchruns if len(torchruns) == 1 else found


def get_args_parser() -> argparse.ArgumentParser:
    """Return the parser: every flag of ``quorate run``, then ``training_script`` and ``training_script_args``.

    Flags may be written with dashes or underscores.  A ``PET_`` variable is the default of its flag.  Of torchrun's
    flags, names, types and defaults in the namespace are torchrun's.
    """
    parser = _Parser(description="Runs one node of a distributed job (quorate)")
    groups: dict[str, Any] = {}
    for flag in all_flags():
        group = groups.setdefault(flag.section, None) or parser.add_argument_group(flag.section)
        groups[flag.section] = group
        spellings = dict.fromkeys([f"--{flag.name}", f"--{flag.field}"])
        names = [*([f"-{flag.short}"] if flag.short else []), *spellings]
        text, default = os.environ.get(flag.variable), _unset(flag)
        help_text = flag.help.replace("%", "%%")
        if flag.is_switch:
            default = flag.parse(text) if text else default
            group.add_argument(*names, action=_Switch, default=default, help=help_text)
        else:
            # argparse reads a default that is text as it reads an argument.
            group.add_argument(*names, type=_kind(flag), default=text or default, metavar=flag.metavar, help=help_text)
    parser.add_argument("training_script", help="the program to run, followed by its own arguments")
    parser.add_argument("training_script_args", nargs=argparse.REMAINDER)
    return parser


def parse_args(args: Sequence[str] | None) -> argparse.Namespace:
    """Return the namespace for a command line (``None``: that of this process)."""
    return get_args_parser().parse_args(args)


def parse_min_max_nnodes(nnodes: str) -> tuple[int, int]:
    """Return the bounds that ``N`` or ``MIN:MAX`` stands for.

    Raises:
        RuntimeError: it has more than two parts.
        ValueError: a part is not a whole number.
    """
    parts = str(nnodes).split(":")
    if len(parts) > 2:
        raise RuntimeError(f'nnodes={nnodes} is not in "MIN:MAX" format')
    return int(parts[0]), int(parts[-1])


def determine_local_world_size(nproc_per_node: str | int) -> int:
    """Return the number of workers that a number, ``auto``, ``cpu``, ``gpu`` or an accelerator's name stands for.

    Raises:
        ValueError: this machine has no such device, or its name is not known.
    """
    text = str(nproc_per_node)
    try:
        return int(text)
    except ValueError:
        return count_workers(text)


def get_rdzv_endpoint(args: argparse.Namespace) -> str:
    """Return the endpoint that a namespace asks for; for ``static`` without one, the master's address and port."""
    if args.rdzv_backend == "static" and not args.rdzv_endpoint:
        return f"{args.master_addr}:{args.master_port}"
    return args.rdzv_endpoint or ""


def texts_of(args: argparse.Namespace) -> dict[str, str]:
    """Return the values of a namespace as text, by the flags' names; what is not set, or is a default, is left out.

    The namespace may come from another parser, torch's own for one, and may have any attributes besides.
    """
    texts: dict[str, str] = {}
    for flag in all_flags():
        text = _text_of(flag, getattr(args, flag.field, None))
        if text is not None and text not in (flag.default, _text_of(flag, _unset(flag))):
            texts[flag.name] = text
    # Without a name there is no job of several nodes: torchrun has one for all of them.
    _, max_nodes = parse_min_max_nnodes(texts.get("nnodes", "1"))
    if max_nodes > 1 and "rdzv-id" not in texts and getattr(args, "rdzv_id", None) == _UNSET["rdzv-id"]:
        texts["rdzv-id"] = _UNSET["rdzv-id"]
    return texts


def _kind(flag: Flag) -> Callable[[str], Any]:
    """Return what makes a value of a namespace out of an argument."""
    return _words if flag.metavar == "WORDS" else _NUMBERS.get(flag.metavar, str)


def _unset(flag: Flag) -> Any:
    """Return the value in a namespace if the flag is not given."""
    if flag.name in _UNSET:
        value = _UNSET[flag.name]
        return [*value] if isinstance(value, list) else value
    if flag.default is None:
        return None
    return flag.parse(flag.default) if flag.is_switch else _kind(flag)(flag.default)


def _text_of(flag: Flag, value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, (list, tuple, set, frozenset)):
        value = ",".join(str(each).replace(",", ",,") for each in value)
    text = str(value)
    return text if text or flag.default else None
