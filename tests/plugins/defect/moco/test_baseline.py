"""What is compared with: the same network untrained, and the user's own weights."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pegboard.errors import CheckpointError
from pegboard_defect.backbones import BackboneNote, build_backbone, save_backbone
from pegboard_defect.moco import baseline
from pegboard_defect.moco.settings import MocoData, MocoModel, MocoSettings


class Train:
    """A train split of dark pictures."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        image = np.random.default_rng(index).integers(10, 40, (32, 32, 1), dtype=np.uint8)
        return SimpleNamespace(inputs={"image": image})


IMAGES = {"image": np.stack([Train()[index].inputs["image"] for index in range(4)])}


def settings(**model: Any) -> MocoSettings:
    return MocoSettings(
        data=MocoData(size=(32, 32)),
        model=MocoModel(**{"input": "pixels", "backbone": "tiny", **model}),
    )


def embedded(table: MocoSettings, name: str) -> Any:
    (chosen,) = [one for one in baseline.build(table) if one.name == name]
    return chosen.fit(Train(), None)(IMAGES)["embedding"]


def test_the_random_network_is_the_same_whenever_it_is_built() -> None:
    torch.manual_seed(5)
    one = embedded(settings(), "random")
    drawn = torch.rand(1)
    other = embedded(settings(), "random")
    torch.manual_seed(5)
    assert np.array_equal(one, other)
    assert torch.equal(torch.rand(1), drawn)  # Nobody else's random numbers change.
    assert one.shape == (4, 128)
    # Pictures are normalised as for the trained network, or all would be one dark grey.
    assert one.std(axis=0).max() > 0.01


def test_there_is_no_checkpoint_unless_one_is_named() -> None:
    assert [one.name for one in baseline.build(settings())] == ["random"]


def test_a_checkpoint_is_measured_as_it_is_with_a_network_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    mine = build_backbone("small", 1, (32, 32))
    save_backbone(mine, path, BackboneNote(backbone="small", color="grey", size=(32, 32)))
    table = settings(checkpoint=path, checkpoint_backbone="small")
    names = {one.name: one.description for one in baseline.build(table)}
    assert list(names) == ["random", "checkpoint"]
    assert "mine.safetensors" in names["checkpoint"]
    found = embedded(table, "checkpoint")
    assert found.shape == (4, 256)
    # The weights are the file's and not drawn.
    with torch.no_grad():
        mine.conv1.weight.mul_(0)  # type: ignore[union-attr, operator]
    save_backbone(mine, path, BackboneNote(backbone="small", color="grey", size=(32, 32)))
    assert not np.array_equal(embedded(table, "checkpoint"), found)


def test_a_checkpoint_that_does_not_fit_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    note = BackboneNote(backbone="small", color="grey", size=(32, 32))
    save_backbone(build_backbone("small", 1, (32, 32)), path, note)
    with pytest.raises(CheckpointError, match="holds small for grey pixels"):
        embedded(settings(checkpoint=path), "checkpoint")
