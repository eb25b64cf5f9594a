"""Waits for something that never comes, as a collective does when a rank takes another path."""

import threading

threading.Event().wait()
