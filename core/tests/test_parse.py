"""The parser against its table of flags: precedence, spellings, and what is refused."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
from hypothesis import given, strategies as st

from quorate import Std, UsageError
from quorate.cli._flags import FLAGS, Flag
from quorate.cli._parse import Parsed, Setting, parse

#: For each flag a text of the right form and what it means.
SAMPLES: dict[str, tuple[str, Any]] = {
    "nnodes": ("2:4", (2, 4)),
    "nproc-per-node": ("8", 8),
    "node-rank": ("3", 3),
    "role": ("trainer", "trainer"),
    "cluster": ("slurm", "slurm"),
    "rdzv-backend": ("c10d", "c10d"),
    "rdzv-endpoint": ("[::1]:29400", "[::1]:29400"),
    "rdzv-id": ("job", "job"),
    "rdzv-conf": ("join_timeout=3,is_host=1", {"join_timeout": "3", "is_host": "1"}),
    "rdzv-auth": ("off", "off"),
    "master-addr": ("host", "host"),
    "master-port": ("29501", 29501),
    "master-port-range": ("29500:29509", "29500:29509"),
    "local-addr": ("10.0.0.1", "10.0.0.1"),
    "start-method": ("fork", "fork"),
    "numa-binding": ("node", "node"),
    "max-restarts": ("5", 5),
    "monitor-interval": ("0.5", 0.5),
    "shutdown-timeout": ("12", 12.0),
    "health-interval": ("30", 30.0),
    "exit-barrier-timeout": ("0", 0.0),
    "signals-to-handle": ("SIGUSR1", "SIGUSR1"),
    "forward-signals": ("USR1", "USR1"),
    "exit-code": ("worker", "worker"),
    "console-ranks": ("0,3", frozenset({0, 3})),
    "log-dir": ("logs", "logs"),
    "redirects": ("0:1,12:2", {0: Std.OUT, 12: Std.ERR}),
    "tee": ("3", Std.ALL),
    "local-ranks-filter": ("0,12", frozenset({0, 12})),
    "duplicate-stdout-filters": ("a,b,,c", ("a", "b,c")),
    "duplicate-stderr-filters": ("x", ("x",)),
    "logs-specs": ("mine", "mine"),
    "event-log-handler": ("console", "console"),
}
WITH_VALUE = [flag for flag in FLAGS if not flag.is_switch]
SWITCHES = [flag for flag in FLAGS if flag.is_switch]


def read(*argv: str, **environment: str) -> Parsed:
    return parse(argv, environment, FLAGS)


def test_the_flags_of_torchrun_are_all_there() -> None:
    """Each of torchrun's flags has a row in the table."""
    wanted = """nnodes nproc-per-node rdzv-backend rdzv-endpoint rdzv-id rdzv-conf standalone max-restarts
        monitor-interval start-method event-log-handler role module no-python run-path log-dir redirects tee
        local-ranks-filter duplicate-stdout-filters duplicate-stderr-filters node-rank master-addr master-port
        local-addr logs-specs numa-binding signals-to-handle shutdown-timeout virtual-local-rank"""
    assert set(wanted.split()) <= {flag.name for flag in FLAGS}
    assert {flag.name: flag.short for flag in FLAGS if flag.short} == {"module": "m", "redirects": "r", "tee": "t"}
    assert {flag.name for flag in WITH_VALUE} == set(SAMPLES), "every flag with a value has a sample here"


@pytest.mark.parametrize("flag", WITH_VALUE, ids=lambda flag: flag.name)
def test_a_value_is_read_in_every_spelling(flag: Flag) -> None:
    text, meaning = SAMPLES[flag.name]
    underscored = flag.name.replace("-", "_")
    lines = [
        [f"--{flag.name}={text}"],
        [f"--{flag.name}", text],
        [f"--{underscored}={text}"],
        [f"--{underscored}", text],
    ]
    if flag.short:
        lines += [[f"-{flag.short}", text], [f"-{flag.short}{text}"], [f"-{flag.short}={text}"]]
    for line in lines:
        parsed = read(*line, "train.py", "--nnodes=9")
        assert parsed.settings[flag.name] == Setting(meaning, text, "argument"), line
        assert (parsed.script, parsed.arguments) == ("train.py", ("--nnodes=9",))
    assert read(**{flag.variable: text}).settings[flag.name] == Setting(meaning, text, f"environment {flag.variable}")


