"""Training in one process: exact when taken up again, wherever and however it was interrupted."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pegboard.bundle import read_bundle
from pegboard.checkpoints import Position
from pegboard.errors import (
    DataError,
    InterruptedRunError,
    PegboardError,
    PluginError,
    SettingsError,
)
from pegboard.journal import describe_epoch, read_journal, whole_lines
from pegboard.launch import launch
from pegboard.progress import SilentProgress
from pegboard.runs import Run
from pegboard.stages import evaluate, export, verify
from pegboard.stages.evaluate import read_evaluation
from pegboard.training import Trainer
from pegboard.weights import load_trained
from pegboard.world import World

STEPS = 15  # The toy: 120 samples in batches of 24, three epochs.

INTERRUPTED = '''"""Interrupt the training once, at the place that the file `stop` names."""

import random
from pathlib import Path

import numpy as np

from pegboard import hookimpl
from pegboard.records import Sample


def arrive(place):
    marker = Path(__file__).with_name("stop")
    if marker.exists() and marker.read_text() == place:
        marker.unlink()
        raise KeyboardInterrupt


@hookimpl
def after_step(event):
    arrive(f"step {event.step}")


@hookimpl
def after_epoch(event):
    arrive(f"epoch {event.epoch}")


@hookimpl(wrapper=True)
def choose_thresholds(rows):
    arrive("validation")
    return (yield)
'''

AUGMENTED = (
    INTERRUPTED
    + """

@hookimpl
def augment(sample):
    import torch

    noise = random.gauss(0, 1) + np.random.normal(size=4) + torch.randn(4).numpy()
    x = (sample.inputs["x"] + 0.1 * noise).astype(np.float32)
    return Sample(inputs={"x": x}, targets=sample.targets, key=sample.key)
"""
)


def stop_at(run: Run, place: str) -> None:
    (run.project.folder / "stop").write_text(place)


def fresh(run: Run) -> Run:
    """Return the run as if it had never been begun."""
    shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)
    for file in (run.weights_file, run.progress_file):
        file.unlink(missing_ok=True)
    return run


def train(run: Run) -> dict[str, Any]:
    return launch(run, SilentProgress())


def interrupted(run: Run) -> InterruptedRunError:
    with pytest.raises(InterruptedRunError) as caught:
        train(run)
    return caught.value


# --------------------------------------------------------------------------- one training


def test_training_leaves_weights_a_journal_and_facts(begin: Callable[..., Run]) -> None:
    run = begin()
    facts = train(run)
    assert facts["epochs"] == 3 and facts["steps"] == STEPS and facts["world_size"] == 1
    assert facts["metric"] == "accuracy" and facts["value"] > 0.8
    assert facts["cpu_seconds"] > 0 and facts["seconds"] > 0
    model = load_trained(run)
    assert {name for name, _ in model.named_parameters()} == {
        "body.0.weight",
        "body.0.bias",
        "head.weight",
        "head.bias",
    }
    lines = read_journal(run.progress_file)
    epochs = [line for line in lines if line["kind"] == "epoch"]
    assert [line["epoch"] for line in epochs] == [0, 1, 2]
    assert epochs[0]["losses"]["loss"] > epochs[2]["losses"]["loss"]
    assert lines[-1]["kind"] == "end" and lines[-1]["facts"] == facts


def test_training_again_gives_the_same_bits(begin: Callable[..., Run]) -> None:
    one, other = begin(name="one"), begin(name="other")
    torch.manual_seed(1)
    train(one)
    torch.manual_seed(2)
    train(other)
    assert one.weights_file.read_bytes() == other.weights_file.read_bytes()
    third = begin("train.seed=1", name="third")
    train(third)
    assert one.weights_file.read_bytes() != third.weights_file.read_bytes()


def test_the_best_epoch_is_kept_or_the_last_one(begin: Callable[..., Run]) -> None:
    scores = """
from pegboard import hookimpl
from pegboard.records import Metric

VALUES = iter([0.5, 0.9, 0.9, 0.1])

