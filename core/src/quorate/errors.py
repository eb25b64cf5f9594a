"""The public error tree.  Each class says who must act; attributes carry what a program needs to know.

What does not live here: failures of workers, which are results (:mod:`quorate.failures`), not errors of quorate.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from typing import final

from .records import TextEnum
from .verdict import JobVerdict

__all__ = [
    "DuplicatePluginError",
    "FailureKind",
    "PluginError",
    "PreemptedError",
    "QuorateError",
    "RendezvousClosedError",
    "RendezvousConnectionError",
    "RendezvousError",
    "RendezvousStateError",
    "RendezvousTimeoutError",
    "SignalException",
    "StartError",
    "StoreCorruptError",
    "StoreLostError",
    "StoreUnavailableError",
    "UnhealthyNodeError",
    "UnknownBackendError",
    "UsageError",
    "remedy_for",
]


class QuorateError(Exception):
    """Base of every error that quorate raises on purpose.

    :attr:`verdict` is the job's, on an error that ends an agent's run.
    """

    verdict: JobVerdict | None = None


class UsageError(QuorateError, ValueError):
    """The caller must change the call, flag or setting; the message names it and the remedy.

    It is a ValueError as well, which is what programs written for TorchElastic catch.
    """


@final
class UnknownBackendError(UsageError):
    """No installed plugin offers the name that was asked for."""

    def __init__(self, kind: str, name: str, known: Sequence[str], remedy: str) -> None:
        self.kind, self.name, self.known, self.remedy = kind, name, tuple(known), remedy
        listing = ", ".join(self.known) or "none"
        super().__init__(f"unknown {kind} {name!r}; installed: {listing}. {remedy}")

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (self.kind, self.name, self.known, self.remedy)


class PluginError(QuorateError):
    """The author of a plugin must act: it did not import, misuses a hook, or answered with the wrong type."""


@final
class DuplicatePluginError(PluginError):
    """Two distributions offer the same name; one of them must be removed or disabled."""


class RendezvousError(QuorateError):
    """Base of what can go wrong while nodes agree on a round."""


class RendezvousClosedError(RendezvousError):
    """The job has ended (for good); :attr:`reason` is the sentence its first writer recorded."""

    def __init__(self, reason: str = "the job is closed", *, succeeded: bool = False) -> None:
        self.reason, self.succeeded = reason, succeeded
        super().__init__(reason)


class RendezvousTimeoutError(RendezvousError):
    """Too few nodes joined before the deadline; the message says how many of how many, and names them."""


class RendezvousConnectionError(RendezvousError):
    """The rendezvous backend could not be reached."""


class RendezvousStateError(RendezvousError):
    """The rendezvous holds something that this node cannot accept (mismatched settings, corrupt state)."""


class StoreUnavailableError(RendezvousConnectionError):
    """The store did not answer; the operation may or may not have been applied.  Retried until a deadline."""


class StoreLostError(StoreUnavailableError):
    """The store is gone, with its content; retrying cannot help."""


class StoreCorruptError(RendezvousStateError):
    """The store returned a value that quorate did not write, or of an unknown version; :attr:`key` is its key."""

    def __init__(self, key: str, problem: str) -> None:
        self.key, self.problem = key, problem
        super().__init__(
            f"the value of {key!r} in the rendezvous store cannot be used: {problem}. "
            "Use another run id, or make sure that every node runs the same version of quorate"
        )

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (self.key, self.problem)


@final
class FailureKind(TextEnum):
    """How a rendezvous failed for good; each kind has an exception of its own."""

    TIMEOUT = "timeout"  # too few nodes joined
    UNAVAILABLE = "unavailable"  # the store did not answer for longer than is allowed
    LOST = "lost"  # the store is gone, with its content
    STATE = "state"  # the content of the store, or this node's configuration, cannot be used
    UNEXPECTED = "unexpected"  # an unexpected exception of the backend or of quorate

    @property
    def error(self) -> type[RendezvousError]:
        """The exception that callers get."""
        return _ERRORS[self]

    @classmethod
    def of(cls, error: BaseException) -> FailureKind:
        """Return the kind that an exception stands for."""
        for kind, exception in _ERRORS.items():
            if kind is not FailureKind.UNEXPECTED and isinstance(error, exception):
                return kind
        return FailureKind.STATE if isinstance(error, QuorateError) else FailureKind.UNEXPECTED


#: Narrow classes before the classes that they derive from.
_ERRORS: Mapping[FailureKind, type[RendezvousError]] = {
    FailureKind.TIMEOUT: RendezvousTimeoutError,
    FailureKind.LOST: StoreLostError,
    FailureKind.UNAVAILABLE: RendezvousConnectionError,
    FailureKind.STATE: RendezvousStateError,
    FailureKind.UNEXPECTED: RendezvousError,
}


class StartError(QuorateError):
    """A worker could not be started (command not found, not executable, limits)."""

    def __init__(self, message: str, *, local_rank: int = 0) -> None:
        self.local_rank = local_rank
        super().__init__(message)


@final
class UnhealthyNodeError(QuorateError):
    """This node left the job or did not join: a check failed, or the restart policy excluded it."""


@final
class PreemptedError(QuorateError):
    """The scheduler ends the job or takes this node: the same job can be started again, from what it has saved.

    ``is_first`` is true on the node with group rank 0, which asks for the next start where that is wanted;
    ``signal_number`` is the scheduler's warning.
    """

    def __init__(self, reason: str, *, is_first: bool = False, signal_number: int = 0) -> None:
        self.reason, self.is_first, self.signal_number = reason, is_first, signal_number
        super().__init__(reason)


class SignalException(QuorateError):  # noqa: N818 - the name that TorchElastic's users already catch
    """The agent was stopped by a signal; :attr:`sigval` is its number."""

    def __init__(self, message: str, sigval: int) -> None:
        self.sigval = int(sigval)
        super().__init__(message)

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (str(self), self.sigval)


def remedy_for(error: BaseException) -> str:
    """Return what a person can do where a limit of the system is reached or /proc is missing, else ``""``."""
    kind = type(error)  # its class may be a plugin's own, whose attributes raise
    number = OSError.__dict__["errno"].__get__(error) if issubclass(kind, OSError) else None
    if issubclass(kind, RuntimeError) and _is_no_thread(BaseException.__dict__["args"].__get__(error)):
        number = errno.EAGAIN
    if type(number) is not int:
        return ""
    if number == errno.EMFILE:
        return "raise the limit on open files (ulimit -n)"
    if number == errno.ENFILE:
        return "raise the machine's limit on open files (sysctl fs.file-max)"
    if number == errno.ENOMEM:
        return "free memory, or raise the limit on it (cgroup limits)"
    if number == errno.EAGAIN:  # of fork and clone, but of sockets and pipes as well
        return "if a process or a thread could not be started, raise the limit on processes (ulimit -u, cgroup limits)"
    if number == errno.ENOENT:
        name = OSError.__dict__["filename"].__get__(error)
        if type(name) is str and name.startswith("/proc/self"):
            return "mount /proc, which is missing here"
    return ""


def _is_no_thread(arguments: tuple[object, ...]) -> bool:
    """Return whether these are the arguments of the RuntimeError that Python makes of EAGAIN."""
    return len(arguments) == 1 and type(arguments[0]) is str and arguments[0] == "can't start new thread"