@pytest.mark.parametrize("flag", SWITCHES, ids=lambda flag: flag.name)
def test_a_switch_is_read_in_every_spelling(flag: Flag) -> None:
    for line in ([f"--{flag.name}"], [f"--{flag.name.replace('-', '_')}"], [f"--{flag.name}=true"]):
        parsed = read(*line, "train.py")
        assert parsed.settings[flag.name].value is True
        assert parsed.script == "train.py"
    assert not read().settings[flag.name].value
    assert read(**{flag.variable: "1"}).settings[flag.name].value is True
    assert read(f"--{flag.name}=0", **{flag.variable: "1"}).settings[flag.name].value is False


@given(st.sampled_from(WITH_VALUE), st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_argument_beats_environment_beats_default(
    flag: Flag, argument: bool, variable: bool, dashes: bool, joined: bool
) -> None:
    """Precedence, whatever the spelling."""
    text, meaning = SAMPLES[flag.name]
    name = f"--{flag.name if dashes else flag.name.replace('-', '_')}"
    argv = ([f"{name}={text}"] if joined else [name, text]) if argument else []
    # What loses is not even looked at.
    environment = {flag.variable: "?:?" if argument else text} if variable else {}
    setting = parse([*argv, "train.py"], environment, FLAGS).settings[flag.name]
    if argument or variable:
        assert setting.value == meaning
        assert setting.source == ("argument" if argument else f"environment {flag.variable}")
    else:
        assert setting.source == "default"
        assert setting.value == (None if flag.default is None else flag.parse(flag.default))


@given(
    st.lists(st.sampled_from(WITH_VALUE), max_size=6),
    st.lists(st.sampled_from(SWITCHES), max_size=3),
    st.lists(st.text(max_size=8), max_size=4),
    st.randoms(use_true_random=False),
)
def test_dashes_and_underscores_mean_the_same_and_the_scripts_arguments_pass_untouched(
    valued: list[Flag], switches: list[Flag], arguments: list[str], random: Any
) -> None:
    dashed: list[list[str]] = [[f"--{flag.name}", SAMPLES[flag.name][0]] for flag in valued]
    dashed += [[f"--{flag.name}"] for flag in switches]
    random.shuffle(dashed)
    underscored = [[group[0][:2] + group[0][2:].replace("-", "_"), *group[1:]] for group in dashed]
    one = parse([*chain.from_iterable(dashed), "train.py", *arguments], {}, FLAGS)
    two = parse([*chain.from_iterable(underscored), "train.py", *arguments], {}, FLAGS)
    assert one == two
    assert one.arguments == tuple(arguments)
    assert {name for name, setting in one.settings.items() if not setting.is_default} == {
        flag.name for flag in [*valued, *switches]
    }


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.name)
def test_a_beginning_that_only_one_flag_has_stands_for_it(flag: Flag) -> None:
    names = [each.name for each in FLAGS] + ["help", "show-config"]
    for end in range(1, len(flag.name)):
        short = flag.name[:end]
        value = [] if flag.is_switch else [SAMPLES[flag.name][0]]
        if short in names or sum(name.startswith(short) for name in names) > 1:
            continue
        for spelling in (short, short.replace("-", "_")):
            assert read(f"--{spelling}", *value, "x") == read(f"--{flag.name}", *value, "x")
    assert read("--redirect=3", "--nnode", "1", "x")["redirects"] is Std.ALL


@pytest.mark.parametrize("text", ["'a=1,b=2'", '"a=1,b=2"', "a=1,b=2"])
def test_quotes_around_settings_are_a_shells(text: str) -> None:
    assert read(f"--rdzv-conf={text}")["rdzv-conf"] == {"a": "1", "b": "2"}


