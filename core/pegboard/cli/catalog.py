"""`list` and `describe`: what is installed, and what a solution offers. Neither imports torch."""

from __future__ import annotations

import types
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import typer

from pegboard.cli.options import ProjectFolder, QuickCommand, open_project
from pegboard.cli.tables import heading, table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pegboard.board import Board
    from pegboard.settings import Settings

CONTACT_SHEET = "augment.png"
"""What `describe --augment` writes, in the current folder."""

NOT_SHOWN = "(not shown)"
"""In the place of a value that is kept in no run, report or bundle."""


def add_commands(app: typer.Typer) -> None:
    """Add `list` and `describe`."""
    app.command("list", cls=QuickCommand)(list_installed)
    app.command()(describe)


def list_installed() -> None:
    """List the installed solutions, plugins and templates."""
    from pegboard.board import installed_plugins
    from pegboard.cli.scaffold import installed_templates

    plugins = [
        (plugin.name, plugin.version, plugin.distribution, plugin.summary)
        for plugin in installed_plugins()
    ]
    templates = [
        (template.name, template.version, template.distribution, template.summary)
        for template in installed_templates()
    ]
    for title, rows, remedy in (
        ("Solutions and plugins", plugins, "pip install pegboard-fraud"),
        ("Templates", templates, "pip install pegboard-templates"),
    ):
        heading(title)
        if rows:
            table(("name", "version", "distribution", "what it is"), rows)
        else:
            typer.echo(f"  none is installed; for example '{remedy}'")


def describe(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME] [KEY=VALUE]...",
            help="A solution, as in 'list'; default: that of the project here. And settings.",
        ),
    ] = None,
    folder: ProjectFolder = None,
    augment: Annotated[
        bool,
        typer.Option(
            "--augment", help=f"Write {CONTACT_SHEET}: samples as training would see them."
        ),
    ] = False,
) -> None:
    """Show a solution's settings, hooks and targets; for a project also its own values."""
    from pegboard.board import build_board

    overrides = [word for word in words or () if "=" in word]
    name = next((word for word in words or () if "=" not in word), None)
    if augment:
        _write_contact_sheet(name, folder, overrides)
        return
    if name is not None:
        board = build_board(name)
        _show(name, board, board.hook.settings_type(), None)
        return
    project = open_project(folder, overrides)
    values = project.settings.tables(project.folder)
    _show(project.settings.solution, project.board, type(project.settings), values)


def _write_contact_sheet(name: str | None, folder: Path | None, overrides: list[str]) -> None:
    """Write the sheet of the project here; of a solution alone, by its embedded data."""
    from pegboard.contact_sheet import write_contact_sheet
    from pegboard.files import atomic_write
    from pegboard.lifecycle import prepare
    from pegboard.logs import new_progress
    from pegboard.settings import FILE_NAME

    path = Path.cwd() / CONTACT_SHEET
    with TemporaryDirectory() as empty:
        if name is not None:
            folder = Path(empty)
            atomic_write(folder / FILE_NAME, f'solution = "{name}"\n')
            overrides = ["data.tiny=true", *overrides]
        project = open_project(folder, overrides)
        prepare(project, new_progress())
        write_contact_sheet(project, path)
    typer.echo(path)


def _show(
    name: str, board: Board, kind: type[Settings] | None, values: Mapping[str, Any] | None
) -> None:
    from pegboard.board import installed_plugins

    info = next(plugin for plugin in installed_plugins() if plugin.name == name)
    typer.echo(f"{typer.style(name, bold=True)}  ({info.distribution} {info.version})")
    typer.echo(info.summary)
    if kind is not None:
        _show_settings(kind, values)
    _show_hooks(board)
    _show_targets(board)


def _show_settings(kind: type[Settings], values: Mapping[str, Any] | None) -> None:
    from pegboard.settings import known_keys

    heading("Settings: key=value on the command line, or a table of pegboard.toml")
    fields = {key: f for key, f in known_keys(kind).items() if not _is_table(f.annotation)}
    defaults = default_tables(kind)
    rows = []
    for key, field in fields.items():
        default = "required" if field.is_required() else text_of(_value_at(defaults, key))
        row = [key, type_name(field.annotation, field.metadata), default, field.description or ""]
        if values is not None:
            value = text_of(_value_at(values, key))
            row[2:3] = [value, "" if value == default else default]
        rows.append(row)
    headers = ["setting", "type", "default", "meaning"]
    if values is not None:
        headers[2:3] = ["value", "default, if another"]
    table(headers, rows)


def default_tables(kind: type[Settings]) -> dict[str, Any]:
    """Return the defaults of a settings type as plain tables; a required key is left out."""
    defaults: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        if field.is_required():
            continue
        default = field.get_default(call_default_factory=True, validated_data={})
        defaults[name] = default.model_dump(mode="json") if _is_table(type(default)) else default
    return defaults


def _value_at(tables: Mapping[str, Any], key: str) -> Any:
    """Return a key's value; a field that is excluded from whatever is kept has none to show."""
    value: Any = tables
    for name in key.split("."):
        value = value.get(name, NOT_SHOWN)
    return value


def _is_table(annotation: Any) -> bool:
    from pydantic import BaseModel

    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def text_of(value: Any) -> str:
    """Write a value the way a command line takes it."""
    if isinstance(value, str):
        return f'"{value}"' if not value or " " in value else value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return "[" + ", ".join(f'"{item}"' for item in value) + "]"
    if hasattr(value, "items"):
        return "{" + ", ".join(f"{key} = {text_of(item)}" for key, item in value.items()) + "}"
    return "" if value is None else str(value)


def type_name(annotation: Any, limits: Any = ()) -> str:
    """Write a type in a user's words: `text`, `number >= 0`, `"fp32" or "bf16"`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_name(arguments[0], arguments[1:])
    if origin is Literal:
        return " or ".join(text_of(value) for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(type_name(item) for item in arguments if item is not type(None))
    if origin in (tuple, list):
        return "list"
    if origin is dict:
        return "table"
    return " ".join([_plain_name(annotation), *_bounds(limits)])


def _plain_name(annotation: Any) -> str:
    plain: Mapping[Any, str] = {
        str: "text",
        bool: "true or false",
        int: "whole number",
        float: "number",
        Path: "path",
    }
    return plain.get(annotation) or str(getattr(annotation, "__name__", annotation))


def _bounds(limits: Any) -> list[str]:
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    return [
        f"{sign} {getattr(limit, name)}"
        for limit in limits
        for name, sign in signs.items()
        if getattr(limit, name, None) is not None
    ]


def _show_hooks(board: Board) -> None:
    from pegboard.board import BUILT_IN
    from pegboard.hookspecs import HOOKS

    heading("Hooks that are answered, beside the core's own")
    rows = []
    for name, facts in HOOKS.items():
        answered = [plugin for plugin in board.call_order(name) if plugin not in BUILT_IN]
        if answered:
            rows.append((name, facts.group, ", ".join(answered)))
    table(("hook", "group", "by"), rows)


def _show_targets(board: Board) -> None:
    heading("Targets")
    targets = board.collect("deploy_targets")
    table(("name", "compressions"), [(t.name, ", ".join(t.compressions)) for t in targets])
