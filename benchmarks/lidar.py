"""LiDAR: generated scenes, real frames never trained on, and one scan of 120,000 points.

    make bench-lidar

Scenes: the embedded data and settings; average precision from above on unseen scenes, clustering
beside it. Real: the same weights on six frames of KITTI. Overfit: a detector trained on these six
frames and measured on them, which proves that geometry, loss and decoding agree. Speed: raw points
to boxes, the exported graph beside torch eager and beside pillars made by NumPy, one after the
other in turns; Open3D's voxels, which others begin with, for comparison.

What was measured before is kept in bench-results/lidar and not measured again.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pegboard.bundle import Bundle, read_bundle
from pegboard.evaluation import ModulePredictor
from pegboard.files import atomic_write
from pegboard.lifecycle import open_run, run_stages
from pegboard.logs import new_progress
from pegboard.progress import Progress
from pegboard.project import open_project
from pegboard.records import Array, Evaluation
from pegboard.runs import Run
from pegboard.timing import take_turns
from pegboard_lidar import metrics
from pegboard_lidar.decoding import Detections, detect
from pegboard_lidar.scans import read_scan

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "bench-results" / "lidar"
KITTI = (
    Path(os.environ.get("PEGBOARD_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    / "lidar"
    / "kitti_object_mini"
).resolve()

FOUND_METRES = 1.0
"""Distance of the middles within which a real car counts as found."""

SCENES = """solution = "lidar"

[train]
devices = 1

[deploy]
targets = ["onnx", "onnx-split"]
"""

OVERFIT = """solution = "lidar"

[data]
path = "{path}"

[model]
smallest_score = 0.05

[train]
epochs = {epochs}
batch_size = 2
keep = "last"
devices = 1

[train.augment]
flip = false
rotation = 0.0
scaling = 0.0
noise = 0.0
pasted = [0, 0, 0]
"""

OVERFIT_HOOKS = '''"""Every frame trains, validates and tests; nothing to compare with."""

from pegboard import hookimpl
from pegboard_lidar.data import FrameDataset, splits_of


@hookimpl
def load_split(settings):
    frames = [frame for split in splits_of(settings.data).values() for frame in split]
    return FrameDataset(sorted(frames, key=lambda frame: frame.key), settings.data)


@hookimpl(wrapper=True)
def build_baselines():
    yield
    return []
'''


def main() -> None:
    """Measure what is asked for and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=["scenes", "real", "overfit", "speed"])
    parser.add_argument("--epochs", type=int, default=120, help="Of the overfit.")
    asked = parser.parse_args()
    progress = new_progress()
    parts: Mapping[str, Callable[[], Iterator[str]]] = {
        "scenes": lambda: scenes(progress),
        "real": lambda: real(progress),
        "overfit": lambda: overfit(asked.epochs, progress),
        "speed": lambda: speed(progress),
    }
    for name, part in parts.items():
        if asked.only in (None, name):
            for line in part():
                print(line, flush=True)


def measured(name: str, settings: str, progress: Progress, *, last: str, hooks: str = "") -> Run:
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


def evaluation_of(run: Run) -> Evaluation:
    """Return what was measured on the test split."""
    from pegboard.stages.evaluate import read_evaluation

    return read_evaluation(run)


# --------------------------------------------------------------------------- generated scenes


def scenes(progress: Progress) -> Iterator[str]:
    """Train on generated scenes and measure on others."""
    run = measured("scenes", SCENES, progress, last="evaluate")
    evaluation = evaluation_of(run)
    facts: Mapping[str, Any] = run.stages()["train"]["facts"]
    every = (evaluation, *evaluation.baselines)
    yield f"\n{'unseen scenes':<24}" + "".join(f"{one.name:>14}" for one in every)
    for place, metric in enumerate(evaluation.metrics):
        values = [one.metrics[place].value for one in every]
        yield f"{metric.name:<24}" + "".join(
            f"{np.nan if value is None else value:>14.3f}" for value in values
        )
    yield f"trained in {facts['cpu_seconds'] / 60:.1f} CPU minutes"


# --------------------------------------------------------------------------- real frames


