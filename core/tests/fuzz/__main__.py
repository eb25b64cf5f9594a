"""``python -m core.tests.fuzz``: random inputs for every decoder, or for one of them.

Without ``--coverage`` inputs are made from a seed by changing examples, and the seed replays them.  With it ``atheris``
is used (``pip install atheris``), which follows the code that inputs reach.  Each target has a process of its own with
bounded memory.
"""

from __future__ import annotations

import argparse
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from inspect import isfunction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

from core.tests.fuzz.found import target_of, targets
from core.tests.fuzz.target import Target

_MOST_BYTES = 2 << 30
LONGEST_SECONDS = 1.0  # for one input, in CPU time
_PIECES = (
    *(b"9" * 400, b"9" * 5000, b"-1", b"1e999", b"Infinity", b"NaN", b"null", b"true", b"[" * 600, b'{"a":' * 600),
    *(b"\0", b"\xff", b"\xed\xa0\x80", b'"', b",", b":", b"=", b"\n", b" ", b"\x1b[2J", b"4294967296", b"1000000000"),
    *(b'"v":1', b'"kind":"end"', b"[" * 100_000, b"\xe2\x80\xa8", b"\xd9\xa3", b"x" * 70_000),
)


def changed(example: bytes, chance: random.Random) -> bytes:
    """Return ``example`` with a few changes."""
    data = bytearray(example)
    for _ in range(chance.choice((1, 1, 2, 3, 8))):
        start = chance.randrange(len(data) + 1)
        end = min(len(data), start + chance.choice((0, 0, 1, 2, 5, 40)))
        what = chance.randrange(4)
        if what == 0:
            data[start:end] = chance.choice(_PIECES)
        elif what == 1:
            data[start:end] = bytes(chance.randrange(256) for _ in range(chance.randrange(6)))
        elif what == 2:
            other = chance.randrange(len(data) + 1)
            data[start:end] = data[other : other + chance.randrange(60)]
        else:
            data[start:end] = str(chance.choice((0, 1, -1, 2**31, 2**63, 2**64, 65536, 86401))).encode()
    return bytes(data)


def inputs(target: Target, chance: random.Random) -> Iterator[bytes]:
    """Yield the examples, then changed ones for ever."""
    yield from target.beginnings
    while True:
        yield changed(chance.choice(target.beginnings), chance)


def fuzz(name: str, seed: int, count: int, seconds: float) -> str:
    """Try one target; returns a line about it.  Exits with the input where one fails."""
    target, chance = target_of(name), random.Random(f"{name} {seed}")
    began, accepted, longest, number = time.monotonic(), 0, 0.0, 0
    for number, data in enumerate(inputs(target, chance), 1):
        started = time.thread_time()
        try:
            accepted += target.try_one(data)
        except BaseException:
            print(f"{name}: input {number} of seed {seed} failed: {data[:2000]!r}", flush=True)
            raise
        longest = max(longest, time.thread_time() - started)
        if number >= count or time.monotonic() - began >= seconds:
            break
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    if longest > LONGEST_SECONDS:
        raise SystemExit(f"{name}: an input took {longest:.1f} s")
    return f"| {name} | {number} | {accepted} | {1000 * longest:.0f} | {peak} |"


def fuzz_by_coverage(name: str, count: int, seconds: float) -> NoReturn:
    """Try one target with atheris, which ends the process."""
    import atheris

    target = target_of(name)
    for module_name, module in list(sys.modules.items()):
        if module_name.startswith("quorate"):
            for function in filter(isfunction, vars(module).values()):
                atheris.instrument_func(function)

    def try_one(data: bytes) -> None:
        target.try_one(data)

    def mutate(data: bytes, most_bytes: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if chance.random() < 0.5:
            return bytes(atheris.Mutate(data, most_bytes))
        return changed(data, chance)[:most_bytes]

    with TemporaryDirectory() as corpus:
        for number, example in enumerate(target.beginnings):
            Path(corpus, str(number)).write_bytes(example)
        bounds = [f"-runs={count}", f"-max_total_time={max(1, round(seconds))}", "-max_len=4096", "-timeout=5"]
        options = [sys.argv[0], *bounds, "-rss_limit_mb=2048", "-print_final_stats=1", corpus]
        atheris.Setup(options, try_one, custom_mutator=mutate)
        atheris.Fuzz()
    raise SystemExit(0)


def main() -> int:
    parser = argparse.ArgumentParser(prog="core.tests.fuzz")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each target")
    parser.add_argument("--inputs", type=int, default=100_000, help="for each target, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", help="one of the first column")
    parser.add_argument("--coverage", action="store_true", help="let atheris choose the inputs")
    options = parser.parse_args()
    if options.target is not None:
        if options.coverage:
            fuzz_by_coverage(options.target, options.inputs, options.seconds)
        resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))
        print(fuzz(options.target, options.seed, options.inputs, options.seconds))
        return 0
    found, missing = targets()
    for distribution, problem in missing.items():
        print(f"{distribution} is left out: {problem}", file=sys.stderr, flush=True)
    if not options.coverage:
        print("| what is read | inputs | accepted | longest, ms | memory, MiB |\n|---|---|---|---|---|", flush=True)
    command = [sys.executable, "-m", "core.tests.fuzz", *sys.argv[1:]]
    codes = [subprocess.run([*command, f"--target={name}"]).returncode for name in found]
    return 1 if any(codes) else 0


if __name__ == "__main__":
    sys.exit(main())
