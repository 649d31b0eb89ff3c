"""Projects from templates: found by entry point, rendered by cookiecutter, kept up to date.

An entry point of the group `pegboard.templates` names a package; the template is the folder in
it that is called like the entry point. Its variable `project_slug` names the new folder.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal

from pegboard.errors import MissingExtraError, PegboardError
from pegboard.files import atomic_write, remove, sha256_of, write_json

ENTRY_POINT_GROUP = "pegboard.templates"
RECORD = ".pegboard-template.json"
"""What a project remembers of its template."""
NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")

Answers = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Template:
    """An installed template."""

    name: str
    """The entry point's name."""
    distribution: str
    """The distribution that brings it."""
    version: str
    """Its version."""
    folder: Path
    """Where `cookiecutter.json` is."""

    @property
    def variables(self) -> dict[str, Any]:
        """What the template asks, with the defaults; names that begin with _ are not asked."""
        text = (self.folder / "cookiecutter.json").read_text(encoding="utf-8")
        variables: dict[str, Any] = json.loads(text)
        return variables

    @property
    def summary(self) -> str:
        """One line for `pegboard list`."""
        return str(self.variables.get("_summary", ""))


@dataclass(frozen=True, kw_only=True)
class Record:
    """Where a project comes from."""

    template: str
    """The template's name."""
    version: str
    """The version it was generated or last updated with."""
    answers: Answers
    """The variables of the template."""
    files: Mapping[str, str]
    """SHA-256 of every file as it was generated, by path."""


State = Literal["same", "yours", "outdated", "conflict", "new", "dropped"]
"""How a file of a project stands to its template: as the template has it; changed by you alone;
changed by the template alone; by both; not there yet; no longer in the template."""


# --------------------------------------------------------------------------- discovery


def installed_templates() -> list[Template]:
    """List installed templates; the packages that bring them are not imported."""
    known = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    found = (_template(point) for _, point in sorted(known.items()))
    return [template for template in found if template is not None]


def _template(point: EntryPoint) -> Template | None:
    spec = importlib.util.find_spec(point.value)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(place, point.name)
        if (folder / "cookiecutter.json").is_file():
            return Template(
                name=point.name,
                distribution=point.dist.name if point.dist else "unknown",
                version=point.dist.version if point.dist else "unknown",
                folder=folder,
            )
    return None


def find_template(name: str) -> Template:
    """Return an installed template.

    Raises:
        PegboardError: There is none of this name.
    """
    known = {template.name: template for template in installed_templates()}
    if name in known:
        return known[name]
    advice = "install it, perhaps 'pip install pegboard-templates'"
    raise PegboardError(
        f"there is no template '{name}'",
        where="installed: " + (", ".join(known) or "none"),
        remedy=_nearest(name, known) or advice,
    )


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean '{close[0]}'" if close else ""


# --------------------------------------------------------------------------- new


def create(template: Template, folder: Path, answers: Answers) -> None:
    """Write a new project: whole, or not at all.

    Args:
        template: What to render.
        folder: The new project; its name is the answer to `project_slug`.
        answers: Other answers, by the names of the template's variables.

    Raises:
        PegboardError: The folder exists, the name cannot be used or an answer is wrong.
    """
    check_folder(folder)
    for name, value in answers.items():
        check_answer(template, name, value)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _rendered(template, {**answers, "project_slug": folder.name}, folder.parent) as project:
        _write_record(project, template, {**answers, "project_slug": folder.name}, project)
        project.replace(folder)


def check_folder(folder: Path) -> None:
    """Refuse a name that cannot name a project, and a folder that is there already."""
    if not NAME.fullmatch(folder.name):
        raise PegboardError(
            f"'{folder.name}' cannot name a project",
            where="command line",
            remedy="use lower-case letters, digits, - and _, a letter first, as in my-fraud",
        )
    if folder.exists():
        raise PegboardError(
            "there is something of this name already",
            where=str(folder),
            remedy="choose another name, or move it away",
        )


def check_answer(template: Template, name: str, value: str) -> None:
    """Refuse an answer to what a template does not ask, or that is none of its choices."""
    known = [known for known in template.variables if not known.startswith("_")]
    if name not in known:
        raise PegboardError(
            f"the template '{template.name}' does not ask for '{name}'",
            where="command line",
            remedy=_nearest(name, known) or f"it asks for {', '.join(known)}",
        )
    choices = template.variables[name]
    if isinstance(choices, list) and value not in choices:
        raise PegboardError(
            f"'{value}' is no answer to '{name}'",
            where="command line",
            remedy=f"choose one of {', '.join(choices)}",
        )


