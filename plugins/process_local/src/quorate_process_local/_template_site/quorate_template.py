"""What a template process does before its program begins: it imports modules once, then forks the workers.

The template is started by the command of its workers, and never runs past :func:`become_template`, which
``sitecustomize`` calls just before the program.  In a worker this function returns, and the interpreter goes on as it
always does: arguments, main module, stack, tracebacks and the end are its own, not imitated.

The interpreter need not have quorate installed, so this file uses the standard library only; what it has in common with
:mod:`quorate.proc` is written here again.  The agent's side is in :mod:`quorate_process_local._template`.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import json
import os
import select
import signal
import socket
import struct
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any

#: Holds the number of a template's channel descriptor.
CHANNEL_VARIABLE = "QUORATE_TEMPLATE"
MARKER_VARIABLE = "QUORATE_CONTEXT"  # as in quorate_process_local._leftovers
#: The end of the template's own marker: a worker writes the marker of its context over it.
MARKER_PLACE = "-" * 64

_HEADER = struct.Struct("!I")
_MOST_DESCRIPTORS = 250  # the kernel passes 253 at a time
_LONGEST_MESSAGE_BYTES = 64 << 20
_FEW_COLLECTIONS = 50_000  # new objects per collection
_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15
#: What schedulers and terminals send to all processes of a job, a template included, and only workers understand.
_FOR_WORKERS = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_DEVICES = ("/dev/nvidia", "/dev/kfd", "/dev/dri/", "/dev/accel", "/dev/davinci", "/dev/habanalabs")

Message = dict[str, Any]


def send(channel: socket.socket, message: Message, descriptors: Sequence[int] = ()) -> None:
    """Send ``message`` and copies of ``descriptors`` (at most 250)."""
    data = json.dumps(message).encode()
    header = _HEADER.pack(len(data))
    passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(descriptors)}i", *descriptors))]
    channel.sendmsg([header], passed if descriptors else [])
    channel.sendall(data)


def receive(channel: socket.socket) -> tuple[Message, list[int]] | None:
    """Return the next message and its descriptors, ``None`` if the other side is gone.

    Raises:
        ValueError: what came is not a message.
    """
    descriptors: list[int] = []
    try:
        space = socket.CMSG_SPACE(4 * _MOST_DESCRIPTORS)
        header, passed, _, _ = channel.recvmsg(_HEADER.size, space, socket.MSG_CMSG_CLOEXEC)
        for _, _, packed in passed:
            descriptors += struct.unpack(f"{len(packed) // 4}i", packed)
        header += _rest(channel, _HEADER.size - len(header))
        size = _HEADER.unpack(header)[0] if len(header) == _HEADER.size else 0
        if size > _LONGEST_MESSAGE_BYTES:
            raise ValueError(f"it is longer than {_LONGEST_MESSAGE_BYTES} bytes")
        data = _rest(channel, size)
    except ConnectionError:
        return None
    if not data:
        return None
    try:
        message = json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(message, dict):
        raise ValueError("it is not an object")
    return message, descriptors


def _rest(channel: socket.socket, size: int) -> bytes:
    """Return the next ``size`` bytes, fewer if the other side is gone."""
    parts: list[bytes] = []
    while size > 0 and (part := channel.recv(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


# --- the template ---------------------------------------------------------------------------------------------------


def become_template(descriptor: int) -> Exception | None:
    """Be the template; return in its workers only, with what the installation's own ``sitecustomize`` raised."""
    os.set_inheritable(descriptor, False)
    channel = socket.socket(fileno=descriptor)
    greeting = receive(channel)
    if greeting is None:
        os._exit(1)
    plan, _ = greeting
    _die_with_parent(plan["agent"])
    place = _find_marker_place()
    os.environ.clear()
    os.environ.update(plan["environment"])
    before = dict(os.environ)
    sys.path.remove(os.path.dirname(os.path.abspath(__file__)))
    name = _read("/proc/self/comm").strip()
    _call_prctl(_PR_SET_NAME, b"quorate-warm")
    site_error = _import_real_sitecustomize()
    signal.alarm(plan["seconds"])  # an import that hangs ends the template; the agent knows this signal
    heads = [] if getattr(sys.flags, "safe_path", False) else [plan["head"]]
    problem = _import(plan["modules"], [*heads, *plan["path"]]) or why_not_forkable()
    signal.alarm(0)
    # The imports and what they start have the usual mask; a worker gets it back before anything is sent to it alone.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [*_FOR_WORKERS, signal.SIGTERM])
    gc.freeze()  # so that a worker's first collection does not copy every page that it shares with the template
    send(channel, {"problem": problem})
    changed = {name: value for name, value in os.environ.items() if before.get(name) != value}
    order, descriptors, gate = _serve(channel)
    is_spare = "spare" in order
    if is_spare:
        _become_child_of(plan["agent"], gate)
        order, descriptors = _wait_as_spare(descriptors)
    _call_prctl(_PR_SET_NAME, name)
    atexit.register(gc.unfreeze)  # or destructors that the last collection runs would not be
    _begin_worker(order, descriptors, place)
    # An import would set the same variables in this worker, unless the worker was given a value of its own.
    given = order["environment"]
    os.environ.update({name: value for name, value in changed.items() if given.get(name) == before.get(name)})
    if not is_spare:
        _become_child_of(plan["agent"], gate)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return site_error


