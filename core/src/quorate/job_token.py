"""The job token: a secret that the nodes of one job share, and the keys that are derived from it.

The token is given by the environment variable ``QUORATE_JOB_TOKEN_FILE`` (a file that its owner alone can read) or
``QUORATE_JOB_TOKEN``; it is never a flag, because every user of a machine can read command lines.  What is protected
with it, and what is not, is in ``docs/security.md``.  What does not live here: signing
(:mod:`quorate.rendezvous`) and the challenge of a network protocol (the backends' matter).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from enum import Enum
from typing import Any, final

from .errors import UsageError

__all__ = [
    "AUTH_SETTING",
    "HIDDEN",
    "STORE_PURPOSE",
    "TOKEN_FILE_VARIABLE",
    "TOKEN_VARIABLE",
    "TOKEN_VARIABLES",
    "Auth",
    "JobToken",
    "is_secret",
    "job_token_of",
    "load_job_token",
    "parse_auth",
    "token_note",
    "without_token",
]

TOKEN_VARIABLE = "QUORATE_JOB_TOKEN"
TOKEN_FILE_VARIABLE = "QUORATE_JOB_TOKEN_FILE"
TOKEN_VARIABLES = frozenset({TOKEN_VARIABLE, TOKEN_FILE_VARIABLE})
#: What the key that signs a job's store is for (:meth:`JobToken.key`).
STORE_PURPOSE = "store"
#: The rendezvous setting that ``--rdzv-auth`` sets.
AUTH_SETTING = "auth"

#: Stands for a secret where settings are shown.
HIDDEN = "********"
_SECRET_WORDS = ("password", "token", "secret")

_FEWEST_BYTES = 16
_MOST_BYTES = 4096
_MAKE_ONE = "make one with: python -c 'import secrets; print(secrets.token_hex(32))'"


@final
class Auth(str, Enum):
    """Whether the job token is used."""

    AUTO = "auto"  # if there is one
    REQUIRED = "required"  # a node without a token does not start
    OFF = "off"  # a token in the environment is ignored


@final
class JobToken:
    """A secret of at least 16 bytes.  Never shown: neither ``repr`` nor ``str`` contain it.

    ``where`` says in an error where the secret was found.
    """

    __slots__ = ("_secret",)

    def __init__(self, secret: bytes, where: str = "") -> None:
        if len(secret) < _FEWEST_BYTES:
            raise UsageError(
                f"the job token{where} has {len(secret)} bytes; it needs at least {_FEWEST_BYTES} random ones; "
                f"{_MAKE_ONE}"
            )
        self._secret = secret

    def key(self, run_id: str, purpose: str) -> bytes:
        """Return the 32-byte key of one job for one purpose (keyed BLAKE2b, RFC 7693)."""
        import hashlib  # loads OpenSSL, which only a job with a token needs

        # A key of BLAKE2b has at most 64 bytes; a longer secret is hashed first.
        secret = hashlib.blake2b(self._secret).digest()
        text = f"{len(run_id)}:{run_id}{purpose}".encode()
        return hashlib.blake2b(text, key=secret, digest_size=32, person=b"quorate-job-v1").digest()

    def __repr__(self) -> str:
        return "JobToken(…)"

    def __reduce__(self) -> tuple[type, tuple[bytes]]:
        return type(self), (self._secret,)


def load_job_token(environment: Mapping[str, str] | None = None) -> JobToken | None:
    """Return the token that ``environment`` (default ``os.environ``) gives, ``None`` if it gives none.

    Raises:
        UsageError: both variables are set, the file cannot be read or others can read it, or the token is too short.
    """
    variables = os.environ if environment is None else environment
    path, text = variables.get(TOKEN_FILE_VARIABLE, ""), variables.get(TOKEN_VARIABLE, "")
    if path and text:
        raise UsageError(f"both {TOKEN_FILE_VARIABLE} and {TOKEN_VARIABLE} are set; unset one of them")
    if path:
        return JobToken(_read(path), f" in {path!r} ({TOKEN_FILE_VARIABLE})")
    return JobToken(text.strip().encode("utf-8", "surrogateescape"), f" in {TOKEN_VARIABLE}") if text else None


def _read(path: str) -> bytes:
    try:
        # Neither a FIFO nor a device may hold a launch up.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            status = os.fstat(descriptor)
            content = os.read(descriptor, _MOST_BYTES + 1) if stat.S_ISREG(status.st_mode) else b""
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"the job token file {path!r} cannot be read ({TOKEN_FILE_VARIABLE}): {reason}") from None
    if not stat.S_ISREG(status.st_mode):
        raise UsageError(f"the job token file {path!r} is not a regular file ({TOKEN_FILE_VARIABLE})")
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UsageError(
            f"the job token file {path!r} can be read by others (mode {stat.S_IMODE(status.st_mode):04o}); "
            f"run: chmod 600 {path}"
        )
    if status.st_uid not in (os.geteuid(), 0):
        raise UsageError(f"the job token file {path!r} belongs to another user (uid {status.st_uid})")
    if len(content) > _MOST_BYTES:
        raise UsageError(f"the job token file {path!r} has more than {_MOST_BYTES} bytes; is it the right file?")
    return content.strip()


def parse_auth(word: Any) -> Auth:
    """Return what ``--rdzv-auth`` asks for.  Raises UsageError for another word."""
    if isinstance(word, Auth):
        return word
    try:
        return Auth(str(word).strip().lower())
    except ValueError:
        known = ", ".join(auth.value for auth in Auth)
        raise UsageError(f"--rdzv-auth={word!r} is not one of {known}") from None


def job_token_of(settings: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> JobToken | None:
    """Return the token that protects a job, ``None`` if the job is not protected.

    Arguments:
        settings: the settings of its rendezvous (``RendezvousParameters.config``).
        environment: where the token is; default ``os.environ``.

    Raises:
        UsageError: a token is required and none is set, the setting is not one of :class:`Auth`, or the token
            cannot be used.
    """
    auth = parse_auth(settings.get(AUTH_SETTING, Auth.AUTO.value))
    if auth is Auth.OFF:
        return None
    token = load_job_token(environment)
    if token is None and auth is Auth.REQUIRED:
        raise UsageError(
            f"--rdzv-auth=required, but no job token is set; set {TOKEN_FILE_VARIABLE} to a file with at least "
            f"{_FEWEST_BYTES} secret bytes, the same on all nodes ({_MAKE_ONE})"
        )
    return token


def token_note(auth: Auth) -> str:
    """Return whether there is a token and where it comes from, in a few words, without the token."""
    where = "none"
    if path := os.environ.get(TOKEN_FILE_VARIABLE, ""):
        where = f"in {path} ({TOKEN_FILE_VARIABLE})"
    elif os.environ.get(TOKEN_VARIABLE, ""):
        where = f"{HIDDEN} ({TOKEN_VARIABLE})"
    return f"{where}; --rdzv-auth={auth.value}"


def is_secret(name: str) -> bool:
    """Return whether the value of the setting ``name`` is not to be shown."""
    return any(word in name.lower() for word in _SECRET_WORDS)


def without_token(environment: Mapping[str, str]) -> dict[str, str]:
    """Return ``environment`` without the variables that give the token."""
    return {name: value for name, value in environment.items() if name not in TOKEN_VARIABLES}
