"""Reads a command line against the table of flags: argument, environment, what a cluster's scheduler says, default.

Flags stand before the script; everything after it belongs to the script, but for ``--`` directly behind it where none
stands before it.  Names may be written with dashes or underscores, or shortened to a beginning that only one flag has
(``--redirect``, ``--nnode``); values as ``--flag=value`` or ``--flag value``, short ones also as ``-r3``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn, final

from attrs import evolve, frozen

from ..errors import UsageError
from ..plugins import PluginKind, usual_package
from ..text import near_names
from ._flags import ACTIONS, Flag


@final
@frozen
class Setting:
    """The value of one flag, its text, and where it came from.

    ``source`` is ``argument``, ``environment …``, ``default``, or names the job of a cluster's scheduler.
    """

    value: Any
    text: str | None
    source: str

    @property
    def is_default(self) -> bool:
        return self.source == "default"


@final
@frozen
class Parsed:
    """What a command line and the environment say: the value of each flag, and the script with its arguments.

    ``script`` is ``None`` where none was given; ``actions`` are the names of those in ``ACTIONS`` that were asked for.
    """

    flags: tuple[Flag, ...]
    settings: Mapping[str, Setting]
    script: str | None
    arguments: tuple[str, ...]
    actions: frozenset[str]

    def __getitem__(self, name: str) -> Any:
        """Return the value of a flag."""
        return self.settings[name].value

    def filled(self, texts: Mapping[str, str], source: str) -> Parsed:
        """Return this with ``texts`` (by the flags' names) in the place of defaults.

        Raises:
            UsageError: a value of the wrong form.
        """
        settings = dict(self.settings)
        for flag in self.flags:
            if flag.name in texts and settings[flag.name].is_default:
                text = texts[flag.name]
                settings[flag.name] = Setting(_value(flag, f"--{flag.name}={text} ({source})", text), text, source)
        return evolve(self, settings=settings)

    def without_environment(self, *names: str) -> Parsed:
        """Return this with the default of each of these flags that the environment has set."""
        settings = dict(self.settings)
        for flag in self.flags:
            if flag.name in names and settings[flag.name].source.startswith("environment"):
                settings[flag.name] = _setting(flag, None, None)
        return evolve(self, settings=settings)


def parse(argv: Sequence[str], environment: Mapping[str, str], flags: Iterable[Flag]) -> Parsed:
    """Return what ``argv`` (without the program's name) and ``environment`` say.

    Raises:
        UsageError: an unknown flag, a missing value, or a value of the wrong form.
    """
    table = {flag.name: flag for flag in flags}
    texts, actions, rest = _scan(argv, table)
    script, arguments = (rest[0], rest[1:]) if rest else (None, ())
    # As in torchrun, whose argparse takes the first one of a line for its own.
    if "--" in arguments[:1] and "--" not in argv[: len(argv) - len(rest)]:
        arguments = arguments[1:]
    return resolve(table.values(), texts, {} if "help" in actions else environment, script, arguments, actions)


def resolve(
    flags: Iterable[Flag],
    texts: Mapping[str, str],
    environment: Mapping[str, str],
    script: str | None,
    arguments: Sequence[str],
    actions: Iterable[str] = (),
) -> Parsed:
    """Return what ``texts`` (by the flags' names) and ``environment`` say.

    Raises:
        UsageError: a value of the wrong form.
    """
    flags = tuple(flags)
    settings = {flag.name: _setting(flag, texts.get(flag.name), environment.get(flag.variable)) for flag in flags}
    return Parsed(flags, settings, script, tuple(arguments), frozenset(actions))


def _scan(argv: Sequence[str], table: Mapping[str, Flag]) -> tuple[dict[str, str], set[str], Sequence[str]]:
    """Split ``argv`` into the texts of flags, the actions, and the script with its arguments."""
    shorts = {flag.short: flag for flag in table.values() if flag.short}
    texts: dict[str, str] = {}
    actions: set[str] = set()
    position = 0
    while position < len(argv):
        word = argv[position]
        position += 1
        if word == "--":
            break
        if not word.startswith("-") or word == "-":
            position -= 1
            break
        if word.startswith("--"):
            written, equals, value = word.partition("=")
            name = _full_name(written[2:].replace("_", "-"), table)
            flag = table.get(name)
        else:
            written, name = word[:2], "help" if word == "-h" else ""
            flag = shorts.get(word[1])
            while flag is not None and flag.is_switch and word[2:3] and word[2] in shorts:  # -mr3 is -m -r3
                texts[flag.name] = "1"
                word = f"-{word[2:]}"
                written, flag = word[:2], shorts[word[1]]
            if flag is not None and flag.is_switch and len(word) > 2:
                raise UsageError(f"{written} takes no value; write {written} {word[2:].removeprefix('=')}")
            equals, value = ("=", word[2:].removeprefix("=")) if len(word) > 2 else ("", "")
        if name in ACTIONS and not equals:
            actions.add(name)
            continue
        if flag is None:
            _reject(word, table)
        if not equals and flag.is_switch:
            value = "1"
        elif not equals:
            if position >= len(argv) or _looks_like_flag(argv[position]):
                raise UsageError(f"{written} needs a value; write {written}{'=' if name else ' '}{flag.metavar}")
            value = argv[position]
            position += 1
        texts[flag.name] = value
    return texts, actions, argv[position:]


def _full_name(name: str, table: Mapping[str, Flag]) -> str:
    """Return the one name that begins with ``name``, of torchrun's flags or else of all; ``name`` where none does.

    Raises:
        UsageError: several do.
    """
    if name in table or name in ACTIONS:
        return name
    names = [each for each in (*table, *ACTIONS) if name and each.startswith(name)]
    torchruns = [each for each in names if each in ACTIONS or table[each].is_torchruns]
    if len(torchruns) == 1:
        return torchruns[0]
    if len(names) > 1:
        raise UsageError(f"--{name} is the beginning of several flags; write --{' or --'.join(names)}")
    return names[0] if names else name


def _looks_like_flag(word: str) -> bool:
    return word.startswith("-") and len(word) > 1 and not word[1].isdigit()


def _setting(flag: Flag, argument: str | None, variable: str | None) -> Setting:
    if argument is not None:
        return Setting(_value(flag, f"--{flag.name}={argument}", argument), argument, "argument")
    if variable:
        source = f"environment {flag.variable}"
        return Setting(_value(flag, f"{flag.variable}={variable} (environment)", variable), variable, source)
    return Setting(None if flag.default is None else flag.parse(flag.default), flag.default, "default")


def _value(flag: Flag, written: str, value: str) -> Any:
    try:
        return flag.parse(value)
    except ValueError as error:
        raise UsageError(f"{written} {error}") from None


def _reject(word: str, table: Mapping[str, Flag]) -> NoReturn:
    written = word.partition("=")[0]
    remedy = "run 'quorate run --help' to see all flags"
    if written.startswith("--"):
        wanted = written[2:].replace("_", "-")
        package, near = usual_package(PluginKind.CLI_OPTION, wanted), near_names(wanted, [*table, *ACTIONS])
        if package is not None:
            remedy = f"it is offered by a plugin: pip install {package}"
        elif near:
            remedy = f"did you mean --{near[0]}?"
    raise UsageError(f"unknown flag {written}; {remedy}")
