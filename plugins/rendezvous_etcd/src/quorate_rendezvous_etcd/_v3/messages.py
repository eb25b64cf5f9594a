"""The messages of etcd's API v3, read from the installed package ``etcd3``.

``etcd3`` serves for the message definitions, and for nothing else.  An old protobuf compiler has written its code.
Protobuf 4 and newer refuse to run that code, and it registers files such as ``kv.proto`` in the one descriptor pool of
the process, where they clash with other packages' files.  So the code is not run.  The serialized descriptors in it are
constants; they are read as text and make message classes in a private pool, with any protobuf.

What does not live here: sending messages (:mod:`.client`).
"""

from __future__ import annotations

import ast
import os
import re
from contextlib import suppress
from importlib.util import find_spec
from typing import Any, final

from google.protobuf import (  # type: ignore[import-untyped] # the package has no types
    descriptor_pb2,
    descriptor_pool,
    message_factory,
)

from quorate.errors import UsageError
from quorate.import_lock import import_lock

# Each file stands after those that it imports.
_FILES = ("kv", "auth", "rpc")
_PACKAGE = "etcdserverpb"
#: What the constant stands behind.
_MARKS = ("serialized_pb=", "AddSerializedFile(")
_NEXT_STATEMENT = re.compile(r"\n(?=[^\s)\]}])")
_REMEDY = "pip install --force-reinstall 'etcd3>=0.12,<0.13'"


@final
class Messages:
    """The message classes as attributes: ``messages.TxnRequest(...)``.  Each is made when it is first used."""

    def __init__(self, pool: descriptor_pool.DescriptorPool) -> None:
        self._pool = pool

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        descriptor = self._pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")
        if hasattr(message_factory, "GetMessageClass"):
            made = message_factory.GetMessageClass(descriptor)
        else:  # before protobuf 4.22
            made = message_factory.MessageFactory(self._pool).GetPrototype(descriptor)
        setattr(self, name, made)
        return made


_messages: Messages | None = None


def load_messages() -> Messages:
    """Return the messages; the first call makes them (a few milliseconds).

    Raises:
        UsageError: the package ``etcd3`` is missing, or another package has its name.
    """
    global _messages
    with import_lock:
        if _messages is None:
            _messages = _load()
    return _messages


def _load() -> Messages:
    folder = _find_folder()
    pool = descriptor_pool.DescriptorPool()
    for name in _FILES:
        definition = _read_descriptor(os.path.join(folder, f"{name}_pb2.py"))
        file = descriptor_pb2.FileDescriptorProto.FromString(definition)
        if name == "rpc":
            _add_learners(file)
        pool.Add(file)
    return Messages(pool)


def _add_learners(file: Any) -> None:
    """Add what etcd 3.4 added to its API (rpc.proto): members without a vote, and their promotion."""
    kinds = descriptor_pb2.FieldDescriptorProto
    messages = {message.name: message for message in file.message_type}

    def add(message: Any, name: str, number: int, kind: int, type_name: str | None = None) -> None:
        if all(field.name != name for field in message.field):
            repeated = kinds.LABEL_REPEATED if name == "members" else kinds.LABEL_OPTIONAL
            message.field.add(name=name, number=number, type=kind, label=repeated, type_name=type_name)

    add(messages["Member"], "isLearner", 5, kinds.TYPE_BOOL)
    add(messages["MemberAddRequest"], "isLearner", 2, kinds.TYPE_BOOL)
    if "MemberPromoteRequest" not in messages:
        add(file.message_type.add(name="MemberPromoteRequest"), "ID", 1, kinds.TYPE_UINT64)
        answer = file.message_type.add(name="MemberPromoteResponse")
        add(answer, "header", 1, kinds.TYPE_MESSAGE, f".{_PACKAGE}.ResponseHeader")
        add(answer, "members", 2, kinds.TYPE_MESSAGE, f".{_PACKAGE}.Member")


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
    """Return the serialized descriptor in a file that the protobuf compiler has written."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
        constant = None
        with suppress(SyntaxError, ValueError):  # for example, the words stand in a comment before
            constant = _constant_of(_statement_with_it(text), path)
        constant = constant or _constant_of(text, path)
    except (OSError, SyntaxError, ValueError) as error:
        raise UsageError(f"the package etcd3 cannot be read ({error}); {_REMEDY}") from None
    if constant is None:
        raise UsageError(f"{path} holds no message definitions; {_REMEDY}")
    # Compilers that also served Python 2 wrote text in the place of bytes.
    return constant if isinstance(constant, bytes) else constant.encode("latin-1")


def _statement_with_it(text: str) -> str:
    """Return the statement that the constant stands in: to parse the whole file takes 50 ms."""
    place = next((place for mark in _MARKS if (place := text.find(mark)) >= 0), 0)
    begin = text.rfind("\n", 0, place) + 1
    while begin > 0 and text[begin].isspace():
        begin = text.rfind("\n", 0, begin - 1) + 1
    end = next((found.start() for found in _NEXT_STATEMENT.finditer(text, place)), len(text))
    return text[begin:end]


def _constant_of(source: str, path: str) -> bytes | str | None:
    """Return the constant in ``source``; ``None`` if it is not there.  Raises SyntaxError, ValueError."""
    constants = map(_constant_in, ast.walk(ast.parse(source, path)))
    return next((constant for constant in constants if constant is not None), None)


def _constant_in(node: ast.AST) -> bytes | str | None:
    """Return the argument of ``serialized_pb=…`` or ``AddSerializedFile(…)``; it may stand inside another call."""
    argument: ast.AST | None = None
    if isinstance(node, ast.keyword) and node.arg == "serialized_pb":
        argument = node.value
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "AddSerializedFile":
        argument = node.args[0] if node.args else None
    if isinstance(argument, ast.Call) and len(argument.args) == 1:
        argument = argument.args[0]
    value = argument.value if isinstance(argument, ast.Constant) else None
    return value if isinstance(value, (bytes, str)) else None
