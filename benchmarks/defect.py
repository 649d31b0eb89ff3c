"""Solar cells (ELPV): with and without augmentation, with MoCo, beside HOG + SVM.

    make bench-defect

1,968 cells train and 656 test, stratified by label and kind, anew for each seed; a cell counts as
defective from a probability of 0.5 on; no pretrained weights. Published (Deitsch et al., Solar
Energy 185, 2019): SVM on hand-made features 0.8242, VGG19 pretrained on ImageNet 0.8842 accuracy.
The variants share splits and seeds, so their differences are paired. What was measured before is
kept in bench-results/defect and not measured again.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.model_selection import train_test_split

from pegboard.files import atomic_write
from pegboard.lifecycle import open_run, run_stages
from pegboard.logs import new_progress
from pegboard.progress import Progress
from pegboard.project import open_project
from pegboard.records import Evaluation, Rows
from pegboard.runs import Run

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "bench-results" / "defect"
TEST_CELLS = 656
VALIDATION_CELLS = 96
"""Of the training cells; they choose the thresholds, which accuracy and ROC AUC do not use."""

VARIANTS: Mapping[str, str] = {
    "augmented": 'augmentation = "solar"',
    "plain": 'augmentation = "none"',
    "moco": 'augmentation = "solar"',
}
"""What differs in `[data]`; moco begins from a backbone trained on the same cells, unlabelled."""

PROJECT = """solution = "defect"

[data]
path = "cells.csv"
classes = ["good", "defect"]
size = [300, 300]
{augmentation}

[model]
input = "gradients"
cell = 8
backbone = "small"
layout = 10
words = 400
mixup = 0.2
mirrored = true
mask_weight = 0.0
{model}

[train]
epochs = 20
batch_size = 32
keep = "last"
devices = 1
seed = {seed}
"""

NO_BASELINES = """from pegboard import hookimpl


@hookimpl(wrapper=True)
def build_baselines():
    yield
    return []
"""

SPEED = """solution = "defect"

[data]
tiny = true
size = [480, 640]

[model]
cell = 8

[train]
max_steps = 4
batch_size = 4
devices = 1

[deploy]
targets = ["onnx"]
golden = 4
"""

MOCO = """solution = "moco"

[data]
path = "cells.csv"
classes = ["good", "defect"]
size = [150, 150]

[train]
epochs = {epochs}
keep = "last"
devices = 1
seed = {seed}
"""

HOOKS = '''"""HOG with an SVM as the floor: what was done before networks."""

from __future__ import annotations

import numpy as np
from skimage.feature import hog
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from pegboard import hookimpl
from pegboard.records import Baseline


@hookimpl(wrapper=True)
def build_baselines(settings):
    yield
    return [[Baseline(name="hog_svm", fit=fit)]]


def features(images):
    return np.stack([
        hog(image[::2, ::2, 0], orientations=9, pixels_per_cell=(15, 15), cells_per_block=(2, 2))
        for image in images
    ])


def fit(train, validation):
    samples = [train[index] for index in range(len(train))]
    labels = np.array([sample.targets["defective"] >= 0.5 for sample in samples])
    model = make_pipeline(StandardScaler(), SVC(C=3))
    model.fit(features([sample.inputs["image"] for sample in samples]), labels)

    def predict(inputs):
        margin = model.decision_function(features(inputs["image"]))
        score = (1 / (1 + np.exp(-2 * margin))).astype(np.float32)
        images = inputs["image"]
        return {
            "score": score,
            "probabilities": np.stack([1 - score, score], axis=1),
            "map": np.zeros(images.shape[:3], dtype=np.float32),
        }

    return predict
'''


def main() -> None:
    """Measure the variants that are asked for and print their table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--pretraining", type=int, default=50, help="Epochs of MoCo.")
    parser.add_argument("--speed", action="store_true", help="Frames a second, and nothing else.")
    asked = parser.parse_args()
    progress = new_progress()
    if asked.speed:
        print(speed(progress))
        return
    table: dict[str, dict[int, dict[str, float]]] = {}
    for seed in asked.seeds:
        for variant in asked.variants:
            run = measured(variant, seed, asked.pretraining, progress)
            table.setdefault(variant, {})[seed] = figures(run)
            if variant == "augmented":
                table.setdefault("hog_svm", {})[seed] = figures(run, baseline="hog_svm")
            print("\n".join(lines(table)), flush=True)
    print(speed(progress))


# --------------------------------------------------------------------------- projects


def measured(variant: str, seed: int, pretraining: int, progress: Progress) -> Run:
    """Return a variant's run, evaluated."""
    folder = RESULTS / f"{variant}-{seed}"
    model = ""
    if variant == "moco":
        model = f'weights = "{pretrained(seed, pretraining, progress)}"'
    write_cells(folder, seed)
    atomic_write(
        folder / "pegboard.toml",
        PROJECT.format(augmentation=VARIANTS[variant], model=model, seed=seed),
    )
    hooks = HOOKS if variant == "augmented" else NO_BASELINES
    atomic_write(folder / "hooks.py", hooks)
    run = open_run(open_project(folder), progress)
    run_stages(run, "evaluate", progress)
    return run


