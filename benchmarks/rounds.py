"""``python -m benchmarks rounds``: one round of N nodes over a store on this machine, side by side with torch's own.

All nodes are connected and join at once.  Measured are the time until the last of them knows its ranks, and the store
operations of each node.  Our nodes run without their threads (``_crowd.py``), torch's with one thread each, so that
beyond a hundred nodes torch's are slower on a few cores than on as many machines.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from quorate.catalogue import PluginKind
from quorate.job_token import TOKEN_VARIABLE
from quorate.plugins import get_host
from quorate.rendezvous import RendezvousParameters
from quorate.testing import free_port

from ._processes import BenchmarkError
from ._report import Report, Samples, bound, compile_sources, faster, in_turns

HERE = Path(__file__).parent
#: Each has one operation in progress, where as many computers would have hundreds: enough to keep two cores busy.
PROCESSES = 4
RUN_ID = "round"  # each round has a server of its own
#: nodes -> seconds that a round over c10d may take
LIMITS = {8: 0.020, 512: 0.1, 4096: 1.0}
DEADLINE_SECONDS = 300.0


@contextmanager
def c10d_server() -> Iterator[str]:
    """Serve a TCPStore and yield its endpoint."""
    from torch.distributed import TCPStore  # only this server needs torch

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    yield f"127.0.0.1:{store.port}"
    del store


@contextmanager
def tcp_server() -> Iterator[str]:
    """Serve the store of the static plugin, in this process, and yield its endpoint."""
    endpoint = f"127.0.0.1:{free_port()}"
    backend = get_host().choose(PluginKind.RENDEZVOUS, "tcp")
    store: Any = backend.open_store(RendezvousParameters("tcp", endpoint, RUN_ID, 1, 1, "127.0.0.1", is_host=True))
    try:
        yield endpoint
    finally:
        store.close()


@contextmanager
def etcd_server(enable_v2: bool = False) -> Iterator[str]:
    """Run a private etcd, with its data in a file system in memory if there is one, and yield its endpoint."""
    from quorate_rendezvous_etcd import EtcdServer  # only this server needs gRPC

    memory = Path("/dev/shm")
    before = os.environ.get("TMPDIR")
    if memory.is_dir():
        os.environ["TMPDIR"] = str(memory)
    server = EtcdServer(enable_v2=enable_v2)
    server.start()
    try:
        yield server.get_endpoint()
    finally:
        server.stop()
        if memory.is_dir():
            os.environ.pop("TMPDIR") if before is None else os.environ.update(TMPDIR=before)


#: torch's own rendezvous: backend -> what serves it
PEERS: dict[str, Callable[[], Any]] = {"c10d": c10d_server, "etcd-v2": partial(etcd_server, enable_v2=True)}


def one_round(script: str, arguments: Sequence[str], nodes: int) -> tuple[float, float, float, float]:
    """Return the seconds of one round, the store operations and bytes of each node, and all nodes' processor time."""
    processes = min(PROCESSES, nodes)
    shares = [nodes // processes + (number < nodes % processes) for number in range(processes)]
    firsts = [sum(shares[:number]) for number in range(processes)]
    with ExitStack() as stack:
        crowd = []
        for first, share in zip(firsts, shares, strict=True):
            places = [str(share), str(first), str(nodes)] if script == "_crowd" else [str(share), str(nodes)]
            command = [sys.executable, "-m", f"benchmarks.{script}", *arguments, *places]
            process = subprocess.Popen(
                command, cwd=HERE.parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            crowd.append(process)
        for process in crowd:
            _read_line(process)
        began = time.monotonic()
        for process in crowd:
            _send_line(process)
        results = [[float(word) for word in _read_line(process).split()] for process in crowd]
        for process in crowd:
            _send_line(process)
    seconds = max(result[0] for result in results) - began
    operations, size = (sum(result[column] for result in results) / nodes for column in (1, 2))
    return seconds, operations, size, sum(result[3] for result in results)


def _send_line(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def _read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise BenchmarkError("a crowd of nodes ended early; see above")
    return line


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks rounds", description="One round of many nodes.")
    parser.add_argument("--quick", action="store_true", help="fewer nodes, fewer runs")
    parser.add_argument("--picture", action="store_true", help="draw the medians for the docs")
    parser.add_argument("--backends", default="c10d,tcp,etcd", help="ours to measure")
    parser.add_argument("--signed", action="store_true", help="ours with and without a job token, and nothing else")
    options = parser.parse_args(argv)
    sizes: Sequence[int] = (8, 512) if options.quick else (8, 32, 128, 512, 2048, 4096)
    repeats = 2 if options.quick else 3
    if options.signed:
        sizes, repeats = (8, 128, 512), 5 if options.quick else 15
    compile_sources()
    report = Report("rounds", repeats)
    servers: dict[str, Callable[[], Any]] = {"c10d": c10d_server, "tcp": tcp_server, "etcd": etcd_server}
    try:
        for nodes in sizes:
            measure = _measure_signed if options.signed else _measure
            measure(report, servers, options.backends.split(","), nodes, repeats)
    except BenchmarkError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 1
    report.write(options.picture)
    return 0


def _measure(
    report: Report, servers: dict[str, Callable[[], Any]], backends: Sequence[str], nodes: int, repeats: int
) -> None:
    samples: Samples = {}
    costs: dict[str, tuple[float, float]] = {}
    ours = [("_crowd", backend, servers[backend]) for backend in backends]
    peers = PEERS.items() if nodes <= 128 and find_spec("torch") is not None else ()
    for crowd, backend, serve in in_turns([*ours, *(("_torch_crowd", *peer) for peer in peers)], repeats):
        with serve() as endpoint:
            seconds, operations, size, _ = one_round(crowd, [backend, endpoint, RUN_ID], nodes)
        name = f"torch, {backend}"
        if crowd == "_crowd":
            name = "quorate" if backend == "c10d" else f"quorate, {backend}"
            costs[name] = operations, size
        samples.setdefault(name, []).append(seconds)
    targets = [
        f"{name}: {operations:.1f} operations and {size:.0f} bytes a node" for name, (operations, size) in costs.items()
    ]
    if "quorate" in samples:
        if nodes in LIMITS:
            targets.append(bound(f"at most {LIMITS[nodes]:g} s over c10d", samples, LIMITS[nodes]))
        targets += faster("torch, c10d", samples, 20.0)
    if "quorate, etcd" in samples:
        targets += faster("torch, etcd-v2", samples, 20.0, "quorate, etcd")
    report.add(f"a round of {nodes} nodes, s", samples, targets)


def _measure_signed(
    report: Report, servers: dict[str, Callable[[], Any]], backends: Sequence[str], nodes: int, repeats: int
) -> None:
    samples: Samples = {}
    busy_seconds: Samples = {}
    kinds = [(backend, is_signed) for backend in backends for is_signed in (False, True)]
    for backend, is_signed in in_turns(kinds, repeats):
        if is_signed:
            os.environ[TOKEN_VARIABLE] = "the token of a benchmark"
        try:
            with servers[backend]() as endpoint:
                began = time.process_time()  # of the server, where this process serves the store
                seconds, _, _, busy = one_round("_crowd", [backend, endpoint, RUN_ID], nodes)
                busy += time.process_time() - began
        finally:
            os.environ.pop(TOKEN_VARIABLE, None)
        name = f"quorate, {backend}" + (", signed" if is_signed else "")
        samples.setdefault(name, []).append(seconds)
        busy_seconds.setdefault(name, []).append(busy)
    targets = [
        f"{name}: a signed round takes {_ratio(samples, name):.3f} times one that is not, and "
        f"{_ratio(busy_seconds, name):.3f} times the processor time"
        for name in (f"quorate, {backend}" for backend in backends)
    ]
    report.add(f"a round of {nodes} nodes with and without a job token, s", samples, targets)


def _ratio(samples: Samples, name: str) -> float:
    """Return the median of the ratios of neighbours: load that comes and goes meets both alike."""
    pairs = zip(samples[f"{name}, signed"], samples[name], strict=True)
    return statistics.median(signed / plain for signed, plain in pairs)


if __name__ == "__main__":
    sys.exit(main())
