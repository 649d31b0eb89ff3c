"""Rules: what a file may say, what decides first, and what happens when the file changes."""

from __future__ import annotations

import os
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pegboard.errors import SettingsError
from pegboard_fraud.features import FEATURE_NAMES, Transaction
from pegboard_fraud.identifiers import Identifiers
from pegboard_fraud.rules import NAMES, Facts, RuleBook, RuleSet, Verdict, load_rules

HASHED = Identifiers(b"k" * 16).hashed


def rule(
    name: str = "r", when: str = "amount > 10", decision: str = "decline", more: str = ""
) -> str:
    return f'[[rules]]\nid = "{name}"\nwhen = "{when}"\ndecision = "{decision}"\n{more}\n'


def load(folder: Path, *parts: str, version: str = "1") -> RuleSet:
    path = folder / "rules.toml"
    path.write_text(f'version = "{version}"\n' + "".join(parts))
    return load_rules(path, HASHED)


def facts(
    cents: int = 2000, time: int = 0, probability: float | None = 0.5, **features: float
) -> Facts:
    row = np.zeros(len(FEATURE_NAMES), np.float32)
    for name, value in features.items():
        row[FEATURE_NAMES.index(name)] = value
    transaction = Transaction(id="t", time=time, customer="c", terminal="m", cents=cents)
    if probability is None:
        return Facts(transaction, row)
    return Facts(transaction, row, np.float32(probability), np.float32(probability * cents / 100))


def is_true(folder: Path, when: str, **known: Any) -> bool:
    matched = load(folder, rule(when=when)).matched(facts(**known))
    assert not matched.failed
    return bool(matched.hits)


# --- Expressions ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ("amount > 20", False),
        ("amount >= 20", True),
        ("amount == 20", True),
        ("amount > 19.99 and customer_count_1d >= 3", True),
        ("amount > 20 or probability > 0.4", True),
        ("not (amount > 20)", True),
        ("customer_count_1d in [1, 2, 3]", True),
        ("amount * customer_count_1d == 60", True),
        ("-amount < 0", True),
        ("expected_loss >= 10", True),
        ("amount > 100 ? true : false", False),
        ("true", True),
    ],
)
def test_an_expression_says_what_it_says(tmp_path: Path, when: str, expected: bool) -> None:
    assert is_true(tmp_path, when, customer_count_1d=3.0) == expected


@pytest.mark.parametrize("share", [0.1, 0.3, 0.7, 0.9])
def test_a_limit_is_reached_by_the_number_that_is_printed(tmp_path: Path, share: float) -> None:
    # In single precision 0.7 is smaller than 0.7 and 0.3 is larger than 0.3.
    assert is_true(tmp_path, f"terminal_fraud_share_1d == {share}", terminal_fraud_share_1d=share)
    assert is_true(tmp_path, f"probability == {share}", probability=share)


def test_money_is_exact_to_the_cent(tmp_path: Path) -> None:
    assert is_true(tmp_path, "amount >= 16777217.01", cents=1_677_721_701)
    assert not is_true(tmp_path, "amount >= 16777217.01", cents=1_677_721_700)


@pytest.mark.parametrize(
    ("date", "day"),
    [("1970-01-01", 4), ("2018-08-14", 2), ("2024-02-29", 4), ("2026-11-22", 7), ("2026-11-23", 1)],
)
def test_the_day_of_the_week_begins_on_monday(tmp_path: Path, date: str, day: int) -> None:
    time = int(np.datetime64(date, "s").astype(np.int64))
    assert is_true(tmp_path, f"day_of_week == {day}", time=time)
    assert is_true(tmp_path, f"day_of_week == {day}", time=time + 86_399)


def test_every_feature_can_be_asked_for(tmp_path: Path) -> None:
    row = np.arange(1, len(FEATURE_NAMES) + 1, dtype=np.float32)
    transaction = Transaction(id="t", time=0, customer="c", terminal="m", cents=100)
    known = Facts(transaction, row, np.float32(0.5), np.float32(0.5))
    rules = load(tmp_path, *(rule(name, when=f"{name} >= 0.5") for name in NAMES))
    assert [hit.id for hit in rules.matched(known, every=True).hits] == list(NAMES)
    assert known["hour_of_day"] == Decimal(FEATURE_NAMES.index("hour_of_day") + 1)


@pytest.mark.parametrize("when", ["amount / customer_count_1d > 1", "amount % 0 > 1"])
def test_a_rule_that_cannot_be_computed_is_not_true_and_stops_nothing(
    tmp_path: Path, when: str
) -> None:
    rules = load(tmp_path, rule("bad", when), rule("good", "amount > 1"))
    matched = rules.matched(facts())
    assert [failed.id for failed in matched.failed] == ["bad"]
    assert matched.verdict() == Verdict("decline", "rule", "good")


