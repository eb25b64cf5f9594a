"""Waiting for a file's content by inotify: the kernel tells of every change, nothing is polled."""

from __future__ import annotations

import ctypes
import os
import select
import time
from pathlib import Path

__all__ = ["wait_for_text"]

_IN_MODIFY = 0x2


def wait_for_text(path: Path, text: str, seconds: float) -> None:
    """Wait until the file ``path`` holds ``text``; fail after ``seconds``."""
    library = ctypes.CDLL(None, use_errno=True)
    descriptor = library.inotify_init1(os.O_CLOEXEC)
    assert descriptor >= 0, os.strerror(ctypes.get_errno())
    try:
        path.touch()
        assert library.inotify_add_watch(descriptor, os.fsencode(path), _IN_MODIFY) >= 0
        end = time.monotonic() + seconds
        while text not in path.read_text(errors="replace"):
            ready, _, _ = select.select([descriptor], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"{text!r} is not in {path} after {seconds} s:\n{path.read_text(errors='replace')}"
            os.read(descriptor, 65536)
    finally:
        os.close(descriptor)
