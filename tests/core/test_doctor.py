"""`doctor`: what is installed, who answers what, and what is broken, however broken it is."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pegboard.cli import main

MakeProject = Callable[..., Path]
Pegboard = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Return a function that examines a project and returns exit code and output."""

    def examine(folder: Path) -> tuple[int, str]:
        code = main.run(["doctor", "--project", str(folder)])
        return code, capsys.readouterr().out

    return examine


Doctor = Callable[..., tuple[int, str]]


def lines_of(output: str, word: str) -> list[str]:
    return [line for line in output.splitlines() if line.split()[:1] == [word]]


def test_a_sound_project_has_no_problem(make_project: MakeProject, doctor: Doctor) -> None:
    code, output = doctor(make_project(hooks="from pegboard import hookimpl\n"))
    assert code == 0
    assert output.rstrip().endswith("Problems\n  none")
    for name in ("python", "torch", "onnxruntime", "libgomp", "toy", "onnx"):
        assert lines_of(output, name), name


def test_the_resolved_call_order_of_every_hook_is_shown(
    make_project: MakeProject, doctor: Doctor
) -> None:
    from pegboard.hookspecs import HOOKS

    hooks = "from pegboard import hookimpl\n@hookimpl\ndef choose_thresholds():\n    return {}\n"
    _, output = doctor(make_project(hooks=hooks))
    for name in HOOKS:
        assert lines_of(output, name), name
    (line,) = lines_of(output, "choose_thresholds")
    assert line.endswith("hooks.py, toy, pegboard.defaults")


@pytest.mark.parametrize(
    ("text", "hooks", "problem"),
    [
        ('solution = "toy"', "import nowhere_at_all", "hooks.py is broken: ModuleNotFoundError"),
        ('solution = "tooy"', "", "there is no plugin 'tooy'"),
        ("solution = ", "", "this is not TOML"),
        ('solution = "toy"\n[train]\nepoch = 1', "", "unknown setting 'train.epoch'"),
        ('solution = "toy"\nplugins = 3', "", "the setting 'plugins' is wrong"),
        ("", "", "the setting 'solution' is missing"),
    ],
)
def test_a_broken_project_is_still_examined(
    make_project: MakeProject, doctor: Doctor, text: str, hooks: str, problem: str
) -> None:
    code, output = doctor(make_project(text, hooks))
    assert code == 2
    assert problem in output
    assert lines_of(output, "torch")
    assert lines_of(output, "collate")[0].endswith("pegboard.defaults")


def test_the_solution_is_still_shown_beside_a_broken_hooks_py(
    make_project: MakeProject, doctor: Doctor
) -> None:
    _, output = doctor(make_project(hooks="1 / 0"))
    assert lines_of(output, "load_split")[0].endswith("toy")


def test_quarantine_unknown_hooks_and_ignored_defaults_are_problems(
    make_project: MakeProject,
    doctor: Doctor,
    install: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(tmp_path / "site", "sick", "raise ValueError('no licence')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    hooks = "from pegboard import hookimpl\n@hookimpl\ndef drow(settings=1):\n    pass\n"
    hooks += "@hookimpl\ndef draw(settings=1):\n    return []\n"
    code, output = doctor(make_project('solution = "toy"\nplugins = ["sick"]', hooks))
    assert code == 2
    assert "'sick' (pegboard-sick 0.3) is kept off the board: ValueError: no licence" in output
    assert "there is no hook 'drow'; did you mean 'draw'" in output
    assert "draw(... settings=) has a default" in output


MACHINE = """
from pegboard import hookimpl
from pegboard.records import Finding

@hookimpl
def diagnose():
    return [Finding(level=level, what=f"{level} {n}", where="here", remedy="buy one")
            for n, level in enumerate(LEVELS)]
"""


def test_what_plugins_say_the_machine_lacks_is_shown_and_an_error_is_a_problem(
    make_project: MakeProject, doctor: Doctor
) -> None:
    code, output = doctor(make_project(hooks=MACHINE + "LEVELS = ['warning', 'error']"))
    assert code == 2
    shown, problems = output.split("\nProblems\n")
    assert lines_of(shown, "warning")[0].split()[1:] == ["warning", "0", "here", "buy", "one"]
    assert problems.strip() == "error 1 (here); buy one"
    code, output = doctor(make_project(hooks=MACHINE + "LEVELS = ['warning']", name="other"))
    assert code == 0


def test_a_diagnosis_that_fails_hides_nothing_else(
    make_project: MakeProject, doctor: Doctor
) -> None:
    code, output = doctor(make_project(hooks=MACHINE))
    assert code == 2
    assert "the hook 'diagnose' is broken: NameError: name 'LEVELS' is not defined" in output
    assert lines_of(output, "load_split")[0].endswith("toy")


def test_outside_a_project_it_shows_what_is_installed(tmp_path: Path, doctor: Doctor) -> None:
    code, output = doctor(tmp_path)
    assert code == 0
    assert lines_of(output, "torch")


def test_a_library_that_cannot_be_imported_is_told_with_the_reason(
    tmp_path: Path, pegboard: Pegboard
) -> None:
    broken = tmp_path / "site"
    broken.mkdir()
    (broken / "onnxruntime.py").write_text("raise OSError('libgomp.so.1: cannot open')")
    ended = pegboard("doctor", folder=tmp_path, PYTHONPATH=str(broken))
    (line,) = lines_of(ended.stdout, "onnxruntime")
    assert line.endswith("cannot be imported: OSError: libgomp.so.1: cannot open")


def test_what_is_wrong_and_stops_nothing_is_warned_of_at_every_stage(
    make_project: MakeProject, pegboard: Pegboard
) -> None:
    hooks = "from pegboard import hookimpl\n@hookimpl\ndef drow():\n    pass\n"
    ended = pegboard("check", folder=make_project(hooks=hooks))
    assert ended.returncode == 0
    assert ended.stderr.count("warning: hooks.py: there is no hook 'drow'") == 1
