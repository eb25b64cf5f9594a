"""The third-party plugins in ``docs/examples``: built as wheels, held to the conformance kit, and running a real job.

Each is installed into a folder of its own, which only the processes of its tests see.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from quorate.testing import ServerProcess, free_port

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted(path.parent for path in ROOT.glob("docs/examples/*/pyproject.toml"))
GUIDE = ROOT / "docs/write-a-rendezvous-plugin.md"
#: An author is promised about 70 lines for the plugin and 15 for its test; comments and blank lines are free.
MOST_LINES, MOST_TEST_LINES = 75, 17
DEADLINE_SECONDS = 170.0

every_example = pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)


def code_lines(path: Path) -> list[str]:
    lines = [line.strip() for line in path.read_text().splitlines()]
    return [line for line in lines if line and not line.startswith(("#", '"""'))]


def source_of(example: Path) -> Path:
    (source,) = example.glob("src/*/__init__.py")
    return source


@pytest.fixture(scope="module")
def environments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Name of an example -> the environment of processes that have it installed."""
    made: dict[str, dict[str, str]] = {}
    for example in EXAMPLES:
        folder = tmp_path_factory.mktemp(example.name)
        # Built from a copy: a build leaves nothing in the checkout.
        copy = shutil.copytree(example, folder / "source")
        build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(copy)]
        subprocess.run(build, check=True, capture_output=True, timeout=DEADLINE_SECONDS)
        (wheel,) = folder.glob("*.whl")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target"]
        subprocess.run([*pip, folder / "site", wheel], check=True, capture_output=True, timeout=DEADLINE_SECONDS)
        made[example.name] = {**os.environ, "PYTHONPATH": str(folder / "site")}
    return made


@pytest.mark.slow  # each tries the whole kit on a real server
@every_example
def test_example_keeps_every_law(example: Path, environments: dict[str, dict[str, str]], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "--rootdir", tmp_path]
    done = subprocess.run(
        # Laws mostly wait, each for a store of its own.
        [*command, "-n", "3", "--basetemp", tmp_path / "base", example / "tests"],
        env={**environments[example.name], "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
    )
    assert done.returncode == 0, done.stdout[-5000:]


@pytest.fixture
def endpoint(example: Path, tmp_path: Path) -> Iterator[str]:
    with ExitStack() as stack:
        if example.name == "rendezvous_redis":
            port = free_port()
            command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
            yield stack.enter_context(ServerProcess(command, port)).endpoint
        else:
            yield str(tmp_path)


@every_example
def test_example_runs_a_job_of_two_nodes(
    example: Path, environments: dict[str, dict[str, str]], endpoint: str, tmp_path: Path
) -> None:
    backend = example.name.removeprefix("rendezvous_")
    run = [sys.executable, "-m", "quorate", "run", "--nnodes=2", "--nproc-per-node=2", f"--rdzv-backend={backend}"]
    nodes = [
        subprocess.Popen(
            [
                *run,
                f"--rdzv-endpoint={endpoint}",
                "--rdzv-id=job",
                "--no-python",
                "sh",
                "-c",
                'echo "$RANK $WORLD_SIZE"',
            ],
            env=environments[example.name],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        outcomes = [node.communicate(timeout=DEADLINE_SECONDS) for node in nodes]
    finally:
        for node in nodes:
            node.kill()
            node.wait()
    assert [node.returncode for node in nodes] == [0, 0], outcomes
    assert sorted(line for out, _ in outcomes for line in out.splitlines()) == [f"{rank} 4" for rank in range(4)]


@every_example
def test_example_is_as_short_as_promised_and_imports_nothing_private(example: Path) -> None:
    assert len(code_lines(source_of(example))) <= MOST_LINES
    (test,) = example.glob("tests/*.py")
    assert len(code_lines(test)) <= MOST_TEST_LINES
    for path in (source_of(example), test):
        imports = re.findall(r"^ *(?:from|import) +(quorate\S*)(?: +import +(.*))?$", path.read_text(), re.MULTILINE)
        assert imports
        assert not [found for found in imports if "._" in found[0] or re.search(r"\b_\w", found[1])]


# --- the guide --------------------------------------------------------------------------------------------------------


def included(text: str) -> str:
    """Return ``text`` with each block after a comment ``<!-- file: … -->`` replaced by that file."""

    def replace(match: re.Match[str]) -> str:
        content = (ROOT / "docs" / match[1]).read_text().rstrip("\n")
        return f"<!-- file: {match[1]} -->\n```{match[2]}\n{content}\n```"

    return re.sub(r"<!-- file: (\S+) -->\n```(\w*)\n.*?^```$", replace, text, flags=re.DOTALL | re.MULTILINE)


def test_code_of_the_guide_is_the_example() -> None:
    """Rewrite it with: python tests/test_examples.py --rewrite."""
    text = GUIDE.read_text()
    assert text.count("<!-- file: ") == 3
    assert text == included(text)


if __name__ == "__main__" and "--rewrite" in sys.argv:
    GUIDE.write_text(included(GUIDE.read_text()))
