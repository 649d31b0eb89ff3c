"""Medical segmentation: hippocampus (MSD Task04), lung nodules (LIDC-IDRI), and a whole CT.

    make bench-medical

Hippocampus: 260 MR volumes, `--folds` of 5. Published: nnU-Net, fully supervised, Dice about 0.90
(anterior) and 0.89 (posterior); a label atlas without the image 0.739 and 0.679.

Nodules: 994 volumes of interest of 551 patients, split by patient; Attention U-Net beside a plain
U-Net with about as many parameters, the same CPU seconds and the same seeds.

CT: 512 x 512 x 120 generated voxels, from the array to the mask, by the embedded solution after
six epochs: the exported models beside torch eager, through the same windows, one thread.

What was measured before is kept in bench-results/medical and not measured again.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pegboard.evaluation import ModulePredictor
from pegboard.files import atomic_write
from pegboard.lifecycle import open_run, run_stages
from pegboard.logs import new_progress
from pegboard.progress import Progress
from pegboard.project import open_project
from pegboard.runs import Run

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "bench-results" / "medical"
DATA = (
    Path(os.environ.get("PEGBOARD_TEST_DATA", REPOSITORY.parent / "shared" / "data")) / "medical"
).resolve()

HIPPOCAMPUS = """solution = "medical-segmentation"

[data]
path = "{path}"
layout = "nifti"
modality = "mr"
classes = ["anterior", "posterior"]
spacing = [0.0, 0.0, 0.0]
folds = 5
fold = {fold}
validation_share = 0.05

[model]
network = "{network}"
channels = {channels}
patch = [32, 48, 32]
patches = 5
foreground = 0.5
mirrored = true
lesions = false

[train]
epochs = {epochs}
batch_size = 2
ema_decay = 0.995
keep = "last"
devices = 1
"""

NODULES = """solution = "medical-segmentation"

[data]
path = "{path}"
layout = "nifti"
modality = "ct"
classes = ["nodule"]
spacing = [1.25, 0.7, 0.7]
patient_pattern = "(LIDC-IDRI-[0-9]+)"
validation_share = 0.05

[model]
network = "{network}"
channels = {channels}
patch = [16, 40, 40]
patches = 2
foreground = 0.95
symmetric = ["head-feet", "front-back", "left-right"]
mirrored = true

[train]
epochs = {epochs}
batch_size = 4
ema_decay = 0.995
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

NETWORKS: Mapping[str, Mapping[str, Any]] = {
    "unet": {"channels": 16, "epochs": 8},
    "attention_unet": {"channels": 14, "epochs": 2},
}
"""Of the nodules: about 1.2 million parameters each, and epochs that take the same CPU seconds."""


def main() -> None:
    """Measure what is asked for and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folds", type=int, nargs="*", default=[0], help="Of the hippocampus.")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0], help="Of the nodules.")
    parser.add_argument("--only", choices=["hippocampus", "nodules", "ct"])
    asked = parser.parse_args()
    progress = new_progress()
    if asked.only in (None, "hippocampus"):
        print("\n".join(hippocampus(asked.folds, progress)), flush=True)
    if asked.only in (None, "nodules"):
        print("\n".join(nodules(asked.seeds, progress)), flush=True)
    if asked.only in (None, "ct"):
        print("\n".join(whole_ct(progress)), flush=True)


def measured(
    name: str,
    settings: str,
    progress: Progress,
    *,
    last: str = "evaluate",
    hooks: str = NO_BASELINES,
) -> Run:
    """Return a project's run, brought up to a stage."""
    folder = RESULTS / name
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "pegboard.toml"
    if not path.exists() or path.read_text() != settings:
        atomic_write(path, settings)
    atomic_write(folder / "hooks.py", hooks)
    run = open_run(open_project(folder), progress)
    run_stages(run, last, progress)
    return run


def figures(run: Run) -> dict[str, float]:
    """Return the test metrics and the CPU seconds of training."""
    from pegboard.stages.evaluate import read_evaluation

    facts: Mapping[str, Any] = run.stages()["train"]["facts"]
    values = {m.name: m.value for m in read_evaluation(run).metrics if m.value is not None}
    return {**values, "cpu_minutes": facts["cpu_seconds"] / 60}


