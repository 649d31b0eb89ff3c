"""The command line: what it finds, what it runs and what it prints."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from pegboard.cli import main
from pegboard.cli.catalog import default_tables, text_of, type_name
from pegboard.cli.tables import table
from pegboard.lifecycle import STAGES
from pegboard.settings import Settings, known_keys

MakeProject = Callable[..., Path]
Give = Callable[..., tuple[int, str, str]]
Pegboard = Callable[..., subprocess.CompletedProcess[str]]

TOY = 'solution = "toy"\n[train]\nmax_steps = 3\nepochs = 1\n[deploy]\ngolden = 4\n'


@pytest.fixture
def give(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Give:
    """Return a function that gives a command in this process: code, stdout and stderr."""
    monkeypatch.delenv("PEGBOARD_LOG_FORMAT", raising=False)

    def run(*words: str, folder: Path) -> tuple[int, str, str]:
        monkeypatch.chdir(folder)
        code = main.run(words)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


# --------------------------------------------------------------------------- finding things


def test_the_version_is_that_of_the_distribution(tmp_path: Path, give: Give) -> None:
    assert give("--version", folder=tmp_path)[:2] == (0, f"pegboard {version('pegboard')}\n")


def test_every_stage_is_a_command(tmp_path: Path, give: Give) -> None:
    code, helped, _ = give("--help", folder=tmp_path)
    assert code == 0
    for stage in STAGES.values():
        assert f"{stage.name} " in helped
        assert stage.summary[:30] in helped
    assert give(folder=tmp_path)[:2] == (0, helped)


def test_a_project_is_found_from_any_folder_in_it(make_project: MakeProject, give: Give) -> None:
    below = make_project() / "notebooks" / "old"
    below.mkdir(parents=True)
    code, printed, _ = give("prepare", folder=below)
    assert (code, printed.strip()) == (0, str(below.parents[1] / "data" / "toy.npz"))
    assert give("prepare", "--project", str(below.parents[1]), folder=Path("/"))[0] == 0


def test_global_options_may_stand_anywhere(make_project: MakeProject, pegboard: Pegboard) -> None:
    folder = make_project()
    for words in (["--log-format", "ecs", "check"], ["check", "--log-format=ecs", "--debug"]):
        ended = pegboard(*words, folder=folder)
        assert ended.returncode == 0
        assert json.loads(ended.stderr.splitlines()[0])["service"]["name"] == "pegboard"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["trian"], "did you mean 'train'"),
        (["train", "--agian"], "'pegboard train --help' shows"),
        (["new"], "missing argument"),
        (["template"], "missing command"),
        (["--log-format", "xml", "list"], "there is no log format 'xml'"),
        (["list", "--log-format"], "there is no log format ''"),
        (["describe", "tooy"], "did you mean 'toy'"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(
    words: list[str], told: str, tmp_path: Path, give: Give
) -> None:
    code, printed, error = give(*words, folder=tmp_path)
    assert (code, printed) == (2, "")
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert told in error.lower()


# --------------------------------------------------------------------------- list and describe


def test_list_names_solutions_and_templates_with_their_versions(tmp_path: Path, give: Give) -> None:
    _, printed, _ = give("list", folder=tmp_path)
    lines = [line.split() for line in printed.splitlines()]
    assert ["toy", "0.1", "pegboard-toy"] in [line[:3] for line in lines]
    assert ["fraud", "0.1.0", "pegboard-templates"] in [line[:3] for line in lines]


def test_describe_lists_every_setting_hook_and_target(tmp_path: Path, give: Give) -> None:
    import pegboard_toy

    code, printed, _ = give("describe", "toy", folder=tmp_path)
    assert code == 0
    words = {line.split()[0] for line in printed.splitlines() if line.strip()}
    tables = {"data", "model", "train", "deploy", "deploy.limits", "serve"}
    assert set(known_keys(pegboard_toy.ToySettings)) - tables <= words
    assert {"compute_loss", "onnx", "torch"} <= words
    assert "Two classes of points" in printed


def test_describe_in_a_project_shows_its_values_beside_the_defaults(
    make_project: MakeProject, give: Give
) -> None:
    folder = make_project('solution = "toy"\n[train]\nepochs = 77\n')
    _, printed, _ = give("describe", folder=folder)
    (line,) = [line for line in printed.splitlines() if line.strip().startswith("train.epochs")]
    assert line.split()[3:5] == ["77", "3"]
    (folder_line,) = [line for line in printed.splitlines() if "data.folder" in line]
    assert str(folder) not in folder_line


def test_types_are_written_in_a_users_words() -> None:
    names = {key: type_name(f.annotation, f.metadata) for key, f in known_keys(Settings).items()}
    assert names["train.epochs"] == "whole number > 0"
    assert names["train.devices"] == "whole number > 0 or auto"
    assert names["train.precision"] == "fp32 or bf16 or fp16"
    assert names["train.warmup"] == "number >= 0.0 < 1.0"
    assert names["deploy.targets"] == "list"
    assert names["data.tiny"] == "true or false"
    assert names["data.folder"] == "path"


def test_what_describe_shows_can_be_given_back(make_project: MakeProject) -> None:
    from pegboard.project import open_project

    folder = make_project()
    defaults = default_tables(type(open_project(folder).settings))
    keys = [f"{t}.{k}" for t in ("train", "deploy") for k in defaults[t] if k != "limits"]
    given = [f"{key}={text_of(defaults[key.split('.')[0]][key.split('.')[1]])}" for key in keys]
    assert open_project(folder, given).settings == open_project(folder).settings


def test_a_table_is_as_wide_as_its_cells(capsys: pytest.CaptureFixture[str]) -> None:
    table(("a", "longer"), [("xyz", "1"), ("y", "")], indent=0)
    assert capsys.readouterr().out == "a    longer\nxyz  1\ny\n"


# --------------------------------------------------------------------------- stages


def test_evaluate_prints_the_model_beside_its_baseline(verified: Path, give: Give) -> None:
    code, printed, _ = give("evaluate", folder=verified)
    assert code == 0
    header, accuracy, *_ = (line for line in printed.splitlines() if line.startswith("  "))
    assert header.split() == ["metric", "model", "sum", "of", "columns"]
    file = next(verified.glob("runs/*/evaluation.json"))
    (metric,) = json.loads(file.read_text())["metrics"]
    assert f"{metric['value']:.4g} [{metric['low']:.4g}, {metric['high']:.4g}]" in accuracy


def test_a_stage_that_is_done_is_skipped_and_again_does_it_again(
    verified: Path, give: Give
) -> None:
    _, first, said = give("evaluate", folder=verified)
    assert "evaluate: already done" in said
    code, again, said = give("evaluate", "--again", folder=verified)
    assert (code, again) == (0, first)
    assert "evaluate: done in" in said
    assert "train: already done" in said


def test_new_begins_a_run_of_its_own(make_project: MakeProject, give: Give) -> None:
    folder = make_project(TOY)
    for words in (["check"], ["check"], ["check", "--new"]):
        assert give(*words, folder=folder)[0] == 0
    assert len(list(folder.glob("runs/*"))) == 2


def test_overrides_reach_the_stage(make_project: MakeProject, give: Give) -> None:
    folder = make_project(TOY)
    assert give("train", "train.max_steps=1", folder=folder)[0] == 0
    (run,) = folder.glob("runs/*/run.json")
    assert json.loads(run.read_text())["settings"]["train"]["max_steps"] == 1


def test_findings_of_check_are_printed_with_place_and_remedy(
    make_project: MakeProject, give: Give
) -> None:
    hooks = """
