"""Two views: crops no smaller than asked for, turns that are exact, all of it drawn by torch."""

from __future__ import annotations

import itertools

import pytest
import torch

from pegboard_defect.moco import augment
from pegboard_defect.moco.settings import MocoData


def pictures(count: int = 64, height: int = 16, width: int = 16, channels: int = 1) -> torch.Tensor:
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("least", [0.25, 0.7])
def test_no_view_shows_less_of_a_picture_than_asked_for_nor_what_is_outside(least: float) -> None:
    torch.manual_seed(0)
    placed = augment.placements(pictures(2000), MocoData(min_crop=least))
    area = torch.linalg.det(placed[:, :, :2]).abs()
    assert least - 1e-6 <= area.min() < least + 0.02
    assert 0.98 < area.max() <= 1 + 1e-6
    corners = torch.tensor([[x, y, 1.0] for x, y in itertools.product((-1, 1), (-1, 1))])
    assert (placed @ corners.T).abs().max() <= 1 + 1e-5


def ways(data: MocoData, height: int, width: int) -> set[bytes]:
    """The different views of one picture when crop, light, blur and noise leave it as it is."""
    still = data.model_copy(update={"min_crop": 1.0, "light": 0.0, "blur": 0.0, "noise": 0.0})
    one = torch.arange(float(height * width)).reshape(1, 1, height, width) / (height * width)
    torch.manual_seed(0)
    seen = augment.view(one.expand(200, -1, -1, -1), still)
    return {(picture * height * width).round().numpy().tobytes() for picture in seen}


def test_a_square_is_turned_by_quarters_and_mirrored_exactly() -> None:
    found = ways(MocoData(), 4, 4)
    one = torch.arange(16.0).reshape(1, 4, 4)
    turned = [torch.rot90(side, k, (1, 2)) for k in range(4) for side in (one, one.flip(2))]
    assert found == {picture.contiguous().numpy().tobytes() for picture in turned}


def test_other_pictures_are_turned_by_halves_and_nothing_is_where_nothing_may_be() -> None:
    assert len(ways(MocoData(), 4, 6)) == 4
    assert len(ways(MocoData(turns="half"), 4, 4)) == 4
    assert len(ways(MocoData(turns="none"), 4, 4)) == 1


def test_each_picture_is_changed_otherwise_and_each_view_too() -> None:
    torch.manual_seed(0)
    one, other = augment.two_views(pictures(1).expand(8, -1, -1, -1), MocoData())
    assert len({picture.numpy().tobytes() for picture in (*one, *other)}) == 16
    assert one.min() >= 0
    assert one.max() <= 1


def test_the_same_seed_gives_the_same_views_whether_global_or_given() -> None:
    torch.manual_seed(3)
    expected = augment.view(pictures(), MocoData())
    torch.manual_seed(3)
    assert torch.equal(augment.view(pictures(), MocoData()), expected)
    given = torch.Generator().manual_seed(3)
    assert torch.equal(augment.view(pictures(), MocoData(), given), expected)


def test_light_changes_mean_and_contrast_within_what_is_set() -> None:
    torch.manual_seed(0)
    before = 0.4 + 0.2 * pictures(500)
    after = augment.light(before, 0.3)
    shift = (after.mean(dim=(1, 2, 3)) - before.mean(dim=(1, 2, 3))).abs()
    ratio = after.std(dim=(1, 2, 3)) / before.std(dim=(1, 2, 3))
    assert 0.14 < shift.max() <= 0.15 + 1e-4
    assert 0.7 - 1e-3 <= ratio.min() < 0.72
    assert 1.28 < ratio.max() <= 1.3 + 1e-3


def test_a_blur_keeps_the_mean_and_some_pictures_as_they_are() -> None:
    torch.manual_seed(0)
    point = torch.zeros(200, 2, 15, 15)
    point[:, :, 7, 7] = 1.0
    blurred = augment.blur(point, 1.5)
    assert torch.allclose(blurred.sum(dim=(2, 3)), torch.ones(200, 2), atol=1e-5)
    peak = blurred[:, 0, 7, 7]
    assert 0.35 < (peak > 0.999).float().mean() < 0.75
    assert torch.equal(blurred[:, 0], blurred[:, 1])
    # A Gaussian of 1.5 pixels holds 1 / (2 pi 1.5^2) of its mass in the middle.
    assert peak.min() == pytest.approx(0.0707, abs=0.006)
    assert torch.allclose(blurred, blurred.transpose(2, 3), atol=1e-6)


def test_noise_is_no_stronger_than_set() -> None:
    torch.manual_seed(0)
    deviation = augment.noise(torch.zeros(300, 1, 32, 32), 0.1).std(dim=(1, 2, 3))
    assert deviation.max() < 0.11
    assert deviation.mean() == pytest.approx(0.05, abs=0.01)
