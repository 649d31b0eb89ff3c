"""What is generated works as it is: tests, conformance, lint and types."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from pegboard.cli.scaffold import create, find_template
from pegboard.hookspecs import HOOKS

REPOSITORY = Path(__file__).resolve().parents[2]
PROJECTS = [
    "clip",
    "defect",
    "fraud",
    "lidar",
    "medical-classification",
    "medical-segmentation",
    "moco",
]


@pytest.fixture(scope="module", params=[*PROJECTS, "plugin"])
def generated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of each template, with answers by default."""
    folder = tmp_path_factory.mktemp("generated") / f"my-{request.param}"
    create(find_template(request.param), folder, {})
    return folder


def test_nothing_of_the_templates_language_is_left_in_it(generated: Path) -> None:
    """cookiecutter copies what it takes for binary as it is, and may take Chinese for that."""
    texts = [path for path in generated.rglob("*") if path.is_file()]
    texts = [path for path in texts if path.name != ".pegboard-template.json"]
    left = [p.name for p in texts if "cookiecutter." in p.read_text(encoding="utf-8")]
    assert left == []


def checked(*command: str, folder: Path, **environment: str) -> None:
    ended = subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_it_is_clean_for_ruff(generated: Path) -> None:
    """By our rules, but with a stranger's view of what is first party."""
    ruff = shutil.which("ruff", path=Path(sys.executable).parent)
    if ruff is None:
        pytest.skip("ruff is not installed")
    lint = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    rules = ["--select", ",".join(lint["select"]), "--ignore", ",".join(lint["ignore"])]
    tests = 'lint.per-file-ignores={"**/tests/**" = ["D"]}'
    docstrings = 'lint.pydocstyle.convention="google"'
    common = ["--isolated", "--no-cache", "--line-length", "100", "--target-version", "py311"]
    configured = ["--config", tests, "--config", docstrings]
    checked(ruff, "check", *common, *rules, *configured, ".", folder=generated)
    checked(ruff, "format", "--check", *common, ".", folder=generated)


@pytest.mark.slow
def test_it_is_clean_for_mypy(generated: Path) -> None:
    pytest.importorskip("mypy")
    code = (path.relative_to(generated) for path in generated.rglob("*.py"))
    sources = sorted({path.parts[0] for path in code if not path.parts[0].startswith(".")})
    # Ours, so that what `make types` has found out about torch and numpy is used again.
    cache, settings = REPOSITORY / ".mypy_cache", REPOSITORY / "pyproject.toml"
    options = ("--config-file", str(settings), "--cache-dir", str(cache))
    checked(sys.executable, "-m", "mypy", *options, *sources, folder=generated)


@pytest.mark.slow
def test_its_tests_pass(generated: Path, tmp_path: Path) -> None:
    paths = [os.environ.get("PYTHONPATH", "")]
    if (generated / "pyproject.toml").exists():
        install(generated, tmp_path)
        paths.insert(0, str(tmp_path))
    command = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    checked(*command, folder=generated, PYTHONPATH=os.pathsep.join(paths))


def install(project: Path, site: Path) -> None:
    """Install a distribution as a stranger would, without its dependencies, into a folder."""
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps")
    checked(*pip, "--no-build-isolation", "--target", str(site), ".", folder=project)


def test_a_generated_plugin_is_listed_and_described_once_installed(
    tmp_path: Path, pegboard: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    project, site = tmp_path / "pegboard-vibration", tmp_path / "site"
    create(find_template("plugin"), project, {"summary": 'Hears "it" first'})
    install(project, site)
    path = os.pathsep.join([str(site), os.environ["PYTHONPATH"]])
    listed = pegboard("list", folder=tmp_path, PYTHONPATH=path).stdout
    # The name is not doubled: pegboard-vibration brings the solution `vibration`.
    assert ["vibration", "0.1.0", "pegboard-vibration", "Hears", '"it"', "first"] in [
        line.split() for line in listed.splitlines()
    ]
    described = pegboard("describe", "vibration", folder=tmp_path, PYTHONPATH=path)
    assert described.returncode == 0, described.stderr
    assert "model.false_alarms" in described.stdout


@pytest.mark.parametrize("name", PROJECTS)
def test_every_hook_of_the_project_is_explained_in_its_readme(name: str) -> None:
    folder = find_template(name).folder / "{{cookiecutter.project_slug}}"
    tree = ast.parse(re.sub(r"{{.*?}}", "0", (folder / "hooks.py").read_text(encoding="utf-8")))
    hooks = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    hooks = [hook for hook in hooks if hook in HOOKS]
    assert len(hooks) >= 2
    for readme in ("README.md", "README.zh-CN.md"):
        text = (folder / readme).read_text(encoding="utf-8")
        for hook in hooks:
            assert f"`{hook}`" in text