@hookimpl(wrapper=True)
def build_metrics():
    yield
    return [[Metric(name="score", compute=lambda rows, thresholds: next(VALUES),
                    direction="higher", headline=True)]]
"""
    for keep, step, value in (("best", 10, 0.9), ("last", 20, 0.1)):
        run = begin(
            f"train.keep={keep}",
            "train.epochs=4",
            "train.checkpoint_every=5",
            hooks=scores,
            name=keep,
        )
        trainer = Trainer(run, World(), SilentProgress())
        states, save = {}, trainer._save

        def watched(position: Position, *, trainer=trainer, states=states, save=save) -> None:
            assert position.step not in states, "the end of an epoch is saved twice"
            states[position.step] = {k: v.clone() for k, v in trainer.model.state_dict().items()}
            save(position)

        trainer._save = watched
        facts = trainer.train()
        assert facts["best_epoch"] == 2 and facts["value"] == value
        best = [line["best"] for line in read_journal(run.progress_file) if "best" in line]
        assert best == [True, True, False, False]
        kept = load_file(run.weights_file)
        assert {at for at, state in states.items() if same(state, kept)} == {step}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_lower_metric_can_be_the_better_one(begin: Callable[..., Run]) -> None:
    run = begin(
        hooks="""
from pegboard import hookimpl
from pegboard.records import Metric

VALUES = iter([0.5, float("nan"), 0.2])

@hookimpl(wrapper=True)
def build_metrics():
    yield
    return [[Metric(name="error", compute=lambda rows, thresholds: next(VALUES),
                    direction="lower", headline=True)]]
"""
    )
    facts = train(run)
    assert facts["best_epoch"] == 3 and facts["value"] == 0.2
    lines = [line for line in read_journal(run.progress_file) if line["kind"] == "epoch"]
    assert [line["metrics"]["error"] for line in lines] == [0.5, None, 0.2]
    assert "not defined" in describe_epoch(lines[1])


def test_max_steps_ends_in_mid_epoch_with_a_validation(begin: Callable[..., Run]) -> None:
    run = begin("train.max_steps=7")
    facts = train(run)
    assert facts["steps"] == 7 and facts["epochs"] == 2
    assert read_journal(run.progress_file)[-2]["step"] == 7


def test_every_step_and_epoch_is_told(begin: Callable[..., Run]) -> None:
    run = begin(
        hooks="""
from pathlib import Path
from pegboard import hookimpl

def note(line):
    with Path(__file__).with_name("told").open("a") as stream:
        stream.write(line + "\\n")

@hookimpl
def after_step(event):
    assert event.total_steps == 15 and event.rank == 0 and event.losses["loss"] > 0
    note(f"{event.epoch} {event.step} {event.learning_rate:.6f}")

@hookimpl
def after_epoch(event):
    note(f"epoch {event.epoch} {event.step} {event.metrics['accuracy'] > 0.5}")
"""
    )
    train(run)
    told = (run.project.folder / "told").read_text().splitlines()
    steps = [line.split() for line in told if not line.startswith("epoch")]
    assert [int(step) for _, step, _ in steps] == list(range(1, 16))
    assert told[5] == "epoch 0 5 True" and told[-1] == "epoch 2 15 True"
    rates = [float(rate) for *_, rate in steps]
    assert max(rates) == 0.01 and rates[0] == 0.005 and 0 < rates[-1] < 0.001


def test_gradients_are_clipped_to_the_setting(begin: Callable[..., Run]) -> None:
    trainer = Trainer(begin("train.clip_grad_norm=0.01"), World(), SilentProgress())
    for parameter in trainer.model.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    count = sum(parameter.numel() for parameter in trainer.model.parameters())
    assert float(trainer._clip_gradients()) == pytest.approx(3 * math.sqrt(count))
    gradients = [
        parameter.grad for parameter in trainer.model.parameters() if parameter.grad is not None
    ]
    clipped = torch.cat([gradient.flatten() for gradient in gradients])
    assert float(clipped.norm()) == pytest.approx(0.01, rel=1e-3)


# --------------------------------------------------------------------------- averaged weights


def test_averaged_weights_are_validated_and_kept(begin: Callable[..., Run]) -> None:
    run = begin(
        "train.ema_decay=0.9",
        "train.keep=last",
        hooks="""
