"""An agent closes all its parts, whatever a plugin's code has closed or raised in its process."""

from __future__ import annotations

import errno
import os
import select
import subprocess
from pathlib import Path

import pytest
from core.tests.test_hook_answers import run_with_plugin

from quorate.agent._closing import close_in_turn, raise_if_closed_by_others
from quorate.errors import PluginError


def test_what_cannot_be_closed_keeps_nothing_else_open() -> None:
    closed: list[str] = []
    sentences: list[str] = []
    error = OSError(9, "Bad file descriptor")
    close_in_turn(
        [lambda: closed.append("first"), lambda: _fail(error), lambda: closed.append("last")], sentences.append
    )
    assert closed == ["first", "last"]
    assert len(sentences) == 1


def test_the_number_of_the_epoll_object_may_be_that_of_another_file() -> None:
    with select.epoll() as epoll, open(os.devnull) as other:
        missing = FileNotFoundError(errno.ENOENT, "No such file or directory", "/proc/self/stat")
        for error in (missing, OSError(errno.EINVAL, "Invalid argument")):
            raise_if_closed_by_others(error, epoll)  # nothing is closed
        with pytest.raises(PluginError, match="a descriptor of this agent was closed by other code"):
            raise_if_closed_by_others(OSError(errno.EBADF, "Bad file descriptor"), epoll)
        os.dup2(other.fileno(), epoll.fileno())
        for error in (missing, OSError(errno.EINVAL, "Invalid argument"), OSError(errno.EPERM, "Not permitted")):
            with pytest.raises(PluginError, match="a descriptor of this agent was closed by other code"):
                raise_if_closed_by_others(error, epoll)


def test_all_is_closed_before_an_error_that_nothing_foresees_is_raised() -> None:
    closed: list[str] = []
    parts = [lambda: _fail(ZeroDivisionError("first")), lambda: _fail(KeyError()), lambda: closed.append("last")]
    with pytest.raises(ZeroDivisionError, match="first"):
        close_in_turn(parts, closed.append)
    assert closed == ["last"]


def _fail(error: Exception) -> None:
    raise error


CLOSER = """
import os
from quorate import hookimpl

@hookimpl
def quorate_decide_launch(launch, assignment):
    os.closerange(3, 256)
"""


@pytest.mark.needs("quorate-process-local", "quorate-rendezvous-static")
def test_an_agent_whose_descriptors_a_plugin_has_closed_ends_with_a_sentence(tmp_path: Path) -> None:
    done: subprocess.CompletedProcess[str] = run_with_plugin(tmp_path, CLOSER, script="")
    assert done.returncode == 4, done.stderr
    assert "a descriptor of this agent was closed by other code in its process" in done.stderr
    assert "Traceback" not in done.stderr


HANDLER_OF_SIGNALS = """
import os, signal, threading, time
from quorate import ServiceBackend, hookimpl

def send():
    while True:
        os.kill(os.getpid(), signal.SIGALRM)
        time.sleep(0.05)

class Odd(Exception):
    __traceback__ = property(lambda self: 1 / 0, lambda self, value: None)  # contextlib sets it

def fail(number, frame):
    raise KIND("odd")

@hookimpl
def quorate_register_service():
    signal.signal(signal.SIGALRM, fail)
    threading.Thread(target=send, daemon=True).start()
    return []
"""


@pytest.mark.needs("quorate-process-local", "quorate-rendezvous-static")
@pytest.mark.parametrize("kind", ["ZeroDivisionError", "Odd"])
def test_what_a_plugins_code_raises_in_the_midst_of_quorates_is_the_plugins(tmp_path: Path, kind: str) -> None:
    plugin = HANDLER_OF_SIGNALS.replace("KIND", kind)
    done = run_with_plugin(tmp_path, plugin, script="import time\ntime.sleep(60)")
    assert done.returncode == 4, done.stderr
    assert f"quorate: error: plugin aaa 1.0 (aaa) raised {kind}: odd outside of its hooks" in done.stderr
    assert "Traceback" not in done.stderr
