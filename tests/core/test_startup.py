"""`--help`, `list` and `describe` answer at once: they import nothing that they do not need."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = (
    "torch",
    "polars",
    "xgboost",
    "sklearn",
    "onnx",
    "onnxruntime",
    "openvino",
    "matplotlib",
    "scipy",
)
QUICK = (("--help",), ("list",), ("--version",))
COMMANDS = (*QUICK, ("describe", "toy"), ("describe", "fraud"), ("train", "--help"))


def modules_after(*words: str, folder: Path) -> set[str]:
    code = (
        "import sys; from pegboard.cli.main import run; "
        f"code = run({list(words)!r}); print(code, *sys.modules, file=sys.stderr)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, check=True
    )
    code, *modules = ended.stderr.split()
    assert code == "0"
    return set(modules)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_no_heavy_library_is_imported_to_say_what_there_is(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    assert not modules_after(*words, folder=tmp_path) & set(HEAVY)


@pytest.mark.parametrize("words", QUICK, ids=" ".join)
def test_what_needs_no_settings_waits_for_no_numpy_and_no_pydantic(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    modules = modules_after(*words, folder=tmp_path)
    assert not modules & {"numpy", "pydantic", "rich", "cookiecutter", "jinja2"}


def test_describing_a_solution_waits_for_no_numpy(tmp_path: Path) -> None:
    assert "numpy" not in modules_after("describe", "fraud", folder=tmp_path)


def test_help_outside_a_project_imports_no_plugin(tmp_path: Path) -> None:
    modules = modules_after("--help", folder=tmp_path)
    assert not any(name.startswith(("pegboard_toy", "pegboard_fraud")) for name in modules)


def cpu_seconds(command: list[str], folder: Path) -> float:
    """The fastest of three: others may be at work on this machine."""
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    return min(times)


@pytest.mark.parametrize(
    ("words", "factor"), [(("--help",), 2.5), (("list",), 3.0), (("describe", "fraud"), 4.5)]
)
def test_the_start_costs_little_more_than_its_libraries(
    words: tuple[str, ...], factor: float, tmp_path: Path
) -> None:
    # In multiples of what typer and pydantic cost here and now: 0.1 s on a quiet machine.
    script = Path(sys.executable).with_name("pegboard")
    if not os.access(script, os.X_OK):
        pytest.skip("the command is not installed beside this Python")
    libraries = cpu_seconds([sys.executable, "-c", "import typer, pydantic.main"], tmp_path)
    assert cpu_seconds([str(script), *words], tmp_path) < factor * libraries


def test_help_inside_a_project_adds_its_commands_and_imports_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "pegboard.toml").write_text('solution = "fraud"\n')
    modules = modules_after("--help", folder=tmp_path)
    assert "pegboard_fraud.hooks" in modules
    assert not modules & set(HEAVY)
