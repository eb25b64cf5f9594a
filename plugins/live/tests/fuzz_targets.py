"""What a live worker reads from its agent; found by ``core.tests.fuzz``."""

from __future__ import annotations

import os
from collections.abc import Mapping

from core.tests.fuzz.target import Target

from quorate_live._session import _parse


def _read(data: bytes) -> None:
    message = _parse(data)
    for name, value in message.get("assign", {}).items():
        os.environb.get(os.fsencode(name))
        assert value is None or b"\0" not in os.fsencode(value)
    assert int(message.get("leave", 0)) > -1 or "leave" in message
    assert float(message.get("loss_timeout", 0.0)) >= 0


TARGETS: Mapping[str, Target] = {
    "messages of the agent": Target(
        _read,
        (b'{"welcome":1,"loss_timeout":20.5}', b'{"leave":3}', b'{"assign":{"RANK":"1","X":null}}')
        + (b'{"answer":2,"is_current":true}',),
        (ValueError,),
        (b"7", b'{"leave":"x"}', b'{"answer":[]}', b'{"assign":3}', b'{"assign":{"A":"\\u0000"}}', b"[" * 100_000)
        + (b'{"welcome":1,"loss_timeout":[]}', b'{"loss_timeout":NaN}'),
    ),
}
ELSEWHERE: Mapping[str, str] = {
    "quorate_live/_gloo:_read": "words of this process's own memory",
    "quorate_live/_listeners:_kernel_lists": "the kernel writes it",
    "quorate_live/_share:_receive": "workers of one job, over torch's process group, as torch sends objects",
}
