"""What several test modules use.  Plain functions and classes, no fixtures."""

from __future__ import annotations

import threading
from collections.abc import Callable

__all__ = ["DEADLINE_SECONDS", "settles", "warm_grpc_up"]

DEADLINE_SECONDS = 60.0


def settles(condition: Callable[[], bool], seconds: float = DEADLINE_SECONDS) -> bool:
    """Wait until ``condition`` holds: for what another process or the kernel finishes by itself."""
    ticker = threading.Event()
    for _ in range(int(seconds / 0.01)):
        if condition():
            return True
        ticker.wait(0.01)
    return False


def warm_grpc_up() -> None:
    """Let gRPC open what it opens once in a process's life."""
    import grpc

    grpc.insecure_channel("127.0.0.1:1").close()
