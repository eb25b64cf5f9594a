"""``python -m quorate_rendezvous_etcd COMMAND …``: a job of one machine with an etcd of its own.

Starts a private etcd, runs the command with the environment variables that make ``quorate run`` use it, and ends as the
command ends.  What does not live here: the etcd (:mod:`._server`).
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from types import FrameType

from quorate.errors import StoreUnavailableError, UsageError

from ._server import EtcdServer

_USAGE, _UNAVAILABLE = 2, 3


def main(argv: Sequence[str]) -> int:
    """Run the command that ``argv`` ends in; returns its exit code, 128 + n if signal n ended it."""
    parser = argparse.ArgumentParser(
        prog="python -m quorate_rendezvous_etcd",
        description="Run a command, such as quorate run, with a private etcd for its rendezvous.",
    )
    parser.add_argument("--members", type=int, default=1, choices=(1, 3), help="3 survive the loss of one (default: 1)")
    parser.add_argument("--api", type=int, default=3, choices=(2, 3), help="etcd's API: backend etcd-v2, or etcd")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND …")
    options = parser.parse_args(argv)
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        parser.error("the command to run is missing; write, for example, quorate run train.py")
    try:
        with EtcdServer(options.members, enable_v2=options.api == 2) as server:
            return _run(command, _environment("etcd-v2" if options.api == 2 else "etcd", server.get_endpoint()))
    except UsageError as error:
        print(f"quorate: {error}", file=sys.stderr)  # noqa: T201 - this module is a program
        return _USAGE
    except StoreUnavailableError as error:
        print(f"quorate: {error}", file=sys.stderr)  # noqa: T201
        return _UNAVAILABLE


def _environment(backend: str, endpoint: str) -> Mapping[str, str]:
    """Return the environment for ``quorate run``; the user's own flags and run id have precedence."""
    environment = {"PET_RDZV_ID": f"private-{os.urandom(4).hex()}", **os.environ}
    return {**environment, "PET_RDZV_BACKEND": backend, "PET_RDZV_ENDPOINT": endpoint}


def _run(command: Sequence[str], environment: Mapping[str, str]) -> int:
    try:
        process = subprocess.Popen(command, env=environment)
    except OSError as error:
        raise UsageError(f"the command {command[0]!r} cannot be run: {error.strerror}") from None

    def forward(number: int, frame: FrameType | None) -> None:
        process.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, forward)
    # A terminal sends SIGINT to the command as well.
    signal.signal(signal.SIGINT, lambda number, frame: None)
    code = process.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
