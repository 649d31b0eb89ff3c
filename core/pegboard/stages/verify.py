"""Verify: every candidate against the trained model; one that strays is never served."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pegboard.answering import Answerer
from pegboard.bundle import Bundle, Candidate, Golden, read_bundle, write_manifest
from pegboard.evaluation import (
    ModulePredictor,
    batches_of,
    completed,
    join_rows,
    measure,
    metrics_of,
)
from pegboard.parity import OutputError, flipped_share, metric_drop, output_errors, worst
from pegboard.progress import Progress
from pegboard.records import MetricValue
from pegboard.runs import Run
from pegboard.settings import LimitSettings
from pegboard.stages.compress import choose, defined
from pegboard.targets.support import first_line
from pegboard.weights import load_trained


def run(run: Run, progress: Progress) -> dict[str, Any]:
    """Compare every candidate with torch and quarantine those that miss a limit.

    Tensor error on the golden records, headline metric and decisions on the whole test split, all
    of it through the solution's own `infer` and `encode_answer`.

    Raises:
        BundleError: The bundle is damaged, or no candidate is left.
    """
    limits = run.project.settings.deploy.limits
    bundle = read_bundle(run.bundle)
    trained = _trained(run, bundle, progress)
    verified = []
    for candidate in bundle.candidates:
        found = _compared(run, bundle, candidate, trained, progress)
        verified.append(_judged(candidate, found, limits))
        if verified[-1].is_quarantined:
            progress.say(f"verify: {candidate.name} is quarantined: {verified[-1].reason}")
    # Written before the choice, which raises when none is left: a refused one stays refused.
    bundle = write_manifest(replace(bundle, candidates=tuple(verified)))
    chosen = choose(bundle, limits.metric_drop)
    write_manifest(replace(bundle, chosen_name=chosen.name))
    return {
        "chosen": chosen.name,
        "candidates": {
            candidate.name: {
                "status": candidate.status,
                "reason": candidate.reason,
                **candidate.measured,
            }
            for candidate in verified
        },
    }


# --------------------------------------------------------------------------- comparing


@dataclass(frozen=True, kw_only=True)
class SplitResult:
    """What one backend made of the test split."""

    metric: MetricValue
    """The headline metric."""
    decisions: Sequence[object]
    """One per answer; None where nothing is decided."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The trained model, which every candidate is compared with."""

    answerer: Answerer
    """It, in torch."""
    golden: Sequence[Golden]
    """What it returned when the bundle was written."""
    result: SplitResult
    """What it makes of the test split."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How far a candidate is from the trained model."""

    error: OutputError
    """The largest on the golden records."""
    metric: MetricValue
    """The candidate's headline metric on the test split."""
    drop: float
    """How much worse it is, as a share."""
    flipped: float | None
    """Share of decisions that differ; None where nothing is decided."""


def _trained(run: Run, bundle: Bundle, progress: Progress) -> Trained:
    board, settings = run.project.board, run.project.settings
    deployable = board.hook.build_deployable(settings=settings, model=load_trained(run))
    answerer = Answerer(
        board, settings, ModulePredictor(deployable), bundle.thresholds, bundle.signature
    )
    result = _on_test_split(run, answerer, "trained", progress)
    return Trained(answerer=answerer, golden=bundle.golden(), result=result)


def _on_test_split(run: Run, answerer: Answerer, name: str, progress: Progress) -> SplitResult:
    board, settings = run.project.board, run.project.settings
    data = board.hook.load_split(settings=settings, split="test")
    batches = batches_of(board, settings, data, settings.train.evaluated_at_once)
    tables, decisions = [], []
    for batch in progress.track(batches, f"{name} on test", len(batches)):
        outputs = answerer.infer(batch.arrays())
        tables.append(board.hook.tabulate(settings=settings, batch=batch, outputs=outputs))
        decisions += [answer.get("decision") for answer in answerer.encode(outputs)]
    headline = metrics_of(board, settings)[0]
    rows = completed(board, settings, answerer.predictor, join_rows(tables))
    metric = measure(headline, rows, answerer.thresholds)
    return SplitResult(metric=metric, decisions=decisions)


def _compared(
    run: Run, bundle: Bundle, candidate: Candidate, trained: Trained, progress: Progress
) -> Comparison | str:
    """Compare one candidate; return the cause instead when it cannot run."""
    targets = run.project.board.collect("deploy_targets")
    # Whatever an earlier verification said, it is looked at again.
    fresh = replace(candidate, status="exported", reason="")
    try:
        answerer = trained.answerer.with_predictor(bundle.load_predictor(targets, fresh))
        records = progress.track(trained.golden, f"{candidate.name} on golden records")
        outputs = [answerer.infer(record.inputs) for record in records]
        result = _on_test_split(run, answerer, candidate.name, progress)
    # A runtime raises what it likes; whatever it is, this candidate cannot be served.
    except Exception as error:
        return first_line(error)
    expected = [record.outputs for record in trained.golden]
    return Comparison(
        error=worst(output_errors(bundle.signature, expected, outputs)),
        metric=result.metric,
        drop=metric_drop(trained.result.metric, result.metric),
        flipped=flipped_share(trained.result.decisions, result.decisions),
    )


# --------------------------------------------------------------------------- judging


def _judged(candidate: Candidate, found: Comparison | str, limits: LimitSettings) -> Candidate:
    """Return a candidate with what was measured, verified or quarantined."""
    if isinstance(found, str):
        return replace(candidate, status="quarantined", reason=f"it does not run: {found}")
    misses = _misses(candidate, found, limits)
    figures = {
        "tensor_error": defined(found.error.share),
        "test_metric": found.metric.value,
        "test_drop": defined(found.drop),
        "flipped_decisions": found.flipped,
    }
    return replace(
        candidate,
        status="quarantined" if misses else "verified",
        reason=", ".join(misses),
        measured={**candidate.measured, **figures},
    )


def _misses(candidate: Candidate, found: Comparison, limits: LimitSettings) -> list[str]:
    """Say which limits a candidate misses, each with its figure."""
    misses = []
    # Outputs of compressed models may stray; what is decided from them may not.
    if candidate.variant == "fp32" and found.error.share > limits.tensor_error:
        misses.append(f"{found.error.what}, limit {limits.tensor_error:g}")
    if limits.metric_drop and found.drop > limits.metric_drop:
        value = f"{found.metric.value:.4g}" if found.metric.value is not None else "undefined"
        misses.append(
            f"{found.metric.name} is {value}, {found.drop:.2%} worse, "
            f"limit {limits.metric_drop:.2%}"
        )
    flipped = found.flipped or 0.0
    if limits.flipped_decisions and flipped > limits.flipped_decisions:
        misses.append(f"{flipped:.2%} of the decisions flip, limit {limits.flipped_decisions:.2%}")
    return misses