def table(title: str, rows: Mapping[str, Mapping[str, float]], names: list[str]) -> Iterator[str]:
    """Lay figures out, a row a run."""
    yield f"\n{title:<24}" + "".join(f"{name:>18}" for name in names)
    for row, values in rows.items():
        yield f"{row:<24}" + "".join(f"{values.get(name, np.nan):>18.4f}" for name in names)
    if len(rows) > 1:
        means = [np.mean([values.get(name, np.nan) for values in rows.values()]) for name in names]
        yield f"{'mean':<24}" + "".join(f"{mean:>18.4f}" for mean in means)


def hippocampus(folds: list[int], progress: Progress) -> list[str]:
    """Train and test folds of the hippocampus."""
    path = DATA / "msd_hippocampus"
    rows = {}
    for fold in folds:
        settings = HIPPOCAMPUS.format(path=path, fold=fold, network="unet", channels=16, epochs=7)
        rows[f"fold {fold}"] = figures(measured(f"hippocampus-{fold}", settings, progress))
    names = ["dice", "dice_anterior", "dice_posterior", "hd95", "surface_dice", "cpu_minutes"]
    return list(table("hippocampus", rows, names))


def nodules(seeds: list[int], progress: Progress) -> list[str]:
    """Train and test both networks on the nodules."""
    path = DATA / "lidc_nodule_vois"
    rows = {}
    for seed in seeds:
        for network, options in NETWORKS.items():
            settings = NODULES.format(path=path, network=network, seed=seed, **options)
            run = measured(f"nodules-{network}-{seed}", settings, progress)
            rows[f"{network}, seed {seed}"] = figures(run)
    names = ["dice", "lesion_recall", "lesion_precision", "hd95", "surface_dice", "cpu_minutes"]
    return list(table("nodules", rows, names))


# --------------------------------------------------------------------------- a whole CT

CT = """solution = "medical-segmentation"

[data]
cases = 20

[train]
epochs = 6
devices = 1

[deploy]
targets = ["openvino", "onnx"]
compress = ["int8"]
golden = 1
"""


def whole_ct(progress: Progress) -> list[str]:
    """Time a CT of 512 x 512 x 120 through the exported models and torch eager, one thread."""
    import torch

    from pegboard.answering import Answerer
    from pegboard.bundle import read_bundle
    from pegboard.weights import load_trained

    torch.set_num_threads(1)
    run = measured("ct", CT, progress, last="verify", hooks="")
    board, settings = run.project.board, run.project.settings
    bundle = read_bundle(run.bundle)
    deployable = board.hook.build_deployable(settings=settings, model=load_trained(run))
    predictors: dict[str, Any] = {"torch eager": ModulePredictor(deployable)}
    for candidate in bundle.servable():
        targets = board.collect("deploy_targets")
        predictors[candidate.name] = bundle.load_predictor(targets, candidate)
    inputs = ct_of(run)
    seconds, masks = {}, {}
    for name, predictor in predictors.items():
        answerer = Answerer(board, settings, predictor, bundle.thresholds, bundle.signature)
        began = time.perf_counter()
        outputs = answerer.infer(inputs)
        seconds[name] = time.perf_counter() - began
        masks[name] = outputs["probabilities"][0, 0] > 0.5
    eager = masks["torch eager"]
    lines = [f"\n{'512 x 512 x 120':<24}{'seconds':>12}{'times faster':>14}{'Dice to eager':>16}"]
    for name, mask in masks.items():
        both = 2 * (mask & eager).sum() / max(1, mask.sum() + eager.sum())
        ratio = seconds["torch eager"] / seconds[name]
        lines.append(f"{name:<24}{seconds[name]:>12.1f}{ratio:>14.2f}{both:>16.4f}")
    return lines


def ct_of(run: Run) -> dict[str, Any]:
    """Return a generated case, resampled to 120 slices of 512 x 512."""
    from pegboard_medical.volumes import resize

    data = run.project.board.hook.load_split(settings=run.project.settings, split="test")
    inputs = data[0].inputs
    shape = (120, 512, 512)
    image = resize(inputs["image"], shape)
    spacing = inputs["spacing"] * np.array(inputs["image"].shape) / np.array(shape)
    return {"image": image[None], "spacing": spacing.astype(np.float32)[None]}


if __name__ == "__main__":
    main()
