"""A program: a member of a job on ``etcd-v2`` that does what it reads from its standard input."""

import ast
import sys

from quorate.errors import QuorateError
from quorate.rendezvous import RendezvousParameters
from quorate_rendezvous_etcd import plugin


def main(endpoint: str, run_id: str, *settings: str) -> None:
    (backend,) = (one for one in plugin.quorate_register_rendezvous() if one.name == "etcd-v2")
    assert backend.open_store is not None
    config = dict(setting.split("=", 1) for setting in settings)
    store = backend.open_store(RendezvousParameters("etcd-v2", endpoint, run_id, 1, 8, None, **config))
    print(("open", None), flush=True)
    for line in sys.stdin:
        name, arguments = ast.literal_eval(line)
        try:
            outcome: tuple[str, object] = "returned", getattr(store, name)(*arguments)
        except QuorateError as error:
            outcome = type(error).__name__, str(error)
        print(outcome, flush=True)
    store.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
