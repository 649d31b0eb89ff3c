"""Bad input of every kind: one sentence with thing, place and remedy, exit code 2, nothing half."""

from __future__ import annotations

import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pegboard.cli import main
from pegboard.cli.faults import explain
from pegboard.errors import InterruptedRunError, MissingExtraError, PegboardError, PluginError
from pegboard.files import atomic_path

MakeProject = Callable[..., Path]
Pegboard = Callable[..., subprocess.CompletedProcess[str]]

SMALL = 'solution = "toy"\n[train]\nmax_steps = 2\nepochs = 1\n[deploy]\ngolden = 2\n'


def the_sentence(ended: subprocess.CompletedProcess[str]) -> str:
    """Return the one error of a command, after checking that it is the only thing of its kind."""
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert errors == ended.stderr.splitlines()[-1:], ended.stderr
    (sentence,) = errors
    assert sentence.endswith(".")
    return sentence


def nothing_half_written(folder: Path) -> bool:
    return not [path for path in folder.rglob("*") if ".partial" in path.name]


# --------------------------------------------------------------------------- data


@pytest.mark.parametrize("content", [b"", b"\x00\xffnoise"], ids=["empty", "no such format"])
def test_a_damaged_file_is_named(
    make_project: MakeProject, pegboard: Pegboard, content: bytes
) -> None:
    folder = make_project(SMALL)
    (folder / "data").mkdir()
    (folder / "data" / "toy.npz").write_bytes(content)
    ended = pegboard("check", folder=folder)
    assert the_sentence(ended) == (
        f"error: the data cannot be read ({folder}/data/toy.npz); delete it."
    )
    assert not list(folder.glob("runs/*/check.json"))


def test_nan_is_named_with_its_row(make_project: MakeProject, pegboard: Pegboard) -> None:
    folder = make_project(SMALL)
    (folder / "data").mkdir()
    x = np.ones((10, 4), np.float32)
    x[7, 2] = np.nan
    np.savez(folder / "data" / "toy.npz", x=x, label=np.ones(10, np.float32))
    sentence = the_sentence(pegboard("train", folder=folder))
    assert sentence == "error: 1 rows hold NaN (row 7); remove them."
    assert not list(folder.glob("runs/*/checkpoints"))


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Pegboard:
    """Return a function that gives a command in this process, which has polars imported."""
    monkeypatch.delenv("PEGBOARD_LOG_FORMAT", raising=False)

    def give(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
        code = main.run([*words, "--project", str(folder)])
        captured = capsys.readouterr()
        return subprocess.CompletedProcess(words, code, captured.out, captured.err)

    return give


HEADER = "id,time,customer,terminal,amount,label"
ROW = "t1,2026-03-01T10:00:00,c1,m1,12.5,0"


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("empty.csv", b"", "empty"),
        ("noise.csv", b"\x00\xff\xfe" * 99, "noise.csv"),
        ("noise.parquet", b"no parquet at all", "no readable Parquet"),
        ("table.xlsx", b"PK", "table.xlsx"),
        ("column.csv", f"{HEADER[:-6]}\n{ROW[:-2]}\n".encode(), "'label'"),
        ("nan.csv", f"{HEADER}\n{ROW}\nt2,2026-03-01T11:00:00,c1,m1,NaN,0\n".encode(), "amount"),
        ("text.csv", f"{HEADER}\n{ROW}\nt2,2026-03-01T11:00:00,c1,m1,much,0\n".encode(), "amount"),
    ],
)
def test_a_file_of_transactions_that_cannot_be_used_is_named(
    make_project: MakeProject, here: Pegboard, name: str, content: bytes, told: str
) -> None:
    folder = make_project(f'solution = "fraud"\n[data]\npath = "{name}"\n')
    (folder / name).write_bytes(content)
    sentence = the_sentence(here("check", folder=folder))
    assert told in sentence
    assert name in sentence
    assert "; " in sentence  # A remedy.
    assert sentence.isprintable()


