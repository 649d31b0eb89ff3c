"""The board: what is found, in which order it is asked, and what is kept off."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pegboard import PluginError, hookimpl
from pegboard.board import BUILT_IN, build_board, installed_plugins, load_file
from pegboard.hookspecs import HOOKS

Install = Callable[..., None]
TAGGED = """
from pegboard import hookimpl

@hookimpl
def choose_thresholds():
    return {{"by_{0}": 1.0}}

@hookimpl
def draw():
    return ["{0}"]
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for distributions that this process sees."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


def write(folder: Path, code: str) -> Path:
    file = folder / "hooks.py"
    file.write_text(f"from pegboard import hookimpl\n\n{code}\n")
    return file


def test_plugins_are_listed_from_metadata_without_importing_them(
    site: Path, install: Install
) -> None:
    install(site, "explosive", "raise SystemExit('imported')")
    found = {info.name: info for info in installed_plugins()}
    assert (found["explosive"].distribution, found["explosive"].version) == (
        "pegboard-explosive",
        "0.3",
    )
    assert found["explosive"].summary == "A explosive"
    assert "pegboard_explosive" not in sys.modules


def test_an_installation_that_is_seen_twice_is_listed_once(
    tmp_path: Path, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("first", "second"):
        install(tmp_path / name, "twin", "")
        monkeypatch.syspath_prepend(str(tmp_path / name))
    assert [info.name for info in installed_plugins()].count("twin") == 1


def test_the_project_is_asked_before_its_plugins_and_those_before_the_solution(
    site: Path, install: Install, tmp_path: Path
) -> None:
    install(site, "early", TAGGED.format("early"))
    install(site, "late", TAGGED.format("late"))
    hooks = write(tmp_path, "@hookimpl\ndef draw():\n    return ['project']")
    board = build_board("toy", ["early", "late"], hooks)
    order = board.call_order("choose_thresholds")
    assert order == ["late", "early", "toy", "pegboard.defaults"]
    assert board.hook.choose_thresholds(settings=None, rows={}) == {"by_late": 1.0}
    assert board.call_order("draw") == ["hooks.py", "late", "early", "toy"]


def test_answers_of_all_are_joined_in_the_order_of_registration(
    site: Path, install: Install
) -> None:
    install(site, "early", TAGGED.format("early"))
    install(site, "late", TAGGED.format("late"))
    assert build_board(None, ["early", "late"]).collect("draw", settings=None, evaluation=None) == [
        "early",
        "late",
    ]


def test_the_cores_own_answers_come_through_the_same_hooks() -> None:
    board = build_board()
    assert board.call_order("collate") == ["pegboard.defaults"]
    assert set(BUILT_IN) == {name for name, _ in board.manager.list_name_plugin()}


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("import nowhere_to_be_found", "No module named 'nowhere_to_be_found'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("def f(:", "SyntaxError"),
        (
            "from pegboard import hookimpl\n@hookimpl\ndef draw(settings, evalution): ...",
            "Argument(s) {'evalution'} are declared in the hookimpl but can not be found",
        ),
        (
            "from pegboard import hookimpl\n@hookimpl(wrapper=True)\ndef augment(sample): yield",
            "'augment' is a chain and cannot be wrapped",
        ),
    ],
)
def test_a_broken_plugin_is_kept_off_by_name_version_and_cause(
    site: Path, install: Install, code: str, cause: str, request: pytest.FixtureRequest
) -> None:
    name = f"broken{abs(hash(code))}"  # Python keeps modules by name.
    install(site, name, code)
    install(site, f"sound{name}", TAGGED.format("sound"))
    board = build_board("toy", [name, f"sound{name}"])
    (kept_off,) = board.quarantined
    assert (kept_off.name, kept_off.version) == (name, "0.3")
    assert cause in kept_off.cause
    assert board.call_order("draw") == [f"sound{name}", "toy"]
    assert name not in board.versions()


def test_a_broken_solution_or_project_is_an_error(
    site: Path, install: Install, tmp_path: Path
) -> None:
    install(site, "hollow", "raise RuntimeError('no licence')")
    with pytest.raises(PluginError, match=r"'hollow' is broken: RuntimeError: no licence .*0\.3"):
        build_board("hollow")
    hooks = write(tmp_path, "1 / 0")
    with pytest.raises(PluginError, match=r"hooks\.py is broken: ZeroDivisionError"):
        build_board("toy", hooks_file=hooks)


def test_a_plugin_that_is_not_installed_points_to_the_nearest() -> None:
    with pytest.raises(PluginError, match=r"there is no plugin 'tooy'.*did you mean 'toy'"):
        build_board("tooy")


def test_an_unknown_hook_and_an_ignored_default_are_described(tmp_path: Path) -> None:
    hooks = write(
        tmp_path,
        "@hookimpl\ndef chek_data(settings):\n    return []\n\n"
        "@hookimpl\ndef draw(settings=None):\n    return []",
    )
    board = build_board("toy", hooks_file=hooks)
    assert board.unknown_hooks() == [
        "hooks.py: there is no hook 'chek_data'; did you mean 'check_data'"
    ]
    (ignored,) = board.ignored_defaults()
    assert ignored.startswith("hooks.py: draw(... settings=) has a default")


def test_augment_is_a_chain_in_the_order_of_registration(tmp_path: Path) -> None:
    board = build_board()
    assert not board.augments

    class Adds:
        def __init__(self, text: str) -> None:
            self.text = text

        @hookimpl
        def augment(self, sample: str) -> str:
            return sample + self.text

    board.manager.register(Adds("a"))
    board.manager.register(Adds("b"))
    assert board.augments
    assert board.augment(settings=None, sample="-") == "-ab"  # type: ignore[arg-type]


def test_boards_share_nothing(tmp_path: Path) -> None:
    hooks = write(tmp_path, "@hookimpl\ndef draw():\n    return []")
    first, second = build_board("toy", hooks_file=hooks), build_board("toy")
    assert first.call_order("draw") != second.call_order("draw")


def test_hooks_py_is_read_afresh(tmp_path: Path) -> None:
    file = write(tmp_path, "value = 1")
    first = load_file(file)
    file.write_text("value = 222")
    assert (first.value, load_file(file).value) == (1, 222)


def test_every_hook_says_how_it_is_called() -> None:
    board = build_board()
    for name, facts in HOOKS.items():
        specification = getattr(board.hook, name).spec.opts
        assert specification["firstresult"] is (facts.call == "first result")
