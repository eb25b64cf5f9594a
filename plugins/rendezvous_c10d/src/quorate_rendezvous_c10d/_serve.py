"""``python -m quorate_rendezvous_c10d._serve PORT``: serves one round's TCPStore until standard input ends.

The agent holds the other end of the pipe there, so the store ends with it.
"""

from __future__ import annotations

import os
import sys

from quorate.notices import warn


def main(port: int) -> int:
    """Serve until the agent ends."""
    try:
        from torch.distributed import TCPStore  # heavy, and may be missing

        store = TCPStore("localhost", port, is_master=True, wait_for_workers=False)
    except (ImportError, RuntimeError) as error:
        warn(f"the workers' store at port {port} cannot be served: {str(error).splitlines()[0]}")
        return 1
    while os.read(0, 4096):
        pass
    del store
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
