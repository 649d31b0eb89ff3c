"""Settings: three sources in a fixed order, and every mistake named with its origin."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import Field

from pegboard import SettingsError
from pegboard.project import open_project
from pegboard.settings import (
    DataSettings,
    ProjectPath,
    Settings,
    Sources,
    known_keys,
    read_sources,
    resolve,
)

MakeProject = Callable[..., Path]


def test_the_command_line_outdoes_the_environment_and_that_the_file(
    make_project: MakeProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_project('solution = "toy"\n[train]\nepochs = 4\nlr = 0.5\nseed = 9\n')
    monkeypatch.setenv("PEGBOARD_TRAIN__EPOCHS", "5")
    monkeypatch.setenv("PEGBOARD_TRAIN__LR", "0.25")
    train = open_project(folder, ["train.epochs=6"]).settings.train
    assert (train.epochs, train.lr, train.seed) == (6, 0.25, 9)


def test_variables_without_a_table_are_switches_and_not_settings(
    make_project: MakeProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEGBOARD_TEST_DATA", "/somewhere")
    monkeypatch.setenv("PEGBOARD_LOG_FORMAT", "text")
    open_project(make_project())


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train.epoch=3", "unknown setting 'train.epoch' (command line); did you mean"),
        ("trian.epochs=3", "unknown setting 'trian'"),
        ("epochs=3", "did you mean 'train.epochs'"),
        ("train.epochs=many", "'train.epochs' is wrong"),
        ("train.seed=-1", "greater than or equal to 0, not -1 (command line)"),
        ("train.precision=int3", "'fp32', 'bf16' or 'fp16'"),
        ("train.epochs", "'train.epochs' is not a setting (command line)"),
        ("=3", "'=3' is not a setting"),
        ("solution.x=3", "'solution' is a value and not a table (pegboard.toml)"),
    ],
)
def test_a_mistake_is_told_with_its_origin_and_a_remedy(
    make_project: MakeProject, override: str, told: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        open_project(make_project(), [override])
    assert told in str(caught.value)
    assert caught.value.remedy


def test_a_mistake_in_the_file_or_the_environment_names_it(
    make_project: MakeProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_project('solution = "toy"\n[data]\ncout = 3\n')
    with pytest.raises(SettingsError, match=r"'data\.cout' \(pegboard\.toml\); did you mean"):
        open_project(folder)
    monkeypatch.setenv("PEGBOARD_TRAIN__SED", "1")
    with pytest.raises(SettingsError, match="environment variable PEGBOARD_TRAIN__SED"):
        open_project(make_project(name="second"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("solution = ", "this is not TOML"),
        ("", "the setting 'solution' is missing"),
        ("solution = 3", "it takes names, not 3"),
        ('solution = "toy"\nplugins = [1]', "'plugins' is wrong"),
        ('solution = "tyo"', "there is no plugin 'tyo'"),
        ('solution = "toy"\ndata = 3', "'data' is wrong"),
    ],
)
def test_a_broken_file_is_one_sentence(make_project: MakeProject, text: str, told: str) -> None:
    from pegboard import PegboardError

    with pytest.raises(PegboardError) as caught:
        open_project(make_project(text))
    assert told in str(caught.value)


def test_a_plugin_without_settings_is_no_solution(
    make_project: MakeProject,
    install: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pegboard import PluginError

    install(tmp_path / "site", "extra", "")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    with pytest.raises(PluginError, match="'extra' is no solution"):
        open_project(make_project('solution = "extra"'))


def test_paths_are_relative_to_the_project_in_files_and_absolute_in_the_program(
    tmp_path: Path,
) -> None:
    class Data(DataSettings):
        path: ProjectPath | None = Field(default=None)

    class Mine(Settings):
        data: Data = Data()

    sources = Sources()
    sources.put((), {"solution": "mine", "data": {"path": "table.csv"}}, "here")
    settings = resolve(Mine, sources, tmp_path)
    assert settings.data.path == tmp_path / "table.csv"
    assert settings.data.folder == tmp_path / "data"
    assert settings.tables(tmp_path)["data"]["path"] == "table.csv"


def test_resolved_settings_resolve_to_themselves(make_project: MakeProject) -> None:
    project = open_project(make_project(), ["train.epochs=7", "deploy.limits.p99_ms=2"])
    sources = Sources()
    sources.put((), project.settings.tables(project.folder), "run.json")
    assert resolve(type(project.settings), sources, project.folder) == project.settings


def test_every_key_has_a_description() -> None:
    from pegboard_fraud.settings import FraudSettings

    for kind in (Settings, FraudSettings):
        keys = known_keys(kind)
        tables = {key.rpartition(".")[0] for key in keys} | {"model"}  # The core's has no key yet.
        assert not [key for key in keys if key not in tables and not keys[key].description]


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "pegboard.toml").mkdir()
    with pytest.raises(SettingsError, match="the settings cannot be read"):
        read_sources(tmp_path / "pegboard.toml")
