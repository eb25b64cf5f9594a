"""A template process as the agent sees it: starting it, asking it, having it fork workers.

Workers become children of the agent: the template forks an intermediate process, which forks the workers and ends, and
the kernel makes its children the agent's, which is a *subreaper* for that moment.  So the rest of this package treats
them like any other worker, and the template may end before they do.

What does not live here: what runs in the template (:mod:`._template_site.quorate_template`), and when there is one, and
for what (:mod:`._warm`).
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, final

from quorate.errors import StartError
from quorate.proc import forget, hold, kill_and_reap, open_pidfd, release
from quorate.text import printable

from ._exec import leaking_descriptors, spawn_program
from ._streams import Output
from ._template_site import quorate_template
from ._template_site.quorate_template import CHANNEL_VARIABLE, MARKER_PLACE, MARKER_VARIABLE, receive, send

#: How long a template that is ready may take for one answer: a fork, even on a machine that is swapping.
_ANSWER_TIMEOUT_SECONDS = 60.0
#: How long a process may take from the end of its channel to its own.
_END_TIMEOUT_SECONDS = 2.0

_LONGEST_PROBLEM = 2048
_NO_ANSWER = "the template process no longer answers"

_PR_SET_CHILD_SUBREAPER, _PR_GET_CHILD_SUBREAPER = 36, 37


@final
class Template:
    """A running template.

    Arguments:
        program, argv: the interpreter, and the command that its workers run.
        environment: of the template; what of it an import reads, its workers cannot have otherwise.
        modules: what to import.
        head, path: what the program will have in front of ``sys.path`` (unless an option forbids it), and what else
            is to be there for the imports.
        import_timeout_seconds: how long the imports may take.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(
        self,
        program: str,
        argv: Sequence[str],
        environment: Mapping[str, str],
        modules: Sequence[str],
        head: str,
        path: Sequence[str],
        import_timeout_seconds: int,
    ) -> None:
        self.is_ready = False
        #: Whether nothing was asked of it for as long as :meth:`rest` says.
        self.is_idle = False
        #: Why it cannot be used, ``""`` while nothing is known against it.
        self.problem = ""
        self._modules, self._import_timeout_seconds = ", ".join(modules) or "nothing", import_timeout_seconds
        self.channel, template_end = socket.socketpair()
        try:
            folders = [os.path.dirname(quorate_template.__file__), environment.get("PYTHONPATH", "")]
            started_with = {
                **environment,
                "PYTHONPATH": os.pathsep.join(filter(None, folders)),
                CHANNEL_VARIABLE: str(template_end.fileno()),
                MARKER_VARIABLE: environment.get(MARKER_VARIABLE, "") + MARKER_PLACE,
            }
            self.pid = spawn_program(
                program, list(argv), started_with, Output(), leaking_descriptors(), [template_end.fileno()]
            )
        except BaseException:
            self.channel.close()
            raise
        finally:
            template_end.close()
        hold(self.channel.fileno(), self.channel.close)
        try:
            plan = {"environment": dict(environment), "modules": list(modules), "head": head, "path": list(path)}
            send(self.channel, {**plan, "agent": os.getpid(), "seconds": import_timeout_seconds})
        except ConnectionError:
            pass  # it has ended already, which the next look() notices

    def look(self) -> None:
        """Take in its messages; to be called when ``channel`` is readable.

        Afterwards it is ready, or has a problem, or neither yet.
        """
        if self.problem:
            return
        try:
            self.channel.setblocking(False)
            ended = not self.channel.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except ConnectionError:
            ended = True
        self.channel.settimeout(_ANSWER_TIMEOUT_SECONDS)
        if ended:
            self.problem = self._how_it_ended()
        elif not self.is_ready:
            self.problem = printable(str(self._ask().get("problem", "")), _LONGEST_PROBLEM)
            self.is_ready = not self.problem
        else:
            answer = self._receive()
            self.is_idle = "idle" in answer
            self.problem = "" if self.is_idle else printable(str(answer.get("problem", "")), _LONGEST_PROBLEM)

    def wait(self) -> None:
        """Wait until it is ready or has a problem; its imports end it if they take too long."""
        while not self.is_ready and not self.problem:
            self.channel.setblocking(True)
            with suppress(ConnectionError):
                self.channel.recv(1, socket.MSG_PEEK)
            self.look()

    def rest(self, seconds: float) -> None:
        """Have it say when nothing was asked of it for ``seconds``; see :attr:`is_idle`."""
        with suppress(OSError):  # it has ended, which the next look() notices
            send(self.channel, {"rest": seconds})

    def _ask(self, message: Mapping[str, Any] | None = None, descriptors: Sequence[int] = ()) -> dict[str, Any]:
        """Send ``message`` if one is given, and return the answer; a problem if none comes."""
        try:
            self.channel.settimeout(_ANSWER_TIMEOUT_SECONDS)
            if message is not None:
                send(self.channel, dict(message), descriptors)
        except (ConnectionError, TimeoutError):
            return {"problem": _NO_ANSWER}
        answer = self._receive()
        return self._receive() if "idle" in answer else answer  # it began to rest just before it was asked

    def _receive(self) -> dict[str, Any]:
        """Return the next message; a problem if none comes."""
        try:
            received = receive(self.channel)
        except (ConnectionError, TimeoutError):
            received = None
        except ValueError as error:
            return {"problem": f"the template process sent what is not a message ({error})"}
        return {"problem": _NO_ANSWER} if received is None else received[0]

    def _how_it_ended(self) -> str:
        # Its end of the channel is closed, so it is about to end; unless an import has closed the channel.
        pidfd = hold(open_pidfd(self.pid))
        if pidfd >= 0:
            poller = select.poll()
            poller.register(pidfd, select.POLLIN)
            has_ended = bool(poller.poll(_END_TIMEOUT_SECONDS * 1000))
            release(pidfd)
            if not has_ended:
                return f"the template process has closed its channel to the agent while it imported {self._modules}"
        status = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        assert status is not None
        if status.si_code != os.CLD_EXITED and status.si_status == signal.SIGALRM and not self.is_ready:
            return f"importing {self._modules} took longer than {self._import_timeout_seconds} s"
        how = "exit code" if status.si_code == os.CLD_EXITED else "signal"
        when = "while it waited" if self.is_ready else f"before it had imported {self._modules}"
        return f"the template process ended by {how} {status.si_status} {when}"

    def close(self) -> None:
        """Kill and reap it, and what its imports may have started."""
        if self.channel.fileno() >= 0:
            forget(self.channel.fileno())
            self.channel.close()
            for send_signal in (os.killpg, os.kill):
                with suppress(ProcessLookupError):
                    send_signal(self.pid, signal.SIGKILL)
            with suppress(ChildProcessError):  # other code in the agent's process has reaped it
                os.waitpid(self.pid, 0)

    def fork_workers(self) -> Forking:
        """Return the context manager in which workers are forked; when it ends they are the agent's children."""
        return Forking(self)


