"""Ends with an exit code and says nothing about why."""

import sys

sys.exit(3)
