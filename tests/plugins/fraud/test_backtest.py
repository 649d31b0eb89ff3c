"""Backtests: every count against a table made by hand, and the command from end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pegboard.project import Project
from pegboard_fraud import data
from pegboard_fraud.backtest import Past, RuleResult, replay, rule_results, totals
from pegboard_fraud.features import FEATURE_NAMES
from pegboard_fraud.identifiers import Identifiers
from pegboard_fraud.rules import load_rules
from pegboard_fraud.transactions import Transactions

HASHED = Identifiers(b"k" * 16).hashed

#  amount, fraud, customer, by model; what the rules below make of it
TABLE = [
    (10.0, 0, "a", "approve"),  # night
    (600.0, 1, "a", "approve"),  # big: decline
    (700.0, 1, "b", "review"),  # big: decline
    (800.0, 0, "b", "review"),  # big: decline
    (900.0, 0, "vip", "review"),  # allowed; big is true all the same
    (50.0, 1, "c", "review"),  # small: approve
    (60.0, 1, "c", "approve"),  # the model: approve
    (20.0, 0, "thief", "approve"),  # blocked: decline
]

RULES = """
version = "new"
[lists.block]
customers = "blocked.txt"
[lists.allow]
customers = "allowed.txt"
[[rules]]
id = "night"
when = "amount < 15 or amount == 60"
decision = "review"
mode = "shadow"
[[rules]]
id = "big"
when = "amount > 500"
decision = "decline"
[[rules]]
id = "small"
when = "amount >= 50 and probability < 0.5 and amount < 60"
decision = "approve"
[[rules]]
id = "late"
when = "amount > 650"
decision = "review"
[[rules]]
id = "bad"
when = "amount / customer_count_1d > 0"
decision = "decline"
[[rules]]
id = "none"
when = "false"
decision = "decline"
"""


@pytest.fixture
def past() -> Past:
    amounts, labels, names, by_model = (np.array(column) for column in zip(*TABLE, strict=True))
    customers, codes = np.unique(names, return_inverse=True)
    count = len(TABLE)
    return Past(
        transactions=Transactions(
            id=np.arange(count).astype(np.str_),
            time=np.arange(count, dtype=np.int64),
            customer=codes.astype(np.int64),
            terminal=np.zeros(count, np.int64),
            cents=np.round(amounts * 100).astype(np.int64),
            label=labels.astype(np.int8),
            customers=customers.astype(np.str_),
            terminals=np.array(["m"]),
        ),
        features=np.zeros((count, len(FEATURE_NAMES)), np.float32),
        scores={
            "probability": np.full(count, 0.25, np.float32),
            "expected_loss": (amounts / 4).astype(np.float32),
        },
        by_model=by_model.astype(np.str_),
    )


def replayed(folder: Path, past: Past, text: str = RULES) -> Any:
    (folder / "blocked.txt").write_text("thief\n")
    (folder / "allowed.txt").write_text("vip\n")
    (folder / "rules.toml").write_text(text)
    customers = [HASHED(name) for name in past.transactions.customers.tolist()]
    rules = load_rules(folder / "rules.toml", HASHED)
    return replay(past, rules, customers, [HASHED("m")], range(len(past.transactions)))


def test_each_rule_is_counted_as_in_the_table(tmp_path: Path, past: Past) -> None:
    results = rule_results(past, replayed(tmp_path, past))

    def of(name: str, **facts: Any) -> RuleResult:
        return RuleResult(
            **{"id": name, "mode": "live", "failed": 0, "precision": None, "already_caught": None}
            | facts
        )

    assert results == (
        of(
            "night",
            mode="shadow",
            decision="review",
            hits=2,
            frauds=1,
            false_positives=1,
            precision=0.5,
            amount_saved=60.0,
            already_caught=0.0,
        ),
        of(
            "big",
            decision="decline",
            hits=4,
            frauds=2,
            false_positives=2,
            precision=0.5,
            amount_saved=1300.0,
            already_caught=0.5,
        ),
        of(
            "small",
            decision="approve",
            hits=1,
            frauds=1,
            false_positives=0,
            precision=1.0,
            amount_saved=-50.0,  # The model would have stopped it.
            already_caught=1.0,
        ),
        of(
            "late",  # Counted although `big` always decides before it.
            decision="review",
            hits=3,
            frauds=1,
            false_positives=2,
            precision=1 / 3,
            amount_saved=700.0,
            already_caught=1.0,
        ),
        of(
            "bad",
            decision="decline",
            hits=0,
            frauds=0,
            false_positives=0,
            amount_saved=0.0,
            failed=8,
        ),
        of("none", decision="decline", hits=0, frauds=0, false_positives=0, amount_saved=0.0),
    )


def test_decisions_are_those_of_the_table(tmp_path: Path, past: Past) -> None:
    decided = replayed(tmp_path, past).decisions.tolist()
    assert decided == [
        "approve",
        "decline",
        "decline",
        "decline",
        "approve",
        "approve",
        "approve",
        "decline",
    ]


def test_totals_are_those_of_the_table(tmp_path: Path, past: Past) -> None:
    new = totals("new", "new", past, replayed(tmp_path, past).decisions, review_cost=3.0)
    assert (new.approve, new.review, new.decline) == (4, 0, 4)
    assert (new.frauds_stopped, new.frauds_approved) == (2, 2)
    assert (new.genuine_reviewed, new.genuine_declined) == (0, 2)
    assert new.expected_cost == 110.0  # 50 and 60 let through.
    alone = totals("model alone", "", past, past.by_model, review_cost=3.0)
    assert (alone.approve, alone.review, alone.decline) == (4, 4, 0)
    assert (alone.frauds_stopped, alone.frauds_approved) == (2, 2)
    assert (alone.genuine_reviewed, alone.genuine_declined) == (2, 0)
    assert alone.expected_cost == 672.0  # 600 and 60 let through, four reviews.


def test_without_rules_the_model_decides(tmp_path: Path, past: Past) -> None:
    result = replayed(tmp_path, past, 'version = "empty"\n')
    np.testing.assert_array_equal(result.decisions, past.by_model)
    assert rule_results(past, result) == ()


def test_the_last_days_are_chosen_as_the_test_days_are(fraud_project: Project) -> None:
    settings: Any = fraud_project.settings
    transactions = data.read_history(settings).transactions
    test = data.rows_of(settings, transactions, "test")
    days = settings.data.test_days
    np.testing.assert_array_equal(data.rows_of_last_days(settings, transactions, days), test)
    fewer = data.rows_of_last_days(settings, transactions, 3)
    assert 0 < len(fewer) < len(test)
    assert transactions.time[fewer].min() >= transactions.time[-1] - 3 * 86_400


def test_help_of_the_command_brings_no_heavy_library() -> None:
    code = (
        "import sys; from pegboard_fraud import backtest; "
        "print([name for name in ('polars', 'torch', 'rule_engine') if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


@pytest.mark.slow
def test_the_command_replays_rules_with_the_newest_bundle(
    make_project: Callable[..., Path], pegboard: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    folder = make_project(
        'solution = "fraud"\n[data]\ntiny = true\n[train]\nepochs = 1\nmax_steps = 20\n'
        '[deploy]\ntargets = ["onnx"]\ngolden = 4\n'
    )
    ended = pegboard("export", folder=folder)
    assert ended.returncode == 0, ended.stderr
    (folder / "blocked.txt").write_text(
        "".join(f"c{number:03d}\nc{number}\n" for number in range(20))
    )
    (folder / "new.toml").write_text(
        'version = "2"\n[lists.block]\ncustomers = "blocked.txt"\n'
        '[[rules]]\nid = "big"\nwhen = "amount > 150"\ndecision = "decline"\n'
    )
    (folder / "old.toml").write_text('version = "1"\n')
    ended = pegboard("backtest", "new.toml", "--against", "old.toml", folder=folder)
    assert ended.returncode == 0, ended.stderr
    assert "big" in ended.stdout
    result = json.loads((folder / "backtest" / "backtest.json").read_text())
    new, old, alone = result["totals"]
    assert [each["name"] for each in result["totals"]] == ["new", "old", "model alone"]
    assert old | {"name": "", "rules": ""} == alone | {"name": ""}
    for each in (new, old):
        assert each["approve"] + each["review"] + each["decline"] == result["transactions"]
        assert each["frauds_stopped"] + each["frauds_approved"] == result["frauds"]
    assert new["decline"] > result["rules"][0]["hits"] > 0  # The blocked ones come on top.
    fewer = pegboard("backtest", "new.toml", "--days", "2", folder=folder)
    assert fewer.returncode == 0, fewer.stderr
    later = json.loads((folder / "backtest" / "backtest.json").read_text())
    assert 0 < later["transactions"] < result["transactions"]
    (folder / "new.toml").write_text('version = "3"\n[[rules]]\nid = "x"\nwhen = "amuont > 1"\n')
    wrong = pegboard("backtest", "new.toml", folder=folder)
    assert wrong.returncode == 2
    assert "new.toml" in wrong.stderr
    assert "Traceback" not in wrong.stderr
    empty = pegboard("backtest", "old.toml", "data.test_until=2001-01-01", folder=folder)
    assert empty.returncode == 2
    assert "no labelled transaction" in empty.stderr
