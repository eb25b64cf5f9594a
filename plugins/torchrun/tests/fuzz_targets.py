"""What torchrun's interface reads; found by ``core.tests.fuzz``."""

from __future__ import annotations

from collections.abc import Mapping

from core.tests.fuzz.target import Target

from quorate_torchrun._arguments import parse_min_max_nnodes

TARGETS: Mapping[str, Target] = {
    "numbers of nodes": Target(
        lambda data: parse_min_max_nnodes(data.decode("utf-8", "replace")), (b"1:4", b"2"), (ValueError, RuntimeError)
    ),
}
ELSEWHERE: Mapping[str, str] = {
    "quorate_torchrun/_arguments:parse_args": "argparse's own, for the user's command line; it exits with a sentence",
}
