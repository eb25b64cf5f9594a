"""Tells its rank."""

from __future__ import annotations

import os

from said import say

say(os.environ["RANK"])
