"""What an agent publishes about itself when it joins: its node's record, with what tells its job from others.

What does not live here: the parts that the rendezvous fills in (:mod:`quorate.rendezvous`), and what follows from them.
"""

from __future__ import annotations

import os
import pwd
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from .._version import __version__
from ..net import host_name
from ..records import NodeRecord
from ._spec import WorkerSpec

_LONGEST_NAME = 200


def node_record(spec: WorkerSpec, node_id: str) -> NodeRecord:
    """Return the record of the node that runs the workers of ``spec``."""
    command, arguments = _command(spec.entrypoint, spec.args)
    return NodeRecord(
        node_id,
        spec.role,
        spec.local_world_size,
        host=host_name(),
        address=spec.local_addr or "127.0.0.1",
        rank_hint=spec.node_rank,
        max_restarts=spec.max_restarts,
        version=__version__,
        user=_user_name(),
        command=command,
        arguments=arguments,
    )


def _user_name() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _command(entrypoint: str | Callable[..., Any], args: Sequence[Any]) -> tuple[str, str]:
    """Return the name of what runs, and a checksum of its arguments.

    The folder of a script may differ between hosts, and so may the interpreter.  The arguments of a function may be of
    any type, and are not compared.
    """
    if callable(entrypoint):
        if getattr(entrypoint, "__name__", "") == "run_script_path" and args:
            return _named(str(args[0]), args[1:])
        name = getattr(entrypoint, "__qualname__", type(entrypoint).__qualname__)
        return str(name)[:_LONGEST_NAME], ""
    rest = [str(arg) for arg in args]
    if os.path.basename(entrypoint).startswith("python"):
        while rest and rest[0].startswith("-") and rest[0] not in ("-m", "-c", "-"):
            rest.pop(0)
        if rest[:1] == ["-m"]:
            rest.pop(0)
        if rest:
            return _named(rest[0], rest[1:])
    return _named(entrypoint, rest)


def _named(program: str, arguments: Sequence[Any]) -> tuple[str, str]:
    name = os.path.basename(program.rstrip("/")) or program
    return name[:_LONGEST_NAME], _checksum(arguments) if arguments else "none"


def _checksum(arguments: Sequence[Any]) -> str:
    """Return a CRC, which tells accidents apart.  ``hashlib`` would load OpenSSL in every launch."""
    text = "\0".join(map(str, arguments))
    return f"{zlib.crc32(text.encode('utf-8', 'surrogateescape')):08x}"
