"""Drives a headless Chromium over its own debugging protocol, through two pipes: nothing to install but the browser.

What does not live here: the pages, and what is expected of them.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["DEADLINE", "Page", "open_browser"]

#: A browser takes long to start on a machine that is busy.
DEADLINE = 60.0
_NAMES = ("chromium-headless-shell", "chromium", "google-chrome")
_FLAGS = (
    "--headless",
    "--no-sandbox",  # which root cannot have
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


class Page:
    """One page of the browser.  ``problems`` are the errors and refusals that it has written to its console."""

    def __init__(self, browser: _Browser, session: str) -> None:
        self._browser, self._session = browser, session

    @property
    def problems(self) -> list[str]:
        self._browser.call("Runtime.evaluate", self._session, expression="0")  # whatever came before has been read
        return self._browser.problems

    def call(self, method: str, **parameters: Any) -> Any:
        return self._browser.call(method, self._session, **parameters)

    def open(self, address: str) -> None:
        """Load an address and wait until it is there."""
        answer = self.call("Page.navigate", url=address)
        assert "errorText" not in answer, answer
        self.wait_for(f"location.href === {json.dumps(address)} && document.readyState === 'complete'")

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression; promises are waited for."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, condition: str, seconds: float = DEADLINE) -> None:
        """Wait until a JavaScript expression is true; looked at whenever the page is about to be drawn."""
        script = (
            "new Promise(done => {"
            f"const end = performance.now() + {seconds * 1000};"
            f"const look = () => ({condition}) ? done(true) : performance.now() > end ? done(false) "
            ": setTimeout(look, 20);"
            "look(); })"
        )
        if not self.evaluate(script):
            text = self.evaluate("document.body.innerText")
            raise AssertionError(f"not within {seconds} s: {condition}\n{text}")

    def resize(self, width: int, height: int, is_phone: bool = False) -> None:
        scale = 2 if is_phone else 1
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=is_phone
        )

    def prefer(self, scheme: str) -> None:
        """Have the system ask for the colour scheme ``light`` or ``dark``."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def take_picture(self, name: str) -> bytes:
        """Return the whole page as PNG, and keep it where ``QUORATE_SCREENSHOTS`` names a folder."""
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        picture = base64.b64decode(answer["data"])
        if folder := os.environ.get("QUORATE_SCREENSHOTS"):
            os.makedirs(folder, exist_ok=True)
            with open(os.path.join(folder, f"{name}.png"), "wb") as file:
                file.write(picture)
        return picture


class _Browser:
    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._writer, self._reader = to_browser, from_browser
        self._buffer = b""
        self._number = 0
        self.problems: list[str] = []

    def call(self, method: str, session: str = "", **parameters: Any) -> Any:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._writer, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self._note(answer)

    def _receive(self) -> dict[str, Any]:
        end = time.monotonic() + 2 * DEADLINE
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._reader], [], [], max(0.0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            data = os.read(self._reader, 1 << 20)
            assert data, "the browser has ended"
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        return answer

    def _note(self, event: dict[str, Any]) -> None:
        if event.get("method") == "Runtime.exceptionThrown":
            self.problems.append(str(event["params"]["exceptionDetails"]))
        elif event.get("method") == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
            self.problems.append(event["params"]["entry"]["text"])


@contextmanager
def open_browser() -> Iterator[Page]:
    """Run a browser with one empty page."""
    program = next((path for name in _NAMES if (path := shutil.which(name))), None)
    assert program is not None, f"none of {', '.join(_NAMES)} is installed; `make chromium` installs one"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        # Numbers that cannot be in the way of 3 and 4, which is where the browser expects them.
        high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 100) for end in (theirs_in, theirs_out)]
        os.close(theirs_in)
        os.close(theirs_out)
        silence = os.open(os.devnull, os.O_RDWR)
        actions = [(os.POSIX_SPAWN_DUP2, silence, number) for number in (0, 1, 2)]
        actions += [(os.POSIX_SPAWN_DUP2, end, number) for end, number in zip(high, (3, 4), strict=True)]
        command = [program, *_FLAGS, f"--user-data-dir={profile}"]
        pid = os.posix_spawn(program, command, dict(os.environ), file_actions=actions, setpgroup=0)
        for descriptor in (*high, silence):
            os.close(descriptor)
        try:
            browser = _Browser(ours_out, ours_in)
            target = browser.call("Target.createTarget", url="about:blank")["targetId"]
            session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log"):
                browser.call(f"{domain}.enable", session)
            yield Page(browser, session)
        finally:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(ours_out)
            os.close(ours_in)
