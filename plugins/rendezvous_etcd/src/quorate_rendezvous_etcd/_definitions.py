"""The messages of etcd's API v3, read from the installed package ``etcd3``, in a descriptor pool of their own.

``etcd3`` carries code that an old protobuf compiler has written: protobuf 4 and newer refuse to run it, and its files
are registered in the one pool of the process, where other packages' ``kv.proto`` clash with it.  So that code is not
run.  The serialized descriptors in it, which are constants, are read as text and make message classes in a private
pool, with any protobuf, and nobody else in the process sees them.  What does not live here: talking
(:mod:`._transport`).
"""

from __future__ import annotations

import ast
import os
from importlib import import_module
from importlib.util import find_spec
from typing import Any, final

from quorate.errors import UsageError

from ._fork import importing

__all__ = ["Messages", "load_messages"]

# Each after those that it imports.
_FILES = ("kv", "auth", "rpc")
_PACKAGE = "etcdserverpb"
_REMEDY = "pip install --force-reinstall 'etcd3>=0.12,<0.13'"


@final
class Messages:
    """The message classes as attributes: ``messages.TxnRequest(...)``.  Each is made when it is first asked for."""

    def __init__(self, pool: Any, factory: Any) -> None:
        self._pool, self._factory = pool, factory

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        descriptor = self._pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")
        factory = self._factory
        if hasattr(factory, "GetMessageClass"):
            made = factory.GetMessageClass(descriptor)
        else:  # before protobuf 4.22
            made = factory.MessageFactory(self._pool).GetPrototype(descriptor)
        setattr(self, name, made)
        return made


_messages: Messages | None = None


def load_messages() -> Messages:
    """Return the messages, made at the first call (some 30 ms; the one cache of them).

    Raises:
        UsageError: the package ``etcd3`` is missing, or another one has its name.
    """
    global _messages
    with importing:
        if _messages is None:
            _messages = _load()
    return _messages


def _load() -> Messages:
    folder = _find_folder()
    descriptor_pb2 = import_module("google.protobuf.descriptor_pb2")
    pool = import_module("google.protobuf.descriptor_pool").DescriptorPool()
    for name in _FILES:
        definition = _read_descriptor(os.path.join(folder, f"{name}_pb2.py"))
        pool.Add(descriptor_pb2.FileDescriptorProto.FromString(definition))
    return Messages(pool, import_module("google.protobuf.message_factory"))


def _find_folder() -> str:
    spec = find_spec("etcd3")
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    if not places:
        raise UsageError(f"the rendezvous backend 'etcd' needs the package etcd3; {_REMEDY}")
    folder = os.path.join(places[0], "etcdrpc")
    if not os.path.isfile(os.path.join(folder, "rpc_pb2.py")):
        raise UsageError(
            f"the package etcd3 at {places[0]} is not the one that the rendezvous backend 'etcd' needs (etcd3-py "
            f"installs another one under the same name); pip uninstall etcd3-py, then {_REMEDY}"
        )
    return folder


def _read_descriptor(path: str) -> bytes:
    """Return the serialized descriptor that stands in a file which the protobuf compiler has written."""
    try:
        with open(path, encoding="utf-8") as file:
            tree = ast.parse(file.read(), path)
    except (OSError, SyntaxError, ValueError) as error:
        raise UsageError(f"the package etcd3 cannot be read ({error}); {_REMEDY}") from None
    for node in ast.walk(tree):
        constant = _constant_in(node)
        if constant is not None:
            # Compilers that also served Python 2 wrote text that stands for bytes.
            return constant if isinstance(constant, bytes) else constant.encode("latin-1")
    raise UsageError(f"{path} holds no message definitions; {_REMEDY}")


def _constant_in(node: ast.AST) -> bytes | str | None:
    """Return the argument of ``serialized_pb=…`` or ``AddSerializedFile(…)``, in a call of its own or not."""
    argument: ast.AST | None = None
    if isinstance(node, ast.keyword) and node.arg == "serialized_pb":
        argument = node.value
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "AddSerializedFile":
        argument = node.args[0] if node.args else None
    if isinstance(argument, ast.Call) and len(argument.args) == 1:
        argument = argument.args[0]
    value = argument.value if isinstance(argument, ast.Constant) else None
    return value if isinstance(value, (bytes, str)) else None
