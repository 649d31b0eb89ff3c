"""`new` and `template check|update`: a project from a template, and its later versions."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pegboard.cli.options import ProjectFolder, project_folder
from pegboard.cli.tables import table
from pegboard.errors import PegboardError

if TYPE_CHECKING:
    from pegboard.cli.scaffold import Template

MEANING = {
    "yours": "changed by you, not by the template",
    "outdated": "changed by the template, not by you",
    "conflict": "changed by both",
    "new": "new in the template",
    "dropped": "no longer in the template; it stays",
}


def add_commands(app: typer.Typer) -> None:
    """Add `new` and `template`."""
    app.command()(new)
    template = typer.Typer(help="Compare a project with its template, or update it.")
    template.command("check")(check)
    template.command("update")(bring_up)
    app.add_typer(template, name="template")


def new(
    template: Annotated[str, typer.Argument(help="A template, as in 'pegboard list'.")],
    name: Annotated[str, typer.Argument(help="The new folder's name.")],
    answers: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Answers, so that they are not asked."),
    ] = None,
    output_dir: Annotated[
        Path, typer.Option(metavar="DIR", help="Where the new folder goes.")
    ] = Path(),
    no_input: Annotated[bool, typer.Option("--no-input", help="Ask nothing.")] = False,
) -> None:
    """Make a project from a template."""
    from pegboard.cli.scaffold import check_folder, create, find_template

    chosen = find_template(template)
    folder = output_dir / name
    check_folder(folder)
    given = dict(_answer(chosen, word) for word in answers or ())
    if not no_input and sys.stdin.isatty():
        given |= _ask(chosen, {**given, "project_slug": name})
    create(chosen, folder, given)
    typer.echo(f"{folder} is ready; next:\n\n  cd {folder}")
    typer.echo(str(chosen.variables.get("_next", "  pegboard run")))


def _answer(template: Template, word: str) -> tuple[str, str]:
    from pegboard.cli.scaffold import check_answer

    name, equals, value = word.partition("=")
    if not equals:
        raise PegboardError(
            f"'{word}' is not an answer", where="command line", remedy="write it as key=value"
        )
    check_answer(template, name, value)
    return name, value


def _ask(template: Template, answers: dict[str, str]) -> dict[str, str]:
    """Ask for what is not answered yet; an empty line takes the default."""
    from pegboard.cli.scaffold import settle

    prompts = template.variables.get("__prompts__", {})
    for name in template.variables:
        if name.startswith("_") or name in answers:
            continue
        question = prompts.get(name, name)
        choices = template.variables[name]
        if isinstance(choices, list):
            question = f"{question} ({', '.join(choices)})"
        default = settle(template, answers)[name]
        answers[name] = typer.prompt(
            question, default=default, value_proc=_checked(template, name), err=True
        )
    return answers


def _checked(template: Template, name: str) -> Callable[[str], str]:
    from pegboard.cli.scaffold import check_answer

    def check_it(value: str) -> str:
        try:
            check_answer(template, name, value)
        except PegboardError as error:
            raise typer.BadParameter(str(error)) from None
        return value

    return check_it


def check(folder: ProjectFolder = None) -> None:
    """Say whether the installed template is newer, and which files differ."""
    from pegboard.cli.scaffold import compare, find_template, read_record

    place = project_folder(folder)
    record = read_record(place)
    installed = find_template(record.template)
    typer.echo(f"made from {record.template} {record.version}; installed is {installed.version}")
    differ = {name: state for name, state in compare(place).items() if state != "same"}
    if differ:
        table(("file", "how it stands"), [(name, MEANING[state]) for name, state in differ.items()])
    if any(state in ("outdated", "conflict", "new") for state in differ.values()):
        typer.echo("'pegboard template update' takes over what is new")
    else:
        typer.echo("there is nothing to take over")


def bring_up(folder: ProjectFolder = None) -> None:
    """Take over what is new in the template; what you changed stays as it is."""
    from pegboard.cli.scaffold import update

    done = {
        "outdated": "replaced",
        "new": "added",
        "conflict": "yours stays; the new version is beside it as {}.new",
    }
    states = update(project_folder(folder))
    rows = [(name, done[s].format(name)) for name, s in states.items() if s in done]
    if rows:
        table(("file", "what was done"), rows)
    else:
        typer.echo("there was nothing to take over")
