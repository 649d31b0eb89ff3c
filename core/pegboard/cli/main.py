"""The entry point: reads the command line, runs a command, ends every error in one sentence.

Exit codes: 0 done, 2 something is wrong that the user can mend, 3 a limit was missed.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_group

from pegboard import logs
from pegboard.cli import catalog, doctor, plugin, predict, serve, stages, templates
from pegboard.cli.options import QuickHelp
from pegboard.errors import PegboardError

INTERRUPTED = 130
"""What typer makes of an interrupt: 128 + SIGINT."""


def main() -> None:
    """Run the command line and exit."""
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command; return the exit code."""
    logs.configure(debug="--debug" in arguments)
    try:
        rest = _without_globals(arguments) or ["--help"]
        commands = get_group(build_app())
        result = commands.main(rest, prog_name="pegboard", standalone_mode=False)
        if result == INTERRUPTED:
            raise KeyboardInterrupt
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except BrokenPipeError:  # `pegboard list | head` is no mistake.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except BaseException as error:
        if isinstance(error, SystemExit) and isinstance(error.code, int):
            return error.code
        problem = _explained(error)
        logs.report(problem, error)
        return problem.exit_code


def _explained(error: BaseException) -> PegboardError:
    from pegboard.cli.faults import explain

    return explain(error)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _without_globals(arguments: Sequence[str]) -> list[str]:
    """Obey the global options, wherever they stand on the line; return the rest.

    typer would read them too, but for a text option it imports pydantic's whole machinery, which
    `pegboard list` must not wait for.
    """
    rest = []
    words = iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        if name == "--log-format":
            _set_log_format(value if equals else next(words, ""))
        elif word != "--debug":
            rest.append(word)
    return rest


def _set_log_format(value: str) -> None:
    if value not in ("text", "ecs"):
        raise PegboardError(
            f"there is no log format '{value}'",
            where="command line",
            remedy="write --log-format text or --log-format ecs",
        )
    logs.configure("ecs" if value == "ecs" else "text")


class _Commands(QuickHelp, TyperGroup):
    """The core's commands, and inside a project those of its plugins."""

    _of_project: dict[str, Any] | None = None

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command; plugins are imported only for a name that the core does not know."""
        return super().get_command(ctx, cmd_name) or self._added().get(cmd_name)

    def list_commands(self, ctx: Any) -> list[str]:
        """Name the core's commands, then the project's."""
        names = super().list_commands(ctx)
        try:
            added = self._added()
        except Exception as error:  # Whatever is broken here, help has to be shown.
            logs.LOGGER.warning(str(_explained(error)))
            return names
        return [*names, *(name for name in added if name not in names)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Show options and commands, and what may stand anywhere on the line."""
        super().format_options(ctx, formatter)
        with formatter.section("Anywhere on the line"):
            formatter.write_dl(
                [
                    ("--log-format text|ecs", "Log for people, or as ECS JSON for Elastic."),
                    ("--debug", "Show tracebacks."),
                ]
            )

    def _added(self) -> dict[str, Any]:
        if self._of_project is None:
            self._of_project = plugin.project_commands()
        return self._of_project


def build_app() -> typer.Typer:
    """Build the command line; nothing is imported that a command does not need yet."""
    app = typer.Typer(
        cls=_Commands,
        name="pegboard",
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # rich alone would cost a third of what --help may take.
    )
    app.callback()(_root)
    for subject in (templates, catalog, stages, predict, serve, doctor, plugin):
        subject.add_commands(app)
    return app


def _show_version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(f"pegboard {version('pegboard')}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """From an industry's raw data to a verified, measured model.

    Make a project with 'pegboard new fraud my-fraud', go into it and give 'pegboard run'.
    """


if __name__ == "__main__":
    main()
