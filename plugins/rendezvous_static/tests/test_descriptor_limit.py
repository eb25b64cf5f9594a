"""The node that hosts the store raises its own limit on open files, as far as the system permits it."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import resource
from quorate_rendezvous_static._limits import Limits, raise_descriptor_limit
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
raise_descriptor_limit()
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0], Limits().most_descriptors())
"""


def limits_after(soft: int, hard: int) -> str:
    code = CODE.format(soft=soft, hard=hard)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_the_limit_rises_to_what_the_system_permits() -> None:
    assert limits_after(128, 512).split() == ["512", "128"]


def test_a_limit_that_cannot_rise_stays() -> None:
    assert limits_after(256, 256).split() == ["256", "64"]
