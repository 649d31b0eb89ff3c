from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from pegboard.records import Sample
from pegboard_medical import patches
from pegboard_medical.settings import SegmentationData, SegmentationModel, SegmentationSettings


def settings(**model: object) -> SegmentationSettings:
    return SegmentationSettings(
        data=SegmentationData(modality="ct", spacing=(2.0, 1.0, 1.0)),
        model=SegmentationModel.model_validate({"patch": (16, 24, 24), **model}),
    )


def case(spacing: tuple[float, float, float] = (2.0, 1.0, 1.0)) -> Sample:
    """A body of 0 HU with one lesion of 200 HU, far from the middle."""
    image = np.zeros((40, 60, 60), dtype=np.float32)
    mask = np.zeros(image.shape, dtype=np.uint8)
    image[30:34, 40:48, 5:13] = 200.0
    mask[30:34, 40:48, 5:13] = 1
    return Sample(
        inputs={"image": image, "spacing": np.array(spacing, dtype=np.float32)},
        targets={
            "mask": mask,
            "has_mask": np.float32(1),
            "scale": np.full(4, np.nan, dtype=np.float32),
            "patient": "p",
        },
        key="k",
    )


@pytest.fixture(autouse=True)
def seeded() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def test_image_and_mask_are_moved_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patches, "_brighten_ct", lambda patch: patch)
    for _ in range(30):
        cut = patches.augment(settings(foreground=0.9), case())
        inside = cut.targets["mask"] == 1
        if inside.sum() > 50:
            assert cut.inputs["image"][inside].mean() > 150
            far = cut.inputs["image"] < 1
            assert cut.targets["mask"][far].mean() < 0.01


def test_a_patch_has_the_models_shape_and_types() -> None:
    cut = patches.augment(settings(), case())
    assert cut.inputs["image"].shape == cut.targets["mask"].shape == (16, 24, 24)
    assert cut.inputs["image"].dtype == np.float32
    assert cut.targets["mask"].dtype == np.uint8


def test_a_share_of_the_patches_holds_a_lesion() -> None:
    def share(foreground: float) -> float:
        cuts = [patches.augment(settings(foreground=foreground), case()) for _ in range(60)]
        return float(np.mean([cut.targets["mask"].any() for cut in cuts]))

    assert share(0.99) > 0.95
    assert share(0.0) < 0.5


def test_a_small_lesion_is_met_as_often_as_a_large_one() -> None:
    both = case()
    both.targets["mask"][4:6, 4:6, 50:52] = 1
    small = 0
    for _ in range(200):
        middle = patches._middle(both.targets["mask"], np.array([4.0, 4.0, 4.0]), 0.999)
        small += bool(middle[2] > 40)
    assert 70 < small < 130


def test_a_patch_lies_on_the_models_grid_and_not_on_the_scanners() -> None:
    """The lesion is 8 mm x 8 mm x 8 mm; voxels half as long must not make it larger."""
    fine = case(spacing=(1.0, 0.5, 0.5))
    model = settings(foreground=0.99, symmetric=[])
    sizes = [int(patches.augment(model, fine).targets["mask"].sum()) for _ in range(20)]
    # 4 x 8 x 8 voxels of 1 x 0.5 x 0.5 mm are 2 x 4 x 4 of 2 x 1 x 1 mm; some are zoomed.
    assert float(np.mean(sizes)) == pytest.approx(32, rel=0.3)
    assert max(sizes) < 100


def test_outside_a_ct_there_is_air(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patches, "_brighten_ct", lambda patch: patch)
    cut = patches.augment(settings(patch=(64, 80, 80)), case())
    assert cut.inputs["image"].min() == -1024.0


def test_cutting_straight_is_interpolating_where_nothing_is_turned() -> None:
    sample = case()
    image, mask = sample.inputs["image"], sample.targets["mask"]
    matrix, shape = np.diag([1.0, -1.0, 1.0]), (8, 20, 12)
    offset = np.array([28.0, 57.0, -3.0])
    straight = patches._cut_straight(image, mask, np.diag(matrix), offset, shape, -1024.0)
    # A turn too small to move a voxel takes the other way.
    turned = patches._cut(image, mask, matrix * (1 + 1e-9), offset, shape, -1024.0)
    np.testing.assert_allclose(straight[0][:, :, 4:], turned[0][:, :, 4:], atol=1e-3)
    np.testing.assert_array_equal(straight[1], turned[1])
    assert (straight[0][:, :, :3] == -1024.0).all()


def test_directions_without_symmetry_are_never_mirrored() -> None:
    random.seed(1)
    turns = [patches._turn(["left-right"]) for _ in range(50)]
    signs = {tuple(np.sign(np.diag(turn)).astype(int).tolist()) for turn in turns}
    assert signs == {(1, 1, 1), (1, 1, -1)}
