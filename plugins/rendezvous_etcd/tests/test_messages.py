"""Nothing is imported before it is needed, nobody else's protobuf is touched, and impostors are refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from quorate.errors import UsageError
from quorate_rendezvous_etcd._v3 import messages as messages_module

from .etcd_harness import DEADLINE_SECONDS


def _run(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=DEADLINE_SECONDS
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def test_nothing_is_imported_before_the_store_is_opened() -> None:
    script = """
import sys
from quorate import PluginHost, RendezvousParameters, get_rendezvous_handler
host = PluginHost()
get_rendezvous_handler(RendezvousParameters("etcd", "127.0.0.1:1", "job", 1, 1), host)
print(*sorted({"grpc", "google.protobuf", "etcd3", "etcd", "tenacity", "torch"} & set(sys.modules)))
"""
    assert _run(script) == ""


def test_the_processs_own_protobuf_is_left_alone(tmp_path: Path) -> None:
    """Another package's ``kv.proto``, imported before or after, does not clash with etcd's."""
    script = """
import sys
from google.protobuf import descriptor_pb2, descriptor_pool
def register_another():
    file = descriptor_pb2.FileDescriptorProto(name="kv.proto", package="mvccpb")
    file.message_type.add(name="KeyValue")
    descriptor_pool.Default().Add(file)
from quorate_rendezvous_etcd._v3.messages import load_messages
if sys.argv[1] == "before":
    register_another()
messages = load_messages()
if sys.argv[1] == "after":
    register_another()
assert messages.RangeRequest(key=b"k").SerializeToString() == b"\\x0a\\x01k"
assert not any(name == "etcd3" or name.startswith("etcd3.") for name in sys.modules)
assert load_messages() is messages
"""
    for when in ("before", "after"):
        assert _run(script, when) == ""


def test_descriptors_are_read_however_the_compiler_wrapped_them(tmp_path: Path) -> None:
    for text in (
        "D = make(name='x', serialized_pb=_b('\\n\\x01\\xff'))",
        "D = make(name='x', serialized_pb=b'\\n\\x01\\xff')",
        "D = pool.Default().AddSerializedFile(b'\\n\\x01\\xff')",
        "# not the one in serialized_pb=here\nD = make(\n  serialized_pb=_b('\\n\\x01\\xff'),\n  more=[1,\n])\nX = 1",
        "D = make(\n  serialized_pb=_b('\\n\\x01\\xff'),\n  more=[1,\n])\nwhat follows is not even parsed",
    ):
        path = tmp_path / "rpc_pb2.py"
        path.write_text(text)
        assert messages_module._read_descriptor(str(path)) == b"\n\x01\xff"
    for text in ("x = 1", "not python at all"):
        path.write_text(text)
        with pytest.raises(UsageError, match="etcd3"):
            messages_module._read_descriptor(str(path))


def test_a_package_of_the_same_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "etcd3"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('it must not be run')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(messages_module, "_messages", None)
    with pytest.raises(UsageError, match=r"pip uninstall etcd3-py"):
        messages_module.load_messages()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages_module, "_messages", None)
    monkeypatch.setattr(messages_module, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="needs the package etcd3; pip install"):
        messages_module.load_messages()