# --- What a file may say --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (rule(when="amuont > 5"), "unknown name 'amuont' .*rules.toml, rule 'r'.*mean 'amount'"),
        (rule(when="customer > 5"), "unknown name 'customer'"),
        (rule(when="probabilty > 0.5"), "did you mean 'probability'"),
        (rule(when="amount >"), "'when' cannot be read: syntax error"),
        (rule(when="amount"), "says neither yes nor no"),
        (rule(when="amount + 1"), "says neither yes nor no"),
        (rule(when="amount > 'x'"), "cannot be read: data type mismatch"),
        (rule(when="amount == 'x'"), "compared with something else"),
        (rule(when="amount =~ '(a+)+$'"), "cannot be read|\\$ function"),
        (rule(when="amount > 5 and customer_count_1d"), "stand by a number"),
        (rule(when="not amount"), "stand by a number"),
        (rule(when="amount == (probability > 0.5)"), "compared with something else"),
        (rule(when="amount > 1 and $now > d'2020-01-01'"), "has a \\$ function"),
        (rule(when="[x for x in [1, 2]] == [1, 2]"), "something else than names, numbers"),
        (rule(when="amount.ceiling > 1"), "something else than names|cannot be read"),
        (rule(when="1 / 0 > 1"), "cannot be read: arithmetic error"),
        (rule(when=""), "'rules.0.when' is wrong"),
        (rule(when="amount > 1 or " * 100 + "true"), "'rules.0.when' is wrong"),
        (rule(decision="block"), "'rules.0.decision' is wrong: input should be 'approve'"),
        (rule(more='mode = "off"'), "'rules.0.mode' is wrong"),
        (rule(more="priority = 3"), "unknown key 'priority' .*rule 'r'"),
        (rule(more='desciption = "x"'), "did you mean 'description'"),
        (rule("a b"), "'rules.0.id' is wrong"),
        (rule() + rule(), "the id is that of an earlier rule .*rule 'r'"),
        ('[[rules]]\nwhen = "true"\ndecision = "review"\n', "'id' is missing .*rule 'number 1'"),
        ('[[rules]]\nid = "r"\ndecision = "review"\n', "'when' is missing .*rule 'r'"),
        ("[[rule]]\n", "unknown key 'rule' .*did you mean 'rules'"),
        ("[lists.blocked]\n", "unknown key 'blocked' .*did you mean 'block'"),
        ('[lists.block]\ncustomer = "x"\n', "unknown key 'customer' .*mean 'customers'"),
        ("rules = 3\n", "'rules' is wrong"),
        ("rules = [3]\n", "'rules.0' is wrong"),
        ("rules = [\n", "this is not TOML"),
    ],
)
def test_a_wrong_file_is_refused_with_place_and_remedy(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(SettingsError, match=message) as error:
        load(tmp_path, text)
    assert "rules.toml" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"version = 3\n", b"\xff\xfe"])
def test_a_file_without_a_version_or_text_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rules.toml"
    path.write_bytes(content)
    with pytest.raises(SettingsError):
        load_rules(path, HASHED)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read: No such file"):
        load_rules(tmp_path / "rules.toml", HASHED)


def test_an_expression_of_the_longest_length_can_be_computed(tmp_path: Path) -> None:
    deep = "(" * 400 + "amount > 1" + ")" * 400
    long = " or ".join(["amount < 0"] * 70) + " or amount > 1"
    assert is_true(tmp_path, deep)
    assert is_true(tmp_path, long)


# --- What decides ---------------------------------------------------------------------------------


def test_the_first_live_rule_that_is_true_decides(tmp_path: Path) -> None:
    rules = load(
        tmp_path,
        rule("no", "amount > 100", "decline"),
        rule("first", "amount > 10", "review"),
        rule("second", "amount > 5", "decline"),
    )
    assert rules.matched(facts()).verdict() == Verdict("review", "rule", "first")


def test_later_live_rules_are_not_asked_but_shadow_rules_are(tmp_path: Path) -> None:
    rules = load(
        tmp_path,
        rule("shadow1", "true", more='mode = "shadow"'),
        rule("live", "true", "approve"),
        rule("later", "true"),
        rule("shadow2", "true", more='mode = "shadow"'),
    )
    assert [hit.id for hit in rules.matched(facts()).hits] == ["shadow1", "live", "shadow2"]
    decided = rules.matched(facts(), decided=True)
    assert [hit.id for hit in decided.hits] == ["shadow1", "shadow2"]
    assert decided.verdict() is None
    everything = rules.matched(facts(), every=True)
    assert [hit.id for hit in everything.hits] == ["shadow1", "live", "later", "shadow2"]
    assert everything.verdict() == Verdict("approve", "rule", "live")


def test_a_shadow_rule_never_decides(tmp_path: Path) -> None:
    rules = load(tmp_path, rule(when="true", more='mode = "shadow"'))
    assert rules.matched(facts()).hits
    assert rules.matched(facts()).verdict() is None


