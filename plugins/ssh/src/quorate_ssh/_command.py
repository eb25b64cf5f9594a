"""``quorate detached``: shows and ends the agents that ``--detach`` has left on hosts."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from quorate.notices import write_error, write_output
from quorate.text import printable

from ._launch import ask_hosts

_LONGEST_PATH = 4096


def main(argv: Sequence[str]) -> int:
    """Carry out ``quorate detached``."""
    parser = argparse.ArgumentParser(
        prog="quorate detached", description="Shows and ends jobs that were started with --detach=1."
    )
    parser.add_argument("--hosts", required=True, help="as for quorate run")
    parser.add_argument("--ssh-command", default="ssh", help="as for quorate run")
    parser.add_argument("--end", metavar="JOB", help="ask the agents of a job to stop")
    parser.add_argument("--forget", metavar="JOB", help="remove the output and the record of a job that has ended")
    options = parser.parse_args(argv)
    answers, problems = ask_hosts(options.hosts, options.ssh_command, {"end": options.end, "forget": options.forget})
    for host, records in answers.items():
        for record in records:
            state = "asked to stop" if record.get("ended") else "runs" if record.get("is_alive") else "has ended"
            log = printable(record["log"], _LONGEST_PATH)
            write_output(f"{record['job']}  {host}  pid {record['pid']}  {state}  {log}")
    for problem in problems:
        write_error(f"quorate: error: {problem}")
    return 3 if problems else 0