from pathlib import Path
import numpy as np
from pegboard import hookimpl

@hookimpl
def choose_thresholds(rows):
    np.save(Path(__file__).with_name("validated.npy"), rows["probability"])
""",
    )
    trainer = Trainer(run, World(), SilentProgress())
    decays, seen = [], []
    expected = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    step = trainer._step

    def watched(number: int, *arguments: Any) -> Any:
        losses = step(number, *arguments)
        decay = min(0.9, (1 + number) / (10 + number))
        decays.append(decay)
        for name, parameter in trainer.model.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * parameter.detach()
        seen.append(losses)
        return losses

    trainer._step = watched  # type: ignore[method-assign]
    trainer.train()
    kept = load_file(run.weights_file)
    for name, value in expected.items():
        torch.testing.assert_close(kept[name], value)
        # The model itself went on with its own weights.
        assert not torch.equal(trainer.model.state_dict()[name], kept[name])
    import numpy as np

    settings, hook = run.project.settings, run.project.board.hook
    data = hook.load_split(settings=settings, split="validation")
    deployable = hook.build_deployable(settings=settings, model=load_trained(run))
    probability = deployable(x=torch.as_tensor(data.x))["probability"].detach().numpy()
    np.testing.assert_allclose(
        np.load(run.project.folder / "validated.npy"), probability, rtol=1e-5
    )


# --------------------------------------------------------------------------- interruptions

PLACES = (
    "step 1",  # Before any checkpoint.
    "step 3",  # In mid-epoch, between checkpoints.
    "step 4",  # After a step whose checkpoint is still to be written.
    "step 5",  # After the last step of an epoch, before its validation.
    "validation",
    "epoch 1",  # After a validation, before the checkpoint.
    "step 15",
    "epoch 2",
)


@pytest.mark.parametrize("place", PLACES)
def test_an_interrupted_training_ends_with_the_same_bits(
    begin: Callable[..., Run], place: str
) -> None:
    run = begin("train.checkpoint_every=2", hooks=INTERRUPTED)
    facts = train(run)
    weights, lines = run.weights_file.read_bytes(), read_journal(run.progress_file)
    stop_at(fresh(run), place)
    error = interrupted(run)
    assert "training was interrupted" in str(error)
    assert "run the same command again to resume" in str(error)
    assert not run.weights_file.exists()
    again = train(begin("train.checkpoint_every=2"))
    assert run.weights_file.read_bytes() == weights
    timed = {"seconds", "cpu_seconds"}
    assert {k: v for k, v in again.items() if k not in timed} == {
        k: v for k, v in facts.items() if k not in timed
    }
    epochs = [line for line in read_journal(run.progress_file) if line["kind"] == "epoch"]
    for line, undisturbed in zip(epochs, (e for e in lines if e["kind"] == "epoch"), strict=True):
        assert line["losses"]["loss"] == pytest.approx(undisturbed["losses"]["loss"], rel=1e-12)
        assert line["metrics"] == undisturbed["metrics"] and line["best"] == undisturbed["best"]


VARIANTS = {
    "bf16": ("train.precision=bf16",),
    "fp16": ("train.precision=fp16",),
    "averaged": ("train.ema_decay=0.95",),
    "last, unclipped": ("train.keep=last", "train.clip_grad_norm=0"),
}


@pytest.mark.parametrize("overrides", VARIANTS.values(), ids=VARIANTS)
def test_every_variant_resumes_to_the_same_bits(
    begin: Callable[..., Run], overrides: tuple[str, ...]
) -> None:
    run = begin("train.checkpoint_every=2", *overrides, hooks=INTERRUPTED)
    train(run)
    weights = run.weights_file.read_bytes()
    stop_at(fresh(run), "step 8")
    interrupted(run)
    assert train(run)["value"] > 0.7
    assert run.weights_file.read_bytes() == weights


@pytest.mark.parametrize("workers", [0, 2])
def test_augmented_samples_resume_to_the_same_bits(begin: Callable[..., Run], workers: int) -> None:
    run = begin("train.checkpoint_every=2", hooks=AUGMENTED)
    train(run)
    weights = run.weights_file.read_bytes()
    placed = begin("train.checkpoint_every=2", f"train.workers={workers}")
    assert placed.folder == run.folder
    stop_at(fresh(run), "step 8")
    interrupted(placed)
    train(placed)
    assert run.weights_file.read_bytes() == weights


def test_the_message_says_where_it_stopped(begin: Callable[..., Run]) -> None:
    run = begin("train.checkpoint_every=2", hooks=INTERRUPTED)
    stop_at(run, "step 1")
    assert "before its first step" in str(interrupted(run))
    stop_at(run, "epoch 1")
    assert "at epoch 1, step 5" in str(interrupted(run))


def test_a_finished_training_is_only_handed_over_again(begin: Callable[..., Run]) -> None:
    run = begin(hooks=INTERRUPTED)
    train(run)
    weights = run.weights_file.read_bytes()
    run.weights_file.unlink()
    stop_at(run, "step 15")
    train(run)
    assert run.weights_file.read_bytes() == weights


def test_a_parameter_that_no_loss_touches_does_not_stop_a_resumption(
    begin: Callable[..., Run],
) -> None:
    run = begin(
        "train.checkpoint_every=2",
        hooks=INTERRUPTED
        + """

