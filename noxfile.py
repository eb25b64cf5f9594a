"""Sessions of nox: the core's tests on every Python that is supported, lint, and types.

The commands live in the Makefile, and a session says which Python they run on.
``nox -s tests-core-3.10`` runs one of them.
"""

from __future__ import annotations

import nox

PYTHONS = nox.project.python_versions(nox.project.load_toml("pyproject.toml"))
nox.options.default_venv_backend = "virtualenv"
nox.options.error_on_missing_interpreters = False


@nox.session(name="tests-core", python=PYTHONS)
def tests_core(session: nox.Session) -> None:
    """Run the core's tests in the session's own environment."""
    session.run("make", "test-core", f"CORE_VENV={session.virtualenv.location}", *session.posargs, external=True)


@nox.session(python=False)
def lint(session: nox.Session) -> None:
    """Run ruff, as linter and as formatter."""
    session.run("make", "lint", "format", external=True)


@nox.session(python=False)
def types(session: nox.Session) -> None:
    """Run mypy, which checks for the oldest Python supported."""
    session.run("make", "types", external=True)
