"""Finds the targets of all distributions, and the functions that ought to have one.

A function reads what others wrote if it makes a call that turns bytes into something else (``json.loads``,
``.decode()``, ``struct.unpack``), or is named like a decoder.  The examples of some target must reach it, or its
distribution says in ``ELSEWHERE`` why none does.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from core.tests.fuzz.target import Target

__all__ = ["DISTRIBUTIONS", "decoders_of", "elsewhere_of", "reached_by", "target_of", "targets", "targets_of"]

_ROOT = Path(__file__).parents[3]
#: Every folder of a distribution, by its name.
DISTRIBUTIONS: Mapping[str, Path] = {
    folder.name: folder
    for folder in (_ROOT / "core", *sorted((_ROOT / "plugins").iterdir()))
    if (folder / "src").is_dir()
}
_READS = frozenset(
    ("loads", "load", "decode", "unpack", "unpack_from", "iter_unpack", "from_bytes", "FromString", "ParseFromString")
    + ("b64decode", "urlsafe_b64decode", "fromhex", "unhexlify", "literal_eval", "unquote", "parse_qs", "parse_qsl")
)
_DECODER = re.compile(r"_*(decode|parse|unpack)(_|$)")
#: The kit for plugins' authors runs in tests; ``_template_site`` is no package, and its modules are found alike.
_LEFT_OUT = ("quorate/testing/",)


@cache
def _module_of(name: str) -> ModuleType | None:
    path = DISTRIBUTIONS[name] / "tests" / "fuzz_targets.py"
    if not path.exists():
        return None
    spec = importlib.util.spec_from_file_location(f"quorate_fuzz_targets_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def targets_of(name: str) -> Mapping[str, Target]:
    """Return the targets of a distribution, none where it has no file of them.

    Raises:
        ImportError: the distribution, or what it needs, is not installed.
    """
    return getattr(_module_of(name), "TARGETS", {})


def elsewhere_of(name: str) -> Mapping[str, str]:
    """Return why functions of a distribution have no target.  Raises ImportError as :func:`targets_of` does."""
    return getattr(_module_of(name), "ELSEWHERE", {})


def targets() -> tuple[Mapping[str, Target], Mapping[str, str]]:
    """Return all targets, and for each distribution that cannot be imported why."""
    found: dict[str, Target] = {}
    missing: dict[str, str] = {}
    for name in DISTRIBUTIONS:
        try:
            own = targets_of(name)
        except ImportError as error:
            missing[name] = str(error)
            continue
        found |= {title if name == "core" else f"{name}: {title}": target for title, target in own.items()}
    return found, missing


def target_of(title: str) -> Target:
    """Return one of :func:`targets`, and import no other distribution's.  Raises KeyError if there is none."""
    distribution, colon, rest = title.partition(": ")
    return targets_of(distribution)[rest] if colon else targets_of("core")[title]


def decoders_of(name: str) -> Mapping[str, tuple[str, int]]:
    """Return the functions of a distribution that ought to have a target, with the file and line of each."""
    source = DISTRIBUTIONS[name] / "src"
    found: dict[str, tuple[str, int]] = {}
    for path in sorted(source.rglob("*.py")):
        where = path.relative_to(source).as_posix()
        if not where.startswith(_LEFT_OUT):
            for title, line in _decoders_in(ast.parse(path.read_text()), ()):
                found[f"{where.removesuffix('.py')}:{title}"] = (str(path), line)
    return found


def _decoders_in(node: ast.AST, outer: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            if _DECODER.match(child.name) or any(_reads(each) for each in _own_nodes(child)):
                yield (
                    ".".join((*outer, child.name)),
                    min([child.lineno, *(each.lineno for each in child.decorator_list)]),
                )
            yield from _decoders_in(child, (*outer, child.name))
        else:
            yield from _decoders_in(child, (*outer, child.name) if isinstance(child, ast.ClassDef) else outer)


def _own_nodes(function: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(function):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield child
            yield from _own_nodes(child)


def _reads(node: ast.AST) -> bool:
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _READS):
        return False
    of = node.func.value
    # ``Heartbeat.decode(…)`` calls a decoder of ours, which is looked at where it is defined.
    is_own = isinstance(of, ast.Name) and of.id[0].isupper() and node.func.attr == "decode"
    # ``base64.b64encode(…).decode()`` is text that this process writes.
    writes = isinstance(of, ast.Call) and getattr(of.func, "attr", "").endswith(("encode", "b64encode"))
    return not (is_own or writes)


def reached_by(target: Target) -> set[tuple[str, int]]:
    """Return the file and line of every function that the target's examples reach."""
    reached: set[tuple[str, int]] = set()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            reached.add((frame.f_code.co_filename, frame.f_code.co_firstlineno))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        for example in target.beginnings:
            target.try_one(example)
    finally:
        sys.setprofile(before)
    return reached
