"""Files and text of unknown origin: what a worker can put in a file's place, and what it can write."""

from __future__ import annotations

import os
import socket
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from quorate.files import open_regular, read_regular
from quorate.testing import open_descriptors
from quorate.text import printable


def _link(path: Path) -> None:
    path.with_name("secret").write_text("secret")
    path.symlink_to(path.with_name("secret"))


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def _device(path: Path) -> None:
    try:
        os.mknod(path, 0o20666, os.makedev(1, 5))  # /dev/zero, which never ends
    except PermissionError:
        path.symlink_to("/dev/zero")


def _foreign_hard_link(path: Path) -> None:
    secret = path.with_name("secret")
    secret.write_text("secret")
    try:
        os.chown(secret, 54321, 54321)
    except PermissionError:
        pytest.skip("only root can give a file away")
    os.link(secret, path)


KINDS: dict[str, Callable[[Path], None]] = {
    "absent": lambda path: None,
    "symbolic link": _link,
    "FIFO": os.mkfifo,
    "folder": Path.mkdir,
    "socket": _socket,
    "device": _device,
    "file of another user": _foreign_hard_link,
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("kind", KINDS)
def test_only_a_file_of_ones_own_is_read_and_written(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file"
    KINDS[kind](path)
    assert read_regular(path, 100) == b""
    for flags in (os.O_RDONLY, os.O_WRONLY | os.O_APPEND):
        with pytest.raises(OSError, match=r"file|directory|link|device|user|address"):
            open_regular(path, flags)


def test_reading_is_bounded_and_may_begin_before_the_end(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    assert read_regular(str(path), 4) == b"0123"
    assert read_regular(path, 4, from_end=True) == b"6789"
    assert read_regular(path, 100, from_end=True) == b"0123456789"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # sparse
    assert read_regular(path, 3) == b"\0\0\0"
    assert read_regular(str(path) + "\0", 3) == b""


def test_a_file_that_belongs_to_its_folders_owner_is_read(tmp_path: Path) -> None:
    """A network file system may show all that this user makes under another id."""
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    folder = tmp_path / "mounted"
    folder.mkdir()
    (folder / "file").write_text("text")
    for path in (folder, folder / "file"):
        os.chown(path, 54321, 54321)
    assert read_regular(folder / "file", 100) == b"text"


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    before = open_descriptors()
    for number, make in enumerate(KINDS.values()):
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            make(folder / "file")
        except pytest.skip.Exception:
            continue
        read_regular(folder / "file", 100)
    assert open_descriptors() <= before


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, ünï 語", "plain, ünï 語"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;a title\x07text", "text"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b[2J\x1bcgone", "gone"),
        ("a\tb", "a   b"),
        ("bell\x07 back\x08 null\0", "bell� back� null�"),
        ("\u202eright to left", "�right to left"),
        ("hard\xa0space\u3000wide", "hard space wide"),
        ("half a \ud800 pair", "half a � pair"),
    ],
)
def test_text_is_made_printable(text: str, shown: str) -> None:
    assert printable(text, 1000) == shown


def test_text_is_cut() -> None:
    assert printable("x" * 10, 10) == "x" * 10
    assert printable("x" * 11, 10) == "x" * 9 + "…"
    assert len(printable("\x1b" * (1 << 24), 100)) == 100


def test_nothing_that_steers_a_terminal_is_left() -> None:
    for number in range(0x110000):
        for shown in printable(chr(number), 10) if number != ord("\t") else " ":
            assert shown == "\N{REPLACEMENT CHARACTER}" or unicodedata.category(shown)[0] != "C"
