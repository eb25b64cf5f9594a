"""Keeps forks away from imports.

The server's libraries are imported on its own threads, so that the first worker does not wait for them.  A process that
is forked during an import inherits the module's lock and can never import that module.  What is imported does not live
here.
"""

from __future__ import annotations

import os
import threading

__all__ = ["import_lock"]

#: Held while this package imports something on a thread; a fork waits for it.
import_lock = threading.RLock()

os.register_at_fork(before=import_lock.acquire, after_in_parent=import_lock.release, after_in_child=import_lock.release)
