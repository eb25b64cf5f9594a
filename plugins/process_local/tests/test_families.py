"""A worker with a family of its own: who is told to stop, when, and how often."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from quorate.proc import is_alive

from .conftest import Ear, Group, Start, launch

#: Says what it gets, and ends once the door is open; as a data loader it ends at once.
_MEMBER = """
import os, signal, sys, time
ear, name, door = sys.argv[1:4]
def say(*words):
    with open(ear, "w") as file:
        file.write(" ".join(map(str, words)) + "\\n")
if name == "parent":
    import subprocess
    child = subprocess.Popen([sys.executable, __file__, ear, "child", ""])
handled = []
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda number, frame: handled.append(number))
say(name, os.getpid())
said = 0
while signal.SIGTERM not in handled[:said]:
    time.sleep(0.005)
    for number in handled[said:]:
        said += 1
        say(name, signal.Signals(number).name)
if door:
    open(door).read()
    time.sleep(0.1)  # for a second one that should not come
    say("told", handled.count(signal.SIGTERM))
"""


@pytest.fixture
def member(tmp_path: Path, ear: Ear) -> Callable[..., list[str]]:
    script, door = tmp_path / "member.py", tmp_path / "door"
    script.write_text(_MEMBER)
    door.touch()

    def command(name: str, path: str = str(door)) -> list[str]:
        return [sys.executable, str(script), str(ear.path), name, path]

    return command


def test_the_family_of_a_worker_is_told_once_it_has_ended(
    start: Start, ear: Ear, tmp_path: Path, member: Callable[..., list[str]]
) -> None:
    """A worker that saves its work may need its data loaders for it."""
    door = tmp_path / "closed"
    os.mkfifo(door)
    group = start("exec", [launch(0, *member("parent", str(door)))])
    words = ear.words(4)
    child = int(words[words.index("child") + 1])
    group.stop()
    assert ear.words(2) == ["parent", "SIGTERM"]
    assert is_alive(child)
    door.write_text("")
    assert ear.words(2) == ["told", "1"]
    group.run_until(lambda: bool(group.exits))
    assert ear.words(2) == ["child", "SIGTERM"]
    group.run()


SHAPES = {
    "a shell that waits": "{member}; true",
    "a shell with a trap": "trap 'true' TERM; {member}; true",
    "a shell in a shell": 'trap true TERM; sh -c "trap true TERM; {member}; true"; true',
    "a trap that passes it on": "trap 'kill -TERM $pid' TERM; {member} & pid=$!; while ! wait $pid; do :; done",
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("shell", ["bash", "sh"])
def test_a_program_behind_shells_is_told_once(
    start: Start, ear: Ear, member: Callable[..., list[str]], shape: str, shell: str
) -> None:
    """With the whole grace, whether the shell dies of the signal, puts it off, or passes it on itself."""
    script = SHAPES[shape].format(member=" ".join(member("program")))
    group = start("exec", [launch(0, shell, "-c", script)])
    ear.words(2)
    group.stop()
    group.run()
    assert ear.words(4) == ["program", "SIGTERM", "told", "1"]


def test_a_stop_of_another_kind_does_not_tell_a_worker_again(
    start: Start, ear: Ear, tmp_path: Path, member: Callable[..., list[str]]
) -> None:
    door = tmp_path / "closed"
    os.mkfifo(door)
    group = start("exec", [launch(0, *member("program", str(door)))])
    ear.words(2)
    group.stop(signal.SIGTERM)
    assert ear.words(2) == ["program", "SIGTERM"]
    group.stop(signal.SIGINT)  # would end it: nothing handles it there
    group.stop(signal.SIGTERM)
    door.write_text("")
    assert ear.words(2) == ["told", "1"]
    assert group.run()[0].exit_code == 0


def test_a_forwarded_signal_reaches_only_those_that_handle_it(
    start: Start, ear: Ear, member: Callable[..., list[str]]
) -> None:
    scripts = [" ".join(member("program")) + "; true", f"echo shell 1 >{ear.path}; sleep 1000; true"]
    group: Group = start("exec", [launch(rank, "sh", "-c", script) for rank, script in enumerate(scripts)])
    ear.words(4)
    assert group.context.forward(signal.SIGUSR1) == [0]  # type: ignore[attr-defined] # an ability of this context
    assert ear.words(2) == ["program", "SIGUSR1"]
    assert not group.context.advance(0.0)
    group.stop(signal.SIGKILL, 0.0)
    group.run()
