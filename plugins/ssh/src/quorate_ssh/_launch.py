"""``quorate run --hosts``: connects to all hosts, checks them, starts their agents, and ends with the job.

Nothing is started before every host has answered and fits.  Whatever ends this process ends the connections, and a host
whose connection ends stops its agent.  What does not live here: one connection (``_session``), and the host's end
(``remote``).
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any, final

import quorate
from quorate.catalogue import RunRequest
from quorate.clock import monotonic
from quorate.errors import RendezvousConnectionError, UsageError, remedy_for
from quorate.notices import note, warn, write_error
from quorate.text import printable

from ._console import Console
from ._hosts import parse_hosts
from ._messages import PING_SECONDS
from ._plan import Plan, make_plan, split_command
from ._reasons import is_dropped, no_answer, why_it_ended
from ._session import PING, Answered, Ended, Event, Session

_ANSWER_SECONDS = 60.0
_SAID_AFTER_SECONDS = 10.0
_CLOSE_SECONDS = 3.0
_LONGEST_SHOWN = 1000
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_ENDING = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT})
_LOST_CODES = frozenset({255, 128 + signal.SIGKILL})
#: An agent that ends like this never joined, and the others would wait for it.
_NEVER_JOINED = frozenset({2, 4, 70, 126, 127})
_FIRST_RETRY_SECONDS = 2.0
_LONGEST_RETRY_SECONDS = 30.0
_MOST_SIGNALS = 3
#: Pauses before a connection that was dropped is made again.
_DROPPED_SECONDS = (0.5, 1.0, 2.0, 4.0)
_SPREAD = 8
_RENDEZVOUS = 3


def run(request: RunRequest) -> int:
    """Carry out the launch and return the job's exit code.

    Raises:
        UsageError: the command line cannot be used.
        RendezvousConnectionError: hosts cannot be reached or do not fit; nothing was started.
    """
    return _Launch(make_plan(request, os.environ)).run()


def ask_hosts(
    hosts: str, ssh_command: str, question: Mapping[str, Any], answer_seconds: float = _ANSWER_SECONDS
) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """Ask hosts for their detached agents; return their answers by host, and what went wrong.

    Raises:
        UsageError: ``hosts`` or ``ssh_command`` cannot be used.
    """
    events: SimpleQueue[Event] = SimpleQueue()
    console, ssh = Console(), split_command(ssh_command)
    waiting: list[Session] = []
    try:
        for index, host in enumerate(parse_hosts(hosts)):
            waiting.append(Session(index, host, ssh, sys.executable, console, events.put))
    except OSError as error:
        raise _cannot_run(ssh[0], error, waiting) from None
    answers: dict[str, list[dict[str, Any]]] = {}
    problems: list[str] = []
    deadline = monotonic() + answer_seconds
    while waiting:
        try:
            event = events.get(timeout=max(0.0, deadline - monotonic()))
        except Empty:
            problems += [f"{each.host.name}: {no_answer(each, answer_seconds)}" for each in waiting]
            for each in waiting:
                each.kill()
            break
        session = event.session
        if isinstance(event, Ended):
            waiting.remove(session)
            if session.host.name not in answers:
                problems.append(f"{session.host.name}: {why_it_ended(session, event.code)}")
        elif "hello" in event.message:
            session.send({"detached": dict(question)}, ("detached", list))
        elif "detached" in event.message:
            answers[session.host.name] = list(event.message["detached"])
            session.close()
    return answers, problems


def _cannot_run(program: str, error: OSError, opened: Iterable[Session]) -> UsageError:
    """Return the error of a connection that could not be begun; the others are ended."""
    for session in opened:
        session.kill()
    remedy = remedy_for(error)
    return UsageError(f"--ssh-command: {program} cannot be run: {error.strerror}" + (f"; {remedy}" if remedy else ""))


@final
class _Launch:
    """One launch, on the main thread; connections post what happens."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._console = Console()
        self._events: SimpleQueue[Event | int] = SimpleQueue()
        self._sessions: dict[int, Session] = {}
        self._closed: list[Session] = []  # from here, before they ended
        self._checked: set[int] = set()
        self._codes: dict[int, int] = {}
        self._retries: dict[int, tuple[float, float]] = {}  # host -> when, and the pause after that
        self._dropped: dict[int, float] = {}  # host -> when its connection is made again
        self._tries: dict[int, int] = {}
        self._signals: list[int] = []
        self._endpoint = self._token = ""
        self._first = 0
        self._is_started = self._is_over = self._is_ending = False
        self._records: dict[int, Mapping[str, Any]] = {}

    def run(self) -> int:
        # What nohup, or a shell's &, has had ignored stays ignored.
        wanted = [number for number in _PASSED_ON if signal.getsignal(number) is not signal.SIG_IGN]
        old = {number: signal.signal(number, self._on_signal) for number in wanted}
        try:
            problems = self._connect()
            if self._signals and not self._is_started:
                return 128 + self._signals[0]
            self._refuse(problems)
            self._start_all()
            self._follow()
            return self._code()
        finally:
            for session in self._sessions.values():
                session.close()
            self._closed += self._sessions.values()
            deadline = monotonic() + _CLOSE_SECONDS
            for session in self._closed:  # nothing of a host that does not let go stays on this machine
                session.await_end(deadline - monotonic())
            for number, handler in old.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._events.put(number)

    def _next(self, deadline: float) -> Event | int | None:
        """Return what happens next, ``None`` at ``deadline``; the hosts hear meanwhile that this process lives."""
        while True:
            wait = min(PING_SECONDS, deadline - monotonic())
            try:
                return self._events.get(timeout=max(0.0, wait))
            except Empty:
                for session in self._sessions.values():
                    session.send(PING)
                if monotonic() >= deadline:
                    return None

    # --- before anything starts -----------------------------------------------------------------------------------

    def _open(self, index: int) -> None:
        host = self._plan.hosts[index]
        ssh = self._plan.ssh
        try:
            self._sessions[index] = Session(index, host, ssh, sys.executable, self._console, self._events.put)
        except OSError as error:
            raise _cannot_run(ssh[0], error, self._sessions.values()) from None

    def _connect(self) -> dict[int, str]:
        """Connect to all hosts and have them checked; return what is wrong, by host."""
        for index in range(len(self._plan.hosts)):
            self._open(index)
        problems: dict[int, str] = {}
        deadline = monotonic() + _ANSWER_SECONDS
        said_at = monotonic() + _SAID_AFTER_SECONDS
        while len(self._checked) + len(problems) < len(self._plan.hosts):
            event = self._next(min(said_at, deadline, *self._dropped.values()))
            if isinstance(event, int):
                self._signals.append(event)
                return {}
            if event is None and self._open_dropped():
                continue
            if event is None:
                silent = sorted((self._sessions.keys() | self._dropped.keys()) - self._checked - problems.keys())
                if monotonic() >= deadline:
                    problems.update({index: no_answer(self._sessions.get(index), _ANSWER_SECONDS) for index in silent})
                    break
                said_at = deadline
                names = ", ".join(self._plan.hosts[index].name for index in silent)
                note(f"waiting for {names} to answer; the launch gives up in {deadline - monotonic():.0f} s")
                continue
            problem = self._check(event)
            if problem and not self._is_dropped(event):
                problems[event.session.index] = problem
        return problems

    def _is_dropped(self, event: Event) -> bool:
        """Return whether a connection was closed before its first word, and is made again later."""
        session = event.session
        if not isinstance(event, Ended) or not is_dropped(session):
            return False
        tries = self._tries.get(session.index, 0)
        if tries == len(_DROPPED_SECONDS):
            return False
        self._tries[session.index] = tries + 1
        spread = 1 + session.index % _SPREAD / _SPREAD  # not all at once again
        self._dropped[session.index] = monotonic() + spread * _DROPPED_SECONDS[tries]
        return True

    def _open_dropped(self) -> bool:
        """Make the connections again whose time has come; return whether there are such."""
        due = [index for index, when in self._dropped.items() if when <= monotonic()]
        for index in due:
            del self._dropped[index]
            self._open(index)
        return bool(due)

    def _check(self, event: Event) -> str:
        """Take one step of the check of a host; return what is wrong."""
        session = event.session
        if isinstance(event, Ended):
            self._sessions.pop(session.index, None)
            self._checked.discard(session.index)
            return why_it_ended(session, event.code)
        if "hello" in event.message:
            version = event.message["hello"]["version"]
            if version != quorate.__version__:
                shown = printable(version, _LONGEST_SHOWN // 10)
                return f"it has quorate {shown}, and this machine has {quorate.__version__}; install the same one"
            session.send({"check": self._plan.check()}, ("problem", str))
        elif "problem" in event.message:
            if event.message["problem"]:
                return printable(event.message["problem"], _LONGEST_SHOWN)
            self._checked.add(session.index)
        return ""

    def _refuse(self, problems: Mapping[int, str]) -> None:
        """Name every host that cannot take part; go on without it only if the job may be smaller."""
        sentences = [f"{self._plan.hosts[index].name}: {problem}" for index, problem in sorted(problems.items())]
        if len(self._checked) < self._plan.min_nodes or (problems and not self._plan.is_elastic):
            raise RendezvousConnectionError("nothing was started. " + "; ".join(sentences))
        for index, sentence in zip(sorted(problems), sentences, strict=True):
            warn(f"{sentence}; it is tried again while the job runs")
            self._drop(index)
            self._retries[index] = monotonic() + _FIRST_RETRY_SECONDS, _FIRST_RETRY_SECONDS

    def _drop(self, index: int) -> None:
        session = self._sessions.pop(index, None)
        if session is not None:
            session.close()
            self._closed.append(session)

    # --- the job --------------------------------------------------------------------------------------------------

    def _start_all(self) -> None:
        hellos = {index: self._sessions[index].hello for index in sorted(self._checked)}
        first = self._first = next(iter(hellos))
        if self._plan.chooses_endpoint:
            others = [hello for index, hello in hellos.items() if index != first]
            self._endpoint = self._plan.endpoint_at(self._plan.hosts[first], hellos[first], others)
            self._token = "" if self._plan.has_token else os.urandom(32).hex()
        self._warn_of_one_machine(hellos)
        names = ", ".join(self._plan.hosts[index].name for index in hellos)
        where = f", which meets at {self._endpoint}" if self._endpoint else ""
        note(f"job {printable(self._plan.job, _LONGEST_SHOWN)} on {names}{where}")
        self._is_started = True
        for index in hellos:
            self._start(index)

    def _warn_of_one_machine(self, hellos: Mapping[int, Mapping[str, Any]]) -> None:
        names: dict[str, list[str]] = {}
        for index, hello in hellos.items():
            names.setdefault(str(hello.get("machine") or index), []).append(self._plan.hosts[index].name)
        for same in names.values():
            if len(same) > 1:
                shown = " and ".join((", ".join(same[:-1]), same[-1]))
                warn(
                    f"{shown} are one machine, whose devices their agents share; one agent runs all workers of its "
                    f"machine: write {same[0]}:N"
                )

    def _start(self, index: int) -> None:
        session = self._sessions[index]
        session.is_started = not self._plan.is_detached
        start = self._plan.start(index, session.hello, self._endpoint, self._token, is_first=index == self._first)
        session.send({"start": start}, ("detached", dict) if self._plan.is_detached else None)

    def _follow(self) -> None:
        """Pass signals on, try lost hosts again, until the job is over on all hosts."""
        while self._sessions or (self._retries and not self._is_over and not self._is_ending and self._codes):
            due = min((when for when, _ in self._retries.values()), default=monotonic() + 3600.0)
            event = self._next(due)
            if event is None:
                self._retry()
            elif isinstance(event, int):
                self._pass_on(event)
            elif isinstance(event, Ended) and event.session.is_started:
                self._ended(event.session, event.code)
            elif self._plan.is_detached:
                self._follow_detached(event)
            else:
                self._follow_retry(event)
            if not self._sessions and all(code in _LOST_CODES for code in self._codes.values()):
                return  # no host is left that could tell how the job ends

    def _pass_on(self, number: int) -> None:
        self._signals.append(number)
        if number in _ENDING:
            self._is_ending = True
            self._retries.clear()
        for index, session in list(self._sessions.items()):
            if session.is_started:
                session.send({"signal": number})
            else:
                self._drop(index)
            if self._signals.count(signal.SIGINT) >= _MOST_SIGNALS:
                session.kill()

    def _ended(self, session: Session, code: int) -> None:
        index = session.index
        if self._sessions.get(index) is not session:
            return
        del self._sessions[index]
        self._codes[index] = code
        is_lost = code in _LOST_CODES and not any(number in _ENDING for number in self._signals)
        if is_lost:
            why = session.complaint or (session.last_lines[-1] if code == 255 and session.last_lines else "")
            last = f" ({why})" if why else ""
            warn(f"{session.host.name} is lost{last}")
            if self._plan.is_elastic and not self._is_over and not self._is_ending:
                self._retries[index] = monotonic() + _FIRST_RETRY_SECONDS, _FIRST_RETRY_SECONDS
                return
        elif code not in _NEVER_JOINED:
            self._is_over = True  # the job has ended, or will: an agent ends with its job
            self._retries.clear()
        left = len(self._sessions)
        if (is_lost or code in _NEVER_JOINED) and left < self._plan.min_nodes and not self._is_ending:
            self._is_ending = True
            for other in self._sessions.values():
                other.send({"signal": int(signal.SIGTERM)})

    # --- hosts that come back -------------------------------------------------------------------------------------

    def _retry(self) -> None:
        now = monotonic()
        for index, (when, pause) in list(self._retries.items()):
            if when <= now and index not in self._sessions:
                longer = min(2 * pause, _LONGEST_RETRY_SECONDS)
                self._retries[index] = now + longer + _ANSWER_SECONDS, longer
                self._checked.discard(index)
                self._open(index)

    def _follow_retry(self, event: Event) -> None:
        index, problem = event.session.index, self._check(event)
        if problem:
            self._drop(index)
            if index in self._retries:
                self._retries[index] = monotonic() + self._retries[index][1], self._retries[index][1]
        elif isinstance(event, Answered) and index in self._checked and not event.session.is_started:
            self._retries.pop(index, None)
            self._codes.pop(index, None)
            if self._is_over or self._is_ending:
                self._drop(index)
            else:
                note(f"{event.session.host.name} takes part again")
                self._start(index)

    # --- detached -------------------------------------------------------------------------------------------------

    def _follow_detached(self, event: Event) -> None:
        session = event.session
        if isinstance(event, Ended):
            self._sessions.pop(session.index, None)
            is_detached = session.index in self._records
            self._codes[session.index] = event.code if is_detached else event.code or 1
            if not is_detached:
                warn(f"{session.host.name}: no agent goes on there: {why_it_ended(session, event.code)}")
        elif "detached" in event.message:
            self._records[session.index] = event.message["detached"]
        if not self._sessions:
            for index, record in sorted(self._records.items()):
                host = self._plan.hosts[index].name
                log = printable(record["log"], _LONGEST_SHOWN)
                write_error(f"quorate: {host}: agent {record['pid']}, output in {log}")
            if not self._records:
                return
            names = ",".join(host.name for host in self._plan.hosts)
            shown = printable(self._plan.job, _LONGEST_SHOWN)
            note(
                f"job {shown} goes on; find it with: quorate detached --hosts={names}; "
                f"end it with: quorate detached --hosts={names} --end={shlex.quote(self._plan.job)}"
            )

    def _code(self) -> int:
        """Return the job's exit code."""
        codes: Sequence[int] = [self._codes[index] for index in sorted(self._codes)]
        told = [code for code in codes if code not in _LOST_CODES]
        ended = next((number for number in self._signals if number in _ENDING), None)
        if ended is not None:
            return next((code for code in told if code > 0), 128 + ended if not told else 0)
        if any(code in _LOST_CODES for code in codes) and (not self._plan.is_elastic or not told):
            return _RENDEZVOUS
        never = [code for code in told if code in _NEVER_JOINED]
        rest = [code for code in told if code not in _NEVER_JOINED]
        return max(never or rest, default=_RENDEZVOUS) if not self._plan.is_elastic or not rest else max(rest)
