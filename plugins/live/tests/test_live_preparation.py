"""What makes a replacement quick: whether the store listens, and what is imported ahead."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable

import pytest

from quorate_live import _listeners


@pytest.mark.parametrize("look", [_listeners.listens, _listeners._proc_lists])
@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::")])
def test_a_port_is_seen_while_it_is_listened_on(look: Callable[[int], bool], family: int, host: str) -> None:
    if family == socket.AF_INET6 and not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    with socket.socket(family) as listener:
        listener.bind((host, 0))
        port = listener.getsockname()[1]
        assert not look(port), "it is bound, and does not listen"
        listener.listen()
        assert look(port)
        with socket.create_connection(listener.getsockname()[:2]):
            assert look(port)
    assert not look(port)


def test_where_the_kernel_does_not_list_sockets_proc_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_listeners, "_SOCK_DIAG", 30)  # no such family
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert _listeners.listens(listener.getsockname()[1])


@pytest.mark.needs("torch")
@pytest.mark.slow  # torch is imported
def test_a_replacement_imports_nothing_more_for_its_first_step() -> None:
    """A step in a world of one, after the module that is to be preloaded; its thread count tells that it can fork."""
    pytest.importorskip("torch")
    code = """
import os, sys
import quorate_live.preload
assert len(os.listdir("/proc/self/task")) == 1, "a process with threads is no template"
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from quorate_live import worlds
before = set(sys.modules)
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0", RANK="0", WORLD_SIZE="1")
model = torch.nn.Linear(2, 2)
optimizer = torch.optim.AdamW(model.parameters())
for world in worlds():
    with world:
        dist.init_process_group("gloo")
        world.share(model, optimizer)
        DistributedDataParallel(model)(torch.ones(1, 2)).sum().backward()
        optimizer.step()
new = {name for name in set(sys.modules) - before if name.split(".")[0] in ("torch", "quorate_live", "sympy")}
assert not new, new
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
