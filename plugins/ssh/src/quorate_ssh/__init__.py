"""One command on one machine starts the agents of many hosts over OpenSSH (``quorate run --hosts=a,b:8,c``).

What does the work is imported once ``--hosts`` or ``--hostfile`` is set: every launch imports this module.
"""

from __future__ import annotations

from quorate.catalogue import CliOption
from quorate.hookspecs import hookimpl
from quorate.lazy_exports import lazy_exports, lazy_function

__all__ = ["Host", "parse_hostfile", "parse_hosts", "plugin"]

__getattr__ = lazy_exports(globals(), {"Host": "_hosts", "parse_hostfile": "_hosts", "parse_hosts": "_hosts"})
_RUN = lazy_function(f"{__name__}._launch", "run")


class plugin:  # noqa: N801 - the name of the entry point
    """The hook that this distribution implements."""

    @staticmethod
    @hookimpl
    def quorate_register_cli_options() -> list[CliOption]:
        """Offer the flags of a launch over ssh."""
        return [
            CliOption(
                "hosts",
                "start an agent on each of these hosts over ssh, with N workers each; this machine runs none unless it "
                "is named; see docs/clusters.md",
                metavar="HOST[:N],...",
                run=_RUN,
            ),
            CliOption(
                "hostfile",
                "as --hosts, from a file with one host on each line, in the form of MPI (HOST slots=N, HOST:N) or "
                "DeepSpeed",
                metavar="FILE",
                run=_RUN,
            ),
            CliOption("ssh-command", "the command that connects to a host of --hosts", "ssh", metavar="COMMAND"),
            CliOption(
                "ssh-env",
                "variables that the hosts of --hosts get from this machine: patterns such as NCCL_*; a minus sign "
                "before a pattern leaves its variables out; all: all but those of the machine and the session",
                "all",
                metavar="NAMES",
            ),
            CliOption(
                "detach",
                "1: the agents of --hosts go on when this command has ended; see: quorate detached",
                "0",
                metavar="0|1",
            ),
        ]
