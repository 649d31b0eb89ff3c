"""Checkpoints bring everything back, and a damaged one costs no more than itself; weights."""

from __future__ import annotations

import json
import re
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pegboard.checkpoints import Checkpoints, Position, Score, TrainState
from pegboard.errors import CheckpointError, PegboardError, PluginError
from pegboard.runs import Run
from pegboard.weights import load_trained, load_weights, save_weights
from pegboard.world import World


class Model(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Linear(4, width)
        self.norm = nn.BatchNorm1d(width)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, 4) -> (B, 3)
        normed: torch.Tensor = self.norm(self.body(x))
        return normed


def new_state(seed: int, *, steps: int = 0, width: int = 3) -> TrainState:
    """Return a state that has taken some steps, unlike that of any other seed."""
    torch.manual_seed(seed)
    model = Model(width)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 5])
    scaler = torch.amp.GradScaler("cpu", growth_interval=2)
    average = {name: parameter.detach() + 1 for name, parameter in model.named_parameters()}
    for _ in range(steps):
        optimizer.zero_grad()
        scaler.scale(model(torch.randn(8, 4)).square().sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
    return TrainState(
        model=model, optimizer=optimizer, schedule=schedule, scaler=scaler, average=average
    )


def everything(state: TrainState) -> dict[str, Any]:
    return {
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "schedule": state.schedule.state_dict(),
        "scaler": state.scaler.state_dict(),
        "average": dict(state.average),
    }


def assert_same(one: TrainState, other: TrainState) -> None:
    torch.testing.assert_close(everything(one), everything(other), rtol=0, atol=0)


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints", World())


@pytest.fixture
def said() -> list[str]:
    return []


def save_steps(checkpoints: Checkpoints, *steps: int) -> dict[int, TrainState]:
    states = {step: new_state(step, steps=step) for step in steps}
    for step, state in states.items():
        checkpoints.save(state, Position(step=step, epoch=step // 2))
    return states


def names(checkpoints: Checkpoints) -> list[str]:
    return sorted(path.name for path in checkpoints.folder.iterdir())


def test_a_checkpoint_brings_everything_back(checkpoints: Checkpoints, said: list[str]) -> None:
    state = new_state(1, steps=3)
    position = Position(
        epoch=2,
        step=3,
        best=Score(epoch=0, step=1, value=0.5),
        last=Score(epoch=1, step=2, value=None),
        sums={"loss": 1.25, "for people": float("inf")},
        seconds=2.5,
        cpu_seconds=5.0,
    )
    checkpoints.save(state, position)
    other = new_state(2)
    assert checkpoints.load(other, said.append) == position
    assert_same(other, state)
    assert not said


def test_what_goes_on_from_a_checkpoint_takes_the_same_steps(
    checkpoints: Checkpoints, said: list[str]
) -> None:
    state = new_state(1, steps=3)
    checkpoints.save(state, Position(step=3))
    other = new_state(2)
    checkpoints.load(other, said.append)
    for moved in (state, other):
        torch.manual_seed(0)
        for _ in range(3):
            moved.optimizer.zero_grad()
            moved.scaler.scale(moved.model(torch.randn(8, 4)).square().sum()).backward()
            moved.scaler.step(moved.optimizer)
            moved.scaler.update()
            moved.schedule.step()
    assert_same(other, state)


def test_without_a_checkpoint_training_begins_at_the_beginning(
    checkpoints: Checkpoints, said: list[str]
) -> None:
    state, untouched = new_state(1, steps=1), new_state(1, steps=1)
    assert checkpoints.load(state, said.append) == Position()
    assert_same(state, untouched)


def test_the_latest_two_and_the_best_weights_are_kept(checkpoints: Checkpoints) -> None:
    best = Score(epoch=0, step=2, value=0.9)
    checkpoints.folder.mkdir()
    for step in (2, 4, 6):
        score = Score(epoch=step, step=step, value=0.1)
        save_weights({"w": torch.ones(1)}, checkpoints.best_file(score))
        checkpoints.save(new_state(step, steps=step), Position(step=step, best=best))
    assert names(checkpoints) == [
        "best-00000002.safetensors",
        "latest",
        "step-00000004",
        "step-00000006",
    ]


def test_the_marker_says_which_checkpoint_is_the_latest(
    checkpoints: Checkpoints, said: list[str]
) -> None:
    states = save_steps(checkpoints, 1, 2)
    (checkpoints.folder / "latest").write_text("step-00000001")
    other = new_state(9)
    assert checkpoints.load(other, said.append).step == 1
    assert_same(other, states[1])


def flip_a_byte(folder: Path) -> None:
    file = next(folder.glob("*.distcp"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)


def truncate(folder: Path) -> None:
    file = next(folder.glob("*.distcp"))
    file.write_bytes(file.read_bytes()[:100])


def lose_the_shards(folder: Path) -> None:
    next(folder.glob("*.distcp")).unlink()


def lose_the_position(folder: Path) -> None:
    (folder / "position.json").unlink()


def garble_the_position(folder: Path) -> None:
    (folder / "position.json").write_text("{")


def lose_the_metadata(folder: Path) -> None:
    (folder / ".metadata").unlink()


DAMAGES = (
    flip_a_byte,
    truncate,
    lose_the_shards,
    lose_the_position,
    garble_the_position,
    lose_the_metadata,
)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    checkpoints: Checkpoints, said: list[str], damage: Callable[[Path], None]
) -> None:
    states = save_steps(checkpoints, 1, 2)
    damage(checkpoints.folder / "step-00000002")
    other = new_state(9)
    assert checkpoints.load(other, said.append).step == 1
    assert_same(other, states[1])
    assert len(said) == 1 and said[0].startswith("the checkpoint step-00000002 is damaged (")
    # What cannot be read must not count as one of the two that are kept.
    checkpoints.save(new_state(3), Position(step=3))
    assert names(checkpoints) == ["latest", "step-00000001", "step-00000003"]


def test_damaged_best_weights_damage_the_checkpoint_that_needs_them(
    checkpoints: Checkpoints, said: list[str]
) -> None:
    best = Score(epoch=0, step=2, value=0.9)
    save_steps(checkpoints, 1)
    save_weights({"w": torch.ones(1)}, checkpoints.best_file(best))
    checkpoints.save(new_state(2, steps=2), Position(step=2, best=best))
    checkpoints.best_file(best).write_bytes(b"nonsense")
    assert checkpoints.load(new_state(9), said.append).step == 1
    assert "best-00000002.safetensors has changed" in said[0]


def test_only_damaged_checkpoints_are_an_error(checkpoints: Checkpoints, said: list[str]) -> None:
    save_steps(checkpoints, 1, 2)
    for folder in checkpoints.folder.glob("step-*"):
        flip_a_byte(folder)
    with pytest.raises(CheckpointError, match=r"no checkpoint can be read: .* has changed since"):
        checkpoints.load(new_state(9), said.append)
    assert len(said) == 2


def test_a_checkpoint_of_another_model_is_refused_by_name(
    checkpoints: Checkpoints, said: list[str]
) -> None:
    save_steps(checkpoints, 1)
    with pytest.raises(CheckpointError, match=r"no checkpoint can be read: .*average\.body"):
        checkpoints.load(new_state(9, width=7), said.append)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file grow beyond a size, as a full disk would not."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 100, 5000])
def test_a_full_disk_leaves_the_checkpoint_before(
    checkpoints: Checkpoints, said: list[str], size: int
) -> None:
    states = save_steps(checkpoints, 1, 2)
    before = names(checkpoints)
    with largest_file(size), pytest.raises(PegboardError) as caught:
        checkpoints.save(new_state(3, steps=3), Position(step=3))
    assert re.search(r"cannot be written|no space left", str(caught.value))
    assert re.search("free (space|some)", caught.value.remedy)
    assert names(checkpoints) == before
    other = new_state(9)
    assert checkpoints.load(other, said.append).step == 2
    assert_same(other, states[2])


def test_what_a_killed_process_left_is_cleared_away(checkpoints: Checkpoints) -> None:
    save_steps(checkpoints, 1)
    partial = checkpoints.folder / ".step-00000002.partial"
    shutil.copytree(checkpoints.folder / "step-00000001", partial)
    save_steps(checkpoints, 2)
    assert names(checkpoints) == ["latest", "step-00000001", "step-00000002"]
    files = json.loads((checkpoints.folder / "step-00000002/position.json").read_text())["files"]
    assert files.keys() == {".metadata", "__0_0.distcp"}


# --------------------------------------------------------------------------- weights


def test_weights_come_back_and_share_no_memory(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    tied = nn.ModuleList([model, model])
    save_weights(tied.state_dict(), tmp_path / "w.safetensors")
    other = nn.ModuleList([nn.Linear(3, 2), nn.Linear(3, 2)])
    load_weights(other, tmp_path / "w.safetensors")
    torch.testing.assert_close(other.state_dict(), tied.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (nn.Linear(3, 4), r"'weight' has the shape \(2, 3\) in the file and \(4, 3\) in the model"),
        (nn.Linear(3, 2, bias=False), "'bias' is not in the model"),
        (nn.Sequential(nn.Linear(3, 2)), r"'0\.weight' is not in the file"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path: Path, model: nn.Module, sentence: str) -> None:
    save_weights(nn.Linear(3, 2).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=sentence):
        load_weights(model, tmp_path / "w.safetensors")


def test_weights_that_are_missing_or_damaged_are_named(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with pytest.raises(CheckpointError, match=r"cannot be read.*w\.safetensors"):
        load_weights(nn.Linear(3, 2), path)
    path.write_bytes(b"\x00" * 50)
    with pytest.raises(CheckpointError, match=r"cannot be read.*w\.safetensors"):
        load_weights(nn.Linear(3, 2), path)


def test_state_that_is_no_tensor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="'extra' is a dict and not a tensor"):
        save_weights({"extra": {}}, tmp_path / "w.safetensors")


def test_weights_that_the_disk_does_not_take_leave_the_old_ones(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(nn.Linear(3, 2).state_dict(), path)
    before = path.read_bytes()
    with largest_file(10), pytest.raises(PegboardError, match="no space left"):
        save_weights(nn.Linear(300, 20).state_dict(), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_trained_model_is_built_without_data_and_evaluates(begin: Callable[..., Run]) -> None:
    run = begin()
    hook, settings = run.project.board.hook, run.project.settings
    trained = hook.build_model(settings=settings, train_data=None)
    save_weights(trained.state_dict(), run.weights_file)
    model = load_trained(run)
    assert not model.training
    torch.testing.assert_close(model.state_dict(), trained.state_dict(), rtol=0, atol=0)
