"""A recipe of torchtune that trains nothing."""

from __future__ import annotations

import os
import sys

from said import say
from torchtune import config


@config.parse
def main(cfg):
    say(os.environ["RANK"], os.environ["WORLD_SIZE"], cfg.word)


if __name__ == "__main__":
    sys.exit(main())
