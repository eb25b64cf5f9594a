"""Every distribution stands alone: it builds, installs into an empty environment, imports, and keeps to the rules.

What there is to test is derived from ``core/``, ``plugins/*/pyproject.toml`` and the root.  What does not live here:
what the distributions do.
"""

from __future__ import annotations

import ast
import email
import email.message
import importlib.metadata
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "core"
PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))
CODE = [CORE, *PLUGINS]
ALL = [ROOT, *CODE]
DEADLINE_SECONDS = 120.0


def metadata_of(project: Path) -> dict[str, Any]:
    """Return the ``project`` table."""
    table: dict[str, Any] = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    return table


def name_of(project: Path) -> str:
    name: str = metadata_of(project)["name"]
    return name


def package_of(project: Path) -> str:
    """Return the one import package of a project."""
    (package,) = (path for path in (project / "src").iterdir() if path.is_dir())
    return package.name


every_project = pytest.mark.parametrize("project", ALL, ids=name_of)
every_code = pytest.mark.parametrize("project", CODE, ids=name_of)
every_plugin = pytest.mark.parametrize("project", PLUGINS, ids=name_of)


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command that must succeed; returns its stdout."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=DEADLINE_SECONDS)
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


# --- wheels and environments ----------------------------------------------------------------------------------------


class Wheels:
    """Builds the wheel of each project once, when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._built: dict[Path, Path] = {}

    def of(self, project: Path) -> Path:
        if project not in self._built:
            folder = self._folder / name_of(project)
            build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(project)]
            run(*build, cwd=self._folder)
            (self._built[project],) = folder.glob("*.whl")
        return self._built[project]

    def metadata_of(self, project: Path) -> email.message.Message:
        with zipfile.ZipFile(self.of(project)) as wheel:
            (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
            return email.message_from_bytes(wheel.read(name))

    def files_of(self, project: Path) -> list[str]:
        """Return the installed files, without the distribution's own metadata."""
        with zipfile.ZipFile(self.of(project)) as wheel:
            return [name for name in wheel.namelist() if ".dist-info/" not in name]


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Wheels:
    return Wheels(tmp_path_factory.mktemp("wheels"))


