"""`pegboard index`, `pegboard search` and `pegboard classify`: pictures from the disk."""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pegboard.cli.options import ProjectFolder, QuickCommand, open_project, project_folder
from pegboard.errors import DataError, RequestError
from pegboard.logs import new_progress

if TYPE_CHECKING:
    from pegboard.progress import Progress
    from pegboard.records import Array
    from pegboard_clip.index import Encoder, Index, Match
    from pegboard_clip.settings import ClipSettings

FOLDER = "index"
"""Where a project's index is."""

IndexFolder = Annotated[
    Path | None,
    typer.Option(
        "--index", metavar="DIR", help="The index; default: serve.index, else the project's index/."
    ),
]
Bundle = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="A bundle; default: that of the project's newest run."),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(index)
    app.command()(search)
    app.command(cls=SpreadLabels)(classify)


# --- pegboard index -------------------------------------------------------------------------------


def index(
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FOLDER]", help="Pictures; default: all folders that are in the index."
        ),
    ] = None,
    again: Annotated[
        bool,
        typer.Option("--again", help="Embed everything anew, with the model that there is now."),
    ] = False,
    forget: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Take a folder out of the index.")
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            help="Where a new index keeps vectors: numpy; faiss, for more than a million; "
            "postgresql://HOST/DATABASE or http://HOST:6333 (Qdrant), for several machines."
        ),
    ] = None,
    index: IndexFolder = None,
    project: ProjectFolder = None,
    bundle: Bundle = None,
) -> None:
    """Embed the pictures of a folder, so that they can be searched; only what has changed."""
    from pegboard_clip.index import DATABASE, Index

    settings = _settings(project)
    place = _index_folder(index, settings, project)
    if forget is not None:
        with Index(place) as opened, opened.writing():
            typer.echo(f"{opened.forget(forget)} pictures taken out; {len(opened)} are left")
        return
    progress = new_progress()
    if folder is None and not (place / DATABASE).is_file():
        raise DataError(
            "there is no index", where=str(place), remedy="name a folder of pictures to make it"
        )
    encoder = _encoder(project, bundle)
    with _opened(place, encoder, store) as opened, opened.writing():
        if again:
            opened.restart(encoder)
        _bring_up(opened, folder, again, encoder, progress, settings.data.pixels)


def _opened(place: Path, encoder: Encoder, store: str | None) -> Index:
    """Open an index, or make one."""
    from pegboard_clip.index import DATABASE, Index

    if not (place / DATABASE).is_file():
        return Index.create(
            place, model=encoder.model, dimension=encoder.dimension, store=store or "numpy"
        )
    opened = Index(place)
    if store is not None and store != opened.address:
        opened.close()
        raise DataError(
            f"the index keeps its vectors in {opened.address}",
            where=str(place),
            remedy="leave --store out, or make another index with --index",
        )
    return opened


def _bring_up(
    opened: Index,
    folder: Path | None,
    everything: bool,
    encoder: Encoder,
    progress: Progress,
    pixels: int,
) -> None:
    """Bring folders up to date, name what could not be read, and make searching fast."""
    from pegboard_clip.index import Summary, refresh

    folders = opened.roots() if folder is None or everything else []
    if folder is not None and folder.resolve() not in folders:
        folders.append(folder)
    total, problems = Summary(), []
    for one in folders:
        try:
            total += refresh(opened, one, encoder, progress, pixels=pixels)
        except DataError as error:  # The others need not wait for a disk that is not mounted.
            if len(folders) == 1:
                raise
            problems.append(error)
    opened.optimise(progress)
    for path, reason in total.unreadable:
        typer.echo(f"left out: {printable(path)}: {reason}", err=True)
    typer.echo(f"{total}; {len(opened)} pictures in {opened.folder}")
    if problems:
        raise problems[0]


# --- pegboard search ------------------------------------------------------------------------------


def search(
    query: Annotated[
        str | None,
        typer.Argument(
            metavar="[QUERY]",
            help="Words; + adds a term, - takes one away: 'apple + green - leaf'.",
        ),
    ] = None,
    image: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A picture to search by, without words.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many to print.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    index: IndexFolder = None,
    project: ProjectFolder = None,
    bundle: Bundle = None,
) -> None:
    """Rank pictures by likeness to words or to a picture, best first.

    The order says which pictures are nearer than others, and not whether any of them is what was
    asked for: something is always first.
    """
    from pegboard_clip.images import read_image
    from pegboard_clip.index import Index
    from pegboard_clip.search import query_vector, warnings_of

    if (query is None) == (image is None):
        raise RequestError(
            "there is nothing to search by" if query is None else "there are words and a picture",
            where="command line",
            remedy="write words, or name a picture with --image",
        )
    settings = _settings(project)
    with Index(_index_folder(index, settings, project)) as opened:
        encoder = _encoder(project, bundle)
        opened.require(encoder)
        asked: Any = query
        if image is not None:
            asked = read_image(image, pixels=settings.data.pixels, where=str(image))
        vector = query_vector(encoder, asked)
        for warning in warnings_of(encoder, query) if query is not None else ():
            typer.echo(warning, err=True)
        _print_matches(opened.search(vector, top), as_json=as_json)


def _print_matches(matches: Sequence[Match], *, as_json: bool) -> None:
    from pegboard.cli.tables import table

    if as_json:
        rows = [
            {"rank": rank, "file": _text_of(match.file), "root": _text_of(match.root)}
            for rank, match in enumerate(matches, 1)
        ]
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    table(
        ("rank", "file"),
        [(str(rank), _shown(match.file)) for rank, match in enumerate(matches, 1)],
    )


