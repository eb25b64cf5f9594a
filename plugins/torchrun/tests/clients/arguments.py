"""Tells its arguments."""

from __future__ import annotations

import sys

from said import say

say(*sys.argv[1:])
