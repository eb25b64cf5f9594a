"""``quorate conformance``: tries every law of the conformance kit on an installed rendezvous backend.

What does not live here: the laws (:mod:`quorate.testing`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ..errors import UsageError
from ._exit import ExitCode
from ._values import settings, words

__all__ = ["prove"]

_USAGE = """\
usage: quorate conformance BACKEND --endpoint=ENDPOINT [FLAGS]

Tries every law of the conformance kit on an installed rendezvous backend, with jobs of its own on a real server, and
prints one line per law. Exit code 4 if a law is broken. Laws about faults of the server need a test of yours that can
cause them: see docs/write-a-rendezvous-plugin.md.

  --endpoint=ENDPOINT       where the server is; HOST:0 for a backend that a node hosts, at a free port each time
  --rdzv-conf=KEY=VALUE,... settings for the backend, as in 'quorate run'
  --absent=ABILITY,...      what the backend does not have, such as several_nodes or endpoint
  --law=NAME                try only this law; may be repeated
  --dead-endpoint=ENDPOINT  well-formed, yet nobody answers there (default 127.0.0.1:1)
  --bad-endpoint=ENDPOINT   malformed for this backend
  --list                    print the laws and what each says, and try nothing"""


def prove(argv: Sequence[str]) -> int:
    """Carry out ``quorate conformance ARGV`` and return the exit code."""
    backends, flags = _parse(argv)
    if "help" in flags:
        print(_USAGE)
        return ExitCode.OK
    from ..testing import all_laws

    if "list" in flags:
        for law in all_laws():
            print(f"{law.tier.value:<11} {law.name}\n    {law.text}")
        return ExitCode.OK
    if len(backends) != 1:
        raise UsageError("name one backend: quorate conformance BACKEND --endpoint=ENDPOINT")
    if "endpoint" not in flags:
        raise UsageError("the endpoint is missing; set --endpoint to where the backend's server is")
    return _try_laws(backends[0], flags)


def _try_laws(backend: str, flags: dict[str, list[str]]) -> int:
    from ..testing import FreshPorts, Subject, Verdict, check

    endpoint = flags["endpoint"][-1]
    extra: dict[str, Any] = {}
    for name in ("dead-endpoint", "bad-endpoint"):
        if name in flags:
            extra[name.replace("-", "_")] = flags[name][-1]
    subject = Subject(
        backend,
        FreshPorts(endpoint[:-2]) if endpoint.endswith(":0") else endpoint,
        settings=settings(",".join(flags.get("rdzv-conf", []))),
        absent=dict.fromkeys(words(",".join(flags.get("absent", []))), "declared on the command line"),
        lenient=True,
        **extra,
    )
    subject.probe()
    counts = dict.fromkeys(Verdict, 0)
    for outcome in check(subject, flags.get("law", [])):
        counts[outcome.verdict] += 1
        line = f"{outcome.verdict.value:<8} {outcome.law.tier.value:<11} {outcome.law.name}"
        if outcome.verdict is Verdict.ABSENT:
            line += f": {outcome.text}"
        elif outcome.verdict is Verdict.KEPT:
            line += f" ({outcome.seconds:.2f} s)"
        print(line, flush=True)
        if outcome.verdict in (Verdict.BROKEN, Verdict.WARNED):
            print("".join(f"    {text}\n" for text in outcome.text.splitlines()), end="", flush=True)
            print(
                f"    again: quorate conformance {backend} --endpoint={endpoint} --law={outcome.law.name}", flush=True
            )
    print(f"{backend}: " + ", ".join(f"{count} {_WORDS[verdict.name]}" for verdict, count in counts.items() if count))
    return ExitCode.PLUGIN if counts[Verdict.BROKEN] else ExitCode.OK


_WORDS = {"KEPT": "kept", "BROKEN": "broken", "WARNED": "broken but new", "ABSENT": "not tried"}


_WITH_VALUE = ("endpoint", "rdzv-conf", "absent", "law", "dead-endpoint", "bad-endpoint")


def _parse(argv: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Return the names of backends, and the flags' values by name."""
    backends: list[str] = []
    flags: dict[str, list[str]] = {}
    for word, value in _pairs(iter(argv)):
        if word in ("-h", "--help", "--list"):
            flags["help" if word == "-h" else word.lstrip("-")] = []
        elif not word.startswith("-"):
            backends.append(word)
        elif word[2:] in _WITH_VALUE and value is not None:
            flags.setdefault(word[2:], []).append(value)
        else:
            raise UsageError(f"'quorate conformance' has no flag {word}; see: quorate conformance --help")
    return backends, flags


def _pairs(arguments: Iterator[str]) -> Iterator[tuple[str, str | None]]:
    """Yield each flag with its value (``--flag=value`` or ``--flag value``), and ``None`` for one without."""
    for word in arguments:
        name, separator, value = word.partition("=")
        name = name.replace("_", "-") if name.startswith("--") else word
        if not name.startswith("--"):
            yield word, None
        elif separator:
            yield name, value
        elif name[2:] in _WITH_VALUE:
            given = next(arguments, None)
            if given is None:
                raise UsageError(f"{name} needs a value")
            yield name, given
        else:
            yield name, None