from pegboard import hookimpl
from pegboard.records import Finding

@hookimpl
def check_data():
    return [Finding(level="warning", what="2 rows repeat", where="row 7", remedy="drop them")]
"""
    code, printed, _ = give("check", folder=make_project(hooks=hooks))
    assert code == 0
    assert "  warning  2 rows repeat  row 7  drop them" in printed.splitlines()


@pytest.mark.slow
def test_run_goes_through_all_stages_and_says_where_the_report_is(
    make_project: MakeProject, pegboard: Pegboard
) -> None:
    folder = make_project(TOY)
    ended = pegboard("run", folder=folder)
    assert ended.returncode == 0, ended.stderr
    report = next(folder.glob("runs/*/report.html"))
    assert str(report) in ended.stdout
    assert "accuracy" in ended.stdout
    assert "onnx/fp32" in ended.stdout


@pytest.mark.slow
def test_a_missed_limit_prints_the_figures_and_ends_with_3(
    make_project: MakeProject, pegboard: Pegboard
) -> None:
    ended = pegboard("benchmark", "deploy.limits.p99_ms=0.000001", folder=make_project(TOY))
    assert ended.returncode == 3
    assert "onnx/fp32" in ended.stdout
    assert ended.stderr.splitlines()[-1].startswith("error: 'onnx/fp32' misses a limit")


# --------------------------------------------------------------------------- predict

REQUEST = '{"points": [[0, 1, 2, 3], [1, 1, 1, 1]]}'


def test_predict_answers_with_the_newest_bundle(verified: Path, give: Give) -> None:
    (verified / "request.json").write_text(REQUEST)
    code, printed, _ = give("predict", "request.json", folder=verified)
    answers = json.loads(printed)
    assert code == 0
    assert [set(answer) for answer in answers] == [{"score", "decision"}] * 2
    _, other, _ = give("predict", "request.json", "--candidate", "torch/fp32", folder=verified)
    assert [a["score"] for a in json.loads(other)] == pytest.approx([a["score"] for a in answers])


def test_predict_takes_lines_and_answers_in_lines(verified: Path, pegboard: Pegboard) -> None:
    ended = pegboard("predict", "-", folder=verified, stdin=f"{REQUEST}\n\n{REQUEST}\n")
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    assert lines[0] == lines[1]
    assert len(lines) == 2


def test_a_bundle_answers_outside_of_any_project(
    verified: Path, pegboard: Pegboard, tmp_path: Path
) -> None:
    bundle = next(verified.glob("runs/*/bundle"))
    ended = pegboard("predict", "-", "--bundle", bundle, folder=tmp_path, stdin=REQUEST)
    assert ended.returncode == 0, ended.stderr
    assert len(json.loads(ended.stdout)) == 2


def test_predict_uses_the_projects_hooks_and_tells_of_the_answer(
    verified: Path, pegboard: Pegboard, tmp_path: Path
) -> None:
    hooks = """
