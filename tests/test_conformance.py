"""Every solution passes the kit that strangers are given, and the kit can fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from pegboard import PluginError
from pegboard.testing import CHECKS, check_plugin

SOLUTIONS = (
    "toy",
    "fraud",
    "defect",
    "moco",
    "medical-segmentation",
    "medical-classification",
    "lidar",
    "clip",
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    # One folder a solution: the checks build on one another's runs, as in `plugin test`.
    return {name: tmp_path_factory.mktemp(name) for name in SOLUTIONS}


@pytest.mark.slow
@pytest.mark.parametrize("name", SOLUTIONS)
@pytest.mark.parametrize("check", CHECKS)
def test_a_solution_holds(folders: dict[str, Path], name: str, check: str) -> None:
    (outcome,) = check_plugin(name, folders[name], only=[check])
    assert outcome.passed


BREAKS = {
    "its_hooks_are_known_and_complete": "def chek_data(settings):\n    return []",
    "a_bad_request_is_refused_in_one_sentence": (
        "def decode_request(settings, payload):\n    return {}"
    ),
    "its_samples_fit_its_signature": (
        "def collate(settings, samples):\n"
        "    import torch\n"
        "    from pegboard.records import Batch\n"
        "    return Batch(inputs={'x': torch.zeros(2, 3)}, targets={})"
    ),
    "damaged_data_is_named": "def check_data(settings):\n    return []",
    "an_unknown_setting_is_named": (
        "def settings_type():\n"
        "    import pegboard_toy\n"
        "    class Loose(pegboard_toy.ToyData):\n"
        "        model_config = {'extra': 'ignore'}\n"
        "    class Settings(pegboard_toy.ToySettings):\n"
        "        data: Loose = Loose()\n"
        "    return Settings"
    ),
}


@pytest.mark.parametrize("check", BREAKS)
def test_the_kit_finds_what_is_broken(
    check: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "broken", check, BREAKS[check])
    monkeypatch.syspath_prepend(str(tmp_path / "broken"))
    with pytest.raises(PluginError, match=f"broken does not hold '{check.replace('_', ' ')}'"):
        check_plugin("broken", tmp_path / "work", only=[check])


def install(folder: Path, check: str, function: str) -> None:
    """Make a distribution of the toy with one hook replaced or added."""
    module = f"broken_{check}"  # Python keeps modules by name; each check needs its own.
    facts = folder / f"{module}-0.1.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 0.1\n")
    (facts / "entry_points.txt").write_text(f"[pegboard]\nbroken = {module}\n")
    (folder / f"{module}.py").write_text(
        f"from pegboard import hookimpl\nfrom pegboard_toy import *\n\n@hookimpl\n{function}\n"
    )
