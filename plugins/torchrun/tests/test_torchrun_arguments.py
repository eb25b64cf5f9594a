"""Command lines as torchrun's own parser reads them, beside ours: namespaces, and the configurations that they give."""

from __future__ import annotations

import argparse
import contextlib
import io
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

import quorate_torchrun as ours
from quorate.flags import all_flags
from quorate_torchrun._arguments import texts_of

SCRIPT = str(Path(__file__).parent / "clients" / "arguments.py")
#: What a program may give to torchrun's flags, by the flag's name with dashes; empty: a switch.
VALUES: dict[str, tuple[str, ...]] = {
    "nnodes": ("1", "1:1", "2", "1:4", "03"),
    "nproc-per-node": ("1", "2", "cpu", "auto"),
    "node-rank": ("0", "1"),
    "role": ("", "default", "trainer"),
    "rdzv-backend": ("static", "c10d"),
    "rdzv-endpoint": ("", "localhost:29411", "[::1]:29411"),
    "rdzv-id": ("none", "7", "a job"),
    "rdzv-conf": ("", "join_timeout=30", " join_timeout = 30 , last_call_timeout=5"),
    "standalone": (),
    "master-addr": ("127.0.0.1", "localhost", "[::1]"),
    "master-port": ("29512", "29500"),
    "local-addr": ("127.0.0.1", "localhost"),
    "module": (),
    "no-python": (),
    "run-path": (),
    "start-method": ("spawn", "fork", "forkserver"),
    "virtual-local-rank": (),
    "max-restarts": ("0", "3"),
    "monitor-interval": ("0.1", "5"),
    "shutdown-timeout": ("0", "7"),
    "signals-to-handle": ("SIGTERM", "SIGTERM,SIGINT,SIGHUP,SIGQUIT"),
    "redirects": ("0", "3", "0:1,1:3"),
    "tee": ("0", "2", "0:1,1:3"),
    "local-ranks-filter": ("", "0", "0, 1"),
    "duplicate-stdout-filters": ("a", "a,b,,c"),
    "duplicate-stderr-filters": ("a,,b", "x,y"),
    "event-log-handler": ("null", "console"),
}


@st.composite
def flags(draw: st.DrawFn) -> list[str]:
    words: list[str] = []
    for name in draw(st.lists(st.sampled_from(sorted(VALUES)), max_size=6)):
        spelling = "--" + draw(st.sampled_from([name, name.replace("-", "_")]))
        if not VALUES[name]:
            words.append(spelling)
            continue
        value = draw(st.sampled_from(VALUES[name]))
        words.extend([f"{spelling}={value}"] if draw(st.booleans()) else [spelling, value])
    return words


def parsed(parser: argparse.ArgumentParser, words: list[str]) -> dict[str, Any] | None:
    """Return the namespace; ``None`` if the parser refuses the words."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return vars(parser.parse_args(words))
    except SystemExit:
        return None


@pytest.fixture
def torchs(monkeypatch: pytest.MonkeyPatch) -> Any:
    import torch.distributed.run

    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # torchrun warns, and sets it
    return torch.distributed.run


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=flags(), arguments=st.lists(st.sampled_from(["a", "--b", "--", "-m", "--nnodes=9", ""]), max_size=3))
def test_a_namespace_is_torchs_and_both_give_one_configuration(
    torchs: Any, words: list[str], arguments: list[str]
) -> None:
    words = [*words, SCRIPT, *arguments]
    theirs, own = (module.get_args_parser().parse_args(words) for module in (torchs, ours))
    assert {name: vars(own)[name] for name in vars(theirs)} == vars(theirs)
    results = [_attempt(ours, own), _attempt(ours, theirs)]
    assert results[0] == results[1]
    if isinstance(results[0], str) or theirs.standalone:
        return
    here, there = results[0], _attempt(torchs, theirs)
    differing = {"rdzv_backend", "rdzv_endpoint", "rdzv_configs", "run_id", "shutdown_timeout", "master_addr"}
    assert {name: here[name] for name in here.keys() & there.keys() - differing} == {
        name: there[name] for name in here.keys() & there.keys() - differing
    }
    assert theirs.shutdown_timeout in (None, here["shutdown_timeout"])
    assert here["run_id"] == ("" if there["max_nodes"] == 1 and there["run_id"] == "none" else there["run_id"])
    torchs_own = {"rank", "timeout"}  # the second is the default of its LaunchConfig
    assert {key: there["rdzv_configs"][key] for key in there["rdzv_configs"].keys() - torchs_own} == {
        key: here["rdzv_configs"][key] for key in here["rdzv_configs"].keys() - {"shared_port"}
    }


def _attempt(module: Any, args: argparse.Namespace) -> Any:
    """Return a configuration as values that can be compared; why there is none, as text."""
    try:
        config, entrypoint, argv = module.config_from_args(argparse.Namespace(**vars(args)))
    except ValueError as error:
        return str(error)
    result = {each.name: getattr(config, each.name) for each in fields(config)}
    logs = result.pop("logs_specs")
    streams = [{rank: int(which) for rank, which in _by_rank(each)} for each in (logs._redirects, logs._tee)]
    return {**result, "streams": streams, "command": (getattr(entrypoint, "__name__", entrypoint), argv)}


def _by_rank(streams: Any) -> Any:
    return streams.items() if hasattr(streams, "items") else [(-1, streams)]


def test_a_beginning_that_only_one_of_torchruns_flags_has_means_that_one(torchs: Any) -> None:
    """Whatever flags quorate and its plugins have besides, by each of the two parsers."""
    from quorate.cli._parse import parse

    names = {text for action in torchs.get_args_parser()._actions for text in action.option_strings}
    assert {flag.name for flag in all_flags() if flag.is_torchruns} == {
        name[2:] for name in names if name.startswith("--") and "_" not in name and name != "--help"
    }
    theirs, own = torchs.get_args_parser(), ours.get_args_parser()
    for name in sorted(VALUES):
        value = VALUES[name][-1:]
        for end in range(1, len(name) + 1):
            words = [f"--{name[:end]}", *value, SCRIPT]
            wanted = parsed(theirs, words)
            if wanted is None or wanted["training_script"] != SCRIPT:
                continue
            found = parsed(own, words)
            assert found is not None, words
            assert {key: found[key] for key in wanted} == wanted
            assert parse(words, {}, all_flags()).settings[name].source == "argument"


def test_nothing_is_set_that_was_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that flags of quorate and of plugins have their own defaults in a program that builds its own namespace."""
    assert texts_of(ours.parse_args([SCRIPT])) == {}
    monkeypatch.setenv("PET_CAPTURE_STDERR", "no")
    assert texts_of(ours.parse_args([SCRIPT])) == {"capture-stderr": "0"}
