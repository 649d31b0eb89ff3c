"""Logs: lines for people on stderr, or ECS JSON of which a machine can read every line."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pegboard import DataError, logs

Pegboard = Callable[..., subprocess.CompletedProcess[str]]
QUICK = ("train.max_steps=2", "train.epochs=1")


def records(stderr: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stderr.splitlines()]


def test_every_line_of_a_structured_log_is_ecs(
    make_project: Callable[..., Path], pegboard: Pegboard
) -> None:
    folder = make_project(hooks=NOISY)
    ended = pegboard("train", *QUICK, "--log-format", "ecs", folder=folder)
    assert ended.returncode == 0
    told = records(ended.stderr)
    assert all({"@timestamp", "ecs.version", "message", "log.level"} <= set(r) for r in told)
    assert {record["service"]["name"] for record in told} == {"pegboard"}
    train = [r for r in told if r["event"]["dataset"] == "pegboard.train"]
    assert [r["event"]["action"] for r in train] == ["stage-begin", "stage-end"]
    assert train[-1]["event"]["outcome"] == "success"
    assert train[-1]["event"]["duration"] > 0
    assert train[-1]["pegboard"]["stage"] == "train"
    assert "printed by a plugin" in {record["message"] for record in told}
    assert "accuracy" in ended.stdout  # Results stay readable, and apart.


NOISY = """
import sys
import warnings
from pegboard import hookimpl

@hookimpl
def before_stage(event):
    print("printed by a plugin", file=sys.stderr)
    warnings.warn("warned by a plugin")
"""


def test_an_error_is_a_record_with_its_message_and_no_trace(
    make_project: Callable[..., Path], pegboard: Pegboard
) -> None:
    folder = make_project(hooks=RAISING)
    ended = pegboard("check", "--log-format=ecs", folder=folder)
    assert ended.returncode == 2
    *_, failed, last = records(ended.stderr)
    assert failed["event"]["outcome"] == "failure"
    assert last["log.level"] == "error"
    assert last["error"]["type"] == "PluginError"
    assert last["error"]["message"].startswith("the plugin 'hooks.py' failed in 'check_data'")
    assert "stack_trace" not in last["error"]
    shown = records(pegboard("check", "--log-format=ecs", "--debug", folder=folder).stderr)[-1]
    assert "return 1 / 0" in shown["error"]["stack_trace"]


RAISING = """
from pegboard import hookimpl

@hookimpl
def check_data(settings):
    return 1 / 0
"""


def test_the_environment_chooses_the_format_too(tmp_path: Path, pegboard: Pegboard) -> None:
    ended = pegboard("train", folder=tmp_path, PEGBOARD_LOG_FORMAT="ecs")
    (record,) = records(ended.stderr)
    assert record["error"]["type"] == "SettingsError"


def test_text_is_one_line_a_stage_and_goes_to_stderr(
    make_project: Callable[..., Path], pegboard: Pegboard
) -> None:
    ended = pegboard("check", folder=make_project())
    lines = ended.stderr.splitlines()
    assert lines[0] == "prepare ..."
    assert re.fullmatch(r"prepare: done in \d+\.\d s", lines[1])
    assert "prepare" not in ended.stdout


def test_no_value_of_the_data_is_logged(verified: Path, pegboard: Pegboard) -> None:
    request = '{"points": [[0.123456789, 1, 2, 3]]}'
    ended = pegboard("predict", "-", "--log-format=ecs", folder=verified, stdin=request)
    assert ended.returncode == 0
    assert "0.123456789" not in ended.stderr


def test_the_core_is_silent_as_a_library() -> None:
    code = (
        "from pegboard import logs, DataError\n"
        "logs.LOGGER.info('x'); logs.report(DataError('wrong'), ValueError())"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_configuring_twice_says_everything_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(logs.VARIABLE, raising=False)
    others = [h for h in logging.getLogger().handlers if h.name != "pegboard"]
    logs.configure(debug=False)
    logs.configure()
    logs.LOGGER.info("said")
    logs.LOGGER.debug("hidden")
    logs.report(DataError("this is\nwrong", where="here", remedy="mend it"), ValueError("why"))
    assert capsys.readouterr().err == "said\nerror: this is wrong (here); mend it.\n"
    assert [h for h in logging.getLogger().handlers if h.name != "pegboard"] == others
