"""`predict`: answers requests from a file with a bundle, by the path that serving takes, too."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pegboard.cli.options import PROJECT_FILE, ProjectFolder, open_project, project_folder
from pegboard.errors import BundleError, RequestError

if TYPE_CHECKING:
    from pegboard.board import Board
    from pegboard.bundle import Bundle


def add_commands(app: typer.Typer) -> None:
    """Add `predict`."""
    app.command()(predict)


def predict(
    request: Annotated[
        str, typer.Argument(metavar="FILE", help="JSON, or JSON lines; - is standard input.")
    ],
    project: ProjectFolder = None,
    bundle: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A bundle; default: that of the project's newest run."),
    ] = None,
    candidate: Annotated[
        str | None, typer.Option(help="Which of its models, as onnx/fp32; default: the chosen one.")
    ] = None,
) -> None:
    """Answer the requests in a file."""
    from pegboard.answering import Answerer
    from pegboard.bundle import read_bundle
    from pegboard.records import AnswerEvent
    from pegboard.serving.deployment import resolve_settings
    from pegboard.settings import Sources

    requests = list(_requests(request))
    folder = project_folder(project)
    opened = read_bundle(bundle or newest_bundle(folder))
    board = board_for(opened, folder)
    settings = resolve_settings(board, opened, Sources(), folder)
    chosen = opened.candidate(candidate) if candidate else opened.chosen()
    predictor = opened.load_predictor(board.collect("deploy_targets"), chosen)
    answer = Answerer(board, settings, predictor, opened.thresholds, opened.signature)
    for place, payload in requests:
        began = time.perf_counter()
        try:
            answers = answer(payload)
        except RequestError as error:
            where = f"{place}, {error.where}" if error.where else place
            raise RequestError(error.what, where=where, remedy=error.remedy) from error
        event = AnswerEvent(
            solution=opened.solution,
            count=len(answers),
            seconds=time.perf_counter() - began,
            target=chosen.name,
        )
        board.hook.after_answer(settings=settings, event=event)
        indent = 2 if len(requests) == 1 else None
        typer.echo(json.dumps(list(answers), indent=indent, ensure_ascii=False))


def _requests(file: str) -> Iterator[tuple[str, Any]]:
    """Yield the requests of a file with where they stand: one JSON value, or one on each line."""
    place = "standard input" if file == "-" else file
    text = _read(file, place)
    try:
        yield place, json.loads(text)
        return
    except ValueError as error:
        whole = error  # Then it may be JSON lines.
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    for number, line in lines:
        try:
            yield f"{place}, line {number}", json.loads(line)
        except ValueError as error:
            # Of a file whose first line is no JSON, what is wrong with the whole says more.
            problem = f"{place}, line {number}: {error}" if number > 1 else f"{place}: {whole}"
            raise RequestError(
                "the request is not JSON", where=problem, remedy="send JSON or JSON lines"
            ) from None
    if not lines:
        raise RequestError("there is no request", where=place, remedy="send JSON or JSON lines")


def _read(file: str, place: str) -> str:
    try:
        return sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise RequestError(
            "the request is not text in UTF-8", where=place, remedy="send JSON or JSON lines"
        ) from None


def newest_bundle(folder: Path) -> Path:
    """Return the bundle of a project's newest run that has one.

    Raises:
        BundleError: None has.
    """
    from pegboard.runs import runs_of

    bundles = (run / "bundle" for run in reversed(runs_of(folder)))
    found = next((bundle for bundle in bundles if (bundle / "bundle.json").is_file()), None)
    if found is None:
        raise BundleError(
            "there is no bundle yet",
            where=str(folder),
            remedy="make one with 'pegboard export', or name one with --bundle",
        )
    return found


def board_for(bundle: Bundle, folder: Path) -> Board:
    """Build the board that a bundle needs: the project's if it is of the same solution."""
    from pegboard.board import build_board

    if (folder / PROJECT_FILE).is_file():
        project = open_project(folder, ())
        if project.settings.solution == bundle.solution:
            return project.board
    return build_board(bundle.solution, tuple(bundle.settings.get("plugins", ())))
