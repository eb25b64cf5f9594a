"""A store that needs the job's token: who is let in, who is not, and what both sides say."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from quorate.errors import RendezvousStateError, StoreLostError, StoreUnavailableError
from quorate_rendezvous_static import TcpStore, TcpStoreServer
from quorate_rendezvous_static._auth import NONCE_BYTES, Challenge, Role, new_nonce
from quorate_rendezvous_static._wire import (
    LENGTH_BYTES,
    MAGIC,
    PROTOCOL_VERSION,
    Code,
    FrameBuffer,
    Message,
    Problem,
    WireError,
    decode,
    encode,
)

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
DEADLINE_SECONDS = 30.0
protected = pytest.mark.server(key=KEY)


class Raw:
    """One connection on which a test writes whatever it likes."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), DEADLINE_SECONDS)
        self._frames = FrameBuffer()

    def send(self, *frames: bytes) -> None:
        self.socket.sendall(b"".join(frames))

    def read_body(self) -> bytes | None:
        """Return the body of the next frame; ``None`` if the server has closed the connection."""
        while (body := self._frames.next()) is None:
            try:
                data = self.socket.recv(65536)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self._frames.feed(data)
        return body

    def read(self) -> Message | None:
        body = self.read_body()
        return None if body is None else decode(body)

    def challenge(self, key: bytes) -> Challenge:
        """Say hello and take the server's challenge."""
        self.send(encode(Code.HELLO, 0, PROTOCOL_VERSION, [MAGIC, b"job"]))
        message = self.read()
        assert message is not None
        assert message.code == Code.CHALLENGE
        assert message.items[0] is not None
        return Challenge(key, b"job", message.items[0], new_nonce())


@pytest.fixture
def dial(server: TcpStoreServer) -> Iterator[Any]:
    """``dial()`` → Raw."""
    made: list[Raw] = []

    def make() -> Raw:
        made.append(Raw(server.port))
        return made[-1]

    yield make
    for raw in made:
        raw.socket.close()


@protected
def test_those_with_the_token_use_the_store_as_ever(connect: Any) -> None:
    one, two = connect(key=KEY), connect(key=KEY)
    one.put_many([(f"key/{index}", bytes([index]) * (1 << 20)) for index in range(3)])
    assert [len(value) for value in two.get(["key/0", "key/1", "key/2"])] == [1 << 20] * 3
    assert two.wait("absent", 0.05) is None
    assert one.create("made", b"1")
    assert not two.create("made", b"2")
    assert two.wait("made", DEADLINE_SECONDS) == b"1"
    assert [one.add("n", 2), two.add("n", 3)] == [2, 5]


@protected
@pytest.mark.parametrize(
    ("key", "its_words", "server_words"),
    [
        (None, "this node has none; set QUORATE_JOB_TOKEN_FILE", "has no job token; set QUORATE_JOB_TOKEN_FILE there"),
        (OTHER_KEY, "its job token is another one than this node's", "has another job token"),
    ],
    ids=["none", "another"],
)
def test_whoever_does_not_have_the_token_is_refused_at_once_and_both_sides_say_so(
    connect: Any, capsys: pytest.CaptureFixture[str], key: bytes | None, its_words: str, server_words: str
) -> None:
    member = connect(key=KEY)
    for _ in range(2):
        with pytest.raises(RendezvousStateError, match=its_words):
            connect(key=key)
    member.put("key", b"after")  # the server has handled what came before
    warning = capsys.readouterr().err
    assert "refuses 127.0.0.1" in warning
    assert warning.count(server_words) == 1


def test_a_node_with_a_token_does_not_use_a_store_without(connect: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RendezvousStateError, match="it has no job token, and this node has one"):
        connect(key=KEY)
    assert connect().get(["key"]) == [None]
    assert "127.0.0.1 has one and does not join" in capsys.readouterr().err


