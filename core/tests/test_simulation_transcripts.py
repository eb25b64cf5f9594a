"""The named scenarios, word by word: ``core/tests/transcripts`` documents the protocol, and is reviewed like code.

python -m core.tests.test_simulation_transcripts --rewrite
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from .stories import STORIES, transcript_of

FOLDER = Path(__file__).parent / "transcripts"


def path_of(name: str) -> Path:
    return FOLDER / f"{name.replace(' ', '_')}.txt"


@pytest.mark.parametrize("name", STORIES)
def test_the_story_is_the_one_that_was_reviewed(name: str) -> None:
    assert transcript_of(name) == path_of(name).read_text(encoding="utf-8")


def test_every_transcript_has_its_story() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {path_of(name).name for name in STORIES}


if __name__ == "__main__" and "--rewrite" in sys.argv:
    FOLDER.mkdir(exist_ok=True)
    for story in STORIES:
        path_of(story).write_text(transcript_of(story), encoding="utf-8")
