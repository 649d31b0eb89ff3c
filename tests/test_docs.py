"""The documents are true: hooks, commands and links that they name exist."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import textwrap
from pathlib import Path
from types import ModuleType

import pytest

from pegboard import hookspecs

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path
    for path in [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")]
    if path.name != "CHANGELOG.md"
)
HOOKS = sorted(hookspecs.HOOKS)


def hooks_page() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "hooks_page", REPOSITORY / "tools" / "hooks_page.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_hooks_page_is_what_the_specifications_say() -> None:
    assert (REPOSITORY / "docs" / "hooks.md").read_text(encoding="utf-8") == hooks_page().page()


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_says_what_it_does_what_it_returns_and_shows_an_example(name: str) -> None:
    text = inspect.getdoc(getattr(hookspecs, name)) or ""
    first = text.splitlines()[0]
    assert first.endswith("."), "the first line is one sentence"
    assert "\nReturns:\n" in text
    example = textwrap.dedent(text.partition("\nExample:\n")[2])
    tree = ast.parse(example)
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert [function.name for function in functions] == [name]
    known = inspect.signature(getattr(hookspecs, name)).parameters
    assert {argument.arg for argument in functions[0].args.args} <= set(known)


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_is_named_in_a_test(name: str) -> None:
    tests = [
        path
        for path in (REPOSITORY / "tests").rglob("test_*.py")
        if path.name != Path(__file__).name
    ]
    assert any(re.search(rf"\b{name}\b", path.read_text(encoding="utf-8")) for path in tests)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text):
        link = next(part for part in target if part)
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), f"{page.name} links to {link}"
        if anchor and path.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), flags=re.M)
            assert anchor in {_anchor(heading) for heading in headings}, link


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_every_make_target_that_a_page_names_exists() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.M))
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        code = re.findall(r"`([^`\n]+)`", text) + re.findall(r"```[^\n]*\n(.*?)```", text, re.S)
        named = {name for part in code for name in re.findall(r"(?:^|\s)make ([a-z][a-z-]*)", part)}
        assert named <= targets, f"{page.name} names {named - targets}"


def test_every_command_that_a_page_names_exists() -> None:
    import typer.main

    from pegboard.cli.main import build_app

    known = set(typer.main.get_group(build_app()).commands)
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        code = re.findall(r"`([^`\n]+)`", text) + re.findall(r"```[^\n]*\n(.*?)```", text, re.S)
        named = {
            name
            for part in code
            for name in re.findall(r"(?<!from )\bpegboard ([a-z]+)(?=\s|$)", part, flags=re.M)
        }
        # Commands that a solution adds are known inside its projects only.
        known |= {"backtest", "materialize", "pretrain", "prequential", "review"}
        known |= {"deidentify", "segment"}
        known |= {"odometry", "track", "view"}
        known |= {"classify", "index", "search"}
        assert named <= known, f"{page.name} names {named - known}"


def test_the_two_readmes_have_the_same_sections_and_commands() -> None:
    english, chinese = (
        (REPOSITORY / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md")
    )
    levels = [re.findall(r"^(#+) ", text, flags=re.M) for text in (english, chinese)]
    assert levels[0] == levels[1]
    blocks = [re.findall(r"```sh\n(.*?)```", text, flags=re.S) for text in (english, chinese)]
    commands = [
        [re.sub(r"\s+#.*", "", line) for block in part for line in block.splitlines()]
        for part in blocks
    ]
    assert commands[0] == commands[1]
