"""What is said of jobs without a token, and of nodes that use another token or none."""

from __future__ import annotations

import pytest

from quorate import PluginHost, UsageError
from quorate.backends import get_rendezvous_handler
from quorate.catalogue import PluginKind
from quorate.errors import PluginError
from quorate.job_token import JobToken
from quorate.rendezvous import InMemoryStore, RendezvousBackend, RendezvousHandler, RendezvousParameters
from quorate.rendezvous._protocol import Key, Phase
from quorate.rendezvous._strangers import StrangerWatch

TOKEN, OTHER = JobToken(b"0123456789abcdef"), JobToken(b"fedcba9876543210")


class Host(PluginHost):
    """Offers one backend, which is never opened."""

    def __init__(self, backend: RendezvousBackend) -> None:
        super().__init__(paths=[], disabled=())
        self._backend = backend

    def choose(self, kind: PluginKind, name: str) -> RendezvousBackend:
        return self._backend


def no_handler(parameters: RendezvousParameters) -> RendezvousHandler:
    raise AssertionError(f"opened for {parameters}")


STORE = RendezvousBackend("tcp", "for tests", open_store=lambda parameters: InMemoryStore())
HANDLER = RendezvousBackend("own", "for tests", open_handler=no_handler)


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("QUORATE_JOB_TOKEN", "QUORATE_JOB_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)


def get(endpoint: str, max_nodes: int = 2, backend: RendezvousBackend = STORE, **settings: str) -> None:
    get_rendezvous_handler(RendezvousParameters("tcp", endpoint, "job", 1, max_nodes, **settings), Host(backend))


@pytest.mark.parametrize(
    "endpoint",
    [
        "node1:29400",
        "10.0.0.1:29400",
        "[2001:db8::1]:29400",
        "https://etcd1:2379",
        "localhost:2379,etcd2:2379",
        "node1",
    ],
)
def test_several_nodes_that_others_can_reach_are_warned_in_one_line(
    endpoint: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    get(endpoint)
    (line,) = capsys.readouterr().err.splitlines()
    assert "this job has no job token" in line
    assert "QUORATE_JOB_TOKEN_FILE" in line
    get(endpoint, auth="off")
    monkeypatch.setenv("QUORATE_JOB_TOKEN", "0123456789abcdef")
    get(endpoint)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "endpoint", ["localhost:29400", "127.0.0.1:29400", "[::1]:29400", "http://localhost:2379", "/a/b", ""]
)
def test_there_is_no_warning_where_no_other_machine_can_come(endpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    get(endpoint)
    get("node1:29400", max_nodes=1)
    assert capsys.readouterr().err == ""


def test_a_backend_that_cannot_be_signed_is_refused_where_a_token_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUORATE_JOB_TOKEN", "0123456789abcdef")
    with pytest.raises(UsageError, match="'own' opens no store that could be signed"):
        get("node1:29400", backend=HANDLER, auth="required")
    with pytest.raises(PluginError, match="opened"):
        get("node1:29400", backend=HANDLER)
    with pytest.raises(PluginError, match="opened"):
        get("", max_nodes=1, backend=HANDLER, auth="required")


# --- nodes that use another token, or none ----------------------------------------------------------------------------


class Node:
    """One node's watch on a store; time passes when told to."""

    def __init__(self, store: InMemoryStore, token: JobToken | None) -> None:
        self.now, self.reports = 0.0, list[str]()
        self._store = store
        self._watch = StrangerWatch("job", token, self.reports.append, lambda: self.now)

    def look(self, phase: Phase = Phase.GATHERING, round_number: int = 0) -> list[str]:
        """Let some seconds pass, look once, and return what was reported since the last time."""
        self._watch.look(self._store, phase, round_number)
        self.now += 6.0
        reports, self.reports[:] = list(self.reports), []
        return reports


def test_nodes_with_one_token_report_nothing() -> None:
    store = InMemoryStore()
    nodes = [Node(store, TOKEN) for _ in range(3)]
    assert [node.look() for _ in range(2) for node in nodes] == [[]] * 6


@pytest.mark.parametrize("first_has_one", [True, False])
def test_a_node_with_a_token_and_one_without_both_say_so_once(first_has_one: bool) -> None:
    store = InMemoryStore()
    protected, plain = Node(store, TOKEN), Node(store, None)
    order = [protected, plain] if first_has_one else [plain, protected]
    store.create(Key.node(0, 1), b"the record of the node without")
    seen = [report for _ in range(3) for node in order for report in node.look()]
    assert len(seen) == 2
    assert any("this node has none" in report for report in seen)
    assert any(f"{Key.node(0, 1)!r}" in report and "is ignored" in report for report in seen)


def test_nodes_with_two_tokens_both_say_so_once() -> None:
    store = InMemoryStore()
    one, two = Node(store, TOKEN), Node(store, OTHER)
    assert one.look() == []
    reports = [one.look(), two.look(), one.look(), two.look(), one.look()]
    assert [len(each) for each in reports] == [0, 1, 1, 0, 0]
    assert all("another job token" in report for each in reports for report in each)


@pytest.mark.parametrize("mark", [b"", b"x" * 10_000, b"\xff\x00", b"0" * 16])
def test_a_forged_mark_is_a_warning_and_nothing_else(mark: bytes) -> None:
    store = InMemoryStore()
    store.create("auth", mark)
    assert len(Node(store, None).look()) == 1
    assert len(Node(store, TOKEN).look()) == 1


def test_a_mark_tells_nothing_about_the_token() -> None:
    store = InMemoryStore()
    Node(store, TOKEN).look()
    (mark,) = store.get(["auth"])
    assert mark is not None
    assert len(mark) == 16
    assert mark.decode() not in TOKEN.key("job", "store").hex()


def test_a_running_node_looks_at_its_own_round_too() -> None:
    store = InMemoryStore()
    node = Node(store, TOKEN)
    assert node.look() == []
    store.create(Key.ended(5), b"forged")
    assert node.look(Phase.RUNNING, 4) == []
    (report,) = node.look(Phase.RUNNING, 5)
    assert "'5/ended'" in report
    assert node.look(Phase.CLOSED, 5) == []
