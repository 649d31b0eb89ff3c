"""`pegboard backtest`: what rules would have decided in days that are known.

Features, score and decision come from what serving uses: `backfill` gives the features that the
online state would have given, the newest bundle's chosen model scores them, and the rules are asked
by the same code. What history cannot tell is what a thief would have done after a declined
transaction: the later ones are counted as they happened.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pegboard.bundle import Bundle
    from pegboard.progress import Progress
    from pegboard.project import Project
    from pegboard.records import Rows
    from pegboard_fraud.features import Transaction
    from pegboard_fraud.rules import RuleSet
    from pegboard_fraud.settings import FraudSettings
    from pegboard_fraud.transactions import Transactions

    Decisions = NDArray[np.str_]
    Bools = NDArray[np.bool_]

FOLDER = "backtest"
"""Where the result lies in a project."""

RESULT = "backtest.json"

AT_ONCE = 4096
"""Transactions that the model scores in one batch."""


# --- Records --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RuleResult:
    """What one rule would have found, whether or not it would have been the first to decide."""

    id: str
    """The rule's."""
    mode: str
    """live or shadow."""
    decision: str
    """What it decides."""
    hits: int
    """Transactions for which it is true."""
    frauds: int
    """Frauds among them."""
    false_positives: int
    """Genuine ones among them."""
    precision: float | None
    """Frauds as a share of hits; None without hits."""
    amount_saved: float
    """Amounts of the frauds it stops; of one that approves, minus those that the model stops."""
    already_caught: float | None
    """Share of its frauds that the model alone reviews or declines; None without frauds."""
    failed: int
    """Transactions for which it could not be computed."""


@dataclass(frozen=True, kw_only=True)
class Totals:
    """What all of it together decides."""

    name: str
    """`new`, `old` or `model alone`."""
    rules: str
    """The version of the rules; empty without rules."""
    approve: int
    """Transactions approved."""
    review: int
    """Transactions sent to a person."""
    decline: int
    """Transactions declined."""
    frauds_stopped: int
    """Frauds reviewed or declined."""
    frauds_approved: int
    """Frauds let through."""
    genuine_reviewed: int
    """Customers kept waiting."""
    genuine_declined: int
    """Customers turned away."""
    expected_cost: float
    """Amounts of the frauds approved, and model.review_cost for every review."""


