"""Fixtures for all tests: the toy solution, projects in temporary folders, the real data sets."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from chromium import Browser

REPOSITORY = Path(__file__).resolve().parents[1]
TOY = REPOSITORY / "tests" / "toy"
SUPPORT = REPOSITORY / "tests" / "support"

# The toy is a distribution like any other, to this process and to those that tests start.
sys.path.insert(0, str(TOY))
os.environ["PYTHONPATH"] = os.pathsep.join(
    part for part in (str(TOY), os.environ.get("PYTHONPATH", "")) if part
)
sys.path.insert(0, str(SUPPORT))
# Two cores: every process one thread, or a test's processes starve one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def make_project(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a project's folder and returns it."""

    def make(text: str = 'solution = "toy"\n', hooks: str = "", name: str = "project") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "pegboard.toml").write_text(text)
        if hooks:
            (folder / "hooks.py").write_text(hooks)
        return folder

    return make


@pytest.fixture(scope="session")
def pegboard() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that gives one command of the command line in a process of its own."""

    def give(
        *words: str | Path, folder: Path, stdin: str = "", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pegboard.cli.main", *map(str, words)],
            cwd=folder,
            env=os.environ | environment,
            input=stdin,
            capture_output=True,
            text=True,
        )

    return give


@pytest.fixture(scope="session")
def verified(
    tmp_path_factory: pytest.TempPathFactory,
    pegboard: Callable[..., subprocess.CompletedProcess[str]],
) -> Path:
    """Return a project of the toy whose only run is verified; copy it to change it."""
    folder = tmp_path_factory.mktemp("verified")
    (folder / "pegboard.toml").write_text(
        'solution = "toy"\n[train]\nmax_steps = 3\nepochs = 1\n[deploy]\ngolden = 4\n'
    )
    ended = pegboard("verify", folder=folder)
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.fixture(scope="session")
def install() -> Callable[..., None]:
    """Return a function that makes a distribution of one module in a folder."""

    def make(folder: Path, name: str, code: str, *, group: str = "pegboard") -> None:
        """`name` is the entry point, the module is called `pegboard_<name>`."""
        facts = folder / f"pegboard_{name}-0.3.dist-info"
        facts.mkdir(parents=True)
        (facts / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: pegboard-{name}\nVersion: 0.3\nSummary: A {name}\n"
        )
        (facts / "entry_points.txt").write_text(f"[{group}]\n{name} = pegboard_{name}\n")
        (folder / f"pegboard_{name}.py").write_text(code)

    return make


@pytest.fixture(scope="session")
def ask_whatever_is_allowed() -> Callable[..., dict[str, set[int]]]:
    """Return a function that asks a server all that its OpenAPI document allows, and more.

    Every answer must be one that the document promises. The function returns the statuses by
    operation: `{"PUT /admin/bundle": {409, 422}}`.
    """
    import schemathesis
    from hypothesis import HealthCheck, given, settings
    from schemathesis import GenerationMode as Mode
    from schemathesis import checks

    checks.load_all_checks()
    promises = checks.CHECKS.get_by_names(
        [
            "not_a_server_error",
            "status_code_conformance",
            "content_type_conformance",
            "response_headers_conformance",
            "response_schema_conformance",
        ]
    )

    def ask_operation(operation: Any, mode: Any, examples: int, **sent: Any) -> set[int]:
        statuses = set()

        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(mode))
        def ask(case: Any) -> None:
            reply = case.call(**sent)
            case.validate_response(reply, checks=promises)
            statuses.add(reply.status_code)

        ask()
        return statuses

    def ask_all(url: str, headers: dict[str, str], examples: int) -> dict[str, set[int]]:
        statuses: dict[str, set[int]] = {}
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json", headers=headers)
        for found in schema.get_all_operations():
            operation = found.ok()
            # Where nothing is taken, nothing can be wrong.
            modes = list(Mode) if operation.body else [Mode.POSITIVE]
            for mode in modes:
                count = examples if operation.body else 5
                some = ask_operation(operation, mode, count, base_url=url, headers=headers)
                statuses.setdefault(operation.label, set()).update(some)
        return statuses

    return ask_all


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Return the folder of real data sets, or skip."""
    folder = Path(os.environ.get("PEGBOARD_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no test data at {folder}; set PEGBOARD_TEST_DATA")
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Start a real browser, or skip where there is none."""
    from chromium import CHROMEDRIVER, CHROMIUM, Browser, chromedriver

    for program in (CHROMIUM, CHROMEDRIVER):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    with chromedriver(tmp_path_factory.mktemp("driver")) as address:
        browser = Browser(address, tmp_path_factory.mktemp("profile"))
        yield browser
        browser.close()
