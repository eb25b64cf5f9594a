"""The program that a template process runs: import modules once, then fork workers that become the user's program.

It is run by its path in the worker's own interpreter, which need not have quorate installed, so it uses the standard
library only.  The agent's half, and when a template is started at all, is in :mod:`._template`.

A template never runs user code but imports.  For each group of workers it forks an *intermediate* process, which forks
the workers as the agent asks for them and ends; the kernel then makes the agent their parent.
"""

from __future__ import annotations

# What a main module holds in this version of Python before its first statement.
_FRESH = {name: value for name, value in globals().items() if name != "annotations"}

import ctypes  # noqa: E402
import gc  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import signal  # noqa: E402
import socket  # noqa: E402
import struct  # noqa: E402
import sys  # noqa: E402
import types  # noqa: E402
import warnings  # noqa: E402
from collections.abc import Callable, Sequence  # noqa: E402
from typing import Any  # noqa: E402

__all__ = ["MARKER_VARIABLE", "ROOM", "main", "receive", "send", "unsafe_because"]

MARKER_VARIABLE = "QUORATE_CONTEXT"  # as in _leftovers
#: What the template's own marker ends in: the place where a worker writes the marker of its context.
ROOM = "-" * 64

_HEADER = struct.Struct("!I")
_MOST_DESCRIPTORS = 250  # the kernel passes 253 at a time
_PR_SET_PDEATHSIG = 1
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
    """Return the next message and its descriptors, ``None`` if the other side is gone."""
    descriptors: list[int] = []
    try:
        header, passed, _, _ = channel.recvmsg(_HEADER.size, socket.CMSG_SPACE(4 * _MOST_DESCRIPTORS))
        for _, _, packed in passed:
            descriptors += struct.unpack(f"{len(packed) // 4}i", packed)
        header += _rest(channel, _HEADER.size - len(header))
        data = _rest(channel, *_HEADER.unpack(header)) if len(header) == _HEADER.size else b""
    except ConnectionError:
        return None
    return (json.loads(data), descriptors) if data else None


def _rest(channel: socket.socket, size: int) -> bytes:
    """Return the next ``size`` bytes, ``b""`` if there are fewer."""
    parts: list[bytes] = []
    while size > 0:
        part = channel.recv(size)
        if not part:
            return b""
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


# --- the template ---------------------------------------------------------------------------------------------------