@hookimpl(wrapper=True)
def build_model():
    from torch import nn

    model = yield
    model.unused = nn.Linear(2, 2)
    return model
""",
    )
    train(run)
    weights = run.weights_file.read_bytes()
    stop_at(fresh(run), "step 8")
    interrupted(run)
    train(run)
    assert run.weights_file.read_bytes() == weights


def test_a_damaged_latest_checkpoint_costs_no_more_than_itself(begin: Callable[..., Run]) -> None:
    run = begin("train.checkpoint_every=2", hooks=INTERRUPTED)
    train(run)
    weights = run.weights_file.read_bytes()
    stop_at(fresh(run), "step 9")
    interrupted(run)
    latest = run.checkpoints / (run.checkpoints / "latest").read_text()
    next(latest.glob("*.distcp")).write_bytes(b"")
    said: list[str] = []

    class Said(SilentProgress):
        def say(self, text: str) -> None:
            said.append(text)

    launch(run, Said())
    assert "step-00000008 is damaged" in said[0]
    assert run.weights_file.read_bytes() == weights


# --------------------------------------------------------------------------- what can be wrong


def test_a_loss_that_is_no_number_stops_with_the_last_good_checkpoint(
    begin: Callable[..., Run],
) -> None:
    run = begin(
        "train.checkpoint_every=2",
        hooks="""
from pegboard import hookimpl

steps = 0

@hookimpl(wrapper=True)
def compute_loss():
    global steps
    losses = yield
    steps += 1
    return {name: value * float("nan" if steps == 8 else 1) for name, value in losses.items()}
""",
    )
    with pytest.raises(PegboardError) as caught:
        train(run)
    sentence = str(caught.value)
    assert "the loss became nan at step 8 in epoch 2" in sentence
    assert "lower train.lr (now 0.01)" in sentence and str(run.checkpoints) in sentence
    assert (run.checkpoints / "latest").read_text() == "step-00000006"
    assert not run.weights_file.exists()


def test_a_gradient_that_is_no_number_does_not_reach_the_weights(
    begin: Callable[..., Run],
) -> None:
    run = begin(
        "train.clip_grad_norm=0",
        hooks="""
from pegboard import hookimpl

@hookimpl(wrapper=True)
def compute_loss(model):
    losses = yield
    # The square root of zero is a number; its slope is not.
    return {"loss": losses["loss"] + (model.head.weight * 0).abs().sqrt().sum()}
