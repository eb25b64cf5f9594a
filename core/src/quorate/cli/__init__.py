"""The command ``quorate``: ``run``, ``plugins`` and ``conformance``.

This module chooses the subcommand and turns every outcome into an exit code and one sentence; each subcommand is
imported when it is asked for.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from typing import NoReturn

from ._exit import ExitCode, code_of

__all__ = ["ExitCode", "main"]

_USAGE = """\
usage: quorate COMMAND ...

commands:
  run          run one node of a job; see: quorate run --help
  plugins      show which plugins are installed, what they offer, and what is wrong with them
  conformance  try a rendezvous backend against the conformance kit; see: quorate conformance --help

options:
  --help, --version
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` and return the exit code (:class:`ExitCode`).

    Without ``argv`` it is this process's own command line, and the process ends here.
    """
    if argv is None:
        # Imports make many objects and little garbage: with the default threshold, looking for it is a twentieth of
        # the launch.
        gc.set_threshold(50_000, 20, 20)
        _leave(_run_to_code(sys.argv[1:]))
    return _run_to_code(list(argv))


def _run_to_code(arguments: list[str]) -> int:
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        _silence_stdout()
        return ExitCode.OK
    except (Exception, KeyboardInterrupt) as error:
        return _report(error)


def _leave(code: int) -> NoReturn:
    """End the process without taking the interpreter apart.

    With torch loaded (the c10d backend) that takes about half a second, for which the shell would wait.
    """
    import atexit
    import os

    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass  # nobody reads it any more
    os._exit(code)


def _dispatch(arguments: list[str]) -> int:
    command = arguments[0] if arguments else ""
    if command == "run":
        from ._run import run

        return run(arguments[1:])
    if command == "plugins":
        from ._plugins import show

        return show(arguments[1:])
    if command == "conformance":
        from ._conformance import prove

        return prove(arguments[1:])
    if command in ("-h", "--help", "help"):
        print(_USAGE, end="")
        return ExitCode.OK
    if command == "--version":
        from .. import __version__

        print(f"quorate {__version__}")
        return ExitCode.OK
    raise _unknown(command)


def _unknown(command: str) -> Exception:
    from ..errors import UsageError

    if not command:
        return UsageError("a command is missing; write 'quorate run SCRIPT' (see: quorate --help)")
    if command.startswith("-") or command.endswith(".py"):
        return UsageError(f"{command} is no command; did you mean 'quorate run {command} ...'?")
    from difflib import get_close_matches

    near = get_close_matches(command, ["run", "plugins", "conformance"], 1)
    remedy = f"did you mean 'quorate {near[0]}'?" if near else "the commands are run, plugins and conformance"
    return UsageError(f"{command!r} is no command; {remedy}")


def _report(error: BaseException) -> int:
    """Say on stderr what went wrong: one sentence, or a failed worker's report."""
    code = code_of(error)
    if code is None:
        import traceback

        traceback.print_exception(error)
        sys.stderr.write("quorate: internal error: the traceback above is a mistake in quorate; please report it\n")
        return ExitCode.INTERNAL
    from ..failures import ChildFailedError

    if isinstance(error, ChildFailedError):
        sys.stderr.write(f"quorate: error: {error}\n")
    elif isinstance(error, KeyboardInterrupt):
        sys.stderr.write("quorate: interrupted\n")
    else:
        kind = "error: " if 0 < code < 128 else ""
        sys.stderr.write(f"quorate: {kind}{' '.join(str(error).split())}\n")
        verdict = getattr(error, "verdict", None)
        if verdict is not None and kind:
            sys.stderr.writelines(f"{line}\n" for line in verdict.details())
    return code


def _silence_stdout() -> None:
    """The reader has gone (``… | head``): what is still buffered must not fail at the interpreter's exit."""
    import os

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
