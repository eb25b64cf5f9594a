"""Rendezvous handlers of torch's interface in quorate: what third parties offer in the group ``torchrun.handlers``.

Such a handler knows who takes part, and no more: a round's end and its reason, the job-wide count of restarts and the
exit barrier are not told to other nodes.  They learn that a node waits, and start anew.
"""

from __future__ import annotations

from datetime import timedelta
from importlib import import_module
from typing import Any, final

from torch.distributed.elastic.rendezvous import RendezvousParameters as TorchParameters
from torch.distributed.elastic.rendezvous import RendezvousStoreInfo as TorchStoreInfo

import quorate
from quorate.clock import sleep
from quorate.records import RoundEnd

__all__ = ["open_handler"]


def open_handler(target: str, parameters: quorate.RendezvousParameters) -> quorate.RendezvousHandler:
    """Return the handler that the entry point ``target`` makes of ``parameters``.

    Raises:
        PluginError: it could not be loaded.
        UsageError: it refuses the parameters.
    """
    module, _, attribute = target.partition(":")
    try:
        create = getattr(import_module(module), attribute)()
    except Exception as error:
        raise quorate.PluginError(
            f"the handler {parameters.backend!r} ({target}) could not be loaded: {error}"
        ) from error
    try:
        theirs = create(
            TorchParameters(
                parameters.backend,
                parameters.endpoint,
                parameters.run_id,
                parameters.min_nodes,
                parameters.max_nodes,
                parameters.local_addr,
                **parameters.config,
            )
        )
    except ValueError as error:
        raise quorate.UsageError(f"the handler {parameters.backend!r} refuses its parameters: {error}") from error
    except Exception as error:
        raise _as_quorate_has_it(error) from error
    return _ForeignHandler(theirs)


def _as_quorate_has_it(error: Exception) -> Exception:
    """Return quorate's error for torch's; ``error`` itself for any other."""
    name = type(error).__name__
    if name == "RendezvousGracefulExitError":
        return quorate.RendezvousClosedError(str(error), succeeded=True)
    if name in ("RendezvousClosedError", "RendezvousTimeoutError", "RendezvousConnectionError", "RendezvousStateError"):
        same: Exception = getattr(quorate, name)(str(error) or name)
        return same
    return error


@final
class _RoundStore:
    """What of a round's store is used to exchange the nodes' sizes: the last part of a key is the node's rank."""

    def __init__(self, theirs: Any) -> None:
        self._theirs = theirs

    def put(self, key: str, value: bytes) -> None:
        self._theirs.set(_own_key(key), value)

    def wait(self, key: str, timeout: float) -> bytes | None:
        try:
            self._theirs.wait([_own_key(key)], timedelta(seconds=timeout))
        except Exception:
            return None
        value: bytes = self._theirs.get(_own_key(key))
        return value


def _own_key(key: str) -> str:
    return f"quorate/{key.rpartition('/')[2]}"


@final
class _ForeignHandler(quorate.RendezvousHandler):
    """One handler of torch's interface."""

    def __init__(self, theirs: Any) -> None:
        self._theirs = theirs

    def get_backend(self) -> str:
        return str(self._theirs.get_backend())

    def next_rendezvous(self) -> quorate.RendezvousInfo:
        try:
            info = self._theirs.next_rendezvous()
            where = info.bootstrap_store_info
            if where is None:
                where = TorchStoreInfo.build(info.rank, info.store)
        except Exception as error:
            same = _as_quorate_has_it(error)
            if same is error:
                raise
            raise same from error
        meeting = quorate.RendezvousStoreInfo(where.master_addr, where.master_port)
        store: Any = _RoundStore(info.store)
        return quorate.RendezvousInfo(store, info.rank, info.world_size, meeting)

    def wait_for_change(self, timeout: float) -> RoundEnd | None:
        sleep(min(timeout, 0.2))  # the interface tells nothing: the agent looks at the nodes that wait
        return None

    def is_closed(self) -> bool:
        return bool(self._theirs.is_closed())

    def set_closed(self) -> None:
        self._theirs.set_closed()

    def num_nodes_waiting(self) -> int:
        return int(self._theirs.num_nodes_waiting())

    def get_run_id(self) -> str:
        return str(self._theirs.get_run_id())

    @property
    def use_agent_store(self) -> bool:
        return bool(getattr(self._theirs, "use_agent_store", False))

    def shutdown(self) -> bool:
        return bool(self._theirs.shutdown())
