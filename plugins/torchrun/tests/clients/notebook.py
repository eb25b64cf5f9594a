"""What a notebook does: a function in two workers."""

from __future__ import annotations

import os

from accelerate import notebook_launcher
from said import say


def train(word: str) -> None:
    """Tell the rank."""
    say(os.environ["RANK"], word)


notebook_launcher(train, ("word",), num_processes=2, use_port="0")
