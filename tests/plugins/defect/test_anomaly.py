"""Anomaly models: what they answer, learn and remember, by hand where that can be reckoned."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pegboard.errors import DataError, SettingsError
from pegboard.records import ExportRequest, Sample, Signature, TensorSpec
from pegboard.targets import onnx
from pegboard_defect import anomaly
from pegboard_defect.anomaly import (
    BackboneFeatures,
    PatchCore,
    Surface,
    SurfaceFeatures,
    blurred,
    build,
    coreset,
)
from pegboard_defect.inputs import Pixels
from pegboard_defect.settings import DefectData, DefectModel, DefectSettings


def noise(count: int, size: tuple[int, int] = (32, 32), channels: int = 1, seed: int = 0) -> Any:
    generator = np.random.default_rng(seed)
    pictures = generator.normal(120, 10, (count, *size, channels))
    return torch.from_numpy(pictures.clip(0, 255).astype(np.uint8))


def marked(pictures: Tensor) -> Tensor:
    """The same with a bright square in each."""
    changed = pictures.clone()
    changed[:, 10:18, 12:20] = 220
    return changed


# --- What patches are compared by -----------------------------------------------------------------


def test_a_surface_is_described_by_edges_and_brightness_at_each_place() -> None:
    features = Surface(3, 8)
    described = features(noise(2, (48, 64), 3))
    assert described.shape == (2, 18, 6, 8)
    assert described.isfinite().all()


def test_lamps_may_differ_but_a_dark_place_does_not_go_unseen() -> None:
    features = Surface(1, 8)
    picture = noise(1).float()
    plain = features(picture.to(torch.uint8))
    brighter = features((picture * 1.2 + 10).to(torch.uint8))
    assert (plain - brighter).abs().mean() < 0.15
    spoilt = picture.clone()
    spoilt[:, 8:16, 8:16] -= 60
    change = (features(spoilt.to(torch.uint8)) - plain).abs().mean(dim=1)[0]
    assert change[1, 1] > 5 * change[3, 3]


def test_surfaces_alone_tell_defects_from_good_parts() -> None:
    model = fitted(PatchCore(SurfaceFeatures(1, 4), memory=60, neighbours=3), Pictures(noise(40)))
    good = noise(10, seed=1)
    fine, bad = model(good), model(marked(good))
    assert fine["score"].max() < 0.5 < bad["score"].min()
    assert bad["map"][:, 10:18, 12:20].mean() > 2 * bad["map"][:, 22:, :10].mean()


# --- PatchCore ------------------------------------------------------------------------------------


class Grey(nn.Module):
    """A backbone whose features are the picture's grey values, at strides like a real one's."""

    def __init__(self, widths: tuple[int, ...] = (1, 1, 1, 1)) -> None:
        super().__init__()
        self.widths, self.strides = widths, (2, 4, 8, 16)
        self.norm = nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.norm(x)
        return [
            nn.functional.avg_pool2d(x, stride).expand(-1, width, -1, -1)
            for width, stride in zip(self.widths, self.strides, strict=True)
        ]


@dataclass
class Pictures:
    """Stands in for a split."""

    images: Tensor
    parts: list[str] | None = None
    defective: float = 0.0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        part = str(index) if self.parts is None else self.parts[index]
        targets = {"defective": np.float32(self.defective), "part": part}
        return Sample(inputs={"image": self.images[index].numpy()}, targets=targets)


def remembering(memory: int = 50, neighbours: int = 3, **options: Any) -> PatchCore:
    backbone: Any = Grey(**options)
    return PatchCore(BackboneFeatures(Pixels(1), backbone), memory=memory, neighbours=neighbours)


def fitted(model: PatchCore, data: Any = None) -> PatchCore:
    model.fit(Pictures(noise(10)) if data is None else data)
    return model


def test_patchcore_tells_defects_from_good_parts_and_says_where() -> None:
    model = fitted(remembering(), Pictures(noise(40)))
    good = noise(10, seed=1)
    fine, bad = model(good), model(marked(good))
    assert fine["score"].max() < 0.5 < bad["score"].min()
    assert fine["map"].shape == (10, 32, 32)
    assert (bad["map"].flatten(1).argmax(dim=1) // 32 - 13.5).abs().max() < 5
    inside, far = bad["map"][:, 12:16, 14:18], bad["map"][:, 26:, 26:]
    assert inside.amin(dim=(1, 2)).min() > 0.5
    assert (inside.amin(dim=(1, 2)) > far.amax(dim=(1, 2))).all()


def test_distances_are_those_to_the_nearest_remembered_patch() -> None:
    model = remembering(memory=700, widths=(1, 5, 4, 1))
    torch.manual_seed(0)
    model.memory.normal_()
    patches = torch.randn(2, 6, 9)
    expected = torch.cdist(patches, model.memory).amin(dim=2)
    assert torch.allclose(model._nearest(patches), expected, atol=1e-4)


def test_a_distance_is_weighed_by_the_papers_equation() -> None:
    model = remembering(memory=30, neighbours=4, widths=(1, 5, 4, 1))
    torch.manual_seed(0)
    model.memory.normal_()
    patch = torch.randn(1, 9)
    near = torch.cdist(patch, model.memory)[0]
    crowd = torch.cdist(model.memory[near.argmin()][None], model.memory)[0].argsort()[:4]
    by_hand = near.min() * (1 - near.min().exp() / near[crowd].exp().sum())
    assert model._weigh(patch, near.min()[None]).item() == pytest.approx(by_hand.item(), rel=1e-4)


def test_one_neighbour_weighs_nothing() -> None:
    model = remembering(neighbours=1)
    assert model._weigh(torch.ones(1, 2), torch.tensor([2.5])).item() == 2.5


def test_the_memorys_shape_does_not_depend_on_the_data() -> None:
    few = fitted(remembering(memory=500), Pictures(noise(2)))
    many = fitted(remembering(memory=500), Pictures(noise(30)))
    assert few.memory.shape == many.memory.shape == (500, 2)
    assert torch.equal(few.memory[:64], few.memory[64:128])
    fresh = remembering(memory=500)
    fresh.load_state_dict(many.state_dict())
    picture = noise(2, seed=9)
    assert torch.equal(fresh(picture)["map"], many(picture)["map"])


def test_one_picture_is_enough_to_answer() -> None:
    outputs = fitted(remembering(memory=5), Pictures(noise(1)))(noise(2))
    assert outputs["score"].isfinite().all()


def test_pictures_of_one_part_are_held_out_together() -> None:
    parts = [f"p{index // 2}" for index in range(20)]
    data: Any = Pictures(noise(20), parts)
    kept, held_out = anomaly._good_pictures(data)
    assert sorted(kept + held_out) == list(range(20))
    assert held_out
    assert not {parts[index] for index in kept} & {parts[index] for index in held_out}


def test_defective_parts_are_not_remembered() -> None:
    with pytest.raises(DataError, match="no good parts"):
        fitted(remembering(), Pictures(noise(5), defective=0.7))


def test_nothing_of_patchcore_moves_in_training() -> None:
    model = fitted(remembering()).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(noise(4, seed=3))
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_wide_features_are_projected_the_same_way_every_time() -> None:
    one, other = (remembering(widths=(1, 200, 100, 1)) for _ in range(2))
    assert one.memory.shape == (50, 256)
    assert one.project is not None
    assert torch.equal(one.project, other.project)
    patches = one._patches(noise(1))
    assert patches.shape == (1, 256, 8, 8)


def test_the_coreset_has_a_patch_of_every_crowd() -> None:
    generator = torch.Generator().manual_seed(0)
    crowds = torch.eye(8).repeat_interleave(torch.tensor([500, 3, 1, 90, 2, 1, 40, 1]), dim=0) * 9
    patches = crowds + torch.rand(crowds.shape, generator=generator) * 0.1
    chosen = coreset(patches, 8, generator)
    assert sorted(patches[chosen].argmax(dim=1).tolist()) == list(range(8))
    assert coreset(patches[:5], 8, generator).tolist() == list(range(5))


def test_blurring_keeps_what_is_even_and_spreads_what_is_not() -> None:
    kernel = anomaly._gaussian(2.0)
    assert torch.allclose(blurred(torch.ones(1, 1, 9, 9), kernel), torch.ones(1, 1, 9, 9))
    point = torch.zeros(1, 1, 41, 41)
    point[0, 0, 20, 20] = 1
    spread = (blurred(point, kernel)[0, 0].sum(dim=0) * (torch.arange(41) - 20) ** 2).sum()
    assert spread.sqrt().item() == pytest.approx(2.0, rel=0.03)


def test_large_pictures_are_remembered_by_the_tiles_that_the_model_will_see() -> None:
    image = np.arange(70 * 40, dtype=np.int64).reshape(70, 40, 1)
    tiles = anomaly._cut(image, 32)
    assert tiles.shape == (6, 32, 32, 1)
    assert tiles[0, 0, 0, 0] == 0
    assert tiles[-1, -1, -1, 0] == 70 * 40 - 1
    assert len(anomaly._cut(np.zeros((900, 900, 1)), 32)) <= anomaly.TILES
    assert anomaly._cut(image, 64).shape == (2, 64, 64, 1)


# --- Building and export --------------------------------------------------------------------------


def settings(**model: Any) -> DefectSettings:
    return DefectSettings(
        data=DefectData(size=(32, 32)),
        model=DefectModel(task="anomaly", memory=40, input="pixels", **model),
    )


def test_without_weights_surfaces_are_compared_and_no_backbone_is_built() -> None:
    def refuse(seen: Any) -> Any:
        raise AssertionError

    model: Any = build(settings(), refuse, None)
    assert isinstance(model.features, SurfaceFeatures)


def test_patchcore_is_built_and_fitted_where_there_are_data(tmp_path: Path) -> None:
    wanted = settings(method="patchcore", weights=tmp_path / "backbone.safetensors")
    backbone, data = (lambda seen: Grey()), Pictures(noise(10))
    empty: Any = build(wanted, backbone, None)  # type: ignore[arg-type, return-value]
    full: Any = build(wanted, backbone, data)  # type: ignore[arg-type, return-value]
    assert not empty.memory.any()
    assert full.memory.any()
    empty.load_state_dict(full.state_dict())


def test_patchcore_without_pretrained_weights_is_refused_with_the_remedy() -> None:
    with pytest.raises(SettingsError, match=r"model\.weights.*pegboard pretrain.*surface"):
        build(settings(method="patchcore"), lambda seen: Grey(), None)  # type: ignore[arg-type, return-value]


class Deployed(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        outputs = self.model(image)
        return {"score": outputs["score"], "map": outputs["map"]}


def wide_patchcore() -> PatchCore:
    from pegboard_defect.backbones import build_backbone

    torch.manual_seed(0)
    features = BackboneFeatures(Pixels(1), build_backbone("tiny", 1, (32, 40)))
    model = PatchCore(features, memory=700, neighbours=3)
    return fitted(model, Pictures(noise(12, (32, 40))))


def surface_model() -> PatchCore:
    model = PatchCore(SurfaceFeatures(1, 8), memory=40, neighbours=3)
    return fitted(model, Pictures(noise(12, (32, 40))))


@pytest.mark.slow
@pytest.mark.parametrize("make", [surface_model, wide_patchcore])
def test_the_exported_graph_equals_torch_at_any_batch_size(make: Any, tmp_path: Path) -> None:
    model = Deployed(make()).eval()
    size = (32, 40)
    signature = Signature(
        inputs=(TensorSpec(name="image", dtype="uint8", shape=("batch", *size, 1), high=255.0),),
        outputs=(
            TensorSpec(name="score", dtype="float32", shape=("batch",)),
            TensorSpec(name="map", dtype="float32", shape=("batch", *size)),
        ),
    )
    (target,) = onnx.deploy_targets()
    request = ExportRequest(deployable=model, signature=signature, folder=tmp_path)
    predictor = target.load(target.export(request), signature)
    for count in (1, 5):
        x = marked(noise(count, size, seed=count))
        with torch.no_grad():
            expected = model(x)
        for name, array in predictor({"image": x.numpy()}).items():
            assert np.allclose(array, expected[name].numpy(), rtol=1e-4, atol=1e-5), name
