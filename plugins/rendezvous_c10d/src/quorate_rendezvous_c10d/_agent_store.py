"""The workers' store at ``MASTER_ADDR:MASTER_PORT``, served for rounds whose rendezvous serves none: ``--agent-store``.

torchrun always serves one.  Programs that only connect to it, such as torchft, would wait in vain for another worker to
serve it.  A process of its own serves it, so that the agent stays small; it loads torch while the workers do, and they
repeat their connections until it listens.  What does not live here: the process (:mod:`._serve`), and stores of the
backend ``c10d`` itself (:mod:`._bootstrap`).
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping
from enum import Enum
from typing import final

from attrs import evolve

from quorate.errors import UsageError
from quorate.events import EventName
from quorate.files import read_bytes
from quorate.notices import note
from quorate.proc import hold, kill_and_reap, release
from quorate.records import Assignment, Event, WorkerLaunch
from quorate.services import AgentView

#: What torchft's programs need to be told, and so a sign that the program is one.
_SIGN_OF_A_CLIENT = "TORCHFT_LIGHTHOUSE"
#: How long a store may be missing before that is said.
_PATIENT_SECONDS = 60.0
_LISTENS = b"0A"


@final
class When(str, Enum):
    """When the agent serves the workers' store."""

    ALWAYS = "always"
    AUTO = "auto"  # for programs of torchft; others are told where to find it if they seem to miss it
    NEVER = "never"


def parse_when(text: str) -> When:
    """Return the choice that ``text`` names.

    Raises:
        UsageError: it names none.
    """
    try:
        return When(text)
    except ValueError:
        raise UsageError(f"--agent-store={text} is not one of {', '.join(when.value for when in When)}") from None


@final
class AgentStore:
    """The store of one agent's rounds; a service beside the agent.

    Arguments:
        agent: the agent.
        when: the user's choice.
        forget: called when the agent ends.
        patient_seconds: how long a store may be missing before that is said.
    """

    def __init__(
        self,
        agent: AgentView,
        when: When,
        forget: Callable[[], object],
        patient_seconds: float = _PATIENT_SECONDS,
    ) -> None:
        self._agent, self._forget, self._patient_seconds = agent, forget, patient_seconds
        self._serves = when is When.ALWAYS or (when is When.AUTO and _SIGN_OF_A_CLIENT in agent.environment)
        self._hints = when is When.AUTO and not self._serves
        self._pid, self._write_end = 0, -1
        self._missing_port = 0
        self._timer: threading.Timer | None = None

    @property
    def worker_environment(self) -> Mapping[str, str]:
        return {}

    def change(self, launch: WorkerLaunch, assignment: Assignment) -> WorkerLaunch:
        """Tell a worker that it is a client, and serve the store where the round's first worker is started."""
        if launch.environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            return launch
        is_first = assignment.group_rank == 0 and launch.local_rank == 0
        port = int(launch.environment["MASTER_PORT"])
        if not self._serves:
            self._missing_port = port if is_first and assignment.world_size > 1 else self._missing_port
            return launch
        if is_first:
            self._serve(port)
        return evolve(launch, environment={**launch.environment, "TORCHELASTIC_USE_AGENT_STORE": "True"})

    def observe(self, event: Event) -> None:
        if event.name == EventName.WORKERS_STARTED and self._hints and self._missing_port:
            self._timer = threading.Timer(self._patient_seconds, self._look)
            self._timer.daemon = True
            self._timer.start()
        elif event.name == EventName.ROUND_ENDED:
            self._cancel()

    def close(self) -> None:
        self._cancel()
        self._stop()
        self._forget()

    # --- the process ------------------------------------------------------------------------------------------------

    def _serve(self, port: int) -> None:
        self._stop()
        read_end, write_end = os.pipe()
        try:
            self._pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-m", "quorate_rendezvous_c10d._serve", str(port)],
                os.environ,
                file_actions=[(os.POSIX_SPAWN_DUP2, read_end, 0)],
                setsid=True,
                setsigmask=[],
            )
            self._write_end = hold(write_end)
        except OSError as error:
            os.close(write_end)
            note(f"the workers' store at port {port} cannot be served: {error.strerror}")
        finally:
            os.close(read_end)

    def _stop(self) -> None:
        if self._pid:
            kill_and_reap(self._pid)
            self._pid = 0
        release(self._write_end)
        self._write_end = -1

    # --- the hint ---------------------------------------------------------------------------------------------------

    def _cancel(self) -> None:
        timer, self._timer, self._missing_port = self._timer, None, 0
        if timer is not None:
            timer.cancel()
            timer.join()

    def _look(self) -> None:
        port = self._missing_port
        if port and not _is_served(port):
            self._agent.say(
                f"no worker serves the store at MASTER_ADDR:{port} after {self._patient_seconds:g} s: a program that "
                "only connects to it, as it can under torchrun, waits in vain; --agent-store=always serves it"
            )


def _is_served(port: int) -> bool:
    """Return whether a socket of this machine listens on ``port``."""
    for table in ("tcp", "tcp6"):
        for line in read_bytes(f"/proc/net/{table}", 16 << 20).splitlines()[1:]:
            fields = line.split()
            if len(fields) > 3 and fields[3] == _LISTENS and int(fields[1].rpartition(b":")[2], 16) == port:
                return True
    return False
