"""What is in the repository is in the wheels: no more, no less, dotfiles included."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
TEMPLATES = REPOSITORY / "templates" / "pegboard_templates"
PACKAGES = {
    "core": "pegboard",
    "plugins/fraud": "pegboard_fraud",
    "plugins/medical": "pegboard_medical",
    "templates": "pegboard_templates",
}


def in_the_repository(folder: Path, package: str) -> set[str]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", package],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip(f"git cannot list the files: {listed.stderr.strip()}")
    return {name for name in listed.stdout.split("\0") if name and (folder / name).is_file()}


@pytest.mark.parametrize("place", PACKAGES)
def test_the_wheel_holds_what_the_repository_holds(place: str, tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    folder = REPOSITORY / place
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        packed = {name for name in wheel.namelist() if not name.split("/")[0].endswith("-info")}
    assert packed == in_the_repository(folder, PACKAGES[place])


def test_the_templates_bring_their_dotfiles() -> None:
    found = in_the_repository(REPOSITORY / "templates", "pegboard_templates")
    for name in sorted(path.parent.name for path in TEMPLATES.glob("*/cookiecutter.json")):
        project = f"pegboard_templates/{name}/{{{{cookiecutter.project_slug}}}}"
        assert {f"{project}/.gitignore", f"{project}/.github/workflows/ci.yml"} <= found
