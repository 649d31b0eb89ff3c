"""Compress: candidates, each a runtime and a precision; the fastest that keeps the metric."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from pegboard.answering import Answerer, model_inputs
from pegboard.bundle import (
    Bundle,
    Candidate,
    model_folder,
    read_bundle,
    relative,
    write_manifest,
)
from pegboard.errors import BundleError, SettingsError
from pegboard.evaluation import ModulePredictor, evaluate
from pegboard.files import atomic_path, disk_is_full, remove
from pegboard.parity import metric_drop
from pegboard.progress import Progress
from pegboard.records import Array, CompressRequest, MetricValue, Predictor, Target
from pegboard.runs import Run
from pegboard.stages.export import evenly_spaced
from pegboard.targets.support import find_target, first_line, nearest
from pegboard.timing import take_turns
from pegboard.weights import load_trained

CALIBRATION_RECORDS = 256
TIMING_SECONDS = 3.0

MARGIN = 0.05
"""A candidate counts as faster when it takes this share less: the preferred target is not given
up for the noise of a measurement."""


def run(run: Run, progress: Progress) -> dict[str, Any]:
    """Make the candidates that `[deploy] compress` names, measure all, and choose one.

    fp32 stays in the bundle whatever is chosen. A compression that fails for this graph is noted
    with its cause and left out.

    Raises:
        SettingsError: A compression is unknown to every exported target.
    """
    bundle = _only_fp32(read_bundle(run.bundle))
    targets = _exported_targets(run, bundle)
    bundle, failed = _with_compressed(run, bundle, targets, progress)
    bundle = _measured(run, bundle, targets, progress)
    chosen = choose(bundle, run.project.settings.deploy.limits.metric_drop)
    bundle = write_manifest(replace(bundle, chosen_name=chosen.name))
    return {
        "chosen": chosen.name,
        "candidates": {
            candidate.name: {"bytes": bundle.size_of(candidate), **candidate.measured}
            for candidate in bundle.candidates
        },
        "failed": failed,
    }


def choose(bundle: Bundle, metric_limit: float) -> Candidate:
    """Return the fastest candidate that is not quarantined and keeps the headline metric.

    Of those within a few per cent of the fastest, the first in the bundle's order: the preferred
    target, and fp32 before what is compressed.

    Args:
        bundle: With measured candidates.
        metric_limit: Largest loss of the headline metric that a compressed one may have, as a
            share; 0 sets no limit.

    Raises:
        BundleError: None is left.
    """
    fit = [candidate for candidate in bundle.candidates if _is_fit(candidate, metric_limit)]
    if not fit:
        refused = "; ".join(f"{c.name}: {c.reason}" for c in bundle.candidates if c.reason)
        raise BundleError(
            f"no candidate may be served: {refused}",
            where=str(bundle.folder),
            remedy="look into the largest error first, or raise [deploy.limits]",
        )
    times = [candidate.measured.get("cpu_ms") or 0.0 for candidate in fit]
    fast = (c for c, time in zip(fit, times, strict=True) if time * (1 - MARGIN) <= min(times))
    return next(fast)


def _is_fit(candidate: Candidate, metric_limit: float) -> bool:
    if candidate.is_quarantined:
        return False
    # Whether an fp32 export is right is for verification to say, and something must be left.
    if candidate.variant == "fp32" or not metric_limit:
        return True
    drop = candidate.measured.get("validation_drop")
    return drop is not None and drop <= metric_limit


# --------------------------------------------------------------------------- making


def _only_fp32(bundle: Bundle) -> Bundle:
    """Bring the bundle back to what was exported: what an earlier compression left goes.

    The manifest first, so that one killed at any moment leaves a bundle that can be read.
    """
    fp32 = [candidate for candidate in bundle.candidates if candidate.variant == "fp32"]
    fresh = [replace(c, status="exported", reason="", measured={}) for c in fp32]
    exported = write_manifest(replace(bundle, candidates=tuple(fresh), chosen_name=fresh[0].name))
    for candidate in bundle.candidates:
        if candidate.variant != "fp32":
            remove(model_folder(bundle.folder, candidate.target, candidate.variant))
    return exported


def _exported_targets(run: Run, bundle: Bundle) -> dict[str, Target]:
    offered = run.project.board.collect("deploy_targets")
    return {
        candidate.target: find_target(offered, candidate.target) for candidate in bundle.candidates
    }


def _with_compressed(
    run: Run, bundle: Bundle, targets: Mapping[str, Target], progress: Progress
) -> tuple[Bundle, dict[str, str]]:
    """Make every compression that is asked for with every target that offers it."""
    names = list(dict.fromkeys(run.project.settings.deploy.compress))
    _refuse_unknown(names, targets)
    calibration = _calibration(run, bundle, targets) if names else []
    candidates, failed = list(bundle.candidates), {}
    for source in bundle.candidates:
        for name in names:
            if name not in targets[source.target].compressions:
                continue
            with progress.task(f"compress {source.target} to {name}"):
                made = _compressed(bundle, targets[source.target], source, name, calibration)
            if isinstance(made, Candidate):
                candidates.append(made)
            else:
                failed[f"{source.target}/{name}"] = made
                progress.say(f"compress: {source.target}/{name} left out: {made}")
    return replace(bundle, candidates=tuple(candidates)), failed


def _refuse_unknown(names: Sequence[str], targets: Mapping[str, Target]) -> None:
    known = sorted({name for target in targets.values() for name in target.compressions})
    for name in names:
        if name not in known:
            raise SettingsError(
                f"no exported target offers the compression '{name}'",
                where="deploy.compress",
                remedy=nearest(name, known),
            )


def _calibration(
    run: Run, bundle: Bundle, targets: Mapping[str, Target]
) -> list[Mapping[str, Array]]:
    """Return records of the train split as a predictor is given them."""
    project = run.project
    predictor = bundle.load_predictor(list(targets.values()), bundle.candidates[0])
    answerer = Answerer(
        project.board, project.settings, predictor, bundle.thresholds, bundle.signature
    )
    if answerer.is_plain:
        batches = evenly_spaced(
            run, "train", CALIBRATION_RECORDS, project.settings.train.evaluated_at_once
        )
        return [batch.arrays() for batch in batches]
    records = evenly_spaced(run, "train", CALIBRATION_RECORDS, batch_size=1)
    return [given for record in records for given in model_inputs(answerer, record.arrays())[:1]]


def _compressed(
    bundle: Bundle,
    target: Target,
    source: Candidate,
    name: str,
    calibration: Sequence[Mapping[str, Array]],
) -> Candidate | str:
    """Make one candidate; return the cause instead when the target cannot."""
    final = model_folder(bundle.folder, target.name, name)
    remove(final)
    try:
        with atomic_path(final) as folder:
            folder.mkdir()
            path = target.compressions[name](
                CompressRequest(
                    source=bundle.folder / source.file,
                    signature=bundle.signature.windowed(),
                    folder=folder,
                    calibration=calibration,
                )
            )
            file = relative(final / path.relative_to(folder), bundle.folder)
        candidate = Candidate(target=target.name, variant=name, file=file)
        # One that cannot even be opened is no candidate.
        bundle.load_predictor([target], candidate)
    # A target is a plugin's: it may raise anything, and the other candidates go on without it.
    except Exception as error:
        remove(final)
        # A full disk is nothing that this graph could help.
        if disk_is_full(error.__cause__ or error):
            raise
        return first_line(error)
    return candidate


# --------------------------------------------------------------------------- measuring


def _measured(
    run: Run, bundle: Bundle, targets: Mapping[str, Target], progress: Progress
) -> Bundle:
    """Measure every candidate: one record on one thread, and the metric on validation."""
    board, settings = run.project.board, run.project.settings
    offered = list(targets.values())
    predictors = {c.name: bundle.load_predictor(offered, c) for c in bundle.candidates}
    times = _times(run, bundle, predictors, progress)
    deployable = board.hook.build_deployable(settings=settings, model=load_trained(run))
    reference = _headline(run, bundle, "trained", ModulePredictor(deployable), progress)
    measured = []
    for candidate in bundle.candidates:
        predictor = predictors[candidate.name]
        metric = _headline(run, bundle, candidate.name, predictor, progress)
        figures = {
            **times[candidate.name],
            "validation_metric": metric.value,
            "validation_drop": defined(metric_drop(reference, metric)),
        }
        measured.append(replace(candidate, measured=figures))
    return replace(bundle, candidates=tuple(measured))


def _times(
    run: Run, bundle: Bundle, predictors: Mapping[str, Predictor], progress: Progress
) -> dict[str, dict[str, float]]:
    """Time each candidate on one golden record."""
    board, settings = run.project.board, run.project.settings
    inputs = bundle.golden()[0].inputs
    answerers = {
        name: Answerer(board, settings, predictor, bundle.thresholds, bundle.signature)
        for name, predictor in predictors.items()
    }
    calls = {name: partial(answerer.infer, inputs) for name, answerer in answerers.items()}
    with progress.task("time the candidates"):
        timings = take_turns(calls, seconds=TIMING_SECONDS)
    return {
        name: {"cpu_ms": timing.cpu_ms(), "wall_ms": timing.wall_ms(50)}
        for name, timing in timings.items()
    }


def _headline(
    run: Run, bundle: Bundle, name: str, predictor: Predictor, progress: Progress
) -> MetricValue:
    board, settings = run.project.board, run.project.settings
    return evaluate(
        board,
        settings,
        predictor,
        board.hook.load_split(settings=settings, split="validation"),
        name=name,
        split="validation",
        thresholds=bundle.thresholds,
        progress=progress,
        resamples=0,
    ).headline


def defined(value: float | None) -> float | None:
    """Return a number as JSON can carry it: None for infinity and NaN."""
    return value if value is not None and math.isfinite(value) else None