def pretrained(seed: int, epochs: int, progress: Progress) -> Path:
    """Train a backbone on the training cells of a seed, without their labels; return its file."""
    from pegboard_defect.moco.commands import write_backbone

    folder = RESULTS / f"pretrain-{seed}"
    write_cells(folder, seed, test=False)
    atomic_write(folder / "pegboard.toml", MOCO.format(seed=seed, epochs=epochs))
    run = open_run(open_project(folder), progress)
    run_stages(run, "train", progress)
    file: Path = write_backbone(run)
    return file


def write_cells(folder: Path, seed: int, *, test: bool = True) -> None:
    """Write the CSV file of one split."""
    content = "\n".join(rows_of(seed, test)) + "\n"
    path = folder / "cells.csv"
    folder.mkdir(parents=True, exist_ok=True)
    # Written again it would be newer, and everything would be computed again.
    if not path.exists() or path.read_text() != content:
        atomic_write(path, content)


def rows_of(seed: int, test: bool) -> Iterator[str]:
    """Yield the lines of a split: picture, probability, kind as lot, split."""
    folder = Path(os.environ.get("PEGBOARD_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    cells = (folder / "defect" / "elpv").resolve()
    table = [line.split() for line in (cells / "labels.csv").read_text().splitlines()]
    strata = [f"{float(probability) >= 0.5}{kind}" for _, probability, kind in table]
    rest, tested = train_test_split(
        np.arange(len(table)), test_size=TEST_CELLS, stratify=strata, random_state=seed
    )
    _, validation = train_test_split(
        rest,
        test_size=VALIDATION_CELLS,
        stratify=[strata[index] for index in rest],
        random_state=seed,
    )
    split = dict.fromkeys(rest, "train") | dict.fromkeys(validation, "validation")
    split |= dict.fromkeys(tested, "test")
    yield "image,probability,lot,split"
    for index, (name, probability, kind) in enumerate(table):
        if test or split[index] != "test":
            yield f"{cells / name},{probability},{kind},{split[index]}"


def speed(progress: Progress) -> str:
    """Say how many frames of 640 x 480 the exported model inspects a second, on one core.

    A frame is a request: base64 of a PNG, decoded, judged, answered; what was learnt changes
    nothing.
    """
    folder = RESULTS / "speed"
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / "pegboard.toml", SPEED)
    run = open_run(open_project(folder), progress)
    facts = run_stages(run, "benchmark", progress, again=True)["benchmark"]
    return (
        f"\n640 x 480 on one core: {facts['throughput']:.1f} frames a second, p50 "
        f"{facts['p50_ms']:.1f} ms ({facts['cpu_ms']:.1f} ms of CPU), the model alone "
        f"{facts['model_p50_ms']:.1f} ms, {facts['memory_mb']:.0f} MB"
    )


# --------------------------------------------------------------------------- figures


def figures(run: Run, baseline: str = "") -> dict[str, float]:
    """Return what is compared, of the model or of a baseline."""
    from pegboard.stages.evaluate import read_evaluation

    evaluation: Evaluation = read_evaluation(run)
    if baseline:
        evaluation = next(one for one in evaluation.baselines if one.name == baseline)
    rows: Rows = evaluation.rows
    defective, rejected = rows["defective"] == 1, rows["score"] >= 0.5
    auc = next(metric.value for metric in evaluation.metrics if metric.name == "roc_auc")
    facts: dict[str, Any] = run.stages()["train"]["facts"]
    return {
        "accuracy": float(np.mean(defective == rejected)),
        "roc_auc": float(auc or np.nan),
        "false_detections": float(np.sum(rejected & ~defective)),
        "escapes": float(np.sum(~rejected & defective)),
        "cpu_minutes": np.nan if baseline else facts["cpu_seconds"] / 60,
    }


def lines(table: Mapping[str, Mapping[int, Mapping[str, float]]]) -> Iterator[str]:
    """Lay the means out, a row a variant, and what augmentation and pretraining gained."""
    yield f"\n{'':<12}{'seeds':>6}" + "".join(f"{name:>20}" for name in NAMES)
    for variant, seeds in table.items():
        cells = []
        for name in NAMES:
            values = np.array([row[name] for row in seeds.values()])
            cells.append(f"{values.mean():.4f} ± {values.std():.4f}")
        yield f"{variant:<12}{len(seeds):>6}" + "".join(f"{cell:>20}" for cell in cells)
    for better, than in (("augmented", "plain"), ("moco", "augmented")):
        both = sorted(table.get(better, {}).keys() & table.get(than, {}).keys())
        if both:
            yield f"{better} against {than}: " + ", ".join(
                f"{name} {difference(table, better, than, both, name):+.4f}" for name in NAMES[:4]
            )


NAMES = ("accuracy", "roc_auc", "false_detections", "escapes", "cpu_minutes")


def difference(
    table: Mapping[str, Mapping[int, Mapping[str, float]]],
    better: str,
    than: str,
    seeds: list[int],
    name: str,
) -> float:
    """Return the mean of the paired differences."""
    pairs = [table[better][seed][name] - table[than][seed][name] for seed in seeds]
    return float(np.mean(pairs))


if __name__ == "__main__":
    main()
