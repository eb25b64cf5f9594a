"""What the workers of the tests do.  Imported by name in worker processes: torch only where a function needs it."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import sys
import threading
import time
from types import FrameType
from typing import Any, NoReturn

#: The variables of the worker environment that every worker has.
VARIABLES = (
    "RANK",
    "LOCAL_RANK",
    "GROUP_RANK",
    "ROLE_RANK",
    "ROLE_NAME",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "GROUP_WORLD_SIZE",
    "ROLE_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_RESTART_COUNT",
    "TORCHELASTIC_MAX_RESTARTS",
    "TORCHELASTIC_SIGNALS_TO_HANDLE",
    "TORCHELASTIC_RUN_ID",
    "TORCHELASTIC_USE_AGENT_STORE",
    "TORCHELASTIC_ERROR_FILE",
    "TORCH_NCCL_ASYNC_ERROR_HANDLING",
)


def rank() -> int:
    return int(os.environ["RANK"])


def restart_count() -> int:
    return int(os.environ["TORCHELASTIC_RESTART_COUNT"])


def tell(ear: str, event: str, **facts: Any) -> None:
    """Tell the test something; one write, so that the words of several workers do not mix."""
    numbers = {
        name.lower(): int(os.environ[name])
        for name in ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "GROUP_WORLD_SIZE", "MASTER_PORT")
    }
    facts = {"event": event, "pid": os.getpid(), "agent": os.getppid(), "at": time.monotonic(), **numbers, **facts}
    facts |= {"restart_count": restart_count(), "master_addr": os.environ["MASTER_ADDR"]}
    descriptor = os.open(ear, os.O_WRONLY)
    try:
        os.write(descriptor, json.dumps(facts).encode() + b"\n")
    finally:
        os.close(descriptor)


def pass_gate(gate: str) -> None:
    """Wait until the test opens the gate (or ends)."""
    descriptor = os.open(gate, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def give(*values: Any) -> Any:
    """Return what was given to this rank, or everything where only one thing was."""
    return values[rank()] if len(values) > 1 else values[0]


def give_tensor(size: int) -> Any:
    import torch

    return torch.full((size, size), float(rank()))


def environment(*names: str) -> dict[str, str | None]:
    """Return the named variables of this worker, or all of the worker environment without names."""
    return {name: os.environ.get(name) for name in names or VARIABLES}


def meet(ear: str, gate: str) -> int:
    """Tell that it runs, wait for the gate, return the rank.  Never communicates with another worker."""
    tell(ear, "started")
    pass_gate(gate)
    return rank()


def meet_until_stopped(ear: str, gate: str) -> int:
    """As ``meet``, but tell of the end, too, be it by SIGTERM."""

    def caught(number: int, frame: FrameType | None) -> None:
        tell(ear, "stopped")
        os._exit(0)

    signal.signal(signal.SIGTERM, caught)
    tell(ear, "started")
    pass_gate(gate)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    tell(ear, "stopped")
    return rank()


def meet_on_restart(ear: str, gate: str, world_size: int) -> int:
    """As ``meet``, but only a world of ``world_size`` workers may end."""
    tell(ear, "started")
    if int(os.environ["WORLD_SIZE"]) != world_size:
        hold()
    pass_gate(gate)
    return rank()


def hold() -> NoReturn:
    """Stay until stopped."""
    while True:
        signal.pause()


def fail_if_second(ear: str, gate: str) -> int:
    """When the gate opens, the second node's worker raises; the first one's stays, or ends well if it is alone."""
    tell(ear, "started")
    if int(os.environ["GROUP_RANK"]) == 1:
        pass_gate(gate)
        raise ValueError("told to")
    if int(os.environ["GROUP_WORLD_SIZE"]) > 1:
        hold()
    pass_gate(gate)
    return rank()


def raise_on(failing: list[int], attempts: int, message: str = "told to") -> int:
    """Raise on these ranks in the first ``attempts`` attempts; the others return their rank."""
    if rank() in failing and restart_count() < attempts:
        raise ValueError(f"rank {rank()} fails: {message}")
    return rank()


def raise_all_once(ear: str, gate: str) -> int:
    """All ranks raise when the gate opens, in the first attempt only."""
    tell(ear, "started")
    pass_gate(gate)
    if restart_count() == 0:
        raise ValueError(f"rank {rank()} fails")
    return rank()


def raise_when_small(ear: str, gate: str, world_size: int) -> int:
    """In a world that is too small: raise in the first attempt when the gate opens, stay in any later one."""
    tell(ear, "started")
    pass_gate(gate)
    if int(os.environ["WORLD_SIZE"]) < world_size:
        if restart_count() == 0:
            raise ValueError(f"rank {rank()} fails")
        hold()
    return rank()


def raise_or_hold(failing: int, ear: str, gate: str) -> None:
    """One rank raises when the gate opens; the others would stay for good."""
    tell(ear, "started")
    if rank() != failing:
        hold()
    pass_gate(gate)
    raise ValueError(f"rank {rank()} fails")


def die_by(number: int, failing: int, attempts: int) -> int:
    """The rank ``failing`` is killed by a signal in the first ``attempts`` attempts."""
    if rank() == failing and restart_count() < attempts:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(number, signal.SIG_DFL) if number != signal.SIGKILL else None
        os.kill(os.getpid(), number)
        hold()
    return rank()


def fail_in_turn(ear: str, failing: list[int], gates: list[str]) -> int:
    """In attempt k the rank ``failing[k]`` raises when ``gates[k]`` opens, all others hold; then all end well."""
    attempt = restart_count()
    tell(ear, "started")
    if attempt == len(gates):
        return rank()
    if rank() != failing[attempt]:
        hold()
    pass_gate(gates[attempt])
    raise ValueError(f"rank {rank()} fails in attempt {attempt}")


def end_or_raise(failing: int, ear: str, gate: str) -> int:
    """One rank raises when the gate opens, all others are done at once."""
    if rank() == failing:
        tell(ear, "started")
        pass_gate(gate)
        raise ValueError(f"rank {rank()} fails")
    tell(ear, "done")
    return rank()


def give_lambda() -> Any:
    return lambda: None


def print_then_raise(attempts: int) -> int:
    """Print the attempt's number and raise in the first ``attempts`` of them."""
    print(f"attempt {restart_count()}", flush=True)
    if restart_count() < attempts:
        raise ValueError(f"attempt {restart_count()}")
    return restart_count()


