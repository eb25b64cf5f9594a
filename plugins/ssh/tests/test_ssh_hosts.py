"""Lists and files of hosts, the rule for variables, and what is sent to each host.  No connections."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from quorate import UsageError
from quorate.catalogue import RunRequest
from quorate_ssh._hosts import Host, parse_hostfile, parse_hosts
from quorate_ssh._plan import make_plan
from quorate_ssh._variables import chosen_variables


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("a", [Host("a")]),
        ("a,b:8,c", [Host("a"), Host("b", 8), Host("c")]),
        (" me@a:2 , b ", [Host("me@a", 2), Host("b")]),
        ("[fd00::1]:4,fd00::2", [Host("fd00::1", 4), Host("fd00::2")]),
        ("n1.site", [Host("n1.site")]),
        ("site\\me@a,fe80::1%eth0,[::1]", [Host("site\\me@a"), Host("fe80::1%eth0"), Host("::1")]),
    ],
)
def test_hosts_of_a_flag(text: str, hosts: list[Host]) -> None:
    assert parse_hosts(text) == hosts


@pytest.mark.parametrize(
    "text",
    ["", ",", "a,a", "a:0", "a:x", "a:", "-oProxyCommand=x", "me@-l", "a b", "[::1", "a\x1b"]
    + ["a;b", "$(a)", "`a`", "a'", "a/b", "ssh://a", "a:22:8", "@a", "n[1-3,7]", "+n0"]
    + ["ssh://me@a:22", "[a]:2", "[::1]:", "[::1]x"],
)
def test_what_is_not_a_list_of_hosts_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_hosts(text)


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("# DeepSpeed\nworker-1 slots=4\nworker-2 slots=8\n", [Host("worker-1", 4), Host("worker-2", 8)]),
        ("a slots=2 max_slots=4\nb\n", [Host("a", 2), Host("b")]),
        ("a:2\nb:3 # MPICH\n", [Host("a", 2), Host("b", 3)]),
        ("a\na\nb\n", [Host("a", 2), Host("b")]),
        ("a slots=2\nb\na slots=1\n", [Host("a", 3), Host("b")]),
        ("a\tslots = 2\n\n", [Host("a", 2)]),
        ("a slots=2\r\nb\r\n", [Host("a", 2), Host("b")]),
    ],
)
def test_hosts_of_a_file(text: str, hosts: list[Host]) -> None:
    assert parse_hostfile(text, "hosts") == hosts


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "hosts names no host"),
        ("a\nb slots=x\n", "hosts, line 2: 'slots=x' is not understood"),
        ("a slots=9999999\n", "line 1: 'slots=9999999' is not understood"),
        ("a:1000000\n", "line 1: 'a:1000000' is not a host"),
        ("a slots=0\n", "line 1: a host needs at least one slot"),
        ("a b\n", "line 1: 'b' is not understood"),
        ("-x\n", "line 1: '-x' is not a host"),
        ("a,b\n", "line 1: 'a,b' is not a host"),
        ("n[1-3] slots=8\n", "scontrol show hostnames"),
        ("[workers]\na\n", r"line 1: '\[workers\]' is not a host"),
    ],
)
def test_a_wrong_line_is_named(text: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        parse_hostfile(text, "hosts")


def test_a_file_of_a_windows_editor(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_bytes(b"\xef\xbb\xbfa slots=2\r\nb slots=2\r\n")
    plan = make_plan(RunRequest({"hostfile": str(path)}, "train.py"), {})
    assert plan.hosts == (Host("a", 2), Host("b", 2))


def test_a_fifo_that_no_program_writes_to_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    os.mkfifo(path)
    with pytest.raises(UsageError, match="names no host"):
        make_plan(RunRequest({"hostfile": str(path)}, "train.py"), {})


def test_the_output_of_a_command_is_read_to_its_end(tmp_path: Path) -> None:
    program = (
        "from quorate.catalogue import RunRequest; from quorate_ssh._plan import make_plan; import sys;"
        "print(len(make_plan(RunRequest({'hostfile': sys.argv[1]}, 'train.py'), {}).hosts))"
    )
    # The second line comes later than the first one is read.
    line = 'exec "$0" -c "$1" <(echo a; sleep 0.3; echo b)'
    done = subprocess.run(["bash", "-c", line, sys.executable, program], capture_output=True, text=True, timeout=60)
    assert done.stdout == "2\n", done.stderr


@given(st.text(alphabet="ab1:@[], #=\tslots\n-", max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    for parse in (parse_hosts, lambda text: parse_hostfile(text, "f")):
        try:
            hosts = parse(text)
        except UsageError:
            continue
        assert hosts
        assert all(host.name and not host.name.startswith("-") for host in hosts)


# --- variables --------------------------------------------------------------------------------------------------------

HERE = {
    "PATH": "/bin",
    "NCCL_DEBUG": "INFO",
    "AWS_SECRET_ACCESS_KEY": "x",
    "HOME": "/home/me",
    "SSH_AUTH_SOCK": "/tmp/agent",
    "SLURM_JOB_ID": "1",
    "PET_HOSTS": "a,b",
    "RANK": "0",
    "TORCHELASTIC_RUN_ID": "x",
    "QUORATE_LOG": "debug",
    "QUORATE_JOB_TOKEN_FILE": "/t",
    "QUORATE_ROUND": "1",
}
PASSED = {"PATH", "NCCL_DEBUG", "AWS_SECRET_ACCESS_KEY", "QUORATE_LOG", "QUORATE_JOB_TOKEN_FILE"}


@pytest.mark.parametrize(
    ("rule", "names"),
    [
        ("all", PASSED),
        ("", PASSED),
        ("-AWS_*", PASSED - {"AWS_SECRET_ACCESS_KEY"}),
        ("NCCL_*", {"NCCL_DEBUG"}),
        ("all,HOME", PASSED | {"HOME"}),
        ("NCCL_*,PATH,-P*", {"NCCL_DEBUG"}),
    ],
)
def test_which_variables_are_passed_on(rule: str, names: set[str]) -> None:
    assert set(chosen_variables(HERE, rule)) == names


# --- what is sent -----------------------------------------------------------------------------------------------------


def test_each_host_gets_its_own_part_of_the_command() -> None:
    request = RunRequest(
        {"hosts": "a,b:8", "max-restarts": "3", "rdzv-conf": "lease_timeout=2"}, "train.py", ("--lr", "1")
    )
    plan = make_plan(request, {"NCCL_DEBUG": "INFO"})
    hello = {"address": "10.0.0.1", "port": 4000}
    endpoint = plan.endpoint_at(plan.hosts[0], hello, [{"address": "10.0.0.2"}])
    assert endpoint == "10.0.0.1:4000"
    first, second = (plan.start(at, hello, endpoint, "secret", is_first=at == 0) for at in range(2))
    words = set(first["arguments"])
    assert {
        "--nnodes=2",
        "--node-rank=0",
        "--rdzv-backend=tcp",
        f"--rdzv-endpoint={endpoint}",
        "--cluster=none",
    } <= words
    assert {"--max-restarts=3", "--rdzv-conf=is_host=1,lease_timeout=2", "--local-addr=10.0.0.1"} <= words
    assert first["arguments"][-4:] == ["--", "train.py", "--lr", "1"]
    assert not any("hosts" in word or "secret" in word for word in first["arguments"])
    assert {"--nproc-per-node=8", "--node-rank=1", "--rdzv-conf=is_host=0,lease_timeout=2"} <= set(second["arguments"])
    assert second["environment"]["NCCL_DEBUG"] == "INFO"
    assert second["environment"]["QUORATE_JOB_TOKEN"] == "secret"
    assert second["environment"]["TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE"] == "[b ${rank}] "


def test_a_place_of_the_users_is_kept() -> None:
    for own in ({"rdzv-endpoint": "h:1"}, {"rdzv-backend": "etcd", "rdzv-endpoint": "e:2379"}, {"master-addr": "h"}):
        plan = make_plan(RunRequest({"hosts": "a,b", **own}, "train.py"), {})
        assert not plan.chooses_endpoint
        words = plan.start(0, {"address": "10.0.0.1"}, "", "", is_first=True)["arguments"]
        assert {f"--{name}={text}" for name, text in own.items()} <= set(words)
        assert not any(word.startswith("--rdzv-conf") for word in words)


def test_a_host_that_only_this_machine_reaches_cannot_be_the_place() -> None:
    plan = make_plan(RunRequest({"hosts": "localhost,b"}, "train.py"), {})
    with pytest.raises(UsageError, match="--rdzv-endpoint=HOST:PORT"):
        plan.endpoint_at(plan.hosts[0], {"address": "::1"}, [{"address": "10.0.0.2"}])