def _call_prctl(option: int, argument: bytes | int) -> None:
    ctypes.CDLL(None).prctl(option, argument, 0, 0, 0)


def _die_with_parent(agent: int) -> None:
    _call_prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != agent:
        os._exit(1)


def _become_child_of(agent: int, gate: int) -> None:
    os.read(gate, 1)  # until the agent is the parent
    os.close(gate)
    _die_with_parent(agent)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _import_real_sitecustomize() -> Exception | None:
    """Import the installation's own ``sitecustomize``; return the error that the interpreter should see."""
    del sys.modules["sitecustomize"], sys.modules[__name__]
    try:
        import_module("sitecustomize")
    except Exception as error:
        return error
    return None


def _import(modules: Sequence[str], heads: Sequence[str]) -> str:
    """Import all ``modules``, with ``heads`` in front of ``sys.path``; return what went wrong, ``""`` if nothing did.

    The heads are taken away again, because the interpreter will put them there itself.
    """
    sys.path[:0] = heads
    usual = gc.get_threshold()
    # What imports make stays: to search it takes a tenth of torch's time.
    gc.set_threshold(_FEW_COLLECTIONS, *usual[1:])
    try:
        for name in modules:
            try:
                import_module(name)
            except BaseException as error:
                return f"importing {name} failed: {type(error).__name__}: {error}"
    finally:
        if gc.get_threshold()[0] == _FEW_COLLECTIONS:  # no module has chosen its own
            gc.set_threshold(*usual)
        for head in heads:
            if head in sys.path:
                sys.path.remove(head)
    return ""


def why_not_forkable() -> str:
    """Return why a copy of this process might not work, ``""`` if no reason is known."""
    torch: Any = sys.modules.get("torch")
    if getattr(getattr(torch, "cuda", None), "is_initialized", bool)():
        return "an import has initialised CUDA, which no copy of a process can use"
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            path = os.readlink(f"/proc/self/fd/{descriptor}")
        except OSError:
            continue
        if path.startswith(_DEVICES):
            return f"an import has opened the device {path}, which no copy of a process can use"
    names = _other_threads()
    if names:
        # Libraries that are made for it (OpenBLAS) end their threads before a fork and start them again when needed.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            probe = os.fork()
        if probe == 0:
            os._exit(0)
        os.waitpid(probe, 0)
        names = _other_threads()
    if names:
        return f"an import has left {len(names)} thread(s) running ({', '.join(names)}), which no copy would have"
    return ""


def _other_threads() -> list[str]:
    """Return the names of all threads but this one, native ones included."""
    threading: Any = sys.modules.get("threading")
    known = {} if threading is None else {thread.native_id: thread.name for thread in threading.enumerate()}
    names = []
    for number in os.listdir("/proc/self/task"):
        if int(number) != os.getpid():
            with suppress(OSError):  # it has just ended
                names.append(known.get(int(number)) or _read(f"/proc/self/task/{number}/comm").decode().strip())
    return sorted(names)


def _serve(channel: socket.socket) -> tuple[Message, list[int], int]:
    """Fork groups of workers as asked; return in each of them, with its order, its descriptors and the gate.

    For each group an *intermediate* process forks the workers and ends, so that the agent, which is a subreaper then,
    becomes their parent.  The gate is a pipe that ends when that is so; by the end of the
    other pipe the template knows that all workers have left its session.
    """
    # Any message but the request for a group was meant for an intermediate that has died too early: then this ends too.
    while (received := _next_request(channel)) is not None and "group" in received[0]:
        gate, gate_writer = os.pipe()
        left, not_left = os.pipe()
        intermediate = os.fork()
        if intermediate == 0:
            os.close(gate_writer)
            os.close(left)
            order, descriptors = _fork_workers(channel)
            channel.close()
            os.setsid()
            os.close(not_left)
            return order, descriptors, gate
        os.close(gate)
        os.close(not_left)
        os.waitpid(intermediate, 0)
        os.read(left, 1)
        os.close(left)
        os.close(gate_writer)
        send(channel, {"adopted": True})
    os._exit(0)