def settle(template: Template, answers: Answers) -> dict[str, Any]:
    """Return every variable of a template with its value: as answered, else the default.

    Raises:
        MissingExtraError: cookiecutter is not installed.
    """
    try:
        from cookiecutter.generate import generate_context
        from cookiecutter.prompt import prompt_for_config
    except ModuleNotFoundError:
        raise MissingExtraError(
            "cookiecutter is not installed",
            where=f"template {template.name}",
            remedy="pip install pegboard-templates",
        ) from None
    file = str(template.folder / "cookiecutter.json")
    context = generate_context(file, extra_context=dict(answers))
    return dict(prompt_for_config(context, no_input=True))


def answers_of(template: Template, answers: Answers) -> dict[str, Any]:
    """Return what a template asks, each with its answer or default."""
    settled = settle(template, answers)
    return {name: value for name, value in settled.items() if not name.startswith("_")}


def _render(template: Template, answers: Answers, folder: str) -> Path:
    context = {"cookiecutter": settle(template, answers)}
    from cookiecutter.exceptions import CookiecutterException
    from cookiecutter.generate import generate_files
    from jinja2 import TemplateError

    try:
        return Path(generate_files(template.folder, context=context, output_dir=folder))
    except (CookiecutterException, TemplateError) as error:
        raise PegboardError(
            f"the template '{template.name}' cannot be rendered: {error}",
            where=f"{template.distribution} {template.version}",
            remedy="this is a defect of the template",
        ) from error


@contextmanager
def _rendered(template: Template, answers: Answers, parent: Path | None = None) -> Iterator[Path]:
    """Render a template into a temporary folder below `parent`; give the project in it."""
    with tempfile.TemporaryDirectory(dir=parent, prefix=".new-") as temporary:
        project = _render(template, answers, temporary)
        for compiled in sorted(project.rglob("__pycache__")):
            remove(compiled)  # pip compiles the templates' Python files, too.
        yield project


# --------------------------------------------------------------------------- check and update


def read_record(folder: Path) -> Record:
    """Read what a project remembers of its template.

    Raises:
        PegboardError: It remembers nothing, or the record is damaged.
    """
    path = folder / RECORD
    try:
        return Record(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise PegboardError(
            "this project does not know its template",
            where=str(path),
            remedy="make projects with 'pegboard new' to have that",
        ) from None
    except (ValueError, TypeError):
        raise PegboardError(
            "the record of the template is damaged",
            where=str(path),
            remedy="take it from the project's history",
        ) from None


def compare(folder: Path) -> dict[str, State]:
    """Say how each file of a project stands to the installed version of its template."""
    record = read_record(folder)
    with _rendered(find_template(record.template), _known(record)) as project:
        theirs = _hashes(project)
    return {
        name: _state(record.files.get(name), _hash(folder / name), theirs.get(name))
        for name in sorted({*record.files, *theirs})
    }


def update(folder: Path) -> dict[str, State]:
    """Bring a project up to the installed version of its template.

    A file that only the template changed is replaced; where the user changed it too, the new
    version is written beside it as `NAME.new`. Nothing is removed.

    Returns:
        How each file stood before.

    Raises:
        PegboardError: A `NAME.new` of an earlier update is still there.
    """
    record = read_record(folder)
    template = find_template(record.template)
    states = compare(folder)
    beside = {name: f"{name}.new" for name, state in states.items() if state == "conflict"}
    left = next((new for new in beside.values() if (folder / new).exists()), None)
    if left:
        raise PegboardError(
            "the new version of an earlier update is still here",
            where=str(folder / left),
            remedy="take over what you want of it and remove it",
        )
    with _rendered(template, _known(record)) as project:
        for name, state in states.items():
            if state in ("outdated", "new", "conflict"):
                _put(project / name, folder / beside.get(name, name))
        _write_record(folder, template, record.answers, project)
    return states


def _state(base: str | None, mine: str | None, theirs: str | None) -> State:
    if theirs is None:
        return "dropped"
    if mine == theirs:
        return "same"
    if theirs == base:
        return "yours"
    if mine == base:
        return "outdated" if mine is not None else "new"
    return "conflict"


def _known(record: Record) -> Answers:
    """Return the answers that the installed version of the template still asks for."""
    variables = find_template(record.template).variables
    return {name: value for name, value in record.answers.items() if name in variables}


def _hashes(project: Path) -> dict[str, str]:
    files = (path for path in project.rglob("*") if path.is_file() and path.name != RECORD)
    return {path.relative_to(project).as_posix(): sha256_of(path) for path in sorted(files)}


def _hash(path: Path) -> str | None:
    return sha256_of(path) if path.is_file() else None


def _put(source: Path, path: Path) -> None:
    atomic_write(path, source.read_bytes())
    shutil.copymode(source, path)


def _write_record(folder: Path, template: Template, answers: Answers, generated: Path) -> None:
    record = Record(
        template=template.name,
        version=template.version,
        answers=answers_of(template, answers),
        files=_hashes(generated),
    )
    write_json(folder / RECORD, asdict(record))
