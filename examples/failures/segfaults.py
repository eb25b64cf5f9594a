"""Reads memory that is not there, as broken native code does."""

import ctypes

ctypes.string_at(0)