@protected
@pytest.mark.parametrize("role", list(Role))
def test_a_proof_is_good_for_one_connection_one_role_and_one_job(dial: Any, role: Role) -> None:
    good = dial().challenge(KEY)
    raw = dial()
    challenge = raw.challenge(KEY)
    forged = {
        Role.CLIENT: [good.client_nonce, good.proof(Role.CLIENT)],  # of another connection's challenge
        Role.SERVER: [challenge.client_nonce, challenge.proof(Role.SERVER)],  # reflected
    }[role]
    raw.send(encode(Code.PROVE, 0, 0, forged))
    answer = raw.read()
    assert (answer.code, answer.number) == (Code.PROBLEM, Problem.TOKEN)
    other_job = Challenge(KEY, b"job2", challenge.server_nonce, challenge.client_nonce)
    assert not challenge.is_proved(Role.CLIENT, other_job.proof(Role.CLIENT))


@protected
@pytest.mark.parametrize(
    "frames",
    [
        [encode(Code.GET, 1, 0, [b"key"])],
        [encode(Code.PUT, 1, 0, [b"key", b"forged"])],
        [encode(Code.PROVE, 1, 0, [bytes(NONCE_BYTES), bytes(32)]), encode(Code.PUT, 1, 0, [b"key", b"forged"])],
        [encode(Code.PROVE, 1, 0, [b"", b""]), encode(Code.PUT, 1, 0, [b"key", b"forged"])],
        [encode(Code.PROVE, 1, 0, [None, None])],
        [encode(Code.NO_TOKEN, 1)],
    ],
)
@pytest.mark.parametrize("says_hello", [True, False])
def test_nothing_is_read_or_written_before_the_proof(
    connect: Any, dial: Any, frames: list[bytes], says_hello: bool
) -> None:
    member = connect(key=KEY)
    member.put("key", b"secret")
    raw = dial()
    hello = [encode(Code.HELLO, 0, PROTOCOL_VERSION, [MAGIC, b"job"])] if says_hello else []
    with suppress(OSError):
        raw.send(*hello, *frames)
    while (body := raw.read_body()) is not None:
        assert b"secret" not in body
    assert member.get(["key"]) == [b"secret"]


