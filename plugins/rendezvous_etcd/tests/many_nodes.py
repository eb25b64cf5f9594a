"""Many nodes of one job in one process, each with its own handler and store: ``BACKEND ENDPOINT RUN_ID HERE ALL``.

Prints the ranks that its nodes have got, and how the job has ended for them.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable

from quorate import PluginHost, RendezvousHandler, RendezvousParameters, get_rendezvous_handler
from quorate.rendezvous import Store
from quorate.rendezvous._last_word import LastWords

# Nobody dies here.  Heartbeats and refreshed leases of a thousand nodes in a handful of processes would only measure
# for how long those processes run, so none is due before they end.  The nodes also all say goodbye at once, which on
# as many machines would take no longer than on one.
_SETTINGS = {"lease_timeout": 1200.0, "member_ttl": 300.0, "join_timeout": 120.0}
_SETTINGS |= {"connect_timeout": 60.0, "operation_timeout": 20.0}
_SETTINGS |= {"close_timeout": 60.0}
#: Each node has a guardian, an interpreter of its own.  More of them than this take the two cores from the nodes: 480
#: nodes then need 67 s to join, and 8 s without, and who waits asks again meanwhile, which is counted.
_MOST_GUARDIANS = 20


def main() -> None:
    backend, endpoint, run_id = sys.argv[1:4]
    here, everywhere = int(sys.argv[4]), int(sys.argv[5])
    if everywhere > _MOST_GUARDIANS:
        LastWords.opened = _without_guardian  # type: ignore[assignment, method-assign] # see _MOST_GUARDIANS
    host = PluginHost()
    ranks: list[int] = []
    ends: list[str] = []
    problems: list[str] = []
    threading.stack_size(512 * 1024)
    # Hundreds of threads take turns on one interpreter's lock, each for less than a millisecond; to be asked for
    # it every 5 ms, in the midst of that, makes all of them twice as slow.
    sys.setswitchinterval(1.0)
    handlers: list[RendezvousHandler] = []
    for _ in range(here):
        parameters = RendezvousParameters(backend, endpoint, run_id, everywhere, everywhere, "127.0.0.1", **_SETTINGS)
        handlers.append(get_rendezvous_handler(parameters, host))

    def join(handler: RendezvousHandler) -> None:
        try:
            info = handler.next_rendezvous()
            assert info.world_size == everywhere
            ranks.append(info.rank)
        except Exception as error:
            problems.append(repr(error))

    def end(handler: RendezvousHandler) -> None:
        handler.report_done()
        round_end = handler.wait_for_change(60.0)
        ends.append(round_end.verdict.value if round_end is not None else "none")
        handler.shutdown()

    _for_each(join, handlers)
    print(*ranks, *problems, flush=True)
    sys.stdin.readline()
    _for_each(end, handlers)
    print(*sorted(set(ends)), flush=True)


def _without_guardian(words: LastWords, store: Store) -> None:
    """What stands in for ``LastWords.opened`` where there are too many nodes for one machine."""


def _for_each(act: Callable[[RendezvousHandler], None], handlers: list[RendezvousHandler]) -> None:
    threads = [threading.Thread(target=act, args=(handler,)) for handler in handlers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