def main() -> None:
    """Be the template, and in each of its workers run the worker's program; in the template this never returns."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    greeting = receive(channel)
    if greeting is None:
        os._exit(1)
    plan, _ = greeting
    _die_with(plan["agent"])
    places = _Places()
    before = dict(os.environ)
    if not sys.flags.isolated and not getattr(sys.flags, "safe_path", False):
        del sys.path[0]  # this file's own folder
    if plan["sys_path"] is not None:
        sys.path[:] = plan["sys_path"]
    head = _add_head(plan["kind"], plan["target"])
    signal.alarm(plan["seconds"])  # whoever hangs in an import ends here; the agent knows what it means
    problem = _import(plan["modules"]) or unsafe_because()
    signal.alarm(0)
    gc.freeze()  # so that a worker's first collection does not copy every page it shares with the template
    send(channel, {"problem": problem})
    changed = {name: value for name, value in os.environ.items() if before.get(name) != value}
    order, descriptors = _serve(channel)
    # Only workers come here, and they come out of this module as out of a program of their own.
    _begin(order, descriptors, places, before, changed, head)
    _run(order, descriptors)


def _die_with(agent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != agent:
        os._exit(1)


def _import(modules: Sequence[str]) -> str:
    """Import all ``modules``; return what went wrong with one, ``""`` if nothing did."""
    for name in modules:
        try:
            __import__(name)
        except BaseException as error:
            return f"importing {name} failed: {type(error).__name__}: {error}"
    return ""


def unsafe_because() -> str:
    """Return why a copy of this process might not work, ``""`` if nothing speaks against it."""
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
        # Libraries that are made for it (OpenBLAS) end their threads before a fork and start them anew when needed.
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
            try:
                with open(f"/proc/self/task/{number}/comm") as file:
                    names.append(known.get(int(number)) or file.read().strip())
            except OSError:
                pass  # it has just ended
    return sorted(names)


def _serve(channel: socket.socket) -> tuple[Message, list[int]]:
    """Fork workers as asked; returns in each of them, with its order and descriptors."""
    while receive(channel) is not None:  # each message asks for a group
        gate, gate_keeper = os.pipe()
        intermediate = os.fork()
        if intermediate == 0:
            os.close(gate_keeper)
            received = _fork_workers(channel)
            # A worker: it waits until the agent is its parent.
            channel.close()
            os.setsid()
            received[0]["gate"] = gate
            return received
        os.close(gate)
        os.waitpid(intermediate, 0)
        os.close(gate_keeper)
        send(channel, {"adopted": True})
    os._exit(0)


def _fork_workers(channel: socket.socket) -> tuple[Message, list[int]]:
    """In the intermediate process: fork workers until told to end; returns in each of them."""
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


class _Places:
    """Where the kernel shows this process's arguments and environment, so that a worker can be known by its own."""

    def __init__(self) -> None:
        self.arguments = self.marker = self.marker_size = self.arguments_size = 0
        with open("/proc/self/stat", "rb") as file:
            fields = file.read().rpartition(b") ")[2].split()
        # Fields 48 to 51 of proc_pid_stat(5); the list begins with field 3.
        begin, end, environment, environment_end = (int(word) for word in fields[45:49])
        if begin and environment:
            self.arguments, self.arguments_size = begin, end - begin
            block = ctypes.string_at(environment, environment_end - environment)
            entry = f"{MARKER_VARIABLE}={os.environ.get(MARKER_VARIABLE, '')}\0".encode()
            found = block.find(entry)
            if found >= 0:
                skipped = len(MARKER_VARIABLE) + 1
                self.marker, self.marker_size = environment + found + skipped, len(entry) - skipped - 1

    def show(self, words: Sequence[str], marker: str) -> None:
        """Let ``ps`` show ``words``, and whoever looks for ``marker`` find this process and what it forks."""
        if self.arguments:
            # As a process title: with a last byte that is not 0 the kernel shows what stands before the first 0.
            data = os.fsencode(" ".join(words))[: self.arguments_size - 2] + b"\0"
            ctypes.memmove(self.arguments, data.ljust(self.arguments_size, b"-"), self.arguments_size)
        if self.marker:
            data = marker.encode()[: self.marker_size]
            ctypes.memmove(self.marker, data.ljust(self.marker_size, b"-"), self.marker_size)


def _begin(
    order: Message, descriptors: list[int], places: _Places, before: Message, changed: Message, head: str | None
) -> None:
    """Put right what exec would have: streams, environment, paths, arguments, random state, parent."""
    for target in order["streams"]:
        source = descriptors.pop(0)
        if source != target:
            os.dup2(source, target)
            os.close(source)
    stdout: Any = sys.stdout
    if hasattr(stdout, "reconfigure") and not stdout.write_through:
        stdout.reconfigure(line_buffering=os.isatty(1))
    environment = order["environment"]
    os.environ.clear()
    os.environ.update(environment)
    # What an import sets it would set here too, unless this worker was given a value of its own.
    os.environ.update({name: it for name, it in changed.items() if environment.get(name) == before.get(name)})
    places.show(order["words"], environment[MARKER_VARIABLE])
    os.chdir(order["folder"])
    if head is not None and head in sys.path:
        sys.path.remove(head)
    sys.argv[:] = order["argv"]
    sys.orig_argv[:] = order["words"]
    numpy_random: Any = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()  # the standard library's random does this by itself, and torch begins alike everywhere
    process: Any = sys.modules.get("multiprocessing.process")
    if process is not None:
        process.current_process().authkey = os.urandom(32)
    gate = order["gate"]
    os.read(gate, 1)
    os.close(gate)
    _die_with(order["agent"])


