"""What the repository says about itself: promises and their tests, decisions, tools and their versions, workflows.

What does not live here: links and commands of the pages (``test_readme``), what is installed (``test_packaging``).
"""

from __future__ import annotations

import ast
import configparser
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.specifiers import SpecifierSet

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
DECISIONS = sorted((ROOT / "docs/decisions").glob("*.md"))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def texts() -> Iterator[tuple[str, str]]:
    """Yield path and text of everything that people write here."""
    folders = ("core", "plugins", "tests", "benchmarks", "examples", "docs")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".md")]
    files += [ROOT / "Makefile", *ROOT.glob("*.md"), *ROOT.glob("*.py"), *ROOT.glob("*.toml")]
    for path in files:
        yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")


# --- promises and the tests that hold them ----------------------------------------------------------------------------


def names_of_tests_in(path: Path) -> set[str]:
    """Return the tests of a file as pytest names them, without the file."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return {name for name in found if name.split("::")[-1].startswith("test_")}


def promised() -> list[str]:
    """Return every test, or file of tests, that the page names."""
    return re.findall(r"^  - `(.+)`$", (ROOT / "docs/behaviour.md").read_text(), re.MULTILINE)


def test_every_test_that_holds_a_promise_exists() -> None:
    absent = []
    for named in promised():
        file, _, test = named.partition("::")
        path = ROOT / file
        if not path.is_file() or (test and test not in names_of_tests_in(path)):
            absent.append(named)
    assert absent == [], "docs/behaviour.md names tests that are not there"


def test_every_promise_has_a_test() -> None:
    lines = (ROOT / "docs/behaviour.md").read_text().split("\n## ", 1)[1].splitlines()
    kinds = "".join("P" if line.startswith("- ") else "T" if line.startswith("  - `") else "" for line in lines)
    assert re.fullmatch(r"(PT+)+", kinds)


def test_every_file_of_behaviours_is_among_the_promises() -> None:
    named = {entry.partition("::")[0] for entry in promised()}
    assert [path.name for path in sorted((ROOT / "tests").glob("test_*.py")) if f"tests/{path.name}" not in named] == []


#: Codes of lists that readers do not have: they say nothing to whoever reads the code.
CODES = re.compile(r'BEHAVIOUR\b|\bDESIGN (law )?\d|^\s*"""(A\d{1,2}|[B-F])\b[.:,]|\(A\d{1,2}([,) ]|$)', re.MULTILINE)


def test_features_are_cited_by_name() -> None:
    found = [f"{path}: {match[0]!r}" for path, text in texts() for match in CODES.finditer(text)]
    assert [entry for entry in found if not entry.startswith("tests/test_repository.py")] == []


# --- decisions --------------------------------------------------------------------------------------------------------


def test_decisions_are_numbered_without_gaps_and_listed_by_their_titles() -> None:
    assert [path.name[:5] for path in DECISIONS] == [f"{number:04}-" for number in range(1, len(DECISIONS) + 1)]
    titles = [path.read_text().splitlines()[0] for path in DECISIONS]
    assert [title.partition(" ")[2].partition(". ")[0] for title in titles] == [
        str(number) for number in range(1, len(DECISIONS) + 1)
    ]
    listed = re.findall(r"^- \[(\d+\. .*?)\]\(decisions/(.*?)\)", (ROOT / "docs/README.md").read_text(), re.MULTILINE)
    assert listed == [(title[2:], path.name) for title, path in zip(titles, DECISIONS, strict=True)]


def test_decisions_that_are_cited_by_number_exist() -> None:
    known = {path.name[:4] for path in DECISIONS}
    cited = re.compile(r"decisions/(\d{4})\b|\bdecision (\d+)\b|\[(\d{1,4})\]\([^)]*?(\d{4})-[^)]*\)")
    wrong = []
    for path, text in texts():
        for match in cited.finditer(text):
            numbers = {f"{int(number):04}" for number in match.groups() if number}
            if len(numbers) > 1 or not numbers <= known:
                wrong.append(f"{path}: {match[0]}")
    assert wrong == []


# --- tools, versions and workflows ------------------------------------------------------------------------------------


def constraints() -> dict[str, str]:
    return dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))


def read_yaml(path: str) -> Any:
    # YAML 1.1 takes the key "on" of workflows for a truth value; strings are all that is needed here.
    return yaml.load((ROOT / path).read_text(), Loader=yaml.BaseLoader)


