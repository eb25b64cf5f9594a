"""What holds for all tests: properties are not timed, a test says which distributions it needs, and signals arrive.

Properties are not timed, since the machines that check them are shared.
"""

from __future__ import annotations

import importlib.metadata
import signal

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("shared machines", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared machines")


# `make test &` in a script and `nohup make test` have them ignored, which the tests' programs would inherit.
for number, usual in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGQUIT, signal.SIG_DFL),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose marker ``needs`` names a distribution that is not installed."""
    for marker in item.iter_markers("needs"):
        missing = [name for name in marker.args if not _is_installed(name)]
        if missing:
            pytest.skip(f"needs {' and '.join(missing)}: `make tests` installs all that tests need")


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