@final
class Forking:
    """One group of workers being forked by a template that is ready."""

    def __init__(self, template: Template) -> None:
        self._template = template
        self._intermediate = 0
        self._is_whole = True

    def __enter__(self) -> Forking:
        _adopt_orphans(True)
        try:
            answer = self._template._ask({"group": True})
            if "intermediate" not in answer:
                raise StartError(f"the workers cannot be forked: {answer['problem']}")
            self._intermediate = answer["intermediate"]
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def fork(self, order: Mapping[str, Any], descriptors: Sequence[int], local_rank: int) -> int:
        """Have one worker forked; return its pid.  It begins once the context has ended.

        Raises:
            StartError: it could not be.
        """
        answer = self._template._ask(order, descriptors)
        if "pid" not in answer:
            self._is_whole = "problem" in answer
            problem = printable(str(answer.get("problem", "the intermediate process has ended")), _LONGEST_PROBLEM)
            raise StartError(
                f"the worker of local rank {local_rank} cannot be forked: {problem}", local_rank=local_rank
            )
        pid: int = answer["pid"]
        return pid

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if not self._intermediate or not self._is_whole or "adopted" not in self._template._ask({}):
                self._end_all()
                if kind is None and self._intermediate:
                    raise StartError("the template process ended while it forked the workers")
        finally:
            _adopt_orphans(False)

    def _end_all(self) -> None:
        """End the template and its intermediate, so that all workers that exist become the agent's children."""
        self._template.close()
        self._template.problem = self._template.problem or "it ended while it forked workers"
        if self._intermediate:
            kill_and_reap(self._intermediate)  # if it is a child now; else it was reaped before


_lock = threading.Lock()
_adopting = 0
_was_adopting = 0


def _forget_the_parents_threads() -> None:
    """Reset a forked child: it has adopted no process yet, and only the parent has the lock's holder."""
    global _lock, _adopting
    _lock, _adopting = threading.Lock(), 0


os.register_at_fork(after_in_child=_forget_the_parents_threads)


def _adopt_orphans(on: bool) -> None:
    """Make this process the parent of its descendants' orphans, or, after as many calls, what it was before.

    Raises:
        StartError: the kernel refuses.
    """
    global _adopting, _was_adopting
    with _lock:
        library = ctypes.CDLL(None, use_errno=True)
        if on and _adopting == 0:
            before = ctypes.c_int(0)
            library.prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(before), 0, 0, 0)
            _was_adopting = before.value
            if library.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
                raise StartError(
                    f"the kernel does not let this process adopt workers ({os.strerror(ctypes.get_errno())}); "
                    "use --start-method=exec"
                )
        elif not on and _adopting == 1 and not _was_adopting:
            library.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        _adopting += 1 if on else -1