def test_hooks_run_before_a_commit_have_the_versions_of_the_constraints() -> None:
    """They are local, so that they are what .venv has; what it has is what the constraints say."""
    hooks = [hook for repository in read_yaml(".pre-commit-config.yaml")["repos"] for hook in repository["hooks"]]
    assert {hook["id"] for hook in hooks} == {"ruff-check", "ruff-format", "mypy"}
    assert {repository["repo"] for repository in read_yaml(".pre-commit-config.yaml")["repos"]} == {"local"}
    for hook in hooks:
        program, target = hook["entry"].split()[:2]
        assert program == ".venv/bin/ruff" or (program == "make" and target in make_targets())
    for tool in ("ruff", "mypy"):
        assert importlib.metadata.version(tool) == constraints()[tool]


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def pythons() -> list[str]:
    """Return the versions of Python that are supported, oldest first."""
    classifiers = PYPROJECT["project"]["classifiers"]
    prefix = "Programming Language :: Python :: "
    return [text.removeprefix(prefix) for text in classifiers if text.startswith(prefix)]


def test_all_tools_agree_on_the_versions_of_python() -> None:
    oldest, *_, newest = pythons()
    requires = SpecifierSet(PYPROJECT["project"]["requires-python"])
    assert all(f"{version}.0" in requires for version in pythons())
    assert PYPROJECT["tool"]["mypy"]["python_version"] == oldest
    assert PYPROJECT["tool"]["ruff"]["target-version"] == f"py{oldest.replace('.', '')}"
    assert read_yaml(".github/workflows/ci.yml")["jobs"]["core"]["strategy"]["matrix"]["python"] == pythons()
    for page in ("README.md", "CONTRIBUTING.md"):
        assert f"Python {oldest} to {newest}" in (ROOT / page).read_text()


def test_nox_has_a_session_for_each_python() -> None:
    listing = [sys.executable, "-m", "nox", "--list", "--noxfile", str(ROOT / "noxfile.py")]
    done = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, timeout=60.0)
    assert done.returncode == 0, done.stderr
    sessions = re.findall(r"^\* ([\w.-]+) ->", done.stdout, re.MULTILINE)
    assert sessions == [*(f"tests-core-{version}" for version in pythons()), "lint", "types"]


def commands_of(workflow: str) -> list[str]:
    return [
        step["run"]
        for job in read_yaml(workflow)["jobs"].values()
        for step in job.get("steps", ())
        if "run" in step and "name" not in step
    ]


@pytest.mark.parametrize("workflow", ["ci", "release"])
def test_workflows_run_what_people_run(workflow: str) -> None:
    commands = commands_of(f".github/workflows/{workflow}.yml")
    assert commands
    for command in commands:
        assert command == ".ci/run" or command.removeprefix("make ") in make_targets(), command


def test_a_release_is_checked_built_whole_and_published_without_a_token() -> None:
    jobs = read_yaml(".github/workflows/release.yml")["jobs"]
    assert jobs["check"]["uses"] == "./.github/workflows/ci.yml"
    assert commands_of(".github/workflows/release.yml") == ["make dist"]
    assert set(jobs["publish"]["needs"]) == {"check", "build"}
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    recipe = subprocess.run(["make", "-n", "dist"], cwd=ROOT, capture_output=True, text=True, timeout=60.0).stdout
    (built,) = re.findall(r"for project in (.*?);", recipe)
    projects = [ROOT, ROOT / "core", *(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))]
    assert {ROOT / name for name in built.split()} == set(projects)


def test_citation_names_the_version_and_the_license() -> None:
    citation = read_yaml("CITATION.cff")
    assert citation["version"] == PYPROJECT["project"]["version"]
    assert citation["license"] == PYPROJECT["project"]["license"]


def test_editors_are_told_the_width_that_ruff_keeps() -> None:
    parser = configparser.ConfigParser()
    parser.read_string("[top]\n" + (ROOT / ".editorconfig").read_text())
    assert parser["*"]["max_line_length"] == str(PYPROJECT["tool"]["ruff"]["line-length"])


def test_coverage_measures_every_distribution() -> None:
    packages = [path.name for path in [*ROOT.glob("core/src/*"), *ROOT.glob("plugins/*/src/*")] if path.is_dir()]
    packages = [name for name in packages if not name.endswith(".egg-info")]
    assert sorted(PYPROJECT["tool"]["coverage"]["run"]["source_pkgs"]) == sorted(packages)


def test_every_form_for_issues_is_one_that_can_be_filled_in() -> None:
    forms = [path for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml"]
    assert forms
    for path in forms:
        form = read_yaml(str(path.relative_to(ROOT)))
        assert {"name", "description", "body"} <= set(form)
        assert all(part["type"] in ("textarea", "input", "markdown", "dropdown") for part in form["body"])


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout")
def test_nothing_that_git_ignores_is_in_the_repository() -> None:
    """An environment or a cache gets in easily, before its line in ``.gitignore`` is written."""
    listing = ["git", "ls-files", "--cached", "--ignored", "--exclude-standard"]
    done = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, timeout=60.0)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
