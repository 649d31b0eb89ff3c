"""Export: the trained model for every target, with what it takes to verify and to watch it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from pegboard.answering import Answerer
from pegboard.bundle import (
    GOLDEN,
    REFERENCE,
    Bundle,
    Candidate,
    Golden,
    carry,
    model_folder,
    now,
    relative,
    versions,
    write_golden,
    write_manifest,
)
from pegboard.errors import BundleError, PegboardError
from pegboard.evaluation import ModulePredictor, batches_of
from pegboard.files import atomic_path, write_json
from pegboard.parity import OutputError, output_errors, worst
from pegboard.progress import Progress
from pegboard.records import Array, ExportRequest, Predictor, Signature, Split, Target
from pegboard.runs import Run
from pegboard.stages.evaluate import read_evaluation
from pegboard.statistics import TensorStatistics
from pegboard.targets.support import find_target, first_line
from pegboard.weights import load_trained

JOINED = 7
"""Golden records in the second batch that an export is checked with: no size that a model would
fix by chance."""


def run(run: Run, progress: Progress) -> dict[str, Any]:
    """Write the bundle; every export is compared with torch on the golden records at once.

    Raises:
        SettingsError: A target is unknown.
        MissingExtraError: A target cannot be used here.
        PegboardError: The deployable cannot be exported.
        BundleError: An export does not compute what torch does.
    """
    board, settings = run.project.board, run.project.settings
    offered = board.collect("deploy_targets")
    targets = [find_target(offered, name) for name in dict.fromkeys(settings.deploy.targets)]
    deployable = board.hook.build_deployable(settings=settings, model=load_trained(run)).eval()
    evaluation = read_evaluation(run)
    signature: Signature = board.hook.signature(settings=settings)
    torch_answerer = Answerer(
        board, settings, ModulePredictor(deployable), evaluation.thresholds, signature
    )
    golden = _golden(run, torch_answerer, progress)
    with atomic_path(run.bundle) as folder:
        folder.mkdir()
        candidates = [
            _exported(target, deployable, signature, folder, progress) for target in targets
        ]
        write_golden(folder / GOLDEN, golden)
        write_json(folder / REFERENCE, _reference(run, torch_answerer, progress))
        bundle = write_manifest(
            Bundle(
                folder=folder,
                solution=settings.solution,
                versions=versions(board.versions()),
                created=now(),
                signature=signature,
                thresholds=evaluation.thresholds,
                metrics=tuple(evaluation.metrics),
                settings=settings.tables(run.project.folder),
                candidates=tuple(candidates),
                chosen_name=candidates[0].name,
                carried=carry(_files(run), folder),
            )
        )
        with progress.task("compare with torch"):
            errors = _check_parity(run, bundle, targets, torch_answerer, golden)
    return {
        "golden": len(golden),
        "candidates": {
            candidate.name: {
                "bytes": bundle.size_of(candidate),
                "tensor_error": errors[candidate.name].share,
            }
            for candidate in candidates
        },
    }


def _files(run: Run) -> dict[str, Path]:
    """Return the files that answering needs, by the settings that name them."""
    board, settings = run.project.board, run.project.settings
    # The last registered is asked first, and wins.
    answers = reversed(board.hook.bundle_files(settings=settings))
    return {key: path for answer in answers for key, path in answer.items()}


def _exported(
    target: Target, deployable: nn.Module, signature: Signature, root: Path, progress: Progress
) -> Candidate:
    folder = model_folder(root, target.name, "fp32")
    folder.mkdir(parents=True)
    request = ExportRequest(deployable=deployable, signature=signature.windowed(), folder=folder)
    with progress.task(f"export to {target.name}"):
        try:
            path = target.export(request)
        except PegboardError:
            raise
        # A target is a plugin's: it may raise anything.
        except Exception as error:
            raise PegboardError(
                f"the export to '{target.name}' failed: {first_line(error)}",
                where=type(deployable).__name__,
                remedy="'pegboard --debug' shows the traceback",
            ) from error
    return Candidate(target=target.name, variant="fp32", file=relative(path, root))


# --------------------------------------------------------------------------- golden records


def evenly_spaced(run: Run, split: Split, count: int, batch_size: int) -> DataLoader[Any]:
    """Return some records of a split as batches.

    Evenly spaced, because a split may be in order of time or of class: its first records would
    not stand for it.
    """
    board, settings = run.project.board, run.project.settings
    data: Dataset[Any] = board.hook.load_split(settings=settings, split=split)
    length = len(data)  # type: ignore[arg-type]  # Every split is a map-style dataset.
    index = np.linspace(0, length - 1, min(count, length)).round().astype(int)
    return batches_of(board, settings, Subset(data, index.tolist()), batch_size)


def _golden(run: Run, answerer: Answerer, progress: Progress) -> list[Golden]:
    batches = evenly_spaced(run, "test", run.project.settings.deploy.golden, batch_size=1)
    return [
        Golden(inputs=inputs, outputs=answerer.infer(inputs))
        for inputs in _inputs(progress.track(batches, "golden records", len(batches)))
    ]


def _inputs(batches: Iterable[Any]) -> Iterable[dict[str, Array]]:
    return (batch.arrays() for batch in batches)


def _reference(run: Run, answerer: Answerer, progress: Progress) -> dict[str, Any]:
    """Describe inputs and outputs on the train split."""
    settings = run.project.settings
    batches = evenly_spaced(
        run, "train", settings.deploy.reference, settings.train.evaluated_at_once
    )
    inputs = TensorStatistics(answerer.signature.inputs, len(batches))
    outputs = TensorStatistics(answerer.signature.outputs, len(batches))
    for arrays in _inputs(progress.track(batches, "reference statistics", len(batches))):
        inputs.add(arrays)
        outputs.add(answerer.infer(arrays))
    return {"split": "train", "inputs": inputs.summary(), "outputs": outputs.summary()}


# --------------------------------------------------------------------------- parity


def _check_parity(
    run: Run, bundle: Bundle, targets: Sequence[Target], answerer: Answerer, golden: list[Golden]
) -> dict[str, OutputError]:
    """Compare each candidate with torch, record by record and in one batch of several."""
    inputs = [record.inputs for record in golden]
    expected = [record.outputs for record in golden]
    joined = _joined(bundle.signature, inputs)
    if joined:
        inputs = [*inputs, joined]
        expected = [*expected, answerer.infer(joined)]
    errors = {}
    for candidate in bundle.candidates:
        predictor = bundle.load_predictor(targets, candidate)
        errors[candidate.name] = worst(
            output_errors(bundle.signature, expected, _outputs(answerer, predictor, inputs))
        )
        _refuse(candidate, errors[candidate.name], run.project.settings.deploy.limits.tensor_error)
    return errors


def _outputs(
    answerer: Answerer, predictor: Predictor, inputs: Sequence[Mapping[str, Array]]
) -> list[Mapping[str, Array]]:
    other = answerer.with_predictor(predictor)
    return [other.infer(arrays) for arrays in inputs]


def _joined(signature: Signature, inputs: Sequence[Mapping[str, Array]]) -> dict[str, Array] | None:
    """Join the first records of equal shape to one batch; None where records come one by one."""
    shapes = {name: array.shape for name, array in inputs[0].items()}
    alike = [
        record
        for record in inputs
        if {name: array.shape for name, array in record.items()} == shapes
    ][:JOINED]
    if len(alike) < 2 or any(spec.shape[:1] != ("batch",) for spec in signature.inputs):
        return None
    return {name: np.concatenate([record[name] for record in alike]) for name in shapes}


def _refuse(candidate: Candidate, error: OutputError, limit: float) -> None:
    if not error.share <= limit:
        raise BundleError(
            f"'{candidate.name}' does not compute what torch does: {error.what}",
            where=f"deploy.limits.tensor_error = {limit}",
            remedy="take another target, or look for an operation that the two define differently",
        )
