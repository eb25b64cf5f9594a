"""Why a host takes no part, for people: ssh's own words, or what the host has said in quorate's place.

What does not live here: what follows from it (``_launch``).
"""

from __future__ import annotations

from ._session import Session

#: What ssh says where a connection was closed before its first word: a server to which many come at once does so
#: (``MaxStartups``), such as one that all others are behind.
_DROPPED = ("kex_exchange_identification", "ssh_exchange_identification")
#: What a person at a terminal would be asked, and what to do instead: ssh's words, and a remedy for a host.
_REMEDIES = {
    "Host key verification failed": "no question is answered here; see what it is by: ssh {}",
    "Permission denied": "no password is asked for here; use a key that needs none, or ssh-add",
    "remote command": "--ssh-command='ssh -o RemoteCommand=none' leaves that of ssh's configuration out",
}


def no_answer(session: Session | None, seconds: float) -> str:
    return f"no answer within {seconds:.0f} s{_said(session) if session is not None else ''}"


def _said(session: Session) -> str:
    """Return what a host that has not answered has said instead."""
    last = next((line for line in reversed(session.last_lines) if line), session.last_printed)
    if session.hello:
        return f": {last}" if last else ""
    if last:
        return f" before quorate answered: {last}"
    return " before quorate answered; does a start file of its shell, or ForceCommand, keep quorate from its input?"


def why_it_ended(session: Session, code: int) -> str:
    if session.complaint:
        return session.complaint
    if session.is_missing:
        return "quorate with the plugin quorate-ssh is not installed there (pip install quorate-ssh)"
    if code == 255:
        last = next((line for line in reversed(session.last_lines) if line), "ssh failed")
        remedy = next((remedy for words, remedy in _REMEDIES.items() if words in last), "")
        return f"it cannot be reached: {last}" + (f" ({remedy.format(session.host.name)})" if remedy else "")
    return f"its connection ended with exit code {code}{_said(session)}"


def is_dropped(session: Session) -> bool:
    """Return whether the server has closed a connection before its first word; the next one may be taken."""
    return any(line.startswith(_DROPPED) for line in session.last_lines)