""",
    )
    with pytest.raises(PegboardError, match=r"the gradient became (nan|inf) at step 1 in epoch 1"):
        train(run)


def test_fp16_survives_a_gradient_that_overflows(begin: Callable[..., Run]) -> None:
    run = begin(
        "train.precision=fp16",
        "train.checkpoint_every=1",
        hooks=INTERRUPTED
        + """

@hookimpl(wrapper=True)
def compute_loss():
    losses = yield
    return {"loss": losses["loss"] * 1e30}
""",
    )
    # Every step overflows, so none moves the weights; nothing ends for it.
    untrained = Trainer(run, World(), SilentProgress()).model.state_dict()
    stop_at(run, "step 8")
    interrupted(run)
    assert train(run)["steps"] == STEPS
    assert same(untrained, load_file(run.weights_file))


def test_losses_without_the_one_to_minimise_are_refused(begin: Callable[..., Run]) -> None:
    run = begin(
        hooks="""
from pegboard import hookimpl

@hookimpl(wrapper=True)
def compute_loss():
    losses = yield
    return {"cross_entropy": losses["loss"]}
"""
    )
    with pytest.raises(PluginError, match=r"no 'loss' among the losses \(cross_entropy\)"):
        train(run)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_an_empty_split_is_named(begin: Callable[..., Run], split: str) -> None:
    run = begin(
        hooks=f'''
from pegboard import hookimpl

@hookimpl(wrapper=True)
def load_split(split):
    data = yield
    if split == "{split}":
        data.x = data.x[:0]
    return data
'''
    )
    with pytest.raises(DataError, match=f"the {split} split is empty"):
        train(run)


def test_an_epoch_of_another_length_is_refused(begin: Callable[..., Run]) -> None:
    run = begin(
        hooks="""
from pegboard import hookimpl

@hookimpl(wrapper=True)
def load_split():
    import numpy as np

    data = yield
    data.epoch_indices = lambda epoch, seed: np.arange(100 + epoch)
    return data
