"""``quorate conformance``: tries every law of the conformance kit on an installed rendezvous backend.

What does not live here: the laws (:mod:`quorate.testing`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, final

from ..catalogue import PluginKind
from ..errors import UsageError
from ..notices import write_output
from ..plugins import get_host
from ..testing import FreshPorts, Subject, Verdict, all_laws, check
from ._exit import ExitCode
from ._values import settings, words

_DESCRIPTION = """\
Tries every law of the conformance kit on an installed rendezvous backend, with jobs of its own on a real server, and
prints one line per law. Exit code 4 if a law is broken. Laws about faults of the server need a test of yours that can
cause them: see docs/write-a-rendezvous-plugin.md."""

_SUMMARY = {
    Verdict.KEPT: "kept",
    Verdict.BROKEN: "broken",
    Verdict.WARNED: "broken but new",
    Verdict.ABSENT: "not tried",
}


@final
class _Parser(argparse.ArgumentParser):
    """Reports wrong use as all of ``quorate`` does: one sentence, exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"quorate conformance: {message}; see: quorate conformance --help")


def _typed(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return ``parse`` with its half sentence about a wrong value as argparse wants it."""

    def convert(value: str) -> Any:
        try:
            return parse(value)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{value!r} {error}") from None

    return convert


def _parser() -> _Parser:
    parser = _Parser(
        prog="quorate conformance",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("backend", nargs="?", metavar="BACKEND", help="name of an installed rendezvous backend")
    add("--endpoint", help="where the server is; HOST:0 for a backend that a node hosts, at a free port each time")
    add(
        *("--rdzv-conf", "--rdzv_conf"),
        type=_typed(settings),
        default={},
        metavar="KEY=VALUE,...",
        help="settings for the backend, as in 'quorate run'",
    )
    add(
        "--absent",
        type=_typed(words),
        default=(),
        metavar="ABILITY,...",
        help="what the backend does not have, such as several_nodes or endpoint",
    )
    add("--law", action="append", default=[], metavar="NAME", help="try only this law; may be repeated")
    add(
        *("--dead-endpoint", "--dead_endpoint"),
        default="",
        metavar="ENDPOINT",
        help="an endpoint where nothing listens (default 127.0.0.1:1)",
    )
    add(
        *("--bad-endpoint", "--bad_endpoint"),
        default="",
        metavar="ENDPOINT",
        help="an endpoint that is malformed for this backend",
    )
    add("--list", action="store_true", help="print the laws and what each says, and try nothing")
    return parser


def test_backend(argv: Sequence[str]) -> int:
    """Carry out ``quorate conformance ARGV`` and return the exit code."""
    parser = _parser()
    try:
        options = parser.parse_args(argv)
    except SystemExit:  # --help has been printed
        return ExitCode.OK
    if options.list:
        for law in all_laws():
            write_output(f"{law.tier.value:<11} {law.name}\n    {law.text}")
        return ExitCode.OK
    if options.backend is None:
        raise UsageError("name one backend: quorate conformance BACKEND --endpoint=ENDPOINT")
    get_host().choose(PluginKind.RENDEZVOUS, options.backend)
    if options.endpoint is None:
        raise UsageError("the endpoint is missing; set --endpoint to where the backend's server is")
    return _try_laws(options)


def _try_laws(options: argparse.Namespace) -> int:
    backend, endpoint = options.backend, options.endpoint
    subject = Subject(
        backend,
        FreshPorts(endpoint[:-2]) if endpoint.endswith(":0") else endpoint,
        settings=options.rdzv_conf,
        absent=dict.fromkeys(options.absent, "declared on the command line"),
        lenient=True,
        dead_endpoint=options.dead_endpoint,
        bad_endpoint=options.bad_endpoint,
    )
    subject.probe()
    counts = dict.fromkeys(Verdict, 0)
    for outcome in check(subject, options.law):
        counts[outcome.verdict] += 1
        line = f"{outcome.verdict.value:<8} {outcome.law.tier.value:<11} {outcome.law.name}"
        if outcome.verdict is Verdict.ABSENT:
            line += f": {outcome.text}"
        elif outcome.verdict is Verdict.KEPT:
            line += f" ({outcome.seconds:.2f} s)"
        write_output(line)
        if outcome.verdict in (Verdict.BROKEN, Verdict.WARNED):
            write_output("\n".join(f"    {text}" for text in outcome.text.splitlines()))
            write_output(f"    again: quorate conformance {backend} --endpoint={endpoint} --law={outcome.law.name}")
    summary = ", ".join(f"{count} {_SUMMARY[verdict]}" for verdict, count in counts.items() if count)
    write_output(f"{backend}: {summary}")
    return ExitCode.PLUGIN if counts[Verdict.BROKEN] else ExitCode.OK