from pegboard import hookimpl

@hookimpl(wrapper=True)
def encode_answer():
    answers = yield
    return [{**answer, "mine": True} for answer in answers]

@hookimpl
def after_answer(event):
    print(event.solution, event.count, event.target, event.seconds > 0)
"""
    (tmp_path / "pegboard.toml").write_text(TOY)
    (tmp_path / "hooks.py").write_text(hooks)
    bundle = next(verified.glob("runs/*/bundle"))
    ended = pegboard("predict", "-", "--bundle", bundle, folder=tmp_path, stdin=REQUEST)
    told, answers = ended.stdout.split("\n", 1)
    assert told == "toy 2 onnx/fp32 True"
    assert all(answer["mine"] for answer in json.loads(answers))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("nonsense", "the request is not JSON (standard input: "),
        (f"{REQUEST}\n{{", "the request is not JSON (standard input, line 2"),
        (f'{REQUEST}\n{{"points": [[1]]}}', "(standard input, line 2, request)"),
        ("", "there is no request (standard input)"),
    ],
)
def test_a_bad_request_is_named_with_its_line(
    verified: Path, pegboard: Pegboard, text: str, told: str
) -> None:
    ended = pegboard("predict", "-", folder=verified, stdin=text)
    assert ended.returncode == 2
    assert told in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr


# --------------------------------------------------------------------------- plugins' commands

COMMANDS = """
import typer
from pegboard import hookimpl

