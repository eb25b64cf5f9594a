"""Keeps a fork away from an import that is under way.

The server's libraries are loaded on its own threads, so that the first worker does not wait for them.  A process that
is forked in the midst of an import gets a module lock that nobody will ever release: the child would hang as soon as it
imported the same module.  What is imported does not live here.
"""

from __future__ import annotations

import os
import threading

__all__ = ["importing"]

#: Held while this package imports something; a fork waits for it.
importing = threading.RLock()

os.register_at_fork(before=importing.acquire, after_in_parent=importing.release, after_in_child=importing.release)
