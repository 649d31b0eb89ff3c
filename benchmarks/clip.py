r"""CLIP: emoji by their names, open_clip's own training beside ours, a ViT-B/16 on every runtime.

    make bench-clip

Emoji: 3,543 pictures of Noto Emoji with their CLDR names, split by concept; trained from scratch,
no pretrained weights; text to image over the 406 test pictures. open_clip: its training program on
the same pictures, architecture, first weights, steps and seed, both as commands of their own, each
checkpoint then measured by the same code. It needs torchvision, which does not import beside torch
for CPUs, so it is put into a folder of its own and torchvision is told of two operators that it
does not find:

    pip install --target FOLDER --no-deps open_clip_torch==3.3.0 timm==1.0.31 \
        torchvision==0.28.0 ftfy regex wcwidth tqdm braceexpand webdataset pandas python-dateutil \
        pytz six tzdata
    python benchmarks/clip.py --only open_clip --open-clip FOLDER

Runtimes: the image tower of ViT-B/16, random weights, one picture on one thread, candidates by
turns. What a precision costs in recall is measured on the trained emoji model. Search among
100,000 vectors is in clip_search.py.

What was measured before is kept in bench-results/clip and not measured again.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pegboard.bundle import read_bundle
from pegboard.files import atomic_path, atomic_write
from pegboard.lifecycle import open_run, run_stages
from pegboard.logs import new_progress
from pegboard.progress import Progress
from pegboard.project import open_project
from pegboard.records import Array, CompressRequest, Evaluation, ExportRequest, Predictor
from pegboard.runs import Run
from pegboard.targets.support import find_target
from pegboard.timing import take_turns

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "bench-results" / "clip"
EMOJI = (
    Path(os.environ.get("PEGBOARD_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    / "captions"
    / "noto_emoji"
).resolve()

PROJECT = """solution = "clip"

[data]
path = "{data}/captions.csv"
images = "{data}/png72"
label_column = "base_concept"
{data_settings}

[model]
{model}

[train]
seed = {seed}
devices = 1
{train}
"""

SCRATCH = """epochs = 42
keep = "last"
"""
"""Of the emoji."""

PEER_EPOCHS, PEER_BATCH, PEER_LR = 4, 128, 5e-4
"""Of the comparison with open_clip."""

PEER_MODEL = """architecture = "small-vit"
tokenizer = "clip"
activation = "gelu"
"""
PEER_TRAIN = f"""epochs = {PEER_EPOCHS}
batch_size = {PEER_BATCH}
lr = {PEER_LR}
weight_decay = 0.2
warmup = 0.1
keep = "last"
clip_grad_norm = 0.0

[train.augment]
crop = 0.9
"""

PEER_TABLE = ("loss", "R@1 t2i", "R@10 t2i", "R@1 i2t", "pairs/s")

TABLE = (
    "text_to_image_recall_at_1",
    "text_to_image_recall_at_5",
    "text_to_image_recall_at_10",
    "text_to_image_label_at_1",
    "image_to_text_recall_at_1",
    "image_to_text_recall_at_10",
    "text_to_image_median_rank",
    "mean_recall",
)


def main() -> None:
    """Measure what is asked for and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=["emoji", "open_clip", "runtimes"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="Of what is trained.")
    parser.add_argument("--open-clip", type=Path, help="Folder that pip put open_clip into.")
    asked = parser.parse_args()
    progress = new_progress()
    parts: Mapping[str, Callable[[], Iterator[str]]] = {
        "emoji": lambda: emoji(asked.seeds, progress),
        "open_clip": lambda: open_clip(asked.open_clip, asked.seeds, progress),
        "runtimes": lambda: runtimes(progress),
    }
    for name, part in parts.items():
        if asked.only in (None, name):
            for line in part():
                print(line, flush=True)


def project(name: str, progress: Progress, **settings: Any) -> Run:
    """Return a run of a project with these settings."""
    folder = RESULTS / name
    folder.mkdir(parents=True, exist_ok=True)
    filled = {"model": "", "train": "", "data_settings": "", "seed": 0, "data": EMOJI} | settings
    path, text = folder / "pegboard.toml", PROJECT.format(**filled)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        atomic_write(path, text)
    return open_run(open_project(folder), progress)


def evaluation_of(run: Run) -> Evaluation:
    """Return what was measured on the test split."""
    from pegboard.stages.evaluate import read_evaluation

    return read_evaluation(run)


# --------------------------------------------------------------------------- emoji


