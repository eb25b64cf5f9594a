"""One member of a store, as a process: carries out the lines it reads, and answers each with a line.

The tests run it with ``python c10d_member.py ENDPOINT RUN_ID [SETTING=VALUE ...]``; both sides speak Python literals.
"""

from __future__ import annotations

import ast
import sys
from typing import Any

from quorate.rendezvous import RendezvousParameters
from quorate_rendezvous_c10d import plugin


def main() -> None:
    """Open the store and serve until ``close`` or the end of standard input."""
    endpoint, run_id, *settings = sys.argv[1:]
    (backend,) = plugin.quorate_register_rendezvous()
    assert backend.open_store is not None
    config: dict[str, Any] = dict(setting.split("=", 1) for setting in settings)
    store: Any = backend.open_store(RendezvousParameters("c10d", endpoint, run_id, 1, 8, **config))
    print(repr(("open", store.is_host)), flush=True)
    for line in sys.stdin:
        name, arguments = ast.literal_eval(line)
        try:
            answer = ("returned", getattr(store, name)(*arguments))
        except Exception as error:
            answer = (type(error).__name__, str(error))
        print(repr(answer), flush=True)
        if name == "close":
            return


if __name__ == "__main__":
    main()
