"""The status page: HTML made of the object of ``/status.json``.

Every value is escaped by :func:`_text`, and the content policy allows a browser to run the page's own script only.
What does not live here: the values (:mod:`._status`), and style and script (``status.css``, ``status.js``).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from quorate.records import AgentPhase, Verdict, WorkerStatus

_Facts = Sequence[tuple[str, str]]

_STYLE, _SCRIPT = (Path(__file__).with_name(f"status.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


PAGE_POLICY = (
    f"default-src 'none'; style-src {_digest(_STYLE)}; script-src {_digest(_SCRIPT)}; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

_PHASE_TONES: Mapping[str, str] = {
    AgentPhase.RUNNING: "green",
    AgentPhase.FROZEN: "amber",
    AgentPhase.STOPPING: "amber",
    AgentPhase.FINISHED: "grey",
}
_STATE_TONES: Mapping[str, str] = {
    WorkerStatus.RUNNING: "green",
    WorkerStatus.DELIVERED: "grey",
    WorkerStatus.SUCCEEDED: "grey",
    WorkerStatus.FAILED: "red",
    WorkerStatus.STOPPED: "amber",
}
#: A round that has not ended has no verdict.
_VERDICT_TONES: Mapping[str, str] = {
    "": "blue",
    Verdict.SUCCEEDED: "green",
    Verdict.RESCALE: "amber",
    Verdict.STOPPED: "grey",
}
_LEGEND = (
    ("joining", "rendezvous"),
    ("blue", "running"),
    ("red", "failed"),
    ("amber", "rescaled"),
    ("green", "succeeded"),
)
#: Rounds that the table shows without a click.
_SHOWN_ROUNDS = 12
#: Per cent of the time line: the least width that is drawn, and the least in which a round's number is written.
_NARROWEST, _NARROWEST_WITH_NUMBER = 0.35, 3.0


def page_of(status: Mapping[str, Any]) -> str:
    """Return the whole page."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(_title(status))}</title>\n"
        '<link rel="icon" href="data:,">\n'
        '<noscript><meta http-equiv="refresh" content="5"></noscript>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n"
        f'<div class="page">\n<div class="bar"><span>quorate</span><span id="link" role="status"></span></div>\n'
        f"<main>{part_of(status)}</main>\n"
        '<footer><a href="status.json">status.json</a> <a href="metrics">metrics</a> '
        f'<a href="healthz">healthz</a> <span>quorate {_text(status["version"])}</span></footer>\n'
        f"</div>\n<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )


def part_of(status: Mapping[str, Any]) -> str:
    """Return the part that changes."""
    return "".join((_head(status), _failure(status["last_failure"], status["time"]), _workers(status), _rounds(status)))


def _text(value: object) -> str:
    return escape(str(value), quote=True)


def _title(status: Mapping[str, Any]) -> str:
    return f"{status['phase']} · {status['run_id']}"


# --- the head -------------------------------------------------------------------------------------------------------


def _head(status: Mapping[str, Any]) -> str:
    phase, tone = status["phase"], _PHASE_TONES.get(status["phase"], "blue")
    if not status["is_live"]:
        phase, tone = f"stuck while {phase}", "red"
    has_assignment = status["round"] is not None
    facts = [("Round", _text(status["round"]) if has_assignment else "none")]
    if has_assignment:
        nodes = status["group_world_size"]
        facts.append(("World", f"{_count(status['world_size'], 'worker')} <small>on {_count(nodes, 'node')}</small>"))
        facts.append(("This node", f"{_text(status['group_rank'])} <small>of {_text(nodes)}</small>"))
    facts.append(("Restarts", f"{_text(status['restart_count'])} <small>of {_text(status['max_restarts'])}</small>"))
    facts.append(("Agent up", f"{_duration(status['up_seconds'])} <small>pid {_text(status['agent_pid'])}</small>"))
    reason = f'<p class="dim">{_text(status["reason"])}</p>' if status["reason"] and not status["is_ready"] else ""
    return (
        f'<section class="card" data-title="{_text(_title(status))}"><div class="row spread">'
        f'<h1>{_text(status["run_id"])}</h1><span class="pill {tone}">{_text(phase)}</span></div>'
        f'<p class="where">{_text(status["host"])} · role {_text(status["role"])} · '
        f"node {_text(status['node_id'])}</p>{reason}{_list(facts)}</section>"
    )


def _list(facts: _Facts) -> str:
    """Return a list of facts; their values are HTML already."""
    items = "".join(f"<div><dt>{_text(name)}</dt><dd>{value}</dd></div>" for name, value in facts)
    return f'<dl class="facts">{items}</dl>'


# --- the last failure -----------------------------------------------------------------------------------------------


