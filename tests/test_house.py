"""The rules of CONTRIBUTING.md that a program can check: imports, copies, sizes, numbers.

What does not live here: what ruff and mypy check, and what packaging promises (``test_packaging``).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import frozen

ROOT = Path(__file__).resolve().parent.parent
LONGEST_MODULE_LINES = 450
MOST_INLINE_IMPORTS_PER_THOUSAND_LINES = 2.0
LONGEST_COPY_LINES = 9


@frozen
class Module:
    """One module of a distribution: its dotted name and its source."""

    name: str
    path: Path
    is_package: bool

    @property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")


def modules_of(source: Path) -> list[Module]:
    """Return the modules below a ``src`` folder."""
    found = []
    for path in sorted(source.rglob("*.py")):
        parts = list(path.relative_to(source).with_suffix("").parts)
        is_package = parts[-1] == "__init__"
        found.append(Module(".".join(parts[:-1] if is_package else parts), path, is_package))
    return found


SOURCES = {folder.name: folder / "src" for folder in [ROOT / "core", *sorted((ROOT / "plugins").iterdir())]}
DISTRIBUTIONS = {name: modules_of(source) for name, source in SOURCES.items() if source.is_dir()}
EVERY_DISTRIBUTION = pytest.mark.parametrize("distribution", sorted(DISTRIBUTIONS))


# --- circles ----------------------------------------------------------------------------------------------------------


def imported_by(module: Module, known: set[str]) -> set[str]:
    """Return the modules of ``known`` that ``module`` imports anywhere, for the type checker included.

    A name that is imported from a package is its submodule, if there is one, or else the package itself.
    """
    found: set[str] = set()
    package = module.name if module.is_package else module.name.rpartition(".")[0]
    for node in ast.walk(ast.parse(module.text)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            origin = ".".join(part for part in (base, node.module) if part)
            for alias in node.names:
                submodule = f"{origin}.{alias.name}"
                found.add(submodule if submodule in known else origin)
    return (found & known) - {module.name}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the sets of modules that import each other in a circle (Tarjan's strongly connected components)."""
    numbers: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    result: list[list[str]] = []

    def visit(name: str) -> None:
        numbers[name] = lowest[name] = len(numbers)
        stack.append(name)
        for other in sorted(graph[name]):
            if other not in numbers:
                visit(other)
                lowest[name] = min(lowest[name], lowest[other])
            elif other in stack:
                lowest[name] = min(lowest[name], numbers[other])
        if lowest[name] == numbers[name]:
            at = stack.index(name)
            if len(stack) - at > 1:
                result.append(sorted(stack[at:]))
            del stack[at:]

    for name in sorted(graph):
        if name not in numbers:
            visit(name)
    return result


@EVERY_DISTRIBUTION
def test_no_modules_import_each_other_in_a_circle(distribution: str) -> None:
    modules = DISTRIBUTIONS[distribution]
    known = {module.name for module in modules}
    assert circles({module.name: imported_by(module, known) for module in modules}) == []


def test_circles_are_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set[str](), "e": {"f"}, "f": {"e"}}
    assert circles(graph) == [["b", "c"], ["e", "f"]]


# --- imports ----------------------------------------------------------------------------------------------------------


def inline_imports(text: str) -> list[int]:
    """Return the lines of imports inside functions."""
    lines: set[int] = set()
    for function in ast.walk(ast.parse(text)):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines.update(node.lineno for node in ast.walk(function) if isinstance(node, (ast.Import, ast.ImportFrom)))
    return sorted(lines)


@EVERY_DISTRIBUTION
def test_imports_stand_at_the_head_but_for_a_few_that_say_why(distribution: str) -> None:
    found, silent, lines = [], [], 0
    for module in DISTRIBUTIONS[distribution]:
        text = module.text.splitlines()
        lines += len(text)
        for line in inline_imports(module.text):
            found.append(f"{module.name}:{line}")
            if "#" not in text[line - 1]:
                silent.append(f"{module.name}:{line}")
    # A small distribution may have one or two all the same.
    assert len(found) <= max(2, lines / 1000 * MOST_INLINE_IMPORTS_PER_THOUSAND_LINES), found
    assert silent == [], "each says on its line what it keeps off which path"


