"""The backend works with the protobuf that an environment happens to have, the old ones included."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from quorate_rendezvous_etcd import EtcdServer

from .etcd_harness import DEADLINE_SECONDS

SCRIPT = """
import sys
from google import protobuf
assert protobuf.__version__.startswith(sys.argv[1]), protobuf.__version__
from quorate import PluginHost, RendezvousParameters, get_rendezvous_handler
handler = get_rendezvous_handler(RendezvousParameters("etcd", sys.argv[2], sys.argv[3], 1, 1), PluginHost())
print(handler.next_rendezvous().world_size)
handler.report_done()
print(handler.wait_for_change(60.0).verdict.value)
handler.shutdown()
"""


@pytest.mark.slow(reason="packages are installed")
@pytest.mark.parametrize("version", ["3.20.3", "4.25.9", "5.29.5"])
def test_a_round_with_an_older_protobuf(shared_etcd: EtcdServer, run_id: str, tmp_path: Path, version: str) -> None:
    """Its classes and its compiled part differ between major versions; the newest is what all other tests run with."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:", "--target"]
    installed = subprocess.run([*pip, str(tmp_path), f"protobuf=={version}"], capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"protobuf {version} cannot be installed here: {installed.stderr.strip()[-300:]}")
    command = [sys.executable, "-c", SCRIPT, version, shared_etcd.get_endpoint(), run_id]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=DEADLINE_SECONDS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1", "succeeded"]
