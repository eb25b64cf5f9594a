"""The lock that keeps forks and imports on other threads apart.

A process that is forked while another thread imports a module has a copy of that module's lock, which nothing there
releases: it would hang as soon as it imports the module.  So a plugin that imports on a thread holds this lock, for
which a fork waits.

Import this module on the thread that forks, before the first thread imports anything.  It imports :mod:`logging`, whose
own lock a fork takes, too.  Locks are taken in the reverse of the order in which their modules were imported: a fork
that waits for this lock must not have that one yet, since imported modules ask for loggers.
"""

from __future__ import annotations

import logging  # noqa: F401 - see above
import os
import threading

__all__ = ["import_lock"]

#: Can be taken again by the thread that has it, and is free in a forked child.
import_lock = threading.RLock()

os.register_at_fork(before=import_lock.acquire, after_in_parent=import_lock.release, after_in_child=import_lock.release)
