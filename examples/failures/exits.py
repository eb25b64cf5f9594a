"""Ends with an exit code and prints no reason."""

import sys

sys.exit(3)