def real(progress: Progress) -> Iterator[str]:
    """Look for cars in real frames with the weights of the generated scenes."""
    from pegboard_lidar.data import FrameDataset, splits_of

    run = measured("scenes", SCENES, progress, last="export")
    settings: Any = run.project.settings
    bundle = read_bundle(run.bundle)
    predictor = predictor_of(run, bundle, "onnx/fp32")
    data = settings.data.model_copy(update={"path": KITTI})
    frames = [frame for split in splits_of(data).values() for frame in split]
    dataset = FrameDataset(sorted(frames, key=lambda frame: frame.key), data)
    board = run.project.board
    tables = []
    for index in range(len(dataset)):
        batch = board.hook.collate(settings=settings, samples=[dataset[index]])
        outputs = board.hook.infer(settings=settings, predictor=predictor, inputs=batch.arrays())
        tables.append(board.hook.tabulate(settings=settings, batch=batch, outputs=outputs))
    rows = {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
    yield f"\n{'real frames, Car':<24}{'score':>8}{'moderate':>10}{'recall':>8}{'precision':>11}"
    chosen = bundle.thresholds["score_Car"]
    for score in (0.1, 0.2, 0.3, 0.4, 0.5, chosen):
        there, found, right, reported = counted(rows, score)
        name = "chosen on validation" if score == chosen else ""
        yield (
            f"{name:<24}{score:>8.2f}{there:>10}{found / there:>8.2f}"
            f"{right / max(1, reported):>11.2f}"
        )


def counted(rows: Mapping[str, Array], score: float) -> tuple[int, int, int, int]:
    """Count cars at a score.

    Returns:
        Moderate ones (KITTI's definition, easy ones among them), how many of these are found; cars
        reported that any labelled car or van lies near, and all that are reported.
    """
    there = found = right = reported = 0
    for frame in range(len(rows["key"])):
        told = (rows["labels"][frame] == 0) & (rows["scores"][frame] >= score)
        boxes = rows["boxes"][frame][told]
        known = np.isfinite(rows["true_boxes"][frame]).all(axis=1)
        true, labels = rows["true_boxes"][frame][known], rows["true_labels"][frame][known]
        difficulty = rows["true_difficulty"][frame][known]
        away = np.linalg.norm(boxes[:, None, :2] - true[None, :, :2], axis=-1)  # (D, M)
        wanted = (labels == 0) & (difficulty >= 0) & (difficulty <= 1)
        like = labels <= 0  # Cars, and what may be taken for one.
        there += int(wanted.sum())
        found += int((away[:, wanted].min(axis=0, initial=np.inf) <= FOUND_METRES).sum())
        right += int((away[:, like].min(axis=1, initial=np.inf) <= FOUND_METRES).sum())
        reported += len(boxes)
    return there, found, right, reported


# --------------------------------------------------------------------------- overfit


def overfit(epochs: int, progress: Progress) -> Iterator[str]:
    """Train on six real frames and measure on the same six."""
    settings = OVERFIT.format(path=KITTI, epochs=epochs)
    run = measured("overfit", settings, progress, last="evaluate", hooks=OVERFIT_HOOKS)
    rows = evaluation_of(run).rows
    yield f"\n{'overfit, R40, any object':<28}{'objects':>8}{'BEV AP':>10}{'3D AP':>10}"
    for label, name in enumerate(run.project.settings.data.classes):  # type: ignore[attr-defined]
        limit = metrics.overlaps_of(name)[0]
        values = [all_objects(name, kind, limit, rows) for kind in ("bev", "3d")]
        count = int((rows["true_labels"] == label).sum())
        yield f"{f'{name}, overlap {limit}':<28}{count:>8}" + "".join(
            f"{value:>10.3f}" for value in values
        )


def all_objects(name: str, kind: Any, limit: float, rows: Mapping[str, Array]) -> float:
    """Return the average precision over objects of every difficulty that KITTI counts."""
    return metrics.kitti(name, kind, limit, rows, level=2)


# --------------------------------------------------------------------------- speed


def speed(progress: Progress) -> Iterator[str]:
    """Time one real scan from raw points to boxes."""
    import torch

    from pegboard.weights import load_trained

    torch.set_num_threads(1)
    run = measured("scenes", SCENES, progress, last="export")
    settings, bundle = run.project.settings, read_bundle(run.bundle)
    points = read_scan(KITTI / "training" / "velodyne" / "000001.bin")[:120_000]
    eager = ModulePredictor(load_trained(run))
    exported = predictor_of(run, bundle, "onnx/fp32")
    halves = predictor_of(run, bundle, "onnx-split/fp32")

    def boxes_by(predictor: Any) -> Callable[[], Detections]:
        return lambda: detect(settings, predictor({"points": points}))

    calls: dict[str, Callable[[], object]] = {
        "exported, one graph": boxes_by(exported),
        "the same on two threads": boxes_by(on_two_threads(bundle)),
        "exported, two graphs": boxes_by(halves),
        "torch eager": boxes_by(eager),
        "NumPy pillars, then ONNX": numpy_pillars(run, settings, points),
        "Open3D voxels alone": open3d_voxels(points),
    }
    timings = take_turns(calls, seconds=40.0)
    title = f"{len(points):,} points"
    yield f"\n{title:<28}{'p50 ms':>9}{'p95 ms':>9}{'CPU ms':>9}{'to eager':>10}"
    slowest = timings["torch eager"].wall_ms(50)
    for name, timing in timings.items():
        p50 = timing.wall_ms(50)
        yield (
            f"{name:<28}{p50:>9.1f}{timing.wall_ms(95):>9.1f}{timing.cpu_ms():>9.1f}"
            f"{slowest / p50:>10.2f}"
        )
    yield from difference(eager({"points": points}), exported({"points": points}))
    yield f"memory of a process that serves it: {memory_mb(run):.0f} MB"


def predictor_of(run: Run, bundle: Bundle, name: str) -> Any:
    """Open a candidate of a bundle."""
    targets = run.project.board.collect("deploy_targets")
    return bundle.load_predictor(targets, bundle.candidate(name))


def on_two_threads(bundle: Bundle) -> Any:
    """Open the graph for one scanner alone on two cores; a server has a thread for each request."""
    from pegboard.targets import onnx

    path = bundle.folder / bundle.candidate("onnx/fp32").file
    return onnx.load(path, bundle.signature.windowed(), threads=2)


def difference(expected: Mapping[str, Array], found: Mapping[str, Array]) -> Iterator[str]:
    """Say how far the exported maps are from torch's."""
    for name, array in expected.items():
        yield f"{name}: largest difference to torch {np.abs(array - found[name]).max():.2g}"


def numpy_pillars(run: Run, settings: Any, points: Array) -> Callable[[], Detections]:
    """Return the same detector with its pillars made by NumPy, sorted and reduced."""
    from pegboard.targets import onnx
    from pegboard.weights import load_trained
    from pegboard_lidar.grid import pillars_of
    from pegboard_lidar.model import HALVES
    from pegboard_lidar.split_target import halves_of

    grid = pillars_of(settings)
    encoder = load_trained(run).encoder  # type: ignore[union-attr]
    first, _, second = encoder.describe
    weights = [
        parameter.detach().numpy()
        for parameter in (first.weight, first.bias, second.weight, second.bias)
    ]
    bundle = read_bundle(run.bundle)
    candidate = bundle.candidate("onnx-split/fp32")
    halves = halves_of(bundle.signature.windowed(), (1, encoder.channels, grid.rows, grid.columns))
    head = onnx.load(bundle.folder / candidate.file / "head" / onnx.FILE, halves["head"])
    low, high = np.array(settings.data.range[:3]), np.array(settings.data.range[3:])

    def detections() -> Detections:
        xyz = points[:, :3]
        inside = points[((xyz >= low) & (xyz < high)).all(axis=1)]
        place = (inside[:, :2] - low[:2].astype(np.float32)) / np.float32(grid.side / HALVES)
        cell = place.astype(np.int64)
        pillar, quarter = cell // HALVES, cell % HALVES
        index = pillar[:, 0] * grid.columns + pillar[:, 1]
        index = (index * HALVES + quarter[:, 0]) * HALVES + quarter[:, 1]
        order = np.argsort(index, kind="stable")
        inside, place, cell, index = inside[order], place[order], cell[order], index[order]
        z, flat = inside[:, 2:3], inside[:, :2]
        told = np.concatenate(
            [
                (place - cell) * 2 - 1,
                z,
                z * z / 4,
                np.sqrt((flat * flat).sum(axis=1, keepdims=True)) / 50,
            ],
            axis=1,
        ).astype(np.float32)
        hidden = np.maximum(told @ weights[0].T + weights[1], 0)
        features = np.maximum(hidden @ weights[2].T + weights[3], 0)
        starts = np.flatnonzero(np.concatenate([[True], index[1:] != index[:-1]]))
        quarters = grid.rows * grid.columns * HALVES**2
        picture = np.zeros((quarters, encoder.features), dtype=np.float32)
        picture[index[starts]] = np.maximum.reduceat(features, starts)
        maps = picture.reshape(1, grid.rows, grid.columns, -1).transpose(0, 3, 1, 2)
        return detect(settings, head({"pillars": np.ascontiguousarray(maps)}))

    return detections


def open3d_voxels(points: Array) -> Callable[[], object]:
    """Return what a pipeline of Open3D begins with: voxels of 0.1 m, nothing detected yet."""
    import open3d

    def voxels() -> object:
        cloud = open3d.geometry.PointCloud(
            open3d.utility.Vector3dVector(points[:, :3].astype(np.float64))
        )
        return cloud.voxel_down_sample(0.1)

    return voxels


def memory_mb(run: Run) -> float:
    """Return the resident memory of a process that answers with the exported graph."""
    from pegboard.stages.benchmark import resident_mb

    return resident_mb(run, "onnx/fp32")


if __name__ == "__main__":
    began = time.perf_counter()
    main()
    print(f"\n{time.perf_counter() - began:.0f} s")
