"""The watchdog beside one agent: opens the pipes at once, and starts to watch when there are workers.

This module is on the way to the first worker.  The modules that watch are not: they are imported while the node waits
for others, or once its workers have started.  What does not live here: the threads (:mod:`._server`, :mod:`._silence`)
and the timers (:mod:`._timekeeper`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, final

from quorate.events import AgentPhaseDetails, EventName
from quorate.records import AgentPhase, Event
from quorate.services import AgentView

from ._channels import Channel, ChannelError, anonymous_channel, named_channel

if TYPE_CHECKING:
    from ._server import TimerServer
    from ._silence import SilenceWatch

#: TorchElastic's variables: "1" enables a timer server, and where it listens.
_ENABLE_VARIABLE, _FILE_VARIABLE = "TORCHELASTIC_ENABLE_FILE_TIMER", "TORCHELASTIC_TIMER_FILE"
#: TorchElastic's variable: the seconds after which a worker in an uninterruptible wait counts as hung.
_KERNEL_WAIT_VARIABLE = "TORCHELASTIC_UNINTERRUPTIBLE_STATE_TIMEOUT"


@final
class WatchdogService:
    """Implements :class:`quorate.services.PreparingService`."""

    def __init__(self, agent: AgentView) -> None:
        self._agent = agent
        self._server: TimerServer | None = None
        self._silence: SilenceWatch | None = None
        own = anonymous_channel()
        self._channels = [own]
        self._environment = {"QUORATE_TIMER_CHANNEL": f"{own.path}:{own.inode}"}
        if agent.environment.get(_ENABLE_VARIABLE) == "1":
            self._open_for_torch(own)

    def _open_for_torch(self, own: Channel) -> None:
        path = self._agent.environment.get(_FILE_VARIABLE, "")
        if not path:
            self._environment[_FILE_VARIABLE] = own.path
            return
        try:
            self._channels.append(named_channel(path))
        except ChannelError as error:
            self._agent.say(f"warning: {_FILE_VARIABLE}: {error}; torch's timers are not watched")

    @property
    def worker_environment(self) -> Mapping[str, str]:
        """See :class:`quorate.services.PreparingService`, as for all methods below."""
        return self._environment

    def get_ready(self) -> None:
        from . import _server, _silence  # noqa: F401 - 5 ms with what they import, which no worker waits for

    def observe(self, event: Event) -> None:
        # Not earlier, because the way to the first worker must be short; a pipe keeps what is written to it.
        if event.name == EventName.WORKERS_STARTED and self._server is None:
            self._watch()
        if isinstance(event.details, AgentPhaseDetails) and self._server is not None:
            self._server.freeze(event.details.phase is AgentPhase.FROZEN)

    def _watch(self) -> None:
        from . import _server, _silence  # see get_ready

        settings = self._agent.settings
        self._server = _server.TimerServer(self._agent, self._channels, float(settings.get("heartbeat_timeout", 0.0)))
        hang_after = float(settings.get("hang_after", 0.0))
        kernel_wait = _number(self._agent.environment.get(_KERNEL_WAIT_VARIABLE, ""))
        if hang_after > 0.0 or kernel_wait > 0.0:
            self._silence = _silence.SilenceWatch(self._agent, hang_after, kernel_wait)

    def close(self) -> None:
        if self._silence is not None:
            self._silence.close()
        has_ended = self._server is None or self._server.close()
        self._silence = self._server = None
        for channel in self._channels:
            channel.close(keep_open=not has_ended)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
