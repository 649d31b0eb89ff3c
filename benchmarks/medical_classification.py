"""Malignancy of lung nodules (LIDC-IDRI): image alone, beside what radiologists' outlines tell.

    python benchmarks/medical_classification.py --folds 0

994 cut-outs of 551 patients, 650 benign and 344 malignant by vote of radiologists; five folds by
patient; of those that do not test one in twenty chooses the threshold, which ROC AUC does not use.
`masks` is a logistic regression on size, shape and brightness of the outlined nodule, which nobody
outlines for the network. What was measured before is kept in bench-results/medical and not measured
again.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pegboard.files import atomic_write
from pegboard.lifecycle import open_run, run_stages
from pegboard.logs import new_progress
from pegboard.progress import Progress
from pegboard.project import open_project
from pegboard.records import Array
from pegboard.runs import Run

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "bench-results" / "medical"
FOLDS = 5
LABELS = {"0": "benign", "1": "malignant"}
"""By the sheet's `Diagnosis_value`."""
SHEET = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"

PROJECT = """solution = "medical-classification"

[data]
path = "{table}"
folds = {folds}
fold = {fold}
validation_share = 0.05

[train]
devices = 1
seed = {seed}
"""


def main() -> None:
    """Measure the folds that are asked for and print their table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folds", type=int, nargs="+", choices=range(FOLDS), default=[0])
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    progress = new_progress()
    table: dict[int, dict[str, float]] = {}
    for fold in asked.folds:
        table[fold] = figures(measured(fold, asked.seed, progress))
        print("\n".join(lines(table)), flush=True)


# --------------------------------------------------------------------------- projects


def measured(fold: int, seed: int, progress: Progress) -> Run:
    """Return a fold's run, evaluated."""
    folder = RESULTS / f"classification-{fold}-{seed}"
    table = RESULTS / "nodules.csv"
    write_table(table)
    atomic_write(
        folder / "pegboard.toml",
        PROJECT.format(table=table, folds=FOLDS, fold=fold, seed=seed),
    )
    run = open_run(open_project(folder), progress)
    run_stages(run, "evaluate", progress)
    return run


def write_table(path: Path) -> None:
    """Write the CSV file of images, masks, labels and patients."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "mask", "label", "patient"])
    writer.writerows(rows_of())
    # Written again it would be newer, and everything would be computed again.
    if not path.exists() or path.read_text() != text.getvalue():
        atomic_write(path, text.getvalue())


def rows_of() -> Iterator[tuple[Path, Path, str, str]]:
    """Yield image, mask, label and patient of each nodule."""
    folder = Path(os.environ.get("PEGBOARD_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    nodules = (folder / "medical" / "lidc_nodule_vois").resolve()
    labels = {
        f"{row['patient_id']}_R_{row['nodule_id']}.nii.gz": LABELS[row["Diagnosis_value"]]
        for row in read_sheet(nodules / "MetadatabyNoduleMaxVoting.xlsx")
        if row.get("Diagnosis_value") in LABELS
    }
    # Relative to the table: a checkout may be moved.
    beside = Path(os.path.relpath(nodules, RESULTS))
    for image in sorted((nodules / "image").iterdir()):
        patient = image.name.partition("_R_")[0]
        yield (
            beside / "image" / image.name,
            beside / "nodule_mask" / image.name,
            labels[image.name],
            patient,
        )


def read_sheet(path: Path) -> list[dict[str, str]]:
    """Return the rows of the only sheet of an .xlsx file, by the names in its first row."""
    with zipfile.ZipFile(path) as archive:
        shared = ElementTree.fromstring(archive.read("xl/sharedStrings.xml"))
        sheet = ElementTree.fromstring(archive.read("xl/worksheets/sheet1.xml"))
    texts = ["".join(part.text or "" for part in item.iter(f"{SHEET}t")) for item in shared]
    rows = []
    for row in sheet.iter(f"{SHEET}row"):
        cells = {}
        for cell in row.iter(f"{SHEET}c"):
            column, value = re.match(r"[A-Z]+", cell.get("r", "")), cell.find(f"{SHEET}v")
            if column is not None and value is not None and value.text is not None:
                is_shared = cell.get("t") == "s"
                cells[column[0]] = texts[int(value.text)] if is_shared else value.text
        rows.append(cells)
    names = rows[0]
    return [{names[column]: text for column, text in row.items()} for row in rows[1:]]


# --------------------------------------------------------------------------- figures


def figures(run: Run) -> dict[str, float]:
    """Return what is compared."""
    from pegboard.stages.evaluate import read_evaluation

    evaluation = read_evaluation(run)
    values = {metric.name: metric.value for metric in evaluation.metrics}
    (histograms,) = evaluation.baselines
    facts: dict[str, Any] = run.stages()["train"]["facts"]
    return {
        "model": _number(values["roc_auc"]),
        "masks": mask_auc(run),
        "histograms": _number(histograms.headline.value),
        "sensitivity": _number(values["sensitivity"]),
        "specificity": _number(values["specificity"]),
        "brier": _number(values["brier"]),
        "cpu_seconds": facts["cpu_seconds"],
    }


def _number(value: float | None) -> float:
    return np.nan if value is None else value


def mask_auc(run: Run) -> float:
    """Return the ROC AUC of a logistic regression on what outlines tell, same patients."""
    from pegboard_medical.classification.data import splits_of
    from pegboard_medical.classification.settings import ClassificationSettings

    settings = run.project.settings
    assert isinstance(settings, ClassificationSettings)
    splits = splits_of(settings.data)
    features = {case.key: mask_features(case) for cases in splits.values() for case in cases}
    known = [*splits["train"], *splits["validation"]]
    machine = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    machine.fit([features[case.key] for case in known], [case.label for case in known])
    scores = machine.decision_function([features[case.key] for case in splits["test"]])
    return float(roc_auc_score([case.label == "malignant" for case in splits["test"]], scores))


def mask_features(case: Any) -> Array:
    """Return size, sides, compactness and brightness of the outlined nodule (11,)."""
    from pegboard_medical.sources import read_case, read_mask

    volume = read_case(case)
    inside = read_mask(case, volume) > 0
    places = np.argwhere(inside)
    if not len(places):
        return np.zeros(11)
    spacing = np.array(volume.spacing)
    sides = (np.ptp(places, axis=0) + 1) * spacing
    brightness = volume.voxels[inside].astype(np.float64)
    millilitres = len(places) * volume.voxel_ml
    diameter = (6000 * millilitres / np.pi) ** (1 / 3)
    return np.array(
        [
            np.log(millilitres),
            diameter,
            *np.log(np.sort(sides)),
            millilitres * 1000 / np.prod(sides),
            brightness.mean(),
            brightness.std(),
            *np.percentile(brightness, [10, 50, 90]),
        ]
    )


def lines(table: Mapping[int, Mapping[str, float]]) -> Iterator[str]:
    """Lay the folds out, a row each, and their mean."""
    names: Sequence[str] = list(next(iter(table.values())))
    yield f"\n{'fold':<6}" + "".join(f"{name:>13}" for name in names)
    for fold, row in table.items():
        yield f"{fold:<6}" + "".join(f"{row[name]:>13.4f}" for name in names)
    if len(table) > 1:
        means = [np.mean([row[name] for row in table.values()]) for name in names]
        yield f"{'mean':<6}" + "".join(f"{mean:>13.4f}" for mean in means)


if __name__ == "__main__":
    main()
