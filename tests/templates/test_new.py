"""`pegboard new`: a project from a template, whole or not at all, with or without questions."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from pegboard.cli import main
from pegboard.cli.scaffold import installed_templates
from pegboard.project import open_project

REPOSITORY = Path(__file__).resolve().parents[2]
Give = Callable[..., tuple[int, str, str]]


@pytest.fixture
def give(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Give:
    """Return a function that gives a command in this process: code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PEGBOARD_LOG_FORMAT", raising=False)

    def run(*words: str) -> tuple[int, str, str]:
        code = main.run(words)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def site_with_template(folder: Path, files: dict[str, str], *, version: str = "1.0") -> None:
    """Make a distribution `pegboard-house` with a template `house`."""
    facts = folder / "pegboard_house.dist-info"
    facts.mkdir(parents=True, exist_ok=True)
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: house\nVersion: {version}\n")
    (facts / "entry_points.txt").write_text("[pegboard.templates]\nhouse = house_templates\n")
    template = folder / "house_templates" / "house"
    (template.parent).mkdir(exist_ok=True)
    (template.parent / "__init__.py").write_text("raise SystemExit('imported')")
    defaults = '{"project_slug": "home", "colour": ["red", "blue"], "_summary": "A house"}'
    for name, text in {"cookiecutter.json": defaults, **files}.items():
        path = template / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


SLUG = "{{cookiecutter.project_slug}}"
NAMES = [
    "clip",
    "defect",
    "fraud",
    "lidar",
    "medical-classification",
    "medical-segmentation",
    "moco",
    "plugin",
]


def test_the_templates_are_found_with_their_summary() -> None:
    found = {template.name: template for template in installed_templates()}
    assert set(NAMES) <= set(found)
    assert found["fraud"].distribution == "pegboard-templates"
    assert (
        found["plugin"].summary
        == "A distribution with a solution of your own, working as generated"
    )


def test_a_strangers_template_is_found_by_its_entry_point_without_importing_it(
    tmp_path: Path, give: Give, monkeypatch: pytest.MonkeyPatch
) -> None:
    site_with_template(tmp_path / "site", {f"{SLUG}/a.txt": "{{cookiecutter.colour}}"})
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert "A house" in give("list")[1]
    assert give("new", "house", "mine")[0] == 0
    assert (tmp_path / "mine" / "a.txt").read_text() == "red"


def test_a_new_project_opens_and_its_settings_are_valid(tmp_path: Path, give: Give) -> None:
    code, said, _ = give("new", "fraud", "my-fraud", "--no-input")
    assert code == 0
    assert "pegboard run" in said
    project = open_project(tmp_path / "my-fraud")
    assert project.settings.solution == "fraud"
    for hook in ("choose_thresholds", "encode_answer", "after_stage"):
        assert project.board.call_order(hook)[0].startswith("hooks.py")
    assert project.board.call_order("encode_answer")[0] == "hooks.py (wrapper)"


def test_answers_on_the_command_line_reach_the_files(tmp_path: Path, give: Give) -> None:
    words = ('data_path=C:\\bank\\"2026".csv', "currency=CNY", "threshold=budget")
    code, *_ = give("new", "fraud", "mine", *words, "--output-dir", "deep/below")
    assert code == 0
    settings = tomllib.loads((tmp_path / "deep/below/mine/pegboard.toml").read_text())
    assert settings["data"]["path"] == 'C:\\bank\\"2026".csv'
    assert settings["data"]["currency"] == "CNY"
    assert settings["model"]["threshold"] == "budget"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["new", "fruad", "mine"], "did you mean 'fraud'"),
        (["new", "fraud", "My Fraud"], "'My Fraud' cannot name a project"),
        (["new", "fraud", "../mine/-x"], "'-x' cannot name a project"),
        (["new", "plugin", "3d"], "'3d' cannot name a project"),
        (["new", "fraud", "there"], "there is something of this name already (there)"),
        (["new", "fraud", "mine", "curency=EUR"], "did you mean 'currency'"),
        (["new", "fraud", "mine", "threshold=luck"], "choose one of cost, budget"),
        (["new", "fraud", "mine", "currency"], "write it as key=value"),
        (["new", "fraud", "mine", "_summary=x"], "does not ask for '_summary'"),
    ],
)
def test_what_cannot_be_made_is_refused_and_leaves_nothing(
    tmp_path: Path, give: Give, words: list[str], told: str
) -> None:
    (tmp_path / "there").mkdir()
    code, _, error = give(*words)
    assert code == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert told in error
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_a_template_that_cannot_be_rendered_leaves_nothing(
    tmp_path: Path, give: Give, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"{SLUG}/a.txt": "fine", f"{SLUG}/b.txt": "{{ cookiecutter.unheard_of }}"}
    site_with_template(tmp_path / "site", files)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    code, _, error = give("new", "house", "mine")
    assert code == 2
    assert "the template 'house' cannot be rendered" in error
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


def test_what_pip_compiled_does_not_reach_a_project(
    tmp_path: Path, give: Give, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = f"{SLUG}/below/__pycache__/hooks.cpython-311.pyc"
    site_with_template(tmp_path / "site", {f"{SLUG}/a.txt": "a", compiled: "\x00"})
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert give("new", "house", "mine")[0] == 0
    assert not list((tmp_path / "mine").rglob("__pycache__"))


def test_a_terminal_is_asked_and_an_empty_line_takes_the_default(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    asked = subprocess.Popen(
        [sys.executable, "-m", "pegboard.cli.main", "new", "fraud", "mine", "data_path="],
        cwd=tmp_path,
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    # Currency; a choice that is none, then one that is; the rest by default.
    os.write(ours, b"CNY\nluck\nbudget\n\n\n")
    _, questions = asked.communicate(timeout=60)
    assert asked.returncode == 0, questions
    assert "Currency of the amounts [EUR]" in questions
    assert "choose one of cost, budget" in questions
    assert "Your CSV" not in questions
    settings = tomllib.loads((tmp_path / "mine" / "pegboard.toml").read_text())
    assert settings["data"]["currency"] == "CNY"
    assert settings["model"]["threshold"] == "budget"


def test_without_a_terminal_nothing_is_asked(
    tmp_path: Path, pegboard: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    ended = pegboard("new", "fraud", "mine", folder=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("name", NAMES)
def test_plain_cookiecutter_makes_the_same_files(tmp_path: Path, name: str, give: Give) -> None:
    subprocess.run(
        [
            sys.executable,
            "-m",
            "cookiecutter",
            str(REPOSITORY / "templates" / "pegboard_templates" / name),
            "--no-input",
            "--output-dir",
            str(tmp_path / "plain"),
        ],
        env=os.environ | {"HOME": str(tmp_path)},
        check=True,
    )
    (plain,) = (tmp_path / "plain").iterdir()
    assert give("new", name, plain.name)[0] == 0
    ours = tmp_path / plain.name
    (ours / ".pegboard-template.json").unlink()
    assert contents(ours) == contents(plain)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