def _failure(failure: Mapping[str, Any] | None, now: float) -> str:
    if failure is None:
        return ""
    code = failure["exit_code"]
    facts = [
        ("When", f"{_clock(failure['time'], now)} <small>round {_text(failure['round'])}</small>"),
        ("Where", f"{_text(failure['host'])} <small>local rank {_text(failure['local_rank'])}</small>"),
        ("Process", f"{_text(failure['pid'])}"),
        ("Exit", _text(failure["signal"] or code) + (f" <small>{_text(code)}</small>" if failure["signal"] else "")),
        ("What followed", _text(_what_followed(failure))),
    ]
    more = ""
    for name, lines in (("traceback", failure["traceback"]), ("last lines of stderr", failure["stderr"])):
        if lines:
            more += _log(f"failure-{name.split()[0]}", name, lines, is_open=False)
    return (
        '<section class="card alert"><div class="row spread">'
        f"<h3>Last failure: rank {_text(failure['rank'])}</h3>"
        f'<span class="pill red">{_text(_words(failure["cause"]))}</span></div>'
        f'<pre class="message">{_text(failure["message"])}</pre>'
        f"{_list(facts)}{more}</section>"
    )


def _what_followed(failure: Mapping[str, Any]) -> str:
    """Return what the recorded reason says after the failure itself, such as "restart 2 of 3"."""
    first_line = failure["message"].partition("\n")[0]
    rest: str = failure["reason"].partition(first_line)[2].lstrip("; ") if first_line else ""
    return rest or str(failure["verdict"])


def _log(identity: str, title: str, lines: Sequence[str], is_open: bool) -> str:
    opened = " open" if is_open else ""
    return (
        f'<details id="{_text(identity)}"{opened}><summary>{_text(title)}</summary>'
        f'<pre id="{_text(identity)}-lines" tabindex="0">{_text(chr(10).join(lines))}</pre></details>'
    )


# --- workers --------------------------------------------------------------------------------------------------------


def _workers(status: Mapping[str, Any]) -> str:
    cards = "".join(_worker(worker, status) for worker in status["workers"])
    if not cards:
        cards = '<p class="card dim">None has been started yet.</p>'
    return f'<h2>Workers of this node</h2><section class="workers">{cards}</section>'


def _worker(worker: Mapping[str, Any], status: Mapping[str, Any]) -> str:
    local_rank, state = worker["local_rank"], worker["state"]
    shown = state if worker["exit_code"] in (None, 0) else f"{state} ({worker['exit_code']})"
    facts = [("Process", _text(worker["pid"]))]
    if worker["memory_bytes"] is not None:
        extra = f" <small>{worker['processes']} procs</small>" if worker["processes"] > 1 else ""
        facts.append(("Memory", f"{_bytes(worker['memory_bytes'])}{extra}"))
    if worker["cpus"]:
        facts.append(("CPUs", _text(worker["cpus"])))
    if worker["rounds"] > 1:
        facts.append(("Lived through", _count(worker["rounds"] - 1, "round")))
    if worker["exit_code"] is None:
        facts.append(("Up", _duration(max(0.0, status["time"] - worker["started_at"]))))
    if worker["seconds_since_heartbeat"] is not None:
        facts.append(("Heartbeat", f"{_duration(worker['seconds_since_heartbeat'])} <small>ago</small>"))
    logs = ""
    for name in ("stdout", "stderr"):
        path, lines = worker[f"{name}_path"], worker[name]
        if not path:
            continue
        if lines:
            logs += _log(f"worker-{local_rank}-{name}", f"{name}", lines, is_open=True)
        else:
            empty = "is empty so far" if lines is not None else "cannot be read"
            logs += f'<p class="none">{name} {empty}</p>'
    if not logs:
        logs = '<p class="none">Its output goes to the console of the agent.</p>'
    return (
        f'<article class="card worker"><div class="row spread"><h3>Rank {_text(worker["rank"])} '
        f'<small class="dim">local {_text(local_rank)} · attempt {_text(status["restart_count"])}</small></h3>'
        f'<span class="pill {_STATE_TONES.get(state, "grey")}">{_text(shown)}</span></div>'
        f"{_list(facts)}{logs}</article>"
    )


# --- rounds ---------------------------------------------------------------------------------------------------------


def _rounds(status: Mapping[str, Any]) -> str:
    rounds = status["rounds"]
    if not rounds:
        return '<h2>Rounds</h2><p class="card dim">This node has not had an assignment in a round yet.</p>'
    rows = [_row(entry, status["time"]) for entry in reversed(rounds)]
    table = _table(rows[:_SHOWN_ROUNDS])
    if rest := rows[_SHOWN_ROUNDS:]:
        table += f'<details id="rounds"><summary>{_count(len(rest), "earlier round")}</summary>{_table(rest)}</details>'
    return f'<h2>Rounds</h2><section class="card">{_time_line(rounds, status["time"])}{table}</section>'