class Environment:
    """An environment that was empty; what third parties have published is copied from ours, torch never."""

    def __init__(self, folder: Path) -> None:
        run(sys.executable, "-m", "venv", "--without-pip", folder)
        self.python = folder / "bin" / "python"
        self._site = Path(run(self.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
        self._copied: set[str] = set()

    def install(self, wheels: Wheels, projects: Sequence[Path]) -> None:
        own = {canonicalize_name(name_of(project)) for project in ALL}
        for project in projects:
            for requirement in _needed(metadata_of(project).get("dependencies", [])):
                if requirement not in own:
                    self._copy(requirement)
        files = [str(wheels.of(project)) for project in projects]
        pip = [sys.executable, "-m", "pip", "--python", str(self.python), "install", "--quiet"]
        run(*pip, "--no-index", "--no-deps", "--no-compile", "--disable-pip-version-check", *files)

    def _copy(self, name: str) -> None:
        if name == "torch" or name in self._copied:
            return
        self._copied.add(name)
        distribution = importlib.metadata.distribution(name)
        for file in distribution.files or ():
            if ".." not in file.parts and "__pycache__" not in file.parts:
                target = self._site / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(str(file.locate()), target)
        for requirement in _needed(distribution.requires or ()):
            self._copy(requirement)

    def evaluate(self, code: str, cwd: Path) -> str:
        """Run Python code, isolated from the user's own settings, with warnings as errors."""
        return run(self.python, "-I", "-W", "error", "-c", code, cwd=cwd).strip()


def _needed(requirements: Sequence[str]) -> Iterator[str]:
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield canonicalize_name(requirement.name)


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path / "environment")


# --- each distribution alone ----------------------------------------------------------------------------------------


def test_core_installs_alone_and_all_of_it_imports_without_torch(
    wheels: Wheels, environment: Environment, tmp_path: Path
) -> None:
    environment.install(wheels, [CORE])
    code = (
        "import importlib, pkgutil, sys, quorate\n"
        "for module in pkgutil.walk_packages(quorate.__path__, 'quorate.'):\n"
        "    if not module.name.endswith('__main__'): importlib.import_module(module.name)\n"
        "for name in quorate.__all__: getattr(quorate, name)\n"
        "print(*(name for name in sys.modules if name.split('.')[0] == 'torch'))"
    )
    assert environment.evaluate(code, tmp_path) == ""
    version = metadata_of(CORE)["version"]
    assert run(environment.python.with_name("quorate"), "--version").strip() == f"quorate {version}"


def test_core_alone_names_the_plugin_that_a_launch_lacks(
    wheels: Wheels, environment: Environment, tmp_path: Path
) -> None:
    environment.install(wheels, [CORE])
    command = [environment.python.with_name("quorate"), "run", "--standalone", "--no-python", "true"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE_SECONDS)
    assert done.returncode == 2
    assert "pip install quorate-" in done.stderr
    assert "Traceback" not in done.stderr


@every_plugin
def test_plugin_installs_beside_the_core_alone_and_imports_without_torch(
    wheels: Wheels, environment: Environment, tmp_path: Path, project: Path
) -> None:
    environment.install(wheels, [CORE, project])
    (target,) = metadata_of(project)["entry-points"]["quorate"].values()
    module, _, attribute = target.partition(":")
    code = (
        "import sys, importlib\n"
        f"assert importlib.import_module({module!r}).{attribute} is not None\n"
        "from quorate import PluginHost\n"
        "host = PluginHost(warn=lambda sentence: sys.exit(sentence))\n"
        "assert not any(name.split('.')[0] == 'torch' for name in sys.modules)\n"
        "print(*(plugin.found.distribution for plugin in host.loaded))"
    )
    assert environment.evaluate(code, tmp_path) == name_of(project)


def test_everything_together_runs_a_job(wheels: Wheels, environment: Environment, tmp_path: Path) -> None:
    environment.install(wheels, ALL)
    quorate = environment.python.with_name("quorate")
    listing = run(quorate, "plugins")
    for project in PLUGINS:
        assert name_of(project) in listing
    assert run(quorate, "run", "--standalone", "--nproc-per-node=2", "--no-python", "echo", "here") == "here\n" * 2


# --- metadata -------------------------------------------------------------------------------------------------------


@every_project
def test_metadata_is_what_an_index_and_a_reader_need(wheels: Wheels, project: Path) -> None:
    table, built = metadata_of(project), wheels.metadata_of(project)
    assert built["Name"] == table["name"]
    assert built["Version"] == table["version"]
    assert built["License-Expression"] == "BSD-3-Clause"
    assert built["Author"] == "The quorate authors"
    assert SpecifierSet(built["Requires-Python"]) == SpecifierSet(">=3.10")
    assert built["Summary"] == table["description"]
    assert not built["Summary"].endswith(".")
    assert built.get_all("License-File") == ["LICENSE"]
    with zipfile.ZipFile(wheels.of(project)) as wheel:
        (license_file,) = (name for name in wheel.namelist() if name.endswith(".dist-info/licenses/LICENSE"))
        assert wheel.read(license_file) == (ROOT / "LICENSE").read_bytes()
    description = built.get_payload()
    assert isinstance(description, str)
    assert description.strip(), "the README is empty"


@every_project
def test_no_dependency_is_pinned_and_siblings_share_a_minor_version(project: Path) -> None:
    versions = {canonicalize_name(name_of(other)): Version(metadata_of(other)["version"]) for other in ALL}
    for requirement in requirements_of(project):
        assert "==" not in str(requirement.specifier), f"{requirement} is pinned"
        sibling = canonicalize_name(requirement.name)
        if sibling in versions and sibling != canonicalize_name(name_of(project)):
            major, minor = versions[sibling].release[:2]
            assert requirement.specifier == SpecifierSet(f">={major}.{minor},<{major}.{minor + 1}"), f"{requirement}"


def requirements_of(project: Path) -> list[Requirement]:
    """Return all dependencies, those of the extras included."""
    table = metadata_of(project)
    texts = list(table.get("dependencies", []))
    for extra in table.get("optional-dependencies", {}).values():
        texts += extra
    return [Requirement(text) for text in texts]


@every_project
def test_what_a_distribution_imports_it_requires(project: Path) -> None:
    """torch is the user's choice: those that use it say what to install where it is missing."""
    required = {canonicalize_name(requirement.name) for requirement in requirements_of(project)}
    known = {*required, canonicalize_name(name_of(project)), "torch"}
    owners = importlib.metadata.packages_distributions()
    missing = set()
    for path in (project / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            for package in {name.partition(".")[0] for name in names} & owners.keys():
                if known.isdisjoint(map(canonicalize_name, owners[package])):
                    missing.add(f"{path.name}: {package}")
    assert not missing


@every_plugin
def test_names_of_a_plugin_follow_from_its_folder(project: Path) -> None:
    table = metadata_of(project)
    assert table["name"] == f"quorate-{project.name.replace('_', '-')}"
    assert package_of(project) == f"quorate_{project.name}"
    assert list(table["entry-points"]["quorate"]) == [project.name.replace("_", "-")]
    assert "quorate-core" in {requirement.name for requirement in requirements_of(project)}


@every_plugin
def test_plugin_could_be_cut_out_into_a_repository_of_its_own(project: Path) -> None:
    for entry in ("README.md", "CHANGELOG.md", "LICENSE", "src", "tests"):
        assert (project / entry).exists(), f"{project.name} has no {entry}"


@every_code
def test_wheel_holds_one_typed_package_and_nothing_else(wheels: Wheels, project: Path) -> None:
    files = wheels.files_of(project)
    package = package_of(project)
    assert {name.split("/")[0] for name in files} == {package}
    assert f"{package}/py.typed" in files
    if package == "quorate":
        assert "quorate/known_plugins.txt" in files
    assert not [name for name in files if "test_" in name or name.endswith(".pyc")]


def test_umbrella_has_no_code_and_offers_every_plugin(wheels: Wheels) -> None:
    assert wheels.files_of(ROOT) == []
    named = {canonicalize_name(requirement.name) for requirement in requirements_of(ROOT)}
    assert named - {"quorate"} == {canonicalize_name(name_of(project)) for project in CODE}
    extras = metadata_of(ROOT)["optional-dependencies"]
    (everything,) = (Requirement(text) for text in extras["all"])
    assert everything.extras == set(extras) - {"all"}


def test_type_checker_knows_every_source_tree() -> None:
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert sorted(tool["mypy"]["mypy_path"]) == sorted(f"{project.relative_to(ROOT)}/src" for project in CODE)


# --- who imports whom -----------------------------------------------------------------------------------------------


def imports_of(source: Path) -> Iterator[tuple[int, str, str]]:
    """Yield ``(line, module, name)`` for every absolute import in a file, wherever it stands; ``name`` may be empty."""
    for node in ast.walk(ast.parse(source.read_text(), str(source))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, ""
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            for alias in node.names:
                yield node.lineno, node.module or "", alias.name


def sources_of(project: Path) -> list[Path]:
    return sorted((project / "src").rglob("*.py"))


def test_core_imports_neither_torch_nor_a_plugin() -> None:
    plugins = {package_of(project) for project in PLUGINS}
    found = [
        f"{source.relative_to(ROOT)}:{line} imports {module}"
        for source in sources_of(CORE)
        for line, module, _ in imports_of(source)
        if module.split(".")[0] in plugins | {"torch"}
    ]
    assert found == []


@every_plugin
def test_plugin_imports_only_public_names_of_quorate(project: Path) -> None:
    private = re.compile(r"(^|\.)_(?!_)")
    found = [
        f"{source.relative_to(ROOT)}:{line} imports {module} {name}".rstrip()
        for source in sources_of(project)
        for line, module, name in imports_of(source)
        if module.split(".")[0] == "quorate" and private.search(f"{module}.{name}")
    ]
    assert found == []


@every_plugin
def test_plugin_imports_no_other_plugin(project: Path) -> None:
    others = {package_of(other) for other in PLUGINS} - {package_of(project)}
    found = [
        f"{source.relative_to(ROOT)}:{line} imports {module}"
        for source in sources_of(project)
        for line, module, _ in imports_of(source)
        if module.split(".")[0] in others
    ]
    assert found == []
