"""The start method warm, compared with exec: the same program says and does the same under both.

What does not live here: what only warm workers have, such as a template that dies (``test_warm.py``).
"""

from __future__ import annotations

import os
import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from quorate.starter import StarterRequest
from quorate_process_local import plugin

from .conftest import Group, launch

PRELOAD = ("asyncio", "logging", "multiprocessing.pool", "numpy", "random", "unittest")
BACKENDS = {backend.name: backend for backend in plugin.quorate_register_starter()}


class Observed(NamedTuple):
    exit_code: int
    stdout: str
    stderr: str


Observe = Callable[..., Observed]


@pytest.fixture
def observe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Observe:
    """``observe(method, *words)`` runs ``python *words`` in a folder of its own and returns what came of it."""
    folder = tmp_path / "job"
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONFAULTHANDLER", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    runs = iter(range(100))

    def run(method: str, *words: str) -> Observed:
        number = next(runs)
        out, err = tmp_path / f"{number}.out", tmp_path / f"{number}.err"
        made = BACKENDS[method].create(
            StarterRequest(method, "token", 30.0, {"preload": PRELOAD} if method == "warm" else {})
        )
        path = sys.executable
        group = Group(made.start([launch(0, path, *words, stdout=str(out), stderr=str(err))]))
        try:
            (exited,) = group.run()
        finally:
            group.close()
            if method == "warm":
                made.close()  # type: ignore[attr-defined] # what PreparingStarter has besides
        assert exited.problem == ""
        return Observed(exited.exit_code, _same_words(out.read_text()), _same_words(err.read_text()))

    return run


def _same_words(text: str) -> str:
    """Take out what differs between two runs of anything: addresses, and the list of all modules in a crash."""
    text = re.sub(r"0x[0-9a-f]+", "0x", text)
    return re.sub(r"\n+Extension modules:.*", "", text)


def write(name: str, text: str) -> str:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return name


def compare(observe: Observe, *words: str) -> Observed:
    cold, warm = observe("exec", *words), observe("warm", *words)
    assert warm.stdout.splitlines() == cold.stdout.splitlines()
    assert warm.stderr.splitlines() == cold.stderr.splitlines()
    assert warm == cold
    return warm


# --- what a program sees --------------------------------------------------------------------------------------------

SIGHTS = {
    "arguments": "import sys; print(sys.argv, sys.orig_argv, sys.executable, sys.flags)",
    "main module": """
import sys
print({name: str(value) for name, value in globals().items()})
print(sys.modules["__main__"].__dict__ is globals(), __annotations__)
""",
    "paths": "import os, sys; print(sys.path, os.getcwd()); import sibling; print(sibling.__file__)",
    "environment": """
import os
print(sorted(item for item in os.environ.items() if item[0] not in ("QUORATE_CONTEXT", "QUORATE_LIVE")))
print(sorted(os.environb) == sorted(name.encode() for name in os.environ))
shown = open("/proc/self/environ", "rb").read().split(b"\\0")
mark = os.environb[b"QUORATE_CONTEXT"]
print(any(entry.startswith(b"QUORATE_CONTEXT=" + mark) for entry in shown))
print(os.popen("env | sort | grep -v -e ^QUORATE_CONTEXT= -e ^QUORATE_LIVE= -e ^_=").read())
""",
    "streams": """
import os, sys
for stream in (sys.stdin, sys.stdout, sys.stderr):
    print(stream.name, stream.mode, stream.encoding, stream.errors, stream.line_buffering, stream.write_through)
    print(type(stream.buffer), stream.fileno(), stream.isatty(), os.get_inheritable(stream.fileno()))
print(sys.stdout is sys.__stdout__, sorted(os.listdir("/proc/self/fd")))
""",
    "process": """
import multiprocessing, os, sys, threading
print(os.getsid(0) == os.getpid() == os.getpgrp(), os.getpid() == int(os.readlink("/proc/self")))
print(os.getppid(), os.umask(0), os.nice(0), os.sched_getaffinity(0))
print(open("/proc/self/comm").read(), open("/proc/self/cmdline").read().rstrip("\\0"))
print(threading.main_thread() is threading.current_thread(), [thread.name for thread in threading.enumerate()])
print(threading.get_native_id() == os.getpid(), multiprocessing.current_process(), multiprocessing.parent_process())
print(multiprocessing.current_process().ident == os.getpid(), multiprocessing.active_children())
import ctypes
number = ctypes.c_int()
ctypes.CDLL(None).prctl(2, ctypes.byref(number), 0, 0, 0)
print("dies with its parent by signal", number.value)
""",
    "signals": """
import faulthandler, signal
for number in sorted(signal.valid_signals()):
    print(int(number), str(signal.getsignal(number)).split(" at ")[0])
print(signal.pthread_sigmask(signal.SIG_BLOCK, []), signal.set_wakeup_fd(-1), faulthandler.is_enabled())
print(signal.alarm(0))
""",
    "stack": """
import inspect, sys, traceback, warnings
print(len(inspect.stack()), sys._getframe().f_back)
traceback.print_stack()
warnings.warn("here", stacklevel=1)
warnings.warn("above", stacklevel=2)
def deep(n):
    return n if n == 0 else deep(n - 1)
print(deep(sys.getrecursionlimit() - 10), sys.getrecursionlimit())
""",
    "interpreter": """
import gc, sys
print(sys.hash_info, sys.getswitchinterval(), gc.isenabled(), gc.get_threshold(), sys.gettrace(), sys.getprofile())
print(sys.excepthook is sys.__excepthook__, sys.displayhook is sys.__displayhook__, "sitecustomize" in sys.modules)
print(sys.meta_path, [hook.__name__ for hook in sys.path_hooks], sys.dont_write_bytecode, sys.warnoptions)
""",
    "own classes": """
import dataclasses, inspect, pickle
@dataclasses.dataclass
class Point:
    x: int
print(pickle.loads(pickle.dumps(Point(3))), inspect.getsource(Point), Point.__module__)
import __main__
print(__main__.Point is Point)
""",
    "locale": "import locale, time; print(locale.getlocale(), time.tzname, locale.getpreferredencoding())",
}