def trap_or_fail(ear: str, gate: str, failing: int) -> None:
    """One rank fails when the gate opens; the other one stays, whatever signals come."""
    if rank() != failing:
        trap(ear, False)
    pass_gate(gate)
    raise ValueError("told to")


def wait_for_ranks(ear: str, gate: str, late: int) -> int:
    """Only the rank ``late`` waits for the gate; all tell when they are through."""
    if rank() == late:
        tell(ear, "started")
        pass_gate(gate)
    tell(ear, "done")
    return rank()


def trap(ear: str, ends: bool) -> NoReturn:
    """Tell of every SIGTERM and SIGINT; end upon it if ``ends`` (with a clean exit), else stay."""

    def caught(number: int, frame: FrameType | None) -> None:
        tell(ear, "signalled", signal=number)
        if ends:
            tell(ear, "saved")
            sys.exit(0)

    signal.signal(signal.SIGTERM, caught)
    signal.signal(signal.SIGINT, caught)
    tell(ear, "started")
    hold()


def start_grandchild(ear: str) -> NoReturn:
    """Start a child in a session of its own, as a daemon would, and stay."""
    child = os.fork()
    if child == 0:
        os.setsid()
        hold()
    tell(ear, "grandchild", child=child)
    hold()


def print_lines(words: list[str]) -> None:
    for word in words:
        print(f"{word} of {rank()}", flush=True)
        print(f"{word} error of {rank()}", file=sys.stderr, flush=True)