def test_a_file_of_transactions_that_is_not_there_is_named(
    make_project: MakeProject, here: Pegboard
) -> None:
    folder = make_project('solution = "fraud"\n[data]\npath = "nowhere.csv"\n')
    assert str(folder / "nowhere.csv") in the_sentence(here("check", folder=folder))


# --------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("words", "environment", "told"),
    [
        (["train.epoch=3"], {}, "'train.epoch' (command line); did you mean 'train.epochs'"),
        (["train.lr=fast"], {}, "'train.lr' is wrong"),
        ([], {"PEGBOARD_TRAIN__EPOCH": "3"}, "(environment variable PEGBOARD_TRAIN__EPOCH)"),
    ],
)
def test_a_wrong_setting_is_named_with_its_origin(
    make_project: MakeProject,
    pegboard: Pegboard,
    words: list[str],
    environment: dict[str, str],
    told: str,
) -> None:
    folder = make_project(SMALL)
    assert told in the_sentence(pegboard("train", *words, folder=folder, **environment))
    assert sorted(path.name for path in folder.iterdir()) == ["pegboard.toml"]


def test_a_folder_that_is_no_project_says_what_to_do(tmp_path: Path, pegboard: Pegboard) -> None:
    sentence = the_sentence(pegboard("run", folder=tmp_path))
    assert sentence == (
        f"error: there is no pegboard.toml ({tmp_path}); go to a project's folder, or make one "
        "with 'pegboard new'."
    )
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------- plugins

HOOK = "from pegboard import hookimpl\n\n@hookimpl\n"


@pytest.mark.parametrize(
    ("hooks", "told"),
    [
        ("import nowhere_at_all", "hooks.py is broken: ModuleNotFoundError"),
        ("def f(:", "hooks.py is broken: SyntaxError"),
        (HOOK + "def draw(evalution): ...", "Argument(s) {'evalution'}"),
        (
            HOOK + "def check_data(settings):\n    return settings.data.no_such",
            "'hooks.py' failed in 'check_data' with AttributeError",
        ),
    ],
)
def test_a_broken_hooks_py_is_blamed_and_debug_shows_the_trace(
    make_project: MakeProject, pegboard: Pegboard, hooks: str, told: str
) -> None:
    folder = make_project(SMALL, hooks=hooks)
    sentence = the_sentence(pegboard("check", folder=folder))
    assert told in sentence
    assert str(folder / "hooks.py") in sentence
    debug = pegboard("check", "--debug", folder=folder)
    assert debug.returncode == 2
    assert "Traceback (most recent call last)" in debug.stderr
    # pluggy finds a wrong argument before any line of the file is reached.
    assert f'File "{folder}/hooks.py", line' in debug.stderr or "evalution" in hooks


def test_a_plugin_that_fails_is_named_with_hook_and_version(
    make_project: MakeProject,
    pegboard: Pegboard,
    install: Callable[..., None],
    tmp_path: Path,
) -> None:
    code = HOOK + "def check_data():\n    return second([])\n\ndef second(x):\n    return x[1]"
    install(tmp_path / "site", "clumsy", code)
    folder = make_project('solution = "toy"\nplugins = ["clumsy"]\n')
    path = f"{tmp_path / 'site'}:{Path(__file__).parents[1] / 'toy'}"
    sentence = the_sentence(pegboard("check", folder=folder, PYTHONPATH=path))
    assert "the plugin 'clumsy' failed in 'check_data' with IndexError" in sentence
    assert "(pegboard-clumsy 0.3)" in sentence


# --------------------------------------------------------------------------- the machine