def emoji(seeds: list[int], progress: Progress) -> Iterator[str]:
    """Train from scratch and measure beside the baseline."""
    for seed in seeds:
        run = project(f"emoji-{seed}", progress, seed=seed, train=SCRATCH)
        run_stages(run, "evaluate", progress)
        evaluation = evaluation_of(run)
        every = (evaluation, *evaluation.baselines)
        yield f"\n{f'emoji, seed {seed}':<30}" + "".join(f"{one.name:>24}" for one in every)
        for name in TABLE:
            yield f"{name:<30}" + "".join(f"{_figure(one, name):>24}" for one in every)
        facts: Mapping[str, Any] = run.stages()["train"]["facts"]
        yield f"trained in {facts['cpu_seconds'] / 60:.1f} CPU minutes"


def _figure(evaluation: Evaluation, name: str) -> str:
    metric = next(one for one in evaluation.metrics if one.name == name)
    if metric.value is None:
        return "-"
    interval = "" if metric.low is None else f" ({metric.low:.3f}-{metric.high:.3f})"
    return f"{metric.value:.3f}{interval}"


# --------------------------------------------------------------------------- open_clip


def open_clip(folder: Path | None, seeds: list[int], progress: Progress) -> Iterator[str]:
    """Train the same with open_clip's program and with ours, and measure both alike."""
    if folder is None:
        yield "\nopen_clip: left out, --open-clip names the folder that it is installed in"
        return
    yield f"\n{'':<30}" + "".join(f"{name:>10}" for name in PEER_TABLE)
    found: dict[str, list[list[float]]] = {"pegboard": [], "open_clip": []}
    for seed in seeds:
        for name, figures in _both(folder, seed, progress).items():
            found[name].append(figures)
            yield f"{f'{name}, seed {seed}':<30}" + "".join(f"{one:>10.4f}" for one in figures)
    for name, of_seeds in found.items():
        yield f"{f'{name}, mean':<30}" + "".join(f"{one:>10.4f}" for one in np.mean(of_seeds, 0))
    if len(seeds) > 1:
        apart = np.subtract(found["pegboard"], found["open_clip"])
        error = apart.std(axis=0, ddof=1) / np.sqrt(len(seeds))
        yield f"{'difference of the means':<30}" + "".join(f"{one:>10.4f}" for one in apart.mean(0))
        yield f"{'its standard error':<30}" + "".join(f"{one:>10.4f}" for one in error)
    yield "pairs a second of CPU, the whole command with its start, reading and checkpoints"


