"""``docs/hooks.md`` is rendered from the hook specs, with their exact arguments; rewrite it with ``--rewrite`` below.

python core/tests/test_hook_docs.py --rewrite
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

from quorate import hookspecs

PAGE = Path(__file__).parents[2] / "docs" / "hooks.md"

HEAD = """\
# Hooks

A plugin is any object named by an entry point of the group `quorate`; what it implements are functions marked with
`quorate.hookimpl`. The hooks below are in the order in which a job calls them. The verb in a name says how it is
called: `register` is collected once into a catalogue, from which users choose by name; of `decide` the first answer
that is not `None` wins, and the core answers last; to `observe` everyone listens and nobody answers.

```mermaid
flowchart LR
    options[register_cli_options] --> registers[register_rendezvous, _starter, _health_check, ...]
    registers --> ranks[decide_ranks] --> launch[decide_launch] --> run((workers run))
    run -- a worker failed --> cause[decide_cause] --> restart[decide_restart] --> ranks
    run -- nodes wait --> rescale[decide_rescale] --> ranks
```

Plugins are called in the alphabetical order of their entry-point names, the same on every host. An implementation
may leave out trailing parameters it does not need. One that is misspelt is refused when the plugin is loaded;
`quorate plugins` shows what was loaded and what was not, and `QUORATE_DISABLE_PLUGINS=name,...` leaves plugins out.
Records and catalogues are in `quorate.records` and `quorate.catalogue`.
"""


def render() -> str:
    parts = [HEAD]
    hooks = [value for name, value in vars(hookspecs).items() if name.startswith("quorate_")]
    for hook in sorted(hooks, key=lambda hook: int(hook.__code__.co_firstlineno)):
        text = (inspect.getdoc(hook) or "").replace("``", "`")
        body, _, facts = text.partition("\n\nCalled:")
        lines = ("Called:" + facts).splitlines()
        items: list[str] = []
        for line in lines:
            if line.startswith(" "):
                items[-1] += " " + line.strip()
            else:
                items.append(line)
        signature = str(inspect.signature(hook)).replace("'", "")
        parts.append(f"## `{hook.__name__}`\n\n```python\ndef {hook.__name__}{signature}\n```\n\n{body}\n")
        parts.append("\n".join(f"- **{item.partition(':')[0]}**:{item.partition(':')[2]}" for item in items) + "\n")
    return "\n".join(parts)


def test_the_page_is_what_the_code_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == render()


def test_every_hook_says_when_where_and_what_if() -> None:
    for name in (name for name in vars(hookspecs) if name.startswith("quorate_")):
        hook = getattr(hookspecs, name)
        text = inspect.getdoc(hook) or ""
        for fact in ("Called:", "Thread:", "Answer:", "If it raises:"):
            assert fact in text, f"{name} does not say {fact}"
        parameters = inspect.signature(hook).parameters.values()
        assert len(parameters) <= 3
        assert all(p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty for p in parameters)


if __name__ == "__main__" and "--rewrite" in sys.argv:
    PAGE.write_text(render(), encoding="utf-8")
