"""What the documentation says exists: commands, targets, flags, distributions, links, and the program it shows.

Commands are carried out in the cheapest way that still proves them: a launch only shows its configuration.
"""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
CHECKED = ["README.md", "CONTRIBUTING.md", "examples/digits_ddp/README.md"]
QUORATE = str(Path(sys.executable).with_name("quorate"))
DEADLINE_SECONDS = 60.0


def blocks(path: Path, language: str) -> list[str]:
    """Return the contents of all fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)


def commands(path: Path) -> list[str]:
    """Return every command line in shell blocks and in tables."""
    shell = "".join(blocks(path, "sh"))
    found = [line.partition("  #")[0].strip() for line in shell.splitlines() if line.strip()]
    rows = [line for line in path.read_text().splitlines() if line.startswith("|")]
    for row in rows:
        found += [text for text in re.findall(r"`([^`]+)`", row) if text.split()[0] in ("make", "pip", "quorate")]
    return found


def all_commands() -> list[tuple[str, str]]:
    return [(name, command) for name in CHECKED for command in commands(ROOT / name)]


@pytest.mark.parametrize(("name", "command"), all_commands())
def test_command_is_one_that_works(name: str, command: str, tmp_path: Path) -> None:
    words = shlex.split(command)
    if words[0] == "make":
        variables = {word.partition("=")[0] for word in words[1:] if "=" in word}
        targets = {word for word in words[1:] if "=" not in word}
        assert targets <= make_targets(), f"{name}: the Makefile does not know {command!r}"
        assert variables <= make_variables(), f"{name}: the Makefile does not use what {command!r} sets"
    elif words[:2] == ["pip", "install"]:
        for word in words[2:]:
            assert_installable(word)
    elif words[0] == "quorate":
        if words[1] == "run":
            words.insert(2, "--show-config")
        done = subprocess.run(
            [QUORATE, *words[1:]], cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE_SECONDS
        )
        assert done.returncode == 0, f"{name}: {command!r}: {done.stderr}"
    else:
        pytest.fail(f"{name}: nobody knows how to check {command!r}")


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def make_variables() -> set[str]:
    return set(re.findall(r"\$\(([A-Z_]+)\)", (ROOT / "Makefile").read_text()))


def projects() -> dict[str, dict[str, object]]:
    """Return name -> project table of every distribution."""
    files = [ROOT / "pyproject.toml", ROOT / "core/pyproject.toml", *ROOT.glob("plugins/*/pyproject.toml")]
    tables = [tomllib.loads(file.read_text())["project"] for file in files]
    return {table["name"]: table for table in tables}


def assert_installable(word: str) -> None:
    if word.startswith("."):
        assert (ROOT / word / "pyproject.toml").is_file(), f"{word} is not the folder of a distribution"
        return
    distribution, _, extra = word.partition("[")
    table = projects().get(distribution)
    assert table is not None, f"no distribution is called {distribution}"
    extras = table.get("optional-dependencies", {})
    assert isinstance(extras, dict)
    assert not extra or extra.rstrip("]") in extras, f"{distribution} has no extra {extra}"


def test_table_of_plugins_is_the_plugins_folder() -> None:
    """No list is kept twice without a test that compares them."""
    told = re.findall(r"^\|.*`pip install ([\w-]+)` \|$", README.read_text(), re.MULTILINE)
    there = [tomllib.loads(path.read_text())["project"]["name"] for path in ROOT.glob("plugins/*/pyproject.toml")]
    assert sorted(told) == sorted(there)


def test_torchrun_commands_move_by_their_first_word_alone() -> None:
    rows = re.findall(r"^\| `torchrun (.*?)` \| `quorate run (.*?)` \|$", README.read_text(), re.MULTILINE)
    assert rows
    for before, now in rows:
        assert before == now


def test_python_program_of_the_readme_runs(tmp_path: Path) -> None:
    (program,) = blocks(README, "python")
    script = tmp_path / "program.py"
    script.write_text(program)
    command = [sys.executable, "-W", "error", str(script)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE_SECONDS)
    assert done.returncode == 0, done.stderr
    assert ast.literal_eval(done.stdout) == {rank: f"hello from rank {rank} of 2" for rank in (0, 1)}


def test_python_and_toml_of_the_guide_for_contributors_parse() -> None:
    guide = ROOT / "CONTRIBUTING.md"
    programs, tables = blocks(guide, "python"), blocks(guide, "toml")
    assert programs
    assert tables
    for program in programs:
        compile(program, str(guide), "exec")
    for text in tables:
        assert tomllib.loads(text)["project"]["entry-points"]["quorate"]


def pages() -> list[Path]:
    folders = ("", ".github", "docs", "examples/*", "core", "plugins/*", "docs/decisions")
    return sorted({page for folder in folders for page in ROOT.glob(f"{folder}/*.md".lstrip("/"))})


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    broken = [target for target in targets if target and not (page.parent / target).exists()]
    assert broken == []


def test_index_of_the_guide_names_every_page() -> None:
    index = (ROOT / "docs/README.md").read_text()
    there = [path.relative_to(ROOT / "docs") for path in ROOT.glob("docs/**/*.md") if path.name != "README.md"]
    assert [str(path) for path in there if f"({path})" not in index] == []


def test_continuous_integration_runs_what_people_run() -> None:
    script = ROOT / ".ci/run"
    assert script.stat().st_mode & 0o111
    lines = [line for line in script.read_text().splitlines() if line and not line.startswith("#")]
    assert [line for line in lines if "make" in line] == ["exec make test"]
