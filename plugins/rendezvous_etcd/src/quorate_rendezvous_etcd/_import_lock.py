"""The lock that keeps forks and imports apart.

A process that is forked during an import gets a module lock that is never released.  The child would hang as soon as
it imports the same module.  So every import of a backend takes this lock, and a fork waits for it.
"""

from __future__ import annotations

import logging  # noqa: F401 - registered for forks before the lock: a fork that waits for an import must not hold its lock
import os
import threading

__all__ = ["import_lock"]

import_lock = threading.RLock()

os.register_at_fork(before=import_lock.acquire, after_in_parent=import_lock.release, after_in_child=import_lock.release)
