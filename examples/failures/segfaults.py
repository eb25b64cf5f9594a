"""Reads memory that does not exist, as broken native code does."""

import ctypes

ctypes.string_at(0)