def _both(folder: Path, seed: int, progress: Progress) -> dict[str, list[float]]:
    """Train with both from the same first weights; return what `PEER_TABLE` names."""
    run = project(f"ours-{seed}", progress, model=PEER_MODEL, train=PEER_TRAIN, seed=seed)
    run_stages(run, "prepare", progress)
    first = run.project.folder / "first.pt"
    if not first.exists():
        _write_first_weights(run, first)
    ours = _command_seconds(f"ours-{seed}", [*_PEGBOARD, "train"], run.project.folder)
    peer = RESULTS / f"open_clip-{seed}"
    command = _peer_command(run, first, peer)
    theirs = _command_seconds(f"theirs-{seed}", command, peer, path=folder)
    pairs = PEER_EPOCHS * (len(_rows("train")) // PEER_BATCH) * PEER_BATCH
    last = peer / "logs" / "peer" / "checkpoints" / f"epoch_{PEER_EPOCHS}.pt"
    found = {}
    for name, weights, seconds in (("pegboard", None, ours), ("open_clip", last, theirs)):
        loss, rows = _measured(run, weights)
        recalls = [rows["text_rank"] <= 1, rows["text_rank"] <= 10, rows["image_rank"] <= 1]
        found[name] = [loss, *(float(one.mean()) for one in recalls), pairs / seconds]
    return found


_PEGBOARD = [sys.executable, "-m", "pegboard.cli.main"]

_SHIM = """import sys, torch
library = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import open_clip
open_clip.add_model_config({config!r})
from open_clip_train.main import main
main(sys.argv[1:])
"""


def _write_first_weights(run: Run, path: Path) -> None:
    """Write the weights that our training begins with, as open_clip reads them."""
    import torch

    from pegboard.batching import Stream, seed_generators

    settings: Any = run.project.settings
    hook = run.project.board.hook
    # As the trainer does it.
    seed_generators(Stream.MODEL, settings.train.seed)
    train = hook.load_split(settings=settings, split="train")
    model = hook.build_model(settings=settings, train_data=train)
    with atomic_path(path) as temporary:
        torch.save(model.state_dict(), temporary)


def _peer_command(run: Run, first: Path, peer: Path) -> list[str]:
    """Return open_clip's command for the same training."""
    from pegboard_clip.configuration import Vision, configuration_of

    settings: Any = run.project.settings
    made = configuration_of(settings)
    assert isinstance(made.image, Vision)
    config = {
        "embed_dim": made.width,
        "vision_cfg": {
            "image_size": made.image_size,
            "layers": made.image.layers,
            "width": made.image.width,
            "head_width": made.image.width // made.image.heads,
            "patch_size": made.image.patch,
        },
        "text_cfg": {
            "context_length": made.context,
            "vocab_size": made.vocabulary,
            "width": made.text.width,
            "heads": made.text.heads,
            "layers": made.text.layers,
        },
    }
    atomic_write(peer / "peer-vit.json", json.dumps(config, indent=1) + "\n")
    atomic_write(peer / "train.py", _SHIM.format(config=str(peer / "peer-vit.json")))
    table = peer / "train.csv"
    # On white, as ours: open_clip drops what says where a picture is transparent.
    lines = [f"{_on_white(row['image'], peer)}\t{row['caption']}" for row in _rows("train")]
    atomic_write(table, "\n".join(["filepath\ttitle", *lines]) + "\n")
    steps = PEER_EPOCHS * (len(lines) // PEER_BATCH)
    options: Mapping[str, Any] = {
        "train-data": table,
        "dataset-type": "csv",
        "model": "peer-vit",
        "pretrained": first,
        "epochs": PEER_EPOCHS,
        "batch-size": PEER_BATCH,
        "lr": PEER_LR,
        "wd": 0.2,
        "beta1": 0.9,
        "beta2": 0.98,
        "eps": 1e-6,
        "warmup": round(0.1 * steps),
        "workers": 0,
        "device": "cpu",
        "precision": "fp32",
        "seed": settings.train.seed,
        "logs": peer / "logs",
        "name": "peer",
        "save-frequency": PEER_EPOCHS,
        "zeroshot-frequency": 0,
        "val-frequency": 0,
        "log-every-n-steps": 1,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [sys.executable, str(peer / "train.py"), *words]


def _on_white(name: str, peer: Path) -> Path:
    from pegboard_clip.images import read_image

    path = peer / "pictures" / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        read_image(EMOJI / "png72" / name, pixels=10**6, where=name).save(path)
    return path


def _rows(split: str) -> list[dict[str, str]]:
    with (EMOJI / "captions.csv").open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if row["split"] == split]


def _command_seconds(
    name: str, command: list[str], folder: Path, path: Path | None = None
) -> float:
    """Run a command once; return its CPU seconds, also when it was run before."""
    kept = RESULTS / f"{name}.json"
    if not kept.exists():
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        if path is not None:
            environment["PYTHONPATH"] = str(path)
        before = _children_seconds()
        with (folder / "log").open("w") as log:
            subprocess.run(command, cwd=folder, env=environment, check=True, stdout=log, stderr=log)
        atomic_write(kept, json.dumps({"cpu_seconds": _children_seconds() - before}) + "\n")
    seconds: float = json.loads(kept.read_text(encoding="utf-8"))["cpu_seconds"]
    return seconds


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _measured(run: Run, checkpoint: Path | None) -> tuple[float, Mapping[str, Array]]:
    """Return the loss over the test split as one batch, and its ranks."""
    import torch

    from pegboard.evaluation import ModulePredictor, batches_of, completed, tabulated
    from pegboard.weights import load_trained
    from pegboard_clip.model import build
    from pegboard_clip.objectives import Pairs, infonce
    from pegboard_clip.weights import load

    settings: Any = run.project.settings
    board = run.project.board
    if checkpoint is None:
        model: Any = load_trained(run)
    else:
        model = build(settings)
        load(model, checkpoint)
    deployable = board.hook.build_deployable(settings=settings, model=model)
    data = board.hook.load_split(settings=settings, split="test")
    predictor = ModulePredictor(deployable)
    rows = tabulated(board, settings, predictor, batches_of(board, settings, data, 128))
    image, text = (torch.as_tensor(rows[f"{side}_embedding"]) for side in ("image", "text"))
    with torch.no_grad():
        loss = float(infonce(Pairs(image, text, None), model.scale()))
    return loss, completed(board, settings, predictor, rows)


# --------------------------------------------------------------------------- runtimes


def runtimes(progress: Progress) -> Iterator[str]:
    """Time the image tower of a ViT-B/16, and say what its precisions cost in recall."""
    predictors = vit_b_16(progress)
    picture = _pictures(1)
    pictures = _pictures(16)
    exact = predictors["torch eager"](pictures)["image_embedding"]
    calls = {name: lambda one=one: one(picture) for name, one in predictors.items()}
    timings = take_turns(calls, seconds=120.0)
    slowest = timings["torch eager"].cpu_ms()
    yield f"\n{'ViT-B/16, one picture':<30}{'CPU ms':>10}{'a second':>10}{'times':>8}{'cosine':>10}"
    for name, one in predictors.items():
        found = one(pictures)["image_embedding"]
        cosine = float((found * exact).sum(axis=1).min())
        spent = timings[name].cpu_ms()
        yield f"{name:<30}{spent:>10.1f}{1000 / spent:>10.2f}{slowest / spent:>8.2f}{cosine:>10.5f}"
    yield from precisions(progress)


def _pictures(count: int) -> dict[str, Array]:
    from PIL import Image

    from pegboard_clip.images import fitted

    files = sorted((EMOJI / "png72").iterdir())[:: 3543 // count][:count]
    images = [Image.open(file).convert("RGBA") for file in files]
    white = [Image.alpha_composite(Image.new("RGBA", one.size, "white"), one) for one in images]
    return {"image": np.stack([fitted(one.convert("RGB"), 224) for one in white])}


def vit_b_16(progress: Progress) -> dict[str, Predictor]:
    """Return the image tower on every runtime and in every precision that this machine has."""
    import torch

    from pegboard.evaluation import ModulePredictor

    run = project("vit-b-16", progress, model='architecture = "ViT-B-16"\nactivation = "gelu"')
    settings: Any = run.project.settings
    hook = run.project.board.hook
    torch.manual_seed(0)
    model = hook.build_model(settings=settings, train_data=None).eval()
    tower = hook.build_deployable(settings=settings, model=model).image
    signature = hook.signature(settings=settings).part("image")
    predictors: dict[str, Predictor] = {"torch eager": ModulePredictor(tower)}
    offered = run.project.board.collect("deploy_targets")
    for name in ("onnx", "openvino"):
        target = find_target(offered, name)
        folder = run.project.folder / name
        # OpenVINO's model is a folder.
        file = {"onnx": "model.onnx", "openvino": ""}[name]
        source = folder / "fp32" / file
        if not source.exists():
            (folder / "fp32").mkdir(parents=True)
            target.export(
                ExportRequest(deployable=tower, signature=signature, folder=folder / "fp32")
            )
        predictors[f"{name} fp32"] = target.load(source, signature)
        for kind, compress in target.compressions.items():
            made = folder / kind
            try:
                if not made.exists():
                    with atomic_path(made) as partial:
                        partial.mkdir()
                        compress(
                            CompressRequest(
                                source=source,
                                signature=signature,
                                folder=partial,
                                calibration=[_pictures(32)],
                            )
                        )
                predictors[f"{name} {kind}"] = target.load(made / file, signature)
            # A precision that this processor lacks, and whatever a quantiser raises.
            except Exception as error:
                progress.say(f"{name} {kind}: left out: {error}")
    return predictors


def precisions(progress: Progress) -> Iterator[str]:
    """Say what each precision of the trained emoji model loses."""
    run = project("emoji-0", progress, seed=0, train=SCRATCH)
    again = open_run(
        open_project(
            run.project.folder,
            (
                "deploy.targets=['onnx', 'openvino']",
                "deploy.compress=['int8-dynamic', 'int8-static', 'int8', 'bf16']",
                "deploy.limits.metric_drop=0",
            ),
        ),
        progress,
    )
    run_stages(again, "verify", progress)
    bundle = read_bundle(again.bundle)
    yield f"\n{'emoji, mean recall':<30}{'CPU ms':>10}{'test':>10}{'lost':>10}"
    for one in bundle.candidates:
        spent, value, drop = (
            one.measured.get(name) for name in ("cpu_ms", "test_metric", "test_drop")
        )
        yield f"{one.name:<30}{spent or np.nan:>10.2f}{value or np.nan:>10.4f}{drop or 0.0:>10.4f}"


if __name__ == "__main__":
    main()