def _shown(file: Path) -> str:
    """Return a file's name as seen from here, if it is below."""
    here = Path.cwd()
    return printable(str(file.relative_to(here) if file.is_relative_to(here) else file))


def _text_of(path: Path) -> str:
    return os.fsencode(path).decode("utf-8", "replace")


def printable(name: str) -> str:
    """Return a file's name without what a terminal would obey or could not show."""
    text = os.fsencode(name).decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() else "�" for letter in text)


# --- pegboard classify ----------------------------------------------------------------------------


class SpreadLabels(QuickCommand):
    """Takes `--labels cat dog`, which is `--labels cat --labels dog` to the parser."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the option before each label."""
        return super().parse_args(ctx, spread(args))


def spread(words: Sequence[str]) -> list[str]:
    """Put `--labels` before each of the words that follow it, up to the next option."""
    done: list[str] = []
    among = is_first = False
    for place, word in enumerate(words):
        if word == "--":
            return [*done, *words[place:]]
        if word == "--labels":
            among = is_first = True
        elif word.startswith("-") and not is_first:
            among = False
        elif among and not is_first:
            done.append("--labels")
        else:
            is_first = False
        done.append(word)
    return done


def classify(
    paths: Annotated[
        list[Path], typer.Argument(metavar="FOLDER-OR-FILE...", help="Pictures, before --labels.")
    ],
    labels: Annotated[
        list[str] | None,
        typer.Option(help="The classes: --labels cat dog; default: data.labels."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A table (CSV) with the cosine to each label; prints counts then."
        ),
    ] = None,
    project: ProjectFolder = None,
    bundle: Bundle = None,
) -> None:
    """Sort pictures into classes that are named here, without training (zero-shot).

    Every picture gets the nearest of the labels, also where none of them fits.
    """
    from pegboard.cli.tables import table
    from pegboard.files import atomic_write
    from pegboard_clip.zero_shot import label_vectors

    settings = _settings(project)
    names = list(dict.fromkeys(labels or settings.data.labels))
    encoder = _encoder(project, bundle)
    classes = label_vectors(encoder, names, settings.data.prompts)
    _warn_of(encoder, names)
    files, left_out = _pictures_in(paths)
    progress = new_progress()
    found = list(_likenesses(encoder, files, classes, settings.data.pixels, left_out, progress))
    rows = [_ranked(file, likeness, names) for file, likeness in found]
    for path, reason in left_out:
        typer.echo(f"left out: {printable(path)}: {reason}", err=True)
    if out is not None:
        atomic_write(out, _csv(found, names))
        counts = Counter(label for _, label, _ in rows)
        table(("label", "pictures"), [(name, str(counts[name])) for name in names])
        progress.say(f"the table is {out}")
        return
    table(("file", "label", "then"), rows)


def _warn_of(encoder: Encoder, labels: Sequence[str]) -> None:
    sentences = dict.fromkeys(encoder.warning(label) for label in labels)
    for sentence in filter(None, sentences):
        typer.echo(sentence, err=True)


def _pictures_in(paths: Sequence[Path]) -> tuple[list[Path], list[tuple[str, str]]]:
    """Return the files that are named and those in folders that are, and what cannot be read.

    Raises:
        DataError: There are none.
    """
    from pegboard_clip.folders import look_through

    files: list[Path] = []
    left_out: list[tuple[str, str]] = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        look = look_through(path)
        files += [path / name for name in look.files]
        left_out += [(str(path / name), reason) for name, reason in look.unreadable]
    if not files:
        raise DataError(
            "there is no picture", where=", ".join(map(str, paths)), remedy="name others"
        )
    return files, left_out


def _likenesses(
    encoder: Encoder,
    files: Sequence[Path],
    classes: Array,
    pixels: int,
    left_out: list[tuple[str, str]],
    progress: Progress,
) -> Iterator[tuple[Path, Array]]:
    """Yield each picture's cosines (C,) to the classes (C, D); note what cannot be read."""
    import numpy as np

    from pegboard_clip.images import fitted, read_image
    from pegboard_clip.index import BATCH

    names: list[Path] = []
    images: list[Array] = []
    last = len(files) - 1
    for number, file in enumerate(progress.track(files, "classify", len(files))):
        try:
            image = read_image(file, pixels=pixels, where=str(file))
            images.append(fitted(image, encoder.size))
            names.append(file)
        except DataError as error:
            left_out.append((str(file), error.what))
        if images and (len(images) == BATCH or number == last):
            yield from zip(names, encoder.images(np.stack(images)) @ classes.T, strict=True)
            names, images = [], []


def _ranked(file: Path, likeness: Array, labels: Sequence[str]) -> tuple[str, str, str]:
    """Return a row: the file, the nearest label, and the one after it."""
    order = likeness.argsort(kind="stable")[::-1]
    then = labels[order[1]] if len(labels) > 1 else ""
    return _shown(file), labels[order[0]], then


def _csv(found: Sequence[tuple[Path, Array]], labels: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "label", *(f"cosine_{label}" for label in labels)])
    for file, likeness in found:
        nearest = labels[int(likeness.argmax())]
        writer.writerow([_text_of(file), nearest, *(f"{value:.6f}" for value in likeness)])
    return text.getvalue()


# --- What they share ------------------------------------------------------------------------------


def _settings(project: Path | None) -> ClipSettings:
    settings: Any = open_project(project, ()).settings
    return settings  # type: ignore[no-any-return]


def _index_folder(given: Path | None, settings: ClipSettings, project: Path | None) -> Path:
    return given or settings.serve.index or project_folder(project) / FOLDER


def _encoder(project: Path | None, bundle: Path | None) -> Encoder:
    from pegboard_clip.encoder import open_encoder

    return open_encoder(project_folder(project), bundle)
