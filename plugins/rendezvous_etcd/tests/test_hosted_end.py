"""The end of a job with its own etcd, for a node that was away as the others ended."""

from __future__ import annotations

from typing import Any

import pytest

from quorate.errors import StoreLostError, StoreUnavailableError
from quorate.rendezvous import Store
from quorate.testing import settles
from quorate_rendezvous_etcd._hosted.member import HostedMember

from .etcd_harness import InThread
from .test_hosted import Cluster, cluster

__all__ = ["cluster"]


def raises_lost(store: Store) -> bool:
    try:
        store.add("count", 1)
    except StoreLostError:
        return True
    except StoreUnavailableError:
        pass
    return False


@pytest.mark.parametrize("runs_a_member", [True, False])
def test_a_node_that_is_left_over_learns_that_the_others_have_ended(cluster: Cluster, runs_a_member: bool) -> None:
    """Instead of waiting for ``store_outage_timeout``: nobody listens at the other names, and they can be reached."""
    cluster.settings |= {"member_lost_timeout": 1, "operation_timeout": 1}
    stores = cluster.open_all()
    left_over = cluster.stores.pop(2) if runs_a_member else cluster.open(None)
    assert left_over.is_host is runs_a_member
    assert stores[0].add("count", 1) == 1
    for thread in [InThread(cluster.vanish, index) for index in list(cluster.stores)]:
        thread.result()
    assert settles(lambda: raises_lost(left_over))
    left_over.close()


def test_a_node_that_joins_as_the_job_ends_learns_it(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has heard of the cluster, which ends before it takes this node's member back."""
    cluster.settings |= {"member_lost_timeout": 1, "operation_timeout": 1}
    cluster.open_all()
    for thread in [InThread(cluster.vanish, index) for index in (1, 2)]:
        thread.result()
    made: list[HostedMember] = []

    def make(*arguments: Any) -> HostedMember:
        made.append(HostedMember(*arguments))
        return made[-1]

    monkeypatch.setattr("quorate_rendezvous_etcd._hosted.store.HostedMember", make)
    joining = InThread(cluster.open, 2)
    assert settles(lambda: made and made[0].has_met)
    cluster.vanish(0)
    with pytest.raises(StoreLostError, match=r"have ended: for 1 s nothing has listened at 127\.0\.0\.1:"):
        joining.result()
