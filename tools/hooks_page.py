"""Write docs/hooks.md from the hook specifications: `python tools/hooks_page.py [--check]`."""

from __future__ import annotations

import inspect
import sys
import textwrap
from pathlib import Path

from pegboard import hookspecs

PAGE = Path(__file__).resolve().parents[1] / "docs" / "hooks.md"

HEAD = """# Hooks

This page is made from `core/pegboard/hookspecs.py` by `python tools/hooks_page.py`.

A plugin is a module with functions marked `@hookimpl`, named by an entry point of the group
`pegboard`; a project's `hooks.py` is one too. Leave out arguments that you do not need; give none a
default, because pluggy would ignore it. `pegboard doctor` shows who answers each hook and in which
order.

How a hook is called:

- **first result**: the implementation registered last is asked first (core, solution, extra
  plugins, `hooks.py`); the first answer other than `None` counts. So a project overrides its
  solution by writing a function of the same name.
- **all**: everyone is asked, and the answers are put together in the order of registration.
- **chain**: everyone is asked in the order of registration, each given what the last one answered.

To change an answer instead of replacing it, wrap it:

```python
from pegboard import hookimpl

@hookimpl(wrapper=True)
def encode_answer(settings, outputs, thresholds):
    answers = yield
    return [{**answer, "desk": "night shift"} for answer in answers]
```

In a training of several processes a hook marked **every process** is called in each of them, the
others only in the main one.
"""


def page() -> str:
    """Return the whole page as Markdown."""
    parts = [HEAD, _contents()]
    group = ""
    for name, facts in hookspecs.HOOKS.items():
        if facts.group != group:
            group = facts.group
            parts.append(f"## {group.capitalize()}\n")
        parts.append(_section(name, facts))
    return "\n".join(parts)


def _contents() -> str:
    rows = [
        f"| {facts.group} | [`{name}`](#{name}) | {_summary(name)} | {facts.call} |"
        for name, facts in hookspecs.HOOKS.items()
    ]
    return "\n".join(["| group | hook | | called |", "|---|---|---|---|", *rows, ""])


def _summary(name: str) -> str:
    return _docstring(name).splitlines()[0]


def _docstring(name: str) -> str:
    return inspect.getdoc(getattr(hookspecs, name)) or ""


def _section(name: str, facts: hookspecs.HookFacts) -> str:
    text, _, example = _docstring(name).partition("\nExample:\n")
    processes = "every process" if facts.ranks == "every" else "the main process"
    signature = inspect.signature(getattr(hookspecs, name))
    return "\n".join(
        [
            f"### {name}\n",
            f"```python\n{name}{str(signature).replace(chr(39), '')}\n```\n",
            f"{_as_markdown(text)}\n",
            f"Called: {facts.call}, in {processes}.\n",
            f"```python\n{textwrap.dedent(example).rstrip()}\n```\n",
        ]
    )


def _as_markdown(text: str) -> str:
    """Turn Google-style sections into bold paragraphs."""
    lines = []
    for line in text.strip().splitlines():
        stripped = line.strip()
        if stripped in ("Returns:", "Args:"):
            lines.append(f"**{stripped.removesuffix(':')}**")
            lines.append("")
        else:
            lines.append(stripped)
    return "\n".join(lines)


def main() -> None:
    """Write the page, or with `--check` fail when it is stale."""
    if "--check" in sys.argv[1:]:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page():
            sys.exit("docs/hooks.md is stale; run 'python tools/hooks_page.py'")
        return
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