@hookimpl
def register_commands(app: typer.Typer) -> None:
    @app.command()
    def greet(name: str) -> None:
        "Say a friendly word."
        typer.echo(f"hello {name}")

    @app.command("train")
    def mine() -> None:
        "Never reached: the core's commands come first."
"""


def test_plugins_add_commands_inside_their_project_only(
    make_project: MakeProject, give: Give, tmp_path: Path
) -> None:
    folder = make_project(hooks=COMMANDS)
    code, helped, _ = give("--help", folder=folder)
    assert code == 0
    assert "Say a friendly word." in helped
    assert "Never reached" not in helped
    assert give("greet", "you", folder=folder)[:2] == (0, "hello you\n")
    code, _, error = give("greet", "you", folder=tmp_path)
    assert code == 2
    assert "no such command 'greet'" in error


def test_help_is_shown_in_a_broken_project(make_project: MakeProject, give: Give) -> None:
    folder = make_project(hooks="1 / 0")
    code, helped, error = give("--help", folder=folder)
    assert code == 0
    assert "train" in helped
    assert "warning: hooks.py is broken" in error
    code, _, error = give("odometry", folder=folder)
    assert code == 2
    assert "hooks.py is broken" in error


# --------------------------------------------------------------------------- ends


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    command = f"{sys.executable} -m pegboard.cli.main list | true"
    ended = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, cwd=tmp_path
    )
    assert ended.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "terminated"])
def test_an_interrupted_training_ends_in_one_sentence_and_is_taken_up_again(
    make_project: MakeProject, pegboard: Pegboard, number: signal.Signals
) -> None:
    slow = """
import time
from pathlib import Path
from pegboard import hookimpl

@hookimpl
def after_step(event):
    with Path(__file__).with_name("steps").open("a") as stream:
        print(event.step, file=stream)
    if event.step == 4 and not Path(__file__).with_name("quick").exists():
        time.sleep(60)
"""
    folder = make_project('solution = "toy"\n[train]\ncheckpoint_every = 1\n', hooks=slow)
    training = subprocess.Popen(
        [sys.executable, "-m", "pegboard.cli.main", "train"],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
    )
    until, steps = time.monotonic() + 60, folder / "steps"
    while not (steps.exists() and "4" in steps.read_text()) and time.monotonic() < until:
        time.sleep(0.05)
    training.send_signal(number)
    _, error = training.communicate(timeout=60)
    assert training.returncode == 2, error
    last = error.splitlines()[-1]
    assert last.startswith("error: training was interrupted at epoch 1, step")
    assert "the same command again" in last
    assert "Traceback" not in error
    (folder / "quick").touch()
    ended = pegboard("train", folder=folder)
    assert ended.returncode == 0, ended.stderr
    assert len(list(folder.glob("runs/*"))) == 1
    assert steps.read_text().split() == [*"1234", *(str(step) for step in range(4, 16))]


# --------------------------------------------------------------------------- plugin test


def test_plugin_test_tells_each_check_and_why_it_fails(
    install: Callable[..., None], pegboard: Pegboard, tmp_path: Path
) -> None:
    install(tmp_path / "site", "hollow", "")
    path = f"{tmp_path / 'site'}:{Path(__file__).parents[1] / 'toy'}"
    ended = pegboard("plugin", "test", "hollow", folder=tmp_path, PYTHONPATH=path)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].endswith(
        "(plugin hollow); docs/conformance.md says what each asks for."
    )
    (line,) = [line for line in ended.stdout.splitlines() if "hooks are known" in line]
    assert "it implements no settings_type, prepare_data" in line


def test_plugin_test_of_what_is_not_installed_is_one_sentence(give: Give, tmp_path: Path) -> None:
    code, _, error = give("plugin", "test", "tooy", folder=tmp_path)
    assert code == 2
    assert "did you mean 'toy'" in error
    assert error.count("error: ") == 1