def _time_line(rounds: Sequence[Mapping[str, Any]], now: float) -> str:
    begin = rounds[0]["asked_at"]
    end = max(now, *(entry["ended_at"] or entry["joined_at"] for entry in rounds))
    span = max(end - begin, 0.001)

    def part(first: float, last: float, kind: str, title: str) -> str:
        left, width = (first - begin) / span * 100.0, max(_NARROWEST, (last - first) / span * 100.0)
        left = min(left, 100.0 - width)
        drawn = (
            f'<rect class="{kind}" x="{left:.2f}%" y="6" width="{width:.2f}%" height="28">'
            f"<title>{_text(title)}</title></rect>"
        )
        if kind.endswith("over"):
            tone = kind.partition(" ")[0]
            drawn += f'<rect class="cap {tone}" x="{left + width:.2f}%" y="6" width="4" height="28"></rect>'
        return drawn

    parts, numbers = "", ""
    for entry in rounds:
        until = entry["ended_at"] or end
        name = f"round {entry['number']}"
        if entry["joined_at"] - entry["asked_at"] > span * _NARROWEST / 100.0:
            parts += part(entry["asked_at"], entry["joined_at"], "joining", f"{name}: rendezvous")
        kind = f"{_tone(entry)} over" if entry["verdict"] else _tone(entry)
        parts += part(entry["joined_at"], until, kind, f"{name}: {_how(entry)}")
        width = (until - entry["joined_at"]) / span * 100.0
        if width > _NARROWEST_WITH_NUMBER:
            middle = (entry["joined_at"] - begin) / span * 100.0 + width / 2
            style = "" if entry["verdict"] else ' class="now"'
            numbers += f'<text{style} x="{middle:.2f}%" y="24" text-anchor="middle">{_text(entry["number"])}</text>'
    legend = "".join(f'<span class="{kind}">{name}</span>' for kind, name in _LEGEND)
    label = f"time line of {_count(len(rounds), 'round')}"
    return (
        f'<svg class="line" role="img" aria-label="{label}">{parts}{numbers}</svg>'
        f'<div class="scale"><span>{_clock(begin, now)}</span><span>{_duration(span)}</span>'
        f'<span>{_clock(end, now)}</span></div><div class="legend">{legend}</div>'
    )


def _tone(entry: Mapping[str, Any]) -> str:
    return _VERDICT_TONES.get(entry["verdict"], "red")


def _how(entry: Mapping[str, Any]) -> str:
    return f"{_words(entry['cause'])}, {entry['verdict']}" if entry["verdict"] else "running"


def _table(rows: Sequence[str]) -> str:
    heads = "".join(f"<th>{head}</th>" for head in ("Round", "Began", "Ran", "World", "Restart", "End"))
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _row(entry: Mapping[str, Any], now: float) -> str:
    reason = f" <span>{_text(entry['reason'])}</span>" if entry["reason"] else ""
    return (
        f'<tr><td data-label="round">{_text(entry["number"])}</td><td>{_clock(entry["joined_at"], now)}</td>'
        f"<td>{_duration(entry['run_seconds'])}</td>"
        f'<td data-label="world">{_text(entry["world_size"])}{_lived(entry)}</td>'
        f'<td data-label="restart">{_text(entry["restart_count"])}</td>'
        f'<td class="end"><span class="tone {_tone(entry)}">{_text(_how(entry))}</span>{reason}</td></tr>'
    )


def _lived(entry: Mapping[str, Any]) -> str:
    """Return who of this node's workers has lived on into a round, and what it took."""
    if not entry["kept_pids"]:
        return ""
    kept, new = len(entry["kept_pids"]), len(entry["new_pids"])
    return f" <small>{kept} lived on, {new} new, after {_duration(entry['pause_seconds'])}</small>"


# --- words ----------------------------------------------------------------------------------------------------------


def _words(name: str) -> str:
    return name.replace("_", " ")


def _count(number: int, noun: str) -> str:
    return f"{_text(number)} {noun}" + ("" if number == 1 else "s")


def _clock(seconds: float, now: float) -> str:
    """Return the time of day on the agent's machine, with the date if it is another day's."""
    moment, today = (datetime.fromtimestamp(at).astimezone() for at in (seconds, now))
    shown = f"{moment:%H:%M:%S}" if moment.date() == today.date() else f"{moment:%b %d %H:%M}"
    return f'<time datetime="{moment.isoformat()}" title="{moment.isoformat(" ", "seconds")}">{shown}</time>'


def _duration(seconds: float) -> str:
    if seconds < 1.0:
        return f"{seconds * 1000.0:.0f} ms"
    if seconds < 10.0:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


def _bytes(number: int) -> str:
    value = float(number)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.1f} {unit}"
        value /= 1000.0
    return f"{value:.1f} TB"
