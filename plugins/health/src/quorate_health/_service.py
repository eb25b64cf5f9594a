"""The running health server: from the wish for one to its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quorate.services import AgentService, AgentView

__all__ = ["start"]


def start(agent: AgentView) -> AgentService | None:
    """Serve at the port that was asked for; ``None``, and a sentence for people, where that cannot be done."""
    return None