def limited(words: list[str], folder: Path, size: int) -> subprocess.CompletedProcess[str]:
    """Give a command that may write no file larger than `size` bytes: a disk that is full."""
    return subprocess.run(
        [sys.executable, "-m", "pegboard.cli.main", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
    )


def test_a_full_disk_while_data_is_made_is_named(make_project: MakeProject) -> None:
    folder = make_project(SMALL)
    sentence = the_sentence(limited(["prepare"], folder, 500))
    assert "there is no space left to write to" in sentence
    assert str(folder) in sentence
    assert "free some" in sentence


@pytest.mark.slow
def test_a_full_disk_while_training_leaves_nothing_half_written(
    make_project: MakeProject, pegboard: Pegboard
) -> None:
    folder = make_project(SMALL)
    assert pegboard("check", folder=folder).returncode == 0
    sentence = the_sentence(limited(["train"], folder, 2_000))
    assert "cannot be written" in sentence
    assert "free space" in sentence
    assert str(folder / "runs") in sentence
    assert nothing_half_written(folder)
    assert pegboard("train", folder=folder).returncode == 0


@pytest.mark.parametrize(
    ("module", "words", "extra"),
    [
        ("torch", ["train", "--new"], "train"),
        ("onnxruntime", ["predict", "-"], "serve"),
        ("orjson", ["serve"], "serve"),
        ("uvicorn", ["serve"], "serve"),
    ],
)
def test_a_missing_extra_is_named_with_the_command(
    verified: Path, pegboard: Pegboard, tmp_path: Path, module: str, words: list[str], extra: str
) -> None:
    folder = shutil.copytree(verified, tmp_path / "project")
    (tmp_path / "sitecustomize.py").write_text(HIDING.format(module))
    path = f"{tmp_path}:{Path(__file__).parents[1] / 'toy'}"
    request = '{"points": [[0, 1, 2, 3]]}'
    sentence = the_sentence(pegboard(*words, folder=folder, stdin=request, PYTHONPATH=path))
    assert f"'{module}' is not installed" in sentence
    assert f"pip install 'pegboard[{extra}]'" in sentence


@pytest.mark.parametrize("module", ["polars", "torch"])
def test_a_plugins_own_extra_is_named_where_the_plugin_asks(
    make_project: MakeProject, pegboard: Pegboard, tmp_path: Path, module: str
) -> None:
    """The core's `train` would bring torch alone, and the next command would fail again."""
    (tmp_path / "sitecustomize.py").write_text(HIDING.format(module))
    folder = make_project('solution = "fraud"\n[data]\ntiny = true\n')
    sentence = the_sentence(pegboard("run", folder=folder, PYTHONPATH=str(tmp_path)))
    assert f"'{module}' is not installed" in sentence
    assert "pip install 'pegboard-fraud[train]'" in sentence


HIDING = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {0!r}:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)