def _run(order: Message, descriptors: list[int]) -> None:
    """Run the worker's program as the interpreter runs a main program: its way to end becomes this process's."""
    module = types.ModuleType("__main__")
    module.__dict__.update(_FRESH, __doc__=None)
    if "__annotations__" in _FRESH:
        module.__dict__.update(__annotations__={})
    sys.modules["__main__"] = module
    runners: dict[str, Callable[[], None]] = {
        "call": lambda: _call(descriptors),
        "code": lambda: _run_code(order["target"], module),
        "module": lambda: _run_module(order["target"]),
        "script": lambda: _run_script(order["target"], module),
    }
    _add_head(order["kind"], order["target"])
    try:
        runners[order["kind"]]()
    except SystemExit:
        raise
    except BaseException as error:
        _print(error)
        if isinstance(error, KeyboardInterrupt):
            # The interpreter prints it (again), and then ends by the signal itself as shells expect.
            sys.excepthook = lambda kind, value, trace: None
            raise
        raise SystemExit(1) from None


def _add_head(kind: str, target: str) -> str | None:
    """Put in front of ``sys.path`` what the interpreter puts there for such a program; return it."""
    if kind == "script" and _is_importable(target):
        head = target
    elif kind == "call" or sys.flags.isolated or getattr(sys.flags, "safe_path", False):
        return None
    elif kind == "script":
        head = os.path.dirname(os.path.realpath(target))
    else:
        head = os.getcwd() if kind == "module" else ""
    sys.path.insert(0, head)
    return head


def _is_importable(path: str) -> bool:
    """Return whether ``path`` is a folder or an archive, which Python runs by its ``__main__``."""
    for hook in sys.path_hooks:
        try:
            hook(path)
            return True
        except ImportError:
            pass
    return False


def _run_script(path: str, module: types.ModuleType) -> None:
    import runpy
    from importlib.machinery import SourceFileLoader, SourcelessFileLoader

    if _is_importable(path):
        runpy._run_module_as_main("__main__", False)  # type: ignore[attr-defined] # what the interpreter itself calls
        return
    full = os.path.abspath(path)
    loader: Any = (SourcelessFileLoader if path.endswith(".pyc") else SourceFileLoader)("__main__", full)
    try:
        code = _compiled(loader, full)
    except OSError as error:
        words = f"{sys.executable}: can't open file {full!r}: [Errno {error.errno}] {error.strerror}\n"
        sys.stderr.write(words)
        raise SystemExit(2) from None
    module.__dict__.update(__file__=full, __loader__=loader)
    exec(code, module.__dict__)


def _compiled(loader: Any, path: str) -> types.CodeType:
    if path.endswith(".pyc"):
        code: types.CodeType = loader.get_code("__main__")
        return code
    return compile(loader.get_data(path), path, "exec", dont_inherit=True)


def _run_module(name: str) -> None:
    import runpy

    runpy._run_module_as_main(name, True)  # type: ignore[attr-defined] # what the interpreter itself calls


def _run_code(text: str, module: types.ModuleType) -> None:
    from importlib.machinery import BuiltinImporter

    module.__dict__.pop("__file__", None)
    module.__dict__.pop("__cached__", None)
    module.__dict__["__loader__"] = BuiltinImporter
    exec(compile(text, "<string>", "exec", dont_inherit=True), module.__dict__)


def _call(descriptors: list[int]) -> None:
    from quorate_process_local._warm_call import call  # what a function needs, imported by the template already

    sys.exit(call(descriptors))


def _print(error: BaseException) -> None:
    """Report an exception as the interpreter does for one that nobody caught, without the frames of this file."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == _run.__code__.co_filename:
        trace = trace.tb_next
    error.__traceback__ = trace
    sys.last_type, sys.last_value, sys.last_traceback = type(error), error, trace
    if sys.version_info >= (3, 12):
        sys.last_exc = error
    try:
        sys.excepthook(type(error), error, trace)
    except SystemExit:
        raise
    except BaseException as second:
        second.__context__ = None
        second.__traceback__ = second.__traceback__ and second.__traceback__.tb_next
        sys.stderr.write("Error in sys.excepthook:\n")
        sys.__excepthook__(type(second), second, second.__traceback__)
        sys.stderr.write("\nOriginal exception was:\n")
        sys.__excepthook__(type(error), error, trace)


if __name__ == "__main__":
    main()