"""
    )
    with pytest.raises(PegboardError, match="epoch 1 has 101 samples and not 100"):
        train(run)


def test_more_gpus_than_there_are_cannot_be_asked_for(
    begin: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begin("train.devices=4")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(SettingsError, match="4 processes cannot share 1 GPU"):
        train(run)


# --------------------------------------------------------------------------- the journal


def test_no_step_stands_twice_in_the_journal(
    begin: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pegboard.journal.SECONDS_BETWEEN_STEPS", 0.0)
    run = begin("train.checkpoint_every=4", hooks=INTERRUPTED)
    for place in ("step 3", "step 7", "epoch 1", "validation"):
        stop_at(run, place)
        interrupted(run)
    train(run)
    train(run)
    lines = read_journal(run.progress_file)
    steps = [line["step"] for line in lines if line["kind"] == "step"]
    epochs = [line["epoch"] for line in lines if line["kind"] == "epoch"]
    assert steps == list(range(1, 16)) and epochs == [0, 1, 2]
    assert [line["kind"] for line in lines].count("end") == 1


def test_a_half_written_line_breaks_no_reader(begin: Callable[..., Run]) -> None:
    run = begin(hooks=INTERRUPTED)
    stop_at(run, "epoch 1")
    interrupted(run)
    with run.progress_file.open("a") as stream:
        stream.write('{"kind": "step", "epo')
    before = len(read_journal(run.progress_file))
    assert before == len(whole_lines(run.progress_file)) >= 2
    train(run)
    for line in run.progress_file.read_text().splitlines():
        json.loads(line)


def test_a_full_disk_is_named_by_the_journal(begin: Callable[..., Run], tmp_path: Path) -> None:
    import resource

    from pegboard.journal import Journal

    journal = Journal(tmp_path / "progress.jsonl", 0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))
    try:
        with pytest.raises(PegboardError, match=r"no space left.*progress\.jsonl"):
            journal.end(1, {"steps": 1})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert read_journal(journal.path) == []


FITTED = '''"""A model that is fitted as it is built and learns nothing by gradients."""

import torch

import pegboard_toy
from pegboard import hookimpl


@hookimpl(wrapper=True)
def build_model(train_data):
    model = yield
    model.requires_grad_(False)
    if train_data is not None:
        model.mean.copy_(torch.as_tensor(train_data.x).mean(dim=0))
    return model
'''


@pytest.mark.parametrize("keep", ["best", "last"])
def test_a_model_without_parameters_to_learn_is_kept_as_it_was_fitted(
    begin: Callable[..., Run], keep: str
) -> None:
    run = begin(f'train.keep="{keep}"', "train.ema_decay=0.9", hooks=FITTED)
    facts = Trainer(run, World(), SilentProgress()).train()
    assert (facts["steps"], facts["epochs"]) == (0, 1)
    assert facts["value"] is not None
    fitted = load_trained(run)
    train = run.project.board.hook.load_split(settings=run.project.settings, split="train")
    assert torch.allclose(fitted.mean, torch.as_tensor(train.x).mean(dim=0))  # type: ignore[arg-type]
    assert run.checkpoints.is_dir()


NORMED = '''"""The toy with a batch norm, whose running statistics training moves."""

import pegboard_toy
from pegboard import hookimpl


@hookimpl(wrapper=True)
def build_model():
    from torch import nn

    model = yield
    model.body.insert(1, nn.BatchNorm1d(16))
    return model
'''


def test_running_statistics_are_averaged_with_the_weights(begin: Callable[..., Run]) -> None:
    settings = ("train.epochs=1", "train.ema_decay=0.9", 'train.keep="last"')
    run = begin(*settings, hooks=NORMED)
    trainer = Trainer(run, World(), SilentProgress())
    trainer.train()
    current = trainer.model.state_dict()
    kept = load_file(run.weights_file)
    assert not torch.equal(kept["body.1.running_mean"], current["body.1.running_mean"])
    assert torch.equal(kept["body.1.running_mean"], trainer.state.average["body.1.running_mean"])
    assert torch.equal(kept["body.1.num_batches_tracked"], current["body.1.num_batches_tracked"])


FINISHING = """
import torch
from pegboard import hookimpl


@hookimpl
def finish_model(model):
    with torch.no_grad():
        model.head.bias.fill_(7)
"""


@pytest.mark.parametrize("keep", ["best", "last"])
def test_a_finished_model_is_what_is_handed_over(begin: Callable[..., Run], keep: str) -> None:
    run = begin(f"train.keep={keep}", hooks=FINISHING)
    train(run)
    assert load_file(run.weights_file)["head.bias"].item() == 7


RANKING = """
from pegboard import hookimpl
from pegboard.records import Metric


@hookimpl
def complete_rows(predictor, rows):
    count = len(rows["label"])
    assert "probability" in predictor({"x": rows["x"][:1]})
    return {"label": rows["label"], "rank": rows["probability"].argsort().argsort() / count}


@hookimpl(wrapper=True)
def tabulate(batch):
    rows = yield
    return {**rows, "x": batch.inputs["x"].numpy()}


@hookimpl(wrapper=True)
def build_metrics():
    yield
    compute = lambda rows, thresholds: float(rows["rank"].max())
    return [[Metric(name="highest", compute=compute, direction="higher", headline=True)]]
"""


def test_metrics_see_what_depends_on_the_whole_split(begin: Callable[..., Run]) -> None:
    run = begin(hooks=RANKING)
    facts = train(run)
    assert facts["metric"] == "highest" and facts["value"] == pytest.approx(59 / 60)
    for stage in (evaluate, export, verify):
        stage.run(run, SilentProgress())
    evaluation = read_evaluation(run)
    assert set(evaluation.rows) == {"label", "rank"}
    assert evaluation.headline.value == pytest.approx(59 / 60)
    candidates = read_bundle(run.bundle).candidates
    assert {one.measured["test_metric"] for one in candidates} == {evaluation.headline.value}