@dataclass(frozen=True, kw_only=True)
class Backtest:
    """The result: what new rules do, beside the old ones and the model alone."""

    first_day: str
    """Of the transactions, ISO 8601."""
    last_day: str
    """Of the transactions."""
    transactions: int
    """How many were replayed: labelled ones, without those of cards that were blocked then."""
    frauds: int
    """How many of them were fraud."""
    bundle: str
    """Folder of the bundle that scored."""
    rules: tuple[RuleResult, ...]
    """The new ones, in the order of the file."""
    totals: tuple[Totals, ...]
    """The new rules first."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Past:
    """N labelled transactions with all that a decision about them takes."""

    transactions: Transactions
    """Themselves. (N,)"""
    features: NDArray[np.float32]
    """(N, F)."""
    scores: Rows
    """The model's `probability` and `expected_loss`, each (N,)."""
    by_model: Decisions
    """What the model alone decides. (N,)"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Replay:
    """What a set of rules says about N transactions."""

    rules: RuleSet
    """The rules."""
    hits: dict[str, Bools]
    """For each rule, where it is true. (N,)"""
    failed: dict[str, int]
    """For each rule, how often it could not be computed."""
    decisions: Decisions
    """What is decided in the end. (N,)"""


# --- Counting -------------------------------------------------------------------------------------


def replay(
    past: Past,
    rules: RuleSet,
    customers: Sequence[str],
    terminals: Sequence[str],
    steps: Iterable[int],
) -> Replay:
    """Ask rules about every transaction of the past.

    Args:
        past: The transactions.
        rules: The rules.
        customers: The hashed identifier of each customer of the code book.
        terminals: The same for terminals.
        steps: The numbers from 0 to N - 1, perhaps under a progress bar.
    """
    import numpy as np

    from pegboard_fraud.rules import Facts

    hits = {rule.id: np.zeros(len(past.transactions), np.bool_) for rule in rules.rules}
    failed = dict.fromkeys(hits, 0)
    decisions = past.by_model.tolist()
    probability, loss = past.scores["probability"], past.scores["expected_loss"]
    for row, transaction in zip(steps, _each(past, customers, terminals), strict=True):
        listed = rules.listed(str(transaction.customer), str(transaction.terminal))
        facts = Facts(transaction, past.features[row], probability[row], loss[row])
        matched = rules.matched(facts, decided=listed is not None, every=True)
        for rule in matched.hits:
            hits[rule.id][row] = True
        for rule in matched.failed:
            failed[rule.id] += 1
        verdict = listed or matched.verdict()
        if verdict is not None:
            decisions[row] = verdict.decision
    return Replay(rules=rules, hits=hits, failed=failed, decisions=np.array(decisions, np.str_))


def _each(past: Past, customers: Sequence[str], terminals: Sequence[str]) -> Iterator[Transaction]:
    from pegboard_fraud.features import Transaction

    names = ("time", "customer", "terminal", "cents")
    columns = (getattr(past.transactions, name).tolist() for name in names)
    for row, (time, customer, terminal, cents) in enumerate(zip(*columns, strict=True)):
        yield Transaction(
            id=row,
            time=time,
            customer=customers[customer],
            terminal=terminals[terminal],
            cents=cents,
        )


def rule_results(past: Past, result: Replay) -> tuple[RuleResult, ...]:
    """Count what each rule found."""
    fraud = past.transactions.label == 1
    amount = past.transactions.cents / 100
    caught = past.by_model != "approve"
    results = []
    for rule in result.rules.rules:
        hit = result.hits[rule.id]
        found = hit & fraud
        stops = rule.decision != "approve"
        saved = amount[found].sum() if stops else -amount[found & caught].sum()
        results.append(
            RuleResult(
                id=rule.id,
                mode=rule.mode,
                decision=rule.decision,
                hits=int(hit.sum()),
                frauds=int(found.sum()),
                false_positives=int((hit & ~fraud).sum()),
                precision=float(found.sum() / hit.sum()) if hit.any() else None,
                amount_saved=round(float(saved), 2),
                already_caught=float(caught[found].mean()) if found.any() else None,
                failed=result.failed[rule.id],
            )
        )
    return tuple(results)


def totals(name: str, version: str, past: Past, decisions: Decisions, review_cost: float) -> Totals:
    """Count what a set of decisions does."""
    fraud = past.transactions.label == 1
    approved, reviewed, declined = (decisions == word for word in ("approve", "review", "decline"))
    lost = float((past.transactions.cents[approved & fraud] / 100).sum())
    return Totals(
        name=name,
        rules=version,
        approve=int(approved.sum()),
        review=int(reviewed.sum()),
        decline=int(declined.sum()),
        frauds_stopped=int((fraud & ~approved).sum()),
        frauds_approved=int((fraud & approved).sum()),
        genuine_reviewed=int((reviewed & ~fraud).sum()),
        genuine_declined=int((declined & ~fraud).sum()),
        expected_cost=round(lost + review_cost * int(reviewed.sum()), 2),
    )


# --- The past -------------------------------------------------------------------------------------


def read_past(
    project: Project, settings: FraudSettings, bundle: Bundle, days: int, progress: Progress
) -> Past:
    """Read the last days of a project's data and score them with a bundle's chosen model.

    Raises:
        DataError: The data cannot be read, or holds no labelled transaction in these days.
        BundleError: The model cannot be used.
    """
    import numpy as np

    from pegboard.errors import DataError
    from pegboard_fraud import data
    from pegboard_fraud.decisions import judge

    with progress.task("features"):
        history = data.read_history(settings)
    rows = data.rows_of_last_days(settings, history.transactions, days or settings.data.test_days)
    if not len(rows):
        raise DataError(
            "there is no labelled transaction in these days",
            where=str(data.source(settings)),
            remedy="give more --days",
        )
    features = history.features[rows]
    scores = _scored(project, settings, bundle, features, progress)
    by_model = [
        judge(settings, {name: column[[row]] for name, column in scores.items()}, bundle.thresholds)
        for row in range(len(rows))
    ]
    return Past(
        transactions=history.transactions.rows(rows),
        features=features,
        scores=scores,
        by_model=np.array([verdict.decision for verdict in by_model], np.str_),
    )


def _scored(
    project: Project,
    settings: FraudSettings,
    bundle: Bundle,
    features: NDArray[np.float32],
    progress: Progress,
) -> Rows:
    import numpy as np

    from pegboard.answering import Answerer

    predictor = bundle.load_predictor(project.board.collect("deploy_targets"))
    answerer = Answerer(project.board, settings, predictor, bundle.thresholds, bundle.signature)
    starts = range(0, len(features), AT_ONCE)
    outputs = [
        answerer.infer({"features": features[start : start + AT_ONCE]})
        for start in progress.track(starts, "scores", len(starts))
    ]
    return {
        name: np.concatenate([np.asarray(output[name]) for output in outputs])
        for name in ("probability", "expected_loss")
    }


# --- The command ----------------------------------------------------------------------------------


def backtest(
    project: Project, new: Path, old: Path | None, *, days: int, bundle: Path, progress: Progress
) -> Backtest:
    """Replay rules over the last days of a project's data.

    Args:
        project: A fraud project.
        new: The file of rules.
        old: Rules to compare with; without it, only the model alone is.
        days: How many days, the last ones; 0 takes as many as the test has.
        bundle: Whose chosen model scores.
        progress: Shows how far it is.

    Returns:
        The result, which is also kept in `backtest/backtest.json`.

    Raises:
        SettingsError: A file of rules is wrong.
        DataError: The data cannot be read, or holds no labelled transaction in these days.
        BundleError: The bundle cannot be used.
    """
    from pegboard.bundle import read_bundle
    from pegboard.files import write_json
    from pegboard_fraud.identifiers import load_identifiers
    from pegboard_fraud.rules import load_rules

    opened = read_bundle(bundle)
    settings = _settings(project, opened)
    hashed = load_identifiers(settings).hashed
    sets = {"new": load_rules(new, hashed)}
    if old is not None:
        sets["old"] = load_rules(old, hashed)
    past = read_past(project, settings, opened, days, progress)
    customers = [hashed(name) for name in past.transactions.customers.tolist()]
    terminals = [hashed(name) for name in past.transactions.terminals.tolist()]
    count, cost = len(past.transactions), settings.model.review_cost
    replays = {
        name: replay(
            past, rules, customers, terminals, progress.track(range(count), f"{name} rules", count)
        )
        for name, rules in sets.items()
    }
    result = Backtest(
        first_day=_day(past.transactions.time[0]),
        last_day=_day(past.transactions.time[-1]),
        transactions=count,
        frauds=int((past.transactions.label == 1).sum()),
        bundle=str(opened.folder),
        rules=rule_results(past, replays["new"]),
        totals=(
            *(
                totals(name, each.rules.version, past, each.decisions, cost)
                for name, each in replays.items()
            ),
            totals("model alone", "", past, past.by_model, cost),
        ),
    )
    write_json(project.folder / FOLDER / RESULT, asdict(result))
    return result


def _settings(project: Project, bundle: Bundle) -> FraudSettings:
    """The project's settings, with the model's own from the bundle that scores."""
    from pegboard_fraud.settings import FraudModel, FraudSettings

    settings = project.settings
    if not isinstance(settings, FraudSettings):
        raise TypeError(f"these are no fraud settings: {type(settings)}")
    model = FraudModel.model_validate(bundle.settings["model"])
    # What a review costs is no property of the model: it may be asked about on the command line.
    cost = {"review_cost": settings.model.review_cost}
    return settings.model_copy(update={"model": model.model_copy(update=cost)})


def _day(time: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(int(time), tz=UTC).date().isoformat()


def register(app: typer.Typer) -> None:
    """Add `backtest` to the command line."""

    @app.command("backtest")
    def command(
        rules: Annotated[Path, typer.Argument(metavar="RULES.toml", help="The rules to try.")],
        overrides: Annotated[
            list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings.")
        ] = None,
        against: Annotated[
            Path | None, typer.Option(metavar="OLD.toml", help="Rules to compare with.")
        ] = None,
        days: Annotated[
            int, typer.Option(min=0, help="Last days to replay; 0: as many as the test has.")
        ] = 0,
        bundle: Annotated[
            Path | None,
            typer.Option(metavar="DIR", help="A bundle; default: that of the newest run."),
        ] = None,
        project: Annotated[Path, typer.Option(help="The project's folder.")] = Path(),
    ) -> None:
        """Replay rules over days that are known, before they go live."""
        from pegboard.cli.predict import newest_bundle
        from pegboard.logs import new_progress
        from pegboard.project import open_project

        opened = open_project(project, overrides or ())
        result = backtest(
            opened,
            rules,
            against,
            days=days,
            bundle=bundle or newest_bundle(opened.folder),
            progress=new_progress(),
        )
        show(result)


def show(result: Backtest) -> None:
    """Print the result as tables."""
    from pegboard.cli.tables import heading, table

    heading(
        f"{result.transactions:,} transactions, {result.frauds:,} frauds, "
        f"{result.first_day} to {result.last_day}"
    )
    for rows in (result.rules, result.totals):
        if rows:
            names = [field.name for field in fields(rows[0])]
            typer.echo()
            table(
                [name.replace("_", " ") for name in names],
                [[_cell(getattr(row, name)) for name in names] for row in rows],
            )


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,.2f}" if isinstance(value, float) else f"{value}"
