"""``quorate.files``: small files that are never seen half-written, and bounded reads."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from quorate.files import read_bytes, write_all, write_atomically, write_byte


def test_a_reader_sees_the_old_content_or_the_new_and_never_a_part(tmp_path: Path) -> None:
    path = tmp_path / "file"
    contents = [bytes([byte]) * 200_000 for byte in b"abcdef"]
    write_atomically(path, contents[0])
    seen: set[bytes] = set()
    is_over = threading.Event()

    def read() -> None:
        while not is_over.is_set():
            seen.add(read_bytes(str(path)))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for content in contents * 20:
            write_atomically(path, content)
    finally:
        is_over.set()
        reader.join(60.0)
    assert seen <= set(contents)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("mode", "expected"), [(0o600, 0o600), (0o640, 0o640), (None, 0o644)])
def test_the_permissions_are_those_that_were_asked_for(tmp_path: Path, mode: int | None, expected: int) -> None:
    before = os.umask(0o022)
    try:
        write_atomically(tmp_path / "file", "text", mode)
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == expected
    assert (tmp_path / "file").read_text() == "text"


def test_a_file_that_cannot_be_replaced_leaves_no_temporary_one(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write_atomically(tmp_path / "folder", b"data")
    with pytest.raises(OSError, match="absent"):
        write_atomically(tmp_path / "absent" / "file", b"data")
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


def test_all_of_the_data_is_written_to_a_pipe_that_takes_less_at_once() -> None:
    reader, writer = os.pipe()
    data = os.urandom(1 << 20)
    parts: list[bytes] = []

    def read() -> None:
        while part := os.read(reader, 5000):
            parts.append(part)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        write_all(writer, data)
    finally:
        os.close(writer)
        thread.join(60.0)
        os.close(reader)
    assert b"".join(parts) == data


def test_reading_is_bounded_and_never_raises_or_blocks(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100_000)
    assert read_bytes(str(path)) == b"x" * 100_000
    assert read_bytes(str(path), 70_000) == b"x" * 70_000
    assert read_bytes(str(tmp_path)) == read_bytes(str(tmp_path / "absent")) == b""
    os.mkfifo(tmp_path / "pipe")  # an ordinary open would wait for a writer
    assert read_bytes(str(tmp_path / "pipe")) == b""


def test_a_file_system_whose_files_have_names(tmp_path: Path) -> None:
    """Network file systems have no files without names; the file has a name there, and is gone afterwards too."""
    written = []

    def write(descriptor: int, data: bytes) -> None:
        written.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        assert os.write(descriptor, data) == 1

    write_byte(str(tmp_path), nameless=os.O_DIRECTORY, write=write)  # opening a folder for writing: EISDIR, as there
    assert written[0].startswith(str(tmp_path / ".quorate-"))
    assert not list(tmp_path.iterdir())