sys.meta_path.insert(0, Hidden())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "terminated"])
def test_an_interrupt_is_one_sentence_and_leaves_nothing(
    make_project: MakeProject, number: signal.Signals
) -> None:
    hooks = """
import time
from pathlib import Path
from typing import Any
from pegboard import hookimpl
from pegboard.files import atomic_path

@hookimpl
def prepare_data(settings):
    with atomic_path(settings.data.folder / "toy.npz") as temporary:
        temporary.write_text("half")
        Path(__file__).with_name("begun").touch()
        time.sleep(60)
"""
    folder = make_project(SMALL, hooks=hooks)
    preparing = subprocess.Popen(
        [sys.executable, "-m", "pegboard.cli.main", "prepare"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 60
    while not (folder / "begun").exists() and time.monotonic() < until:
        time.sleep(0.05)
    preparing.send_signal(number)
    out, error = preparing.communicate(timeout=60)
    ended = subprocess.CompletedProcess([], preparing.returncode, out, error)
    assert the_sentence(ended) == (
        "error: interrupted; the same command again takes it up where it stopped."
    )
    assert list((folder / "data").iterdir()) == []


# --------------------------------------------------------------------------- bundles


def test_a_bundle_that_was_changed_is_refused(
    verified: Path, tmp_path: Path, pegboard: Pegboard
) -> None:
    folder = shutil.copytree(verified, tmp_path / "project")
    (model,) = folder.glob("runs/*/bundle/models/onnx/fp32/*")
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    request = '{"points": [[0, 1, 2, 3]]}'
    sentence = the_sentence(pegboard("predict", "-", folder=folder, stdin=request))
    assert "the checksum of 'models/onnx/fp32/" in sentence
    assert "copy the bundle again" in sentence
    model.unlink()
    sentence = the_sentence(pegboard("predict", "-", folder=folder, stdin=request))
    assert "is missing" in sentence


def test_what_is_no_bundle_is_named(tmp_path: Path, pegboard: Pegboard) -> None:
    ended = pegboard("predict", "-", "--bundle", tmp_path, folder=tmp_path, stdin="{}")
    assert "this is not a bundle" in the_sentence(ended)
    ended = pegboard("predict", "nowhere.json", folder=tmp_path)
    assert the_sentence(ended) == (
        "error: this cannot be read or written: no such file or directory (nowhere.json); see "
        "that it is there and that you may use it."
    )


# --------------------------------------------------------------------------- explanations


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def test_a_file_that_ends_too_early_is_no_interrupt(
    make_project: MakeProject, pegboard: Pegboard
) -> None:
    hooks = HOOK + "def check_data():\n    raise EOFError('no data left in file')"
    sentence = the_sentence(pegboard("check", folder=make_project(SMALL, hooks=hooks)))
    assert "failed in 'check_data' with EOFError: no data left in file" in sentence


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (KeyboardInterrupt(), InterruptedRunError, "interrupted; the same command again"),
        (MemoryError(), PegboardError, "make train.batch_size smaller"),
        (RuntimeError("CUDA out of memory. Tried"), PegboardError, "memory ran out"),
        (OSError(28, "No space left on device", "/x/y"), PegboardError, "write to (/x/y)"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), PegboardError, "space"),
        (OSError("24968 requested and 8 written"), PegboardError, "no space left"),
        (PermissionError(13, "Permission denied", "/x"), PegboardError, "denied (/x)"),
        (
            OSError("libgomp.so.1: cannot open shared object file: No such file"),
            MissingExtraError,
            "apt-get install libgomp1",
        ),
        (
            ModuleNotFoundError("No module named 'torch'", name="torch.nn"),
            MissingExtraError,
            "pip install 'pegboard[train]'",
        ),
        (
            ModuleNotFoundError("No module named 'xgboost'", name="xgboost"),
            MissingExtraError,
            "pip install 'pegboard-fraud[train]'",
        ),
        (
            ModuleNotFoundError("No module named 'sklearn'", name="sklearn.metrics"),
            MissingExtraError,
            # Two plugins bring it, and none of them asks here.
            "pip install 'pegboard-defect[train]'",
        ),
        (
            ModuleNotFoundError("No module named 'rarely'", name="rarely.seen"),
            MissingExtraError,
            "pip install rarely",
        ),
        (ValueError("x" * 900), PegboardError, "Pegboard failed with ValueError: xxx"),
        (
            ModuleNotFoundError("No module named 'pegboard.nope'", name="pegboard.nope"),
            PegboardError,
            "this is a defect of Pegboard",
        ),
    ],
)
def test_an_error_of_any_kind_gets_its_sentence(
    error: BaseException, kind: type[PegboardError], told: str
) -> None:
    explained = explain(raised(error))
    assert type(explained) is kind
    assert told in str(explained)
    assert "\n" not in str(explained)
    assert len(str(explained)) < 450


def test_an_error_of_ours_is_said_as_it_is() -> None:
    error = PluginError("it is broken", where="here")
    assert explain(error) is error


def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_text("old")
    with pytest.raises(PegboardError, match=str(path)), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")
    assert path.read_text() == "old"
    assert nothing_half_written(tmp_path)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("pegboard_defect.data", "defect"),
        ("pegboard_defect.moco.data", "moco"),
        ("pegboard_defect.moco", "moco"),
        ("pegboard_fraud.data", "fraud"),
    ],
)
def test_of_two_plugins_in_a_distribution_the_one_that_failed_is_blamed(
    module: str, name: str
) -> None:
    code = "def fail():\n    raise ValueError('odd')\n"
    scope: dict[str, Any] = {"__name__": module}
    exec(code, scope)
    try:
        scope["fail"]()
    except ValueError as error:
        assert f"the plugin '{name}' failed in 'fail'" in str(explain(error))