def test_the_last_one_of_a_repeated_flag_counts() -> None:
    assert read("--nnodes=2", "--nnodes=3", "x").settings["nnodes"].value == (3, 3)


def test_two_dashes_end_the_flags() -> None:
    parsed = read("--standalone", "--", "-odd.py", "--", "a")
    assert (parsed.script, parsed.arguments) == ("-odd.py", ("--", "a"))


@pytest.mark.parametrize(
    ("line", "arguments"),
    [
        (["s.py", "--", "--foo", "1"], ("--foo", "1")),
        (["s.py", "a", "--", "b"], ("a", "--", "b")),
        (["--standalone", "s.py", "--", "x", "--"], ("x", "--")),
        (["-m", "s.py", "--"], ()),
        (["s.py", "--", "--"], ("--",)),
    ],
)
def test_the_first_double_dash_is_torchruns_own(line: list[str], arguments: tuple[str, ...]) -> None:
    """As torchrun's argparse has it: directly behind the script, unless one stands before the script."""
    assert read(*line).arguments == arguments


def test_an_empty_variable_is_as_good_as_none() -> None:
    assert read(PET_NNODES="").settings["nnodes"].source == "default"


@pytest.mark.parametrize(
    ("argv", "module", "redirects"),
    [(["-mr3"], True, "3"), (["-mr", "3"], True, "3"), (["-mr=3"], True, "3"), (["-m", "-r3"], True, "3")],
)
def test_short_flags_may_be_written_together(argv: list[str], module: bool, redirects: str) -> None:
    parsed = read(*argv, "x")
    assert (parsed["module"], parsed.settings["redirects"].text, parsed.script) == (module, redirects, "x")


def test_negative_numbers_are_values() -> None:
    assert read("--max-restarts", "-1", "x").settings["max-restarts"].value == -1


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--nnodez=2"], ["--nnodez", "did you mean --nnodes?"]),
        (["--master=2"], ["--master is the beginning", "--master-addr or --master-port"]),
        (["--rdzv_endpont=2"], ["did you mean --rdzv-endpoint?"]),
        (["--zzzzzzzz"], ["unknown flag --zzzzzzzz", "quorate run --help"]),
        (["--hosts=a,b"], ["unknown flag --hosts", "pip install quorate-ssh"]),
        (["-x"], ["unknown flag -x", "quorate run --help"]),
        (["--nnodes"], ["--nnodes needs a value", "--nnodes=N|MIN:MAX"]),
        (["--log-dir", "--tee", "3"], ["--log-dir needs a value"]),
        (["-r"], ["-r needs a value", "-r STREAMS"]),
        (["-mpkg.train"], ["-m takes no value", "write -m pkg.train"]),
        (["-m=pkg"], ["-m takes no value", "write -m pkg"]),
        (["--nnodes=two"], ["--nnodes=two", "2:4"]),
        (["--nnodes=1:2:3"], ["--nnodes=1:2:3", "MIN:MAX"]),
        (["--nproc-per-node=2x"], ["--nproc-per-node=2x", "auto, cpu, gpu, xpu"]),
        (["--max-restarts=1.5"], ["--max-restarts=1.5", "whole number"]),
        (["--monitor-interval=fast"], ["--monitor-interval=fast", "seconds"]),
        (["--standalone=maybe"], ["--standalone=maybe", "1 nor 0"]),
        (["-r", "4"], ["--redirects=4", "0:1,12:2"]),
        (["--tee=0:1,0:2"], ["--tee=0:1,0:2"]),
        (["--local-ranks-filter=0,a"], ["--local-ranks-filter=0,a", "0,1,12"]),
        (["--rdzv-conf=join_timeout"], ["--rdzv-conf=join_timeout", "KEY=VALUE"]),
    ],
)
def test_a_wrong_line_is_refused_in_one_sentence_with_a_remedy(argv: list[str], words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        read(*argv)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_variable_is_named() -> None:
    with pytest.raises(UsageError, match=r"PET_MAX_RESTARTS=many \(environment\) is not a whole number"):
        read(PET_MAX_RESTARTS="many")