class Between:
    """A listener that answers one client as the test says: somebody who poses as the host."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]

    def serve(self, answer: Any) -> None:
        sock, _ = self.listener.accept()
        frames = FrameBuffer()
        with sock, contextlib.suppress(ConnectionError):
            while data := sock.recv(65536):
                frames.feed(data)
                while (body := frames.next()) is not None:
                    sock.sendall(answer(decode(body)))


@pytest.mark.parametrize("says", ["wrong proof", "reflected proof", "no proof", "no challenge"])
def test_who_poses_as_the_host_is_found_out_before_a_key_is_asked_for(in_thread: Any, says: str) -> None:
    seen: list[int] = []

    def answer(message: Message) -> bytes:
        seen.append(message.code)
        if message.code == Code.HELLO and says != "no challenge":
            return encode(Code.CHALLENGE, 0, PROTOCOL_VERSION, [new_nonce()])
        proof = {"wrong proof": [bytes(32)], "reflected proof": message.items[1:], "no proof": [], "no challenge": []}
        return encode(Code.OK, 0, PROTOCOL_VERSION, [b"incarnation", *proof[says]])

    between = Between()
    with between.listener:
        serving = in_thread(lambda: between.serve(answer))
        with pytest.raises(RendezvousStateError, match=r"job token|job's token"):
            TcpStore("127.0.0.1", between.port, "job", connect_timeout=5.0, key=KEY)
        serving.result()
    assert not {Code.GET, Code.PUT, Code.ADD, Code.CREATE, Code.WAIT, Code.DELETE} & set(seen)


@protected
@pytest.mark.parametrize("how", ["changed", "repeated", "left out", "unsigned", "cut"])
def test_a_frame_that_was_tampered_with_ends_the_connection(connect: Any, dial: Any, how: str) -> None:
    member, raw = connect(key=KEY), dial()
    challenge = raw.challenge(KEY)
    raw.send(encode(Code.PROVE, 0, 0, [challenge.client_nonce, challenge.proof(Role.CLIENT)]))
    answer = raw.read()
    assert answer.code == Code.OK
    assert challenge.is_proved(Role.SERVER, answer.items[1], answer.items[0])
    session = challenge.session(Role.CLIENT)
    good = session.sign(encode(Code.PUT, 1, 0, [b"key", b"good"]))
    raw.send(good)
    assert raw.read_body() is not None
    bad = session.sign(encode(Code.PUT, 2, 0, [b"key", b"evil"]))
    following = session.sign(encode(Code.PUT, 3, 0, [b"key", b"evil"]))
    unsigned = encode(Code.PUT, 2, 0, [b"key", b"evil"])
    cut = bad[LENGTH_BYTES:-1]
    raw.send(
        {
            "changed": bad[:-20] + bytes([bad[-20] ^ 1]) + bad[-19:],
            "repeated": good,
            "left out": following,
            "unsigned": unsigned,
            "cut": len(cut).to_bytes(LENGTH_BYTES, "big") + cut,
        }[how]
    )
    assert raw.read_body() is None
    assert member.get(["key"]) == [b"good"]


def test_the_two_directions_have_different_keys() -> None:
    challenge = Challenge(KEY, b"job", new_nonce(), new_nonce())
    client, server = challenge.session(Role.CLIENT), challenge.session(Role.SERVER)
    frame = encode(Code.OK, 1)
    assert server.check(client.sign(frame)[LENGTH_BYTES:]) == frame[LENGTH_BYTES:]
    assert client.check(server.sign(frame)[LENGTH_BYTES:]) == frame[LENGTH_BYTES:]
    with pytest.raises(WireError):
        client.check(client.sign(frame)[LENGTH_BYTES:])


@protected
def test_a_wait_that_was_interrupted_does_not_break_the_signatures(connect: Any) -> None:
    store = connect(key=KEY)
    for _ in range(5):
        store.interrupt()
        assert store.wait("absent", DEADLINE_SECONDS) is None
    store.put("there", b"1")
    assert store.wait("there", DEADLINE_SECONDS) == b"1"


@protected
def test_an_earlier_version_of_the_protocol_is_refused_with_a_sentence_on_both_sides(
    connect: Any, dial: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = dial()
    raw.send(encode(Code.HELLO, 0, 1, [MAGIC, b"job"]))  # as version 1 said it
    answer = raw.read()
    assert (answer.code, answer.number) == (Code.PROBLEM, Problem.VERSION)
    assert answer.items == [b"it speaks version 3 of the store's protocol, this node 1"]
    assert "127.0.0.1, which speaks version 1 of the protocol, not 3" in capsys.readouterr().err


def test_a_server_of_an_earlier_version_is_named_as_one(in_thread: Any) -> None:
    def answer(message: Message) -> bytes:
        # As version 1 took a hello: two items, or it closed the connection without a word.
        assert len(message.items) == 2
        return encode(Code.PROBLEM, 0, Problem.VERSION, [b"it speaks version 1 of the store's protocol, this node 2"])

    between = Between()
    with between.listener:
        serving = in_thread(lambda: between.serve(answer))
        with pytest.raises(RendezvousStateError, match="it speaks version 1"):
            TcpStore("127.0.0.1", between.port, "job", connect_timeout=5.0, key=KEY)
        serving.result()


def test_another_host_at_the_same_address_does_not_get_the_jobs_writes(connect: Any, free_port: int) -> None:
    first = TcpStoreServer("127.0.0.1", free_port, "job", key=KEY)
    store = TcpStore("127.0.0.1", free_port, "job", operation_timeout=5.0, key=KEY)
    try:
        store.put("key", b"1")
        first.close(0.0)
        impostor = TcpStoreServer("127.0.0.1", free_port, "job")
        try:
            with pytest.raises((StoreLostError, StoreUnavailableError)):
                store.put("key", b"2")
            spy = TcpStore("127.0.0.1", free_port, "job")
            assert spy.get(["key"]) == [None]
            spy.close()
        finally:
            impostor.close(0.0)
    finally:
        store.close()
        first.close(0.0)
