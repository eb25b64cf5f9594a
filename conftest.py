"""What holds for all tests: properties are not timed, tests say what they need, signals arrive, no test leaves traces.

Properties are not timed, since the machines that check them are shared.
"""

from __future__ import annotations

import gc
import importlib.metadata
import os
import resource
import signal
import socket
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

#: A slow test takes about as long as so many others.
_SLOW_WEIGHT = 40

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

# With it, the line that a worker prints comes in pieces, between which other workers' lines may come.
os.environ.pop("PYTHONUNBUFFERED", None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest: where files are shared out, no process has a long one left at the end."""
    weights = Counter[Path]()
    for item in items:
        weights[item.path] += _SLOW_WEIGHT if item.get_closest_marker("slow") else 1
    items.sort(key=lambda item: -weights[item.path])


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose marker ``needs`` names a distribution that is not installed."""
    for marker in item.iter_markers("needs"):
        missing = [name for name in marker.args if not _is_installed(name)]
        if missing:
            pytest.skip(f"needs {' and '.join(missing)}: `make tests` installs all that tests need")


#: Variables that a test must not leave behind, by the beginnings of their names.  Libraries set others when first used.
_READ_BY_LAUNCHERS = (
    *("QUORATE_", "PET_", "TORCHELASTIC_", "MASTER_", "RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_"),
    *(
        "SLURM",
        "OMPI",
        "PMI",
        "FLUX",
        "PBS",
        "LSB",
        "KUBERNETES",
        "JOB_",
        "SKYPILOT",
        "SM_",
        "RAY",
        "GLOO",
        "NCCL",
        "TMP",
    ),
)


_HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2)


@pytest.fixture(autouse=True)
def process_as_before() -> Iterator[None]:
    """Fail a test that leaves this process changed, since the next test would run in what it left.

    Signal handlers are put back: ``quorate run`` sets some for the life of its process, which is that of all tests
    where one calls it.
    """
    before, folder, handlers = dict(os.environ), os.getcwd(), [signal.getsignal(number) for number in _HANDLED]
    settings_before = _settings_of_process()
    yield
    for number, handler in zip(_HANDLED, handlers, strict=True):
        signal.signal(number, handler)
    after = dict(os.environ)
    changed = {name for name in before.keys() & after.keys() if before[name] != after[name]} - {"PYTEST_CURRENT_TEST"}
    changed |= before.keys() - after.keys()
    changed |= {name for name in after.keys() - before.keys() if name.startswith(_READ_BY_LAUNCHERS)}
    for name in changed:  # so that one test fails, and not all that follow
        os.environ.pop(name, None)
    os.environ.update({name: before[name] for name in changed if name in before})
    assert not changed, f"the test has left other values of {', '.join(sorted(changed))}"
    assert os.getcwd() == folder
    assert _settings_of_process() == settings_before


def _settings_of_process() -> dict[str, object]:
    """Return what holds for a whole process, and what later tests would not expect to find changed."""
    umask = os.umask(0o77)
    os.umask(umask)
    fork_server = sys.modules.get("multiprocessing.forkserver")
    return {
        "umask": umask,
        "descriptors": resource.getrlimit(resource.RLIMIT_NOFILE),
        "file size": resource.getrlimit(resource.RLIMIT_FSIZE),
        "time-out of sockets": socket.getdefaulttimeout(),
        "collector": (gc.isenabled(), gc.get_threshold()),
        "preloaded by the fork server": (
            ["__main__"] if fork_server is None else list(fork_server._forkserver._preload_modules)
        ),
    }


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
