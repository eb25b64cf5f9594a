"""Reading a worker's error file, and handing its content upwards.

Writing a worker's own error file is a plugin's part (``quorate-errors``).  The format is TorchElastic's, with fields
of quorate beside it: ``{"message": str}`` or ``{"message": {"message": str, "extraInfo": {...}}}``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from .._bounded import pruned
from ..files import read_regular, write_atomically
from ..text import plain

_LARGEST_ERROR_FILE_BYTES = 1 << 20


def read_error_file(path: str) -> dict[str, Any] | None:
    """Return the JSON object in the error file ``path``; ``None`` if it is absent, torn, too large or not an object.

    A link, a FIFO or a device that a worker has put in its place is not opened.  What a worker has nested too deeply to
    be handed on is left out, and so are colours and the like.
    """
    content = read_regular(path, _LARGEST_ERROR_FILE_BYTES + 1)
    if not content or len(content) > _LARGEST_ERROR_FILE_BYTES:
        return None
    try:
        data = json.loads(content.decode("utf-8"))
    except (ValueError, OverflowError, RecursionError):
        return None
    if not isinstance(data, dict) or not isinstance(data.get("message"), (str, dict)):
        return None
    result: dict[str, Any] = _plain(pruned(data))
    return result


def _plain(value: Any) -> Any:
    """Return JSON-able ``value`` with nothing in its texts that steers a terminal: coloured messages are common."""
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, dict):
        return {plain(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def copy_error_data(data: Mapping[str, Any], path: str | None) -> None:
    """Write ``data`` as the error file ``path``; does nothing without a path.  Never raises.

    An agent that runs inside a worker hands its root cause to the agent above it this way.
    """
    if not path:
        return
    # The failure itself is reported all the same.
    with suppress(OSError, TypeError, ValueError, OverflowError, RecursionError):
        write_atomically(path, json.dumps(data), mode=None)