@pytest.mark.parametrize("sight", SIGHTS, ids=lambda name: name.replace(" ", "-"))
@pytest.mark.parametrize("options", [("-u",), ()], ids=["unbuffered", "buffered"])
def test_a_script_sees_the_same(observe: Observe, sight: str, options: tuple[str, ...]) -> None:
    write("sibling.py", "")
    seen = compare(observe, *options, write("script.py", SIGHTS[sight]), "one", "--two=3", "")
    assert seen.exit_code == 0, seen.stderr
    assert seen.stdout


@pytest.mark.parametrize(
    "words",
    [
        ("-u", "-m", "package.part", "a", "-b"),
        ("-um", "package", "a"),
        ("-m", "no_such_module"),
        ("-m", "package.broken"),
        ("-O", "-X", "dev", "-W", "error", "package/part.py", "a"),
        ("-b", "-c", "import sys; print(sys.argv, sys.path[0], sorted(globals()), __name__); 1/0", "a"),
        ("folder", "a"),
        ("archive.zip", "a"),
        ("link.py", "a"),
        ("no_such_file.py",),
    ],
    ids=lambda words: " ".join(words)[:24],
)
def test_whatever_python_runs_is_run_the_same(observe: Observe, words: tuple[str, ...]) -> None:
    show = (
        "import sys\nprint(sys.argv, sys.path[:2], __name__, __package__, __spec__, __file__, __debug__, sys.flags)\n"
    )
    write("package/__init__.py", "print('package')\n")
    write("package/__main__.py", show)
    write("package/part.py", show)
    write("package/broken.py", "def f(): raise ValueError('in a module')\nf()\n")
    write("folder/__main__.py", f"{show}import beside\n")
    write("folder/beside.py", show)
    os.symlink("package/part.py", "link.py")
    with zipfile.ZipFile("archive.zip", "w") as archive:
        archive.write("folder/__main__.py", "__main__.py")
        archive.write("folder/beside.py", "beside.py")
    compare(observe, *words)