def write_error_file(text: str, code: int) -> NoReturn:
    """Leave any bytes as error file and exit."""
    with open(os.environ["TORCHELASTIC_ERROR_FILE"], "w") as file:
        file.write(text)
    os._exit(code)


# --- with torch -----------------------------------------------------------------------------------------------------


def all_reduce() -> tuple[int, int]:
    """Form a gloo group from the environment alone; return the sum of the ranks and the world's size."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    total = torch.tensor([dist.get_rank()])
    dist.all_reduce(total)
    size = dist.get_world_size()
    dist.barrier()
    dist.destroy_process_group()
    return int(total.item()), size


def all_reduce_and_meet(ear: str, gate: str) -> tuple[int, int]:
    total, size = all_reduce()
    tell(ear, "reduced", total=total)
    tell(ear, "started")
    pass_gate(gate)
    return total, size


def leave_a_process_group() -> int:
    """Return right after a collective, so that torch's threads still let go of it."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    total = torch.ones(1_000_000)
    dist.all_reduce(total)
    return rank()


def leave_a_process_group_by_exit() -> NoReturn:
    leave_a_process_group()
    sys.exit(0)


def leave_a_model() -> float:
    """Train with DDP; model and process group are left to the function's and the process's end."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 1, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.full((2, 4), float(rank()))).sum().backward()
        optimizer.step()
    return float(dist.get_world_size())


def leave_rpc(is_shut_down: bool) -> float:
    """Call the next worker; what RPC has set up is left to the process's end unless ``is_shut_down``."""
    import torch
    import torch.distributed.rpc as rpc

    size = int(os.environ["WORLD_SIZE"])
    rpc.init_rpc(f"worker{rank()}", rank=rank(), world_size=size, rpc_backend_options=_rpc_options())
    answer = rpc.rpc_sync(f"worker{(rank() + 1) % size}", torch.add, args=(torch.ones(1), size - 1))
    if is_shut_down:
        rpc.shutdown()
    return float(answer.item())


def work(ear: str, seconds: float, early: int) -> int:
    """Use the processor for a while, but return at once as the rank ``early``."""
    tell(ear, "started")
    end = time.monotonic() + seconds
    while rank() != early and time.monotonic() < end:
        pass
    return rank()


def serve_or_ask(ear: str, gate: str, address: str) -> str:
    """Return at once as rank 0, with a thread that serves what every other rank asks for once the gate is open."""
    if rank() == 0:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(address)
        listener.listen()
        threading.Thread(target=_serve, args=(listener,), daemon=True).start()
        tell(ear, "returns")
        return "served"
    pass_gate(gate)
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(address)
        return asking.recv(16).decode()


def _serve(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"here")


def return_or_raise_once(ear: str, gate: str) -> int:
    """Rank 1 raises in its first attempt, when the gate is open; all others return at once."""
    tell(ear, "started")
    if rank() == 1 and restart_count() == 0:
        pass_gate(gate)
        raise ValueError("told to")
    return restart_count()


def _add(left: int, right: int) -> tuple[int, str]:
    return left + right, os.environ["ROLE_NAME"]


def rpc_master(peer: str) -> Any:
    """Call a function on the worker named ``peer``."""
    import torch.distributed.rpc as rpc

    rpc.init_rpc("master", rank=rank(), world_size=int(os.environ["WORLD_SIZE"]), rpc_backend_options=_rpc_options())
    answer = rpc.rpc_sync(peer, _add, args=(40, 2))
    rpc.shutdown()
    return answer


def rpc_worker(name: str) -> None:
    import torch.distributed.rpc as rpc

    rpc.init_rpc(name, rank=rank(), world_size=int(os.environ["WORLD_SIZE"]), rpc_backend_options=_rpc_options())
    rpc.shutdown()


def _rpc_options() -> Any:
    from torch.distributed.rpc import TensorPipeRpcBackendOptions

    # On loopback, whatever the host's name resolves to.
    os.environ.setdefault("TP_SOCKET_IFNAME", "lo")
    return TensorPipeRpcBackendOptions(init_method="env://", rpc_timeout=50)
