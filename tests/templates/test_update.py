"""`template check` and `update`: what is new comes in, what the user wrote stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest

from pegboard import PegboardError
from pegboard.cli import main
from pegboard.cli.scaffold import compare, create, find_template, read_record, update

SLUG = "{{cookiecutter.project_slug}}"
FIRST = {
    "same": "same",
    "yours": "first",
    "outdated": "first",
    "both": "first",
    "deleted": "first",
    "dropped": "first",
}
Release: TypeAlias = Callable[[str, dict[str, str]], None]


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Release:
    """Return a function that installs a version of the template `house`."""
    site = tmp_path / "site"
    facts, template = site / "house.dist-info", site / "houses" / "house"
    for folder in (facts, template):
        folder.mkdir(parents=True)
    (facts / "entry_points.txt").write_text("[pegboard.templates]\nhouse = houses\n")
    (template.parent / "__init__.py").touch()
    (template / "cookiecutter.json").write_text('{"project_slug": "home", "colour": "red"}')
    monkeypatch.syspath_prepend(str(site))

    def install(version: str, files: dict[str, str]) -> None:
        (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: house\nVersion: {version}\n")
        project = template / SLUG
        project.mkdir(exist_ok=True)
        for path in project.iterdir():
            path.unlink()
        for name, text in files.items():
            (project / name).write_text(text)

    return install


@pytest.fixture
def home(tmp_path: Path, release: Release) -> Path:
    """A project of version 1, changed by its user, with version 2 installed."""
    release("1", FIRST)
    folder = tmp_path / "home"
    create(find_template("house"), folder, {"colour": "blue"})
    for name in ("yours", "both"):
        (folder / name).write_text("mine")
    (folder / "deleted").unlink()
    changed = dict.fromkeys(("outdated", "both", "deleted", "new"), "{{cookiecutter.colour}}")
    release("2", {name: FIRST[name] for name in ("same", "yours")} | changed)
    return folder


STATES = {
    "same": "same",
    "yours": "yours",
    "outdated": "outdated",
    "both": "conflict",
    "deleted": "conflict",
    "dropped": "dropped",
    "new": "new",
}


def test_every_file_is_told_how_it_stands(home: Path) -> None:
    assert compare(home) == STATES


def test_update_replaces_what_was_not_touched_and_keeps_what_was(home: Path) -> None:
    assert update(home) == STATES
    texts = {p.name: p.read_text() for p in home.iterdir() if not p.name.startswith(".")}
    assert texts == {
        "same": "same",
        "yours": "mine",
        "outdated": "blue",
        "both": "mine",
        "both.new": "blue",
        "deleted.new": "blue",
        "dropped": "first",
        "new": "blue",
    }
    assert read_record(home).version == "2"
    assert read_record(home).answers == {"project_slug": "home", "colour": "blue"}


def test_after_an_update_there_is_nothing_to_take_over(home: Path) -> None:
    update(home)
    for name in ("both", "deleted"):
        (home / f"{name}.new").unlink()
    before = {path: path.read_bytes() for path in home.iterdir()}
    assert set(update(home).values()) == {"same", "yours"}
    assert {path: path.read_bytes() for path in home.iterdir()} == before


def test_a_version_beside_is_never_overwritten(home: Path) -> None:
    (home / "both.new").write_text("half merged")
    with pytest.raises(PegboardError, match=r"both\.new"):
        update(home)
    assert (home / "outdated").read_text() == "first"


def test_the_commands_say_what_they_found_and_did(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["template", "check", "--project", str(home)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("made from house 1; installed is 2\n")
    assert "changed by both" in said
    assert main.run(["template", "update", "--project", str(home)]) == 0
    assert "outdated  replaced" in capsys.readouterr().out
    assert main.run(["template", "update", "--project", str(home)]) == 0
    assert "there was nothing to take over" in capsys.readouterr().out
    assert main.run(["template", "check", "--project", str(home)]) == 0
    assert capsys.readouterr().out.endswith("there is nothing to take over\n")


def test_a_project_without_a_record_or_a_template_is_told_so(tmp_path: Path, home: Path) -> None:
    with pytest.raises(PegboardError, match="this project does not know its template"):
        compare(tmp_path)
    record = home / ".pegboard-template.json"
    record.write_text(record.read_text().replace('"house"', '"hut"'))
    with pytest.raises(PegboardError, match="there is no template 'hut'"):
        compare(home)
    record.write_text("{")
    with pytest.raises(PegboardError, match="the record of the template is damaged"):
        compare(home)