@pytest.mark.parametrize(
    "text", ["print('mine')", "print('mine')\n1/0", "import absent"], ids=["well", "raises", "fails"]
)
def test_an_installations_own_sitecustomize_is_heeded(
    observe: Observe, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    write("site/sitecustomize.py", text)
    monkeypatch.setenv("PYTHONPATH", os.path.abspath("site"))
    script = write(
        "script.py", "import os, sys; print(sys.path, os.environ['PYTHONPATH'], 'sitecustomize' in sys.modules)"
    )
    seen = compare(observe, script)
    assert seen.exit_code == 0
    assert "'sitecustomize'" not in seen.stderr  # a module that is missing is not the one we hide


# --- how a program ends ---------------------------------------------------------------------------------------------

ENDS = {
    "return": (0, "print('done')"),
    "exit with a number": (3, "import sys; sys.exit(3)"),
    "exit with words": (1, "import sys; sys.exit('words')"),
    "exit with nothing": (0, "raise SystemExit"),
    "exit at once": (4, "import os; print('not flushed' * 0); os._exit(4)"),
    "exception": (1, "def f():\n    raise ValueError('a reason')\ntry:\n    1/0\nfinally:\n    f()"),
    "exception group of causes": (1, "try:\n    1/0\nexcept Exception as e:\n    raise RuntimeError('later') from e"),
    "syntax error": (1, "def f(:\n    pass"),
    "null byte": (1, "a = 1\n\0"),
    "recursion": (1, "def f(): f()\nf()"),
    "interrupted": (-2, "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nwhile True: pass"),
    "interrupt raised": (-2, "raise KeyboardInterrupt('mine')"),
    "terminated": (-15, "import os, signal; os.kill(os.getpid(), signal.SIGTERM); signal.pause()"),
    "killed": (-9, "import os, signal; os.kill(os.getpid(), signal.SIGKILL); signal.pause()"),
    "segmentation fault": (-11, "import faulthandler\ndef f(): faulthandler._sigsegv()\nf()"),
    "abort": (-6, "import os\nos.abort()"),
    "own hook": (1, "import sys; sys.excepthook = lambda *a: print('hook', a[0], a[1], a[2].tb_lineno); 1/0"),
    "broken hook": (1, "import sys\ndef hook(*a): raise KeyError('hook')\nsys.excepthook = hook\n1/0"),
    "atexit": (5, "import atexit, sys\natexit.register(print, 1)\natexit.register(print, 2)\nsys.exit(5)"),
    "broken atexit": (0, "import atexit\n@atexit.register\ndef last(): raise ValueError('at exit')"),
    "thread goes on": (
        0,
        "import threading\ne = threading.Event()\n"
        "threading.Thread(target=lambda: (e.wait(), print('thread'))).start()\nprint('main')\ne.set()",
    ),
    "thread fails": (0, "import threading\nt = threading.Thread(target=lambda: 1/0, name='t')\nt.start(); t.join()"),
    "stdout is gone": (120, "import os, sys\nprint('lost')\nos.close(1)"),
    "destructor": (0, "class C:\n    def __del__(self): print('deleted')\nc = C()"),
    "logging": (0, "import logging\nlogging.warning('words %s', 1)\nlogging.getLogger('a').info('no')"),
    "asyncio": (0, "import asyncio\nasync def f():\n    await asyncio.sleep(0)\n    print('a')\nasyncio.run(f())"),
    "unraisable": (0, "class C:\n    def __del__(self): 1/0\nC()"),
}


@pytest.mark.parametrize("end", ENDS, ids=lambda name: name.replace(" ", "-"))
def test_a_script_ends_the_same(observe: Observe, end: str) -> None:
    exit_code, text = ENDS[end]
    ended = compare(observe, *(() if end == "stdout is gone" else ("-u",)), write("script.py", text))
    assert ended.exit_code == exit_code, ended.stderr


# --- processes of a program -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_a_script_may_use_multiprocessing(observe: Observe, method: str) -> None:
    text = f"""
import multiprocessing, os, sys
def double(x):
    return 2 * x, __name__, sys.argv, sys.path[0], multiprocessing.parent_process().pid == os.getppid() or "{method}"
def fail():
    sys.exit(7)
if __name__ == "__main__":
    with multiprocessing.get_context("{method}").Pool(1) as pool:
        print(pool.map(double, [1, 2]))
    process = multiprocessing.get_context("{method}").Process(target=fail)
    process.start()
    process.join()
    print(process.exitcode, process.name)
"""
    assert compare(observe, "-u", write("script.py", text), "a").exit_code == 0


def test_a_script_may_start_programs(observe: Observe) -> None:
    text = """
import os, subprocess, sys
print(subprocess.run([sys.executable, "-c", "import sys; print(sys.argv, sys.path); sys.exit(3)", "a"]))
print(subprocess.run("ls -l /proc/self/fd | wc -l; ulimit -n", shell=True, capture_output=True))
pid = os.fork()
if pid == 0:
    print("child", os.getppid() == os.getsid(0))
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    assert compare(observe, "-u", write("script.py", text)).exit_code == 0


# --- the comparison itself ------------------------------------------------------------------------------------------


def test_the_comparison_would_notice_a_difference(observe: Observe) -> None:
    text = "import sys; print(sorted(name for name in sys.modules if name in ('asyncio', 'unittest')))"
    with pytest.raises(AssertionError):
        compare(observe, write("script.py", text))