@EVERY_DISTRIBUTION
def test_attrs_and_pluggy_are_imported_at_the_head_and_nothing_stands_in_for_them(distribution: str) -> None:
    wrong = []
    for module in DISTRIBUTIONS[distribution]:
        head = {id(node) for node in ast.parse(module.text).body}
        for node in ast.walk(tree := ast.parse(module.text)):
            head |= {id(child) for child in tree.body}
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(re.fullmatch(r"(attrs?|pluggy)(\..*)?", name) for name in names) and id(node) not in head:
                wrong.append(f"{module.name}:{node.lineno}: not at the head")
            if any(re.search(r"(^|\.)(lazy_typing|_record)$", name) for name in names):
                wrong.append(f"{module.name}:{node.lineno}: {names}")
        if re.search(r"\b(__import__|lazy_typing)\b", module.text):
            wrong.append(f"{module.name}: __import__ or lazy_typing")
    assert wrong == []


@EVERY_DISTRIBUTION
def test_quorate_clock_alone_imports_time(distribution: str) -> None:
    # A member of the crash laws shifts its process's clocks, and so has to reach the module itself.
    pattern = re.compile(r"^\s*(import time\b|from time import)", re.MULTILINE)
    assert [
        module.name
        for module in DISTRIBUTIONS[distribution]
        if module.name not in ("quorate.clock", "quorate.testing._member") and pattern.search(module.text)
    ] == []


# --- sizes and copies -------------------------------------------------------------------------------------------------


@EVERY_DISTRIBUTION
def test_no_module_is_long(distribution: str) -> None:
    lengths = {module.name: len(module.text.splitlines()) for module in DISTRIBUTIONS[distribution]}
    assert {name: length for name, length in lengths.items() if length > LONGEST_MODULE_LINES} == {}


def test_no_module_of_tests_is_long() -> None:
    folders = [
        ROOT / "tests",
        ROOT / "core" / "tests",
        ROOT / "benchmarks",
        ROOT / "examples",
        *ROOT.glob("plugins/*/tests"),
    ]
    lengths = {path: len(path.read_text().splitlines()) for folder in folders for path in folder.rglob("*.py")}
    assert [str(path) for path, length in lengths.items() if length > LONGEST_MODULE_LINES] == []


def code_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield number and content of the lines that are code: no blank lines, comments, imports, or brackets alone."""
    skipped: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        is_text = (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        )
        if is_text or isinstance(node, (ast.Import, ast.ImportFrom)):
            assert isinstance(node, ast.stmt)
            skipped.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    for number, line in enumerate(text.splitlines(), 1):
        line = line.partition("  #")[0].strip()
        if number not in skipped and len(line) > 2 and not line.startswith("#"):
            yield number, line


def test_no_ten_lines_stand_in_two_distributions() -> None:
    length = LONGEST_COPY_LINES + 1
    seen: dict[tuple[str, ...], tuple[str, str]] = {}
    copies: dict[tuple[str, str], str] = {}
    for distribution, modules in DISTRIBUTIONS.items():
        for module in modules:
            lines = list(code_lines(module.text))
            for at in range(len(lines) - length + 1):
                window = tuple(line for _, line in lines[at : at + length])
                other, place = seen.setdefault(window, (distribution, f"{module.name}:{lines[at][0]}"))
                if other != distribution:
                    copies.setdefault(
                        (place.partition(":")[0], module.name), f"{place} and {module.name}:{lines[at][0]}"
                    )
    assert list(copies.values()) == []


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_decisions_are_numbered_without_gaps() -> None:
    names = sorted(path.name for path in (ROOT / "docs/decisions").glob("*.md"))
    assert [int(name.partition("-")[0]) for name in names] == list(range(1, len(names) + 1))
