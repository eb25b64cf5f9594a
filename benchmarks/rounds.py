"""``python -m benchmarks rounds``: one round of N nodes over a store on this machine, side by side with torch's own.

All nodes are connected and join at once.  Measured are the time until the last of them knows its ranks, and the store
operations of each node.  Our nodes run without their threads (``_crowd.py``), torch's with one thread each, so that
beyond a hundred nodes torch's are slower on a few cores than on as many machines.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
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
_LEAST_PAIRS, _MOST_PAIRS = 4, 60
#: Of a node; two rounds of a pair that differ by more did not do the same work.
_SAME_OPERATIONS = 0.2


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


@contextmanager
def file_server() -> Iterator[str]:
    """Yield a folder for the store of the example ``rendezvous_file``, which crowds find as if it were installed."""
    with TemporaryDirectory() as folder:
        made = Path(folder, "site", "quorate_rendezvous_file-0.0.0.dist-info")
        made.mkdir(parents=True)
        (made / "METADATA").write_text("Metadata-Version: 2.1\nName: quorate-rendezvous-file\nVersion: 0.0.0\n")
        (made / "entry_points.txt").write_text("[quorate]\nfile = quorate_rendezvous_file:plugin\n")
        source = HERE.parent / "docs" / "examples" / "rendezvous_file" / "src"
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(made.parent), str(source), before)))
        Path(folder, "store").mkdir()
        try:
            yield str(Path(folder, "store"))
        finally:
            os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)


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
    parser.add_argument("--nodes", default="8,128,512", help="with --signed: how many")
    parser.add_argument("--seconds", type=float, default=330.0, help="with --signed: how long to measure, about")
    options = parser.parse_args(argv)
    sizes: Sequence[int] = (8, 512) if options.quick else (8, 32, 128, 512, 2048, 4096)
    repeats = 2 if options.quick else 3
    if options.signed:
        sizes, repeats = tuple(map(int, options.nodes.split(","))), 0
    compile_sources()
    report = Report("rounds", repeats)
    servers: dict[str, Callable[[], Any]] = {
        "c10d": c10d_server, "tcp": tcp_server, "etcd": etcd_server, "file": file_server,
    }  # fmt: skip
    backends, began = options.backends.split(","), time.monotonic()
    try:
        for number, nodes in enumerate(sizes, 1):
            if options.signed:
                _measure_signed(report, servers, backends, nodes, began + options.seconds * number / len(sizes))
            else:
                _measure(report, servers, backends, nodes, repeats)
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
    report: Report, servers: dict[str, Callable[[], Any]], backends: Sequence[str], nodes: int, deadline: float
) -> None:
    """Measure pairs of a round with a token and one without, next to each other, until ``deadline`` (monotonic)."""
    samples: Samples = {}
    ratios: dict[str, list[float]] = {}
    for turn in count():
        if turn >= _MOST_PAIRS or (turn >= _LEAST_PAIRS and time.monotonic() >= deadline):
            break
        for backend in backends:
            busy: dict[bool, float] = {}
            operations: dict[bool, float] = {}
            for is_signed in (False, True) if turn % 2 else (True, False):
                signed_round = _signed_round(servers[backend], backend, nodes, is_signed)
                seconds, operations[is_signed], busy[is_signed] = signed_round
                name = f"quorate, {backend}" + (", signed" if is_signed else "")
                samples.setdefault(name, []).append(seconds)
            # The first pair warms the caches.  In a round of more than three seconds each node asks who is there.
            if turn > 0 and abs(operations[True] - operations[False]) < _SAME_OPERATIONS:
                ratios.setdefault(backend, []).append(busy[True] / busy[False])
    targets = [
        f"quorate, {backend}: a signed round takes {statistics.median(found):.3f} times the processor time "
        f"(95 % of the time between {low:.3f} and {high:.3f}; {len(found)} pairs)"
        for backend, found in ratios.items()
        for low, high in [_interval(found)]
    ]
    report.add(f"a round of {nodes} nodes with and without a job token, s", samples, targets)


def _signed_round(serve: Callable[[], Any], backend: str, nodes: int, is_signed: bool) -> tuple[float, float, float]:
    """Return a round's seconds, the store operations of each node, and the processor time of nodes and server."""
    if is_signed:
        os.environ[TOKEN_VARIABLE] = "the token of a benchmark"
    try:
        with serve() as endpoint:
            before = _server_seconds()
            seconds, operations, _, busy = one_round("_crowd", [backend, endpoint, RUN_ID], nodes)
            return seconds, operations, busy + _server_seconds() - before
    finally:
        os.environ.pop(TOKEN_VARIABLE, None)


def _server_seconds() -> float:
    """Return the processor time so far of this process, which may serve a store, and of the servers below it."""
    total, waiting = time.process_time(), [os.getpid()]
    while waiting:
        for children in Path(f"/proc/{waiting.pop()}/task").glob("*/children"):
            for pid in map(int, children.read_text().split()):
                waiting.append(pid)
                for clock in Path(f"/proc/{pid}/task").glob("*/schedstat"):
                    total += int(clock.read_text().split()[0]) / 1e9
    return total


def _interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the bounds of the median that 95 % of samples like this one would give (bootstrap)."""
    chance = random.Random(0)
    medians = sorted(statistics.median(chance.choices(values, k=len(values))) for _ in range(2000))
    return medians[50], medians[1949]


if __name__ == "__main__":
    sys.exit(main())