def _next_request(channel: socket.socket) -> tuple[Message, list[int]] | None:
    """Receive the next request; meanwhile say so when nothing has come for as long as the agent wants to know."""
    poller = select.poll()  # not select(), which takes no descriptor above 1023, and the number is the agent's choice
    poller.register(channel, select.POLLIN)
    received = receive(channel)
    while received is not None and "rest" in received[0]:
        if not poller.poll(1000 * received[0]["rest"]):
            send(channel, {"idle": True})
        received = receive(channel)
    return received


def _fork_workers(channel: socket.socket) -> tuple[Message, list[int]]:
    """In the intermediate process: fork workers until the agent asks it to end; return in each of them."""
    send(channel, {"intermediate": os.getpid()})
    while (received := receive(channel)) is not None and received[0]:
        try:
            pid = os.fork()
        except OSError as error:
            send(channel, {"problem": f"{error.strerror}; the limit on processes or memory is reached (ulimit -u)"})
            continue
        if pid == 0:
            return received
        for descriptor in received[1]:
            os.close(descriptor)
        send(channel, {"pid": pid})
    os._exit(0)


# --- a worker -------------------------------------------------------------------------------------------------------


def _wait_as_spare(descriptors: list[int]) -> tuple[Message, list[int]]:
    """In a worker that was forked ahead: return its order; end without one."""
    with socket.socket(fileno=descriptors.pop()) as channel:
        received = receive(channel)
    if received is None:
        os._exit(0)
    while signal.sigtimedwait(_FOR_WORKERS, 0):
        pass  # it was sent while this was no worker
    return received


def _find_marker_place() -> tuple[int, int]:
    """Return address and size of the marker variable's value in the environment that the kernel shows of this process.

    What a process writes there is what others find in ``/proc/<pid>/environ``, of its own forks too.
    """
    # Fields 50 and 51 of proc_pid_stat(5); the list begins with field 3.
    begin, end = (int(word) for word in _read("/proc/self/stat").rpartition(b") ")[2].split()[47:49])
    if not begin:
        return 0, 0
    value = os.environb.get(MARKER_VARIABLE.encode(), b"")
    found = ctypes.string_at(begin, end - begin).find(MARKER_VARIABLE.encode() + b"=" + value + b"\0")
    return (0, 0) if found < 0 else (begin + found + len(MARKER_VARIABLE) + 1, len(value))


def _begin_worker(order: Message, descriptors: list[int], place: tuple[int, int]) -> None:
    """Set what exec would have set: streams, environment, arguments, folder, random state."""
    for target in order["streams"]:
        source = descriptors.pop(0)
        if source != target:
            os.dup2(source, target)
            os.close(source)
    stdout: Any = sys.stdout
    if hasattr(stdout, "reconfigure") and not stdout.write_through:
        stdout.reconfigure(line_buffering=os.isatty(1))
    os.environ.clear()
    os.environ.update(order["environment"])
    address, size = place
    if address:
        ctypes.memmove(address, order["environment"][MARKER_VARIABLE].encode()[:size].ljust(size, b"-"), size)
    os.chdir(order["folder"])
    _bind(order["cpus"], order["memory_call"])
    sys.argv[:] = order["argv"]
    sys.orig_argv[:] = order["words"]
    _reseed_random()
    if descriptors:  # a function's; the template has imported what it needs
        sys.modules["quorate_process_local._warm_call"].inherited[:] = descriptors


def _bind(cpus: Sequence[int] | None, memory_call: tuple[int, int, list[int]] | None) -> None:
    """Bind this process, which has one thread yet; a memory policy that the kernel refuses is left out."""
    if cpus is not None:
        os.sched_setaffinity(0, cpus)
    if memory_call is not None:
        number, mode, words = memory_call
        mask = (ctypes.c_uint64 * len(words))(*words)
        ctypes.CDLL(None).syscall(number, mode, mask, 64 * len(words) + 1)


def _reseed_random() -> None:
    """Give this process random numbers of its own; the standard library's ``random`` does so by itself."""
    numpy_random: Any = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()
    torch: Any = sys.modules.get("torch")
    if hasattr(torch, "default_generator"):
        torch.default_generator.seed()  # generators of devices are made with the device, in the worker
    process: Any = sys.modules.get("multiprocessing.process")
    if process is not None:
        process.current_process().authkey = os.urandom(32)