def test_rules_are_asked_only_what_is_known(tmp_path: Path) -> None:
    rules = load(
        tmp_path,
        rule("itself", "amount > 1 and hour_of_day >= 0 and day_of_week > 0"),
        rule("past", "customer_count_1d >= 0"),
        rule("model", "probability >= 0"),
    )
    transaction = Transaction(id="t", time=3600, customer="c", terminal="m", cents=200)
    blind = rules.matched(Facts(transaction, None), every=True)
    assert [hit.id for hit in blind.hits] == ["itself"]
    unscored = rules.matched(facts(probability=None), every=True)
    assert [hit.id for hit in unscored.hits] == ["itself", "past"]
    assert not blind.failed
    assert not unscored.failed
    assert Facts(transaction, None)["hour_of_day"] == 1


# --- Lists ----------------------------------------------------------------------------------------

LISTS = """
[lists.block]
customers = "blocked.txt"
[lists.allow]
customers = "allowed.txt"
terminals = "terminals.txt"
"""


def test_lists_hold_raw_and_hashed_identifiers_and_blocking_comes_first(tmp_path: Path) -> None:
    (tmp_path / "blocked.txt").write_text(f"# ours\n\n c7 \nhash:{HASHED('c8')}\nc9\n")
    (tmp_path / "allowed.txt").write_text("c9\nc1\n")
    (tmp_path / "terminals.txt").write_text("m3\n")
    rules = load(tmp_path, LISTS)

    def listed(customer: str, terminal: str) -> Verdict | None:
        return rules.listed(HASHED(customer), HASHED(terminal))

    for blocked in ("c7", "c8", "c9"):
        assert listed(blocked, "m3") == Verdict("decline", "list", "block.customers")
    assert listed("c1", "m0") == Verdict("approve", "list", "allow.customers")
    assert listed("c0", "m3") == Verdict("approve", "list", "allow.terminals")
    assert listed("c0", "m0") is None
    assert "c7" not in str(rules.blocked_customers)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("4111 1111 1111 1111", r"looks like a card number \(.*blocked.txt, line 2\)"),
        ("hash:4111", "something else than 32 hexadecimal digits .*line 2"),
        ("hash:" + "A" * 32, "something else than 32 hexadecimal digits"),
    ],
)
def test_a_wrong_line_of_a_list_is_named_and_not_repeated(
    tmp_path: Path, line: str, message: str
) -> None:
    (tmp_path / "blocked.txt").write_text(f"c7\n{line}\n")
    with pytest.raises(SettingsError, match=message) as error:
        load(tmp_path, '[lists.block]\ncustomers = "blocked.txt"\n')
    assert "4111" not in str(error.value)


def test_a_missing_list_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"a list cannot be read \(.*blocked.txt\)"):
        load(tmp_path, '[lists.block]\ncustomers = "blocked.txt"\n')


# --- While serving --------------------------------------------------------------------------------


def rewrite(path: Path, text: str) -> None:
    """Write a file whose time differs, however coarse the file system's clock is."""
    before = path.stat().st_mtime_ns if path.exists() else 0
    path.write_text(text)
    os.utime(path, ns=(before + 10**9, before + 10**9))


def test_a_changed_file_comes_into_force_and_an_unchanged_one_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    load(tmp_path, rule())
    book = RuleBook(path, HASHED)
    before = book.rules
    assert not book.is_stale()
    rewrite(path, 'version = "2"\n')
    assert book.is_stale()
    book.reload()
    assert book.rules is not before
    assert not book.is_stale()
    assert (book.rules.version, book.rules.rules, book.broken) == ("2", (), "")


def test_a_broken_file_keeps_the_old_rules_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "rules.toml"
    load(tmp_path, rule())
    book = RuleBook(path, HASHED)
    rewrite(path, 'version = "2"\n' + rule(when="amuont > 5"))
    for _ in range(3):
        assert book.is_stale()
        book.reload()
    assert book.rules.version == "1"
    assert "unknown name 'amuont'" in book.broken
    assert len(caplog.records) == 1
    assert "stay at version 1" in caplog.text
    path.unlink()
    book.reload()
    assert book.rules.version == "1"
    assert "No such file" in book.broken
    rewrite(path, 'version = "3"\n')
    book.reload()
    assert (book.rules.version, book.broken) == ("3", "")


def test_a_changed_list_comes_into_force(tmp_path: Path) -> None:
    (tmp_path / "blocked.txt").write_text("c7\n")
    load(tmp_path, '[lists.block]\ncustomers = "blocked.txt"\n')
    book = RuleBook(tmp_path / "rules.toml", HASHED)
    assert not book.is_stale()
    rewrite(tmp_path / "blocked.txt", "c8\n")
    assert book.is_stale()
    book.reload()
    assert not book.is_stale()
    assert book.rules.blocked_customers == {HASHED("c8")}


def test_without_a_file_there_are_no_rules(tmp_path: Path) -> None:
    book = RuleBook(None, HASHED)
    assert not book.is_stale()
    book.reload()
    assert book.rules.matched(facts()).verdict() is None
