"""The status page of a real agent in a real browser: it shows the job, keeps up to date, and runs nothing foreign.

Pictures of it are kept where ``QUORATE_SCREENSHOTS`` names a folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from quorate import Std
from tests import health_workers
from tests.backends import BACKENDS, Backend, loopback_port
from tests.browser import Page, open_browser
from tests.harness import Ear, Gate, Job

#: What a worker may print, or die with, to harm whoever looks at it.
HOSTILE = (
    "<script>window.harmed = true</script>",
    "<img src=x onerror='window.harmed = true'>",
    "</pre></details></main><b id=foreign>out of its place</b>",
    "\x1b]0;title\x07\x1b[31mred\x1b[0m \x1b[2J\u202egnihton &amp;",
)
MESSAGE = f"it fell & broke {HOSTILE[0]}\n{HOSTILE[2]}"


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with open_browser() as page:
        page.resize(1280, 900)
        yield page


@pytest.fixture(params=["tcp"])
def backend(request: pytest.FixtureRequest) -> Backend:
    """The page has nothing to do with rendezvous."""
    return BACKENDS[request.param]


def test_the_page_shows_the_job_as_it_goes_on(page: Page, job: Job, ear: Ear, tmp_path: Path) -> None:
    gates = [Gate(tmp_path / f"gate-{attempt}") for attempt in (0, 1)]
    with ExitStack() as stack:
        for gate in gates:
            stack.callback(gate.close)
        endpoint = stack.enter_context(loopback_port())
        port = int(endpoint.rpartition(":")[2])
        plan = job.plan(
            health_workers.print_and_fail_once,
            *(ear.path, [gate.path for gate in gates], list(HOSTILE), MESSAGE),
            workers=2,
            max_restarts=1,
            logs={"redirects": Std.ALL},
            spec={"settings": {"health_port": port}},
        )
        host = job.start(plan)
        first = ear.hear(2, event="started", restart_count=0)
        page.open(f"http://127.0.0.1:{port}/status")
        check_first_round(page, plan.run_id, [fact["pid"] for fact in first])
        close_for_good(page, "worker-0-stderr")
        page.evaluate("window.unloaded = 0; addEventListener('pagehide', () => window.unloaded++)")

        gates[0].open()
        second = ear.hear(2, event="started", restart_count=1)
        check_second_round(page, [fact["pid"] for fact in second])
        check_looks(page)
        check_nothing_foreign_ran(page)

        gates[1].open()
        assert host.outcome().values == {0: 1, 1: 1}
        page.wait_for("document.getElementById('link').textContent.includes('the agent has ended')")
        assert page.evaluate("document.querySelectorAll('.worker').length") == 2, "what was last known stays"


def text_of(page: Page, selector: str) -> str:
    text: str = page.evaluate(f"document.querySelector({selector!r}).innerText")
    return text


def check_first_round(page: Page, run_id: str, pids: list[int]) -> None:
    assert text_of(page, "h1") == run_id
    assert page.evaluate("document.title") == f"running · {run_id}"
    page.wait_for("document.getElementById('link').textContent === 'live'")
    assert page.evaluate("document.querySelector('.alert')") is None
    workers = text_of(page, ".workers")
    assert all(str(pid) in workers for pid in pids)
    lines = text_of(page, "#worker-0-stdout-lines").splitlines()
    assert lines == [*HOSTILE[:3], "red \N{REPLACEMENT CHARACTER}gnihton &amp;", "attempt 0"]


def close_for_good(page: Page, name: str) -> None:
    """Close a part of the page; it stays closed where it goes away for a moment, as between two rounds."""
    page.evaluate(f"document.getElementById({name!r}).open = false")
    page.evaluate(f"document.getElementById({name!r}).dataset.old = 'yes'")
    page.wait_for(f"!document.getElementById({name!r}).dataset.old")  # it has been replaced
    page.evaluate(f"document.getElementById({name!r}).remove()")
    page.wait_for(f"document.getElementById({name!r})")
    assert page.evaluate(f"document.getElementById({name!r}).open") is False


def check_second_round(page: Page, pids: list[int]) -> None:
    """The same page, never loaded again, tells of the failure, the new workers and both rounds."""
    page.wait_for(f"document.querySelector('.workers').innerText.includes('{pids[0]}')")
    page.wait_for("document.querySelector('#worker-1-stdout-lines')?.textContent.includes('attempt 1')")
    assert page.evaluate("window.unloaded") == 0
    assert page.evaluate("document.getElementById('worker-0-stderr').open") is False, "what was closed stays closed"
    alert = text_of(page, ".alert")
    assert "Last failure: rank 1" in alert
    assert "exception" in alert
    assert HOSTILE[0] in alert
    assert "restart 1 of 1" in alert
    rows = page.evaluate("[...document.querySelectorAll('tbody tr')].map(row => row.innerText)")
    assert len(rows) == 2
    assert "running" in rows[0]
    assert "exception, restart" in rows[1]
    assert page.evaluate("document.querySelectorAll('svg.line rect.over').length") == 1


def check_looks(page: Page) -> None:
    """Nothing is cut off or overlaps its neighbours, from a phone to a desk, by day and by night."""
    colours = set()
    for scheme in ("light", "dark"):
        page.prefer(scheme)
        for name, width, height in (("phone", 360, 740), ("tablet", 820, 1180), ("desk", 1280, 900)):
            page.resize(width, height, is_phone=name == "phone")
            assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{name}: wider than the screen"
            cut = "[...document.querySelectorAll('.card, dd, h1, h3')].filter(e => e.scrollWidth > e.clientWidth + 1)"
            assert page.evaluate(f"{cut}.map(e => e.textContent)") == [], f"{name}: something is cut off"
            assert page.take_picture(f"status-{name}-{scheme}").startswith(b"\x89PNG")
        colours.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert page.evaluate(_CONTRAST) >= 4.5, f"{scheme}: dim text is too faint"
    assert len(colours) == 2
    page.resize(1280, 900)


#: The contrast of dim text on a card, as WCAG 2 reckons it.
_CONTRAST = """(() => {
  const light = element => {
    const parts = getComputedStyle(element)[element.className === 'card' ? 'backgroundColor' : 'color'];
    const [r, g, b] = parts.match(/[\\d.]+/g).map(v => v / 255)
      .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const [a, b] = [light(document.querySelector('.card')), light(document.querySelector('.where'))];
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
})()"""


def check_nothing_foreign_ran(page: Page) -> None:
    assert page.evaluate("window.harmed") is None
    assert page.evaluate("document.getElementById('foreign')") is None
    assert page.evaluate("document.querySelectorAll('main script, main img, main b').length") == 0
    assert page.evaluate("performance.getEntriesByType('resource').every(e => e.name.startsWith(location.origin))")
    assert page.problems == []
