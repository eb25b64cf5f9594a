"""What an operator sees in an etcd: keys, leases and members, read over HTTP by none of the code under test."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from typing import Any

from .harness import DEADLINE

__all__ = ["keys_of", "leases_of", "members_of"]


def keys_of(backend: str, endpoint: str, run_id: str) -> list[str]:
    """Return all keys of the job ``run_id``, over the API of ``backend``; of API v2 empty directories, too."""
    address = endpoint.partition(",")[0]
    if backend == "etcd-v2":
        return sorted(_paths(_v2(address, f"quorate/{run_id}")))
    start = f"quorate/{run_id}/".encode()
    asked = {"key": start, "range_end": start[:-1] + b"0"}
    found = _v3(address, "kv/range", {name: base64.b64encode(value).decode() for name, value in asked.items()})
    return sorted(base64.b64decode(one["key"]).decode() for one in found.get("kvs", ()))


def members_of(backend: str, endpoint: str, run_id: str) -> list[str]:
    """Return the entries of the agents that are members of the job."""
    word = "/members/" if backend == "etcd-v2" else "/member/"
    return [key for key in keys_of(backend, endpoint, run_id) if word in key]


def leases_of(endpoint: str) -> set[str]:
    """Return the ids of all leases; API v2 has none."""
    found = _v3(endpoint.partition(",")[0], "lease/leases", {})
    return {lease["ID"] for lease in found.get("leases", ())}


def _v3(address: str, path: str, body: dict[str, str]) -> dict[str, Any]:
    return _ask(urllib.request.Request(f"http://{address}/v3/{path}", json.dumps(body).encode()))


def _v2(address: str, path: str) -> dict[str, Any]:
    url = f"http://{address}/v2/keys/{path}?recursive=true&quorum=true"
    node: dict[str, Any] = _ask(urllib.request.Request(url)).get("node", {})
    return node


def _ask(request: urllib.request.Request) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(request, timeout=DEADLINE) as response:
            text = response.read()
    except urllib.error.HTTPError as error:
        with error:
            text = error.read()
    answer: dict[str, Any] = json.loads(text)
    return answer


def _paths(node: dict[str, Any]) -> list[str]:
    if "key" not in node:
        return []
    return [node["key"]] + [path for child in node.get("nodes", ()) for path in _paths(child)]
