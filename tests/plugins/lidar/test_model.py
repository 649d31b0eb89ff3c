"""The detector: pillars that nothing but points decides, and one graph from raw points to maps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pegboard.errors import PluginError, SettingsError
from pegboard.records import Batch, ExportRequest
from pegboard.targets import onnx
from pegboard_lidar import split_target
from pegboard_lidar.deploy import signature
from pegboard_lidar.frames import IGNORED, PADDING
from pegboard_lidar.grid import pillars_of
from pegboard_lidar.model import PillarDetector, PillarEncoder, PillarMaximum, build
from pegboard_lidar.objectives import Objective
from pegboard_lidar.settings import LidarSettings

Small = Callable[..., LidarSettings]


def cloud(count: int, seed: int = 0) -> Tensor:
    """Return points all over the range and beyond it, some just on its edges."""
    generator = np.random.default_rng(seed)
    points = generator.uniform([-3, -10, -4, 0], [19, 10, 2, 1], (count, 4)).astype(np.float32)
    points[::97, 0], points[::89, 1] = 16.0, -8.0  # The far edge is outside, the near one inside.
    return torch.from_numpy(points)


@pytest.fixture(scope="module")
def detector(small: Small) -> PillarDetector:
    """Return a detector whose norms have seen something: their statistics are not 0 and 1."""
    torch.manual_seed(0)
    model = build(small())
    for _ in range(3):
        model.head(model.encoder(cloud(6000).reshape(2, 3000, 4)))
    return model.eval()


def maps(detector: PillarDetector, points: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        return detector(points)


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Where a point stands among others may change the last bit of a matrix product."""
    for name, values in one.items():
        torch.testing.assert_close(values, other[name], rtol=0, atol=1e-6, msg=name)


# --- Pillars --------------------------------------------------------------------------------------


def test_the_order_of_the_points_changes_nothing(detector: PillarDetector) -> None:
    points = cloud(3000)
    shuffled = points[torch.randperm(len(points), generator=torch.Generator().manual_seed(1))]
    assert_equal(maps(detector, points), maps(detector, shuffled))


def test_points_outside_and_points_that_are_not_finite_count_for_nothing(
    detector: PillarDetector,
) -> None:
    points = cloud(3000)
    low, high = torch.tensor(detector.encoder.range).reshape(2, 3)
    inside = ((points[:, :3] >= low) & (points[:, :3] < high)).all(dim=1)
    assert 500 < inside.sum() < 2500
    expected = maps(detector, points[inside])
    assert_equal(maps(detector, points), expected)
    strange = torch.tensor([[torch.nan, 0, 0, 0], [4, torch.inf, 0, 0], [4, 0, -torch.inf, 0]])
    assert_equal(maps(detector, torch.cat([points, strange.float()])), expected)


def test_a_scan_of_nothing_is_as_one_without_points(detector: PillarDetector) -> None:
    nothing = maps(detector, torch.full((1, 4), torch.nan))
    assert all(torch.isfinite(values).all() for values in nothing.values())
    assert_equal(maps(detector, torch.full((7, 4), 1e30)), nothing)


def test_a_pillar_is_where_its_points_are(small: Small) -> None:
    settings = small()
    encoder = build(settings).encoder
    torch.nn.init.constant_(encoder.describe[-1].bias, 9.0)
    grid = pillars_of(settings)
    points = torch.tensor([[3.2, -6.1, -1.0, 0.0], [15.9, 7.9, 0.5, 0.0], [0.0, -8.0, -3.0, 0.0]])
    with torch.no_grad():
        picture = encoder(points[None])[0]
    assert picture.shape == (16, 16, 16) == (encoder.channels, grid.rows, grid.columns)
    quarters = picture.reshape(2, 2, 4, 16, 16).sum(dim=2)
    seen = set(map(tuple, torch.nonzero(quarters).tolist()))
    assert seen == {(0, 1, 3, 1), (1, 1, 15, 15), (0, 0, 0, 0)}


def test_a_part_of_a_scan_has_the_pillars_that_the_whole_has_there(small: Small) -> None:
    torch.manual_seed(0)
    encoder = build(small()).encoder
    points = torch.stack([cloud(3000, seed=1), cloud(3000, seed=2)])
    parts = [replace(encoder.grid, rows=8, columns=8, x=x, y=y) for x, y in ((0, -8), (8, -3))]
    with torch.no_grad():
        whole, found = encoder(points), encoder.parts(points, parts)
    assert found.shape == (2, 16, 8, 8)
    assert (found != 0).any()
    torch.testing.assert_close(found[0], whole[0, :, :8, :8])
    torch.testing.assert_close(found[1], whole[1, :, 8:, 5:13])


def test_a_scan_is_the_same_alone_and_in_a_batch(detector: PillarDetector) -> None:
    short, long = cloud(400, seed=1), cloud(900, seed=2)
    padded = torch.full((500, 4), torch.nan)
    both = torch.stack([torch.cat([short, padded]), long])
    with torch.no_grad():
        together = detector.encoder(both)
        for place, points in enumerate((short, long)):
            assert_equal(
                {"pillars": together[place]}, {"pillars": detector.encoder(points[None])[0]}
            )


def test_reflectance_is_seen_where_asked_only(small: Small) -> None:
    points = cloud(500)
    brighter = points.clone()
    brighter[:, 3] += 0.5
    for is_seen in (False, True):
        torch.manual_seed(0)
        encoder: PillarEncoder = build(small(reflectance=is_seen)).encoder
        with torch.no_grad():
            same = torch.equal(encoder(points[None]), encoder(brighter[None]))
        assert same is not is_seen


def test_the_gradient_of_the_maximum_is_torchs_own() -> None:
    torch.manual_seed(0)
    found = torch.rand(200, 5, dtype=torch.float64)  # No two are equal.
    index = torch.randint(0, 30, (200,))
    weight = torch.randn(40, 5, dtype=torch.float64)
    gradients = []
    for maximum in (PillarMaximum.apply, torchs_maximum):
        leaf = found.clone().requires_grad_()
        pillars = maximum(leaf, index, 40)
        assert (pillars[30:] == 0).all()
        (pillars * weight).sum().backward()
        gradients.append(leaf.grad)
    assert gradients[0] is not None and gradients[1] is not None
    assert torch.equal(gradients[0], gradients[1])
    assert (gradients[0] != 0).sum() == 5 * len(index.unique())


def torchs_maximum(found: Tensor, index: Tensor, size: int) -> Tensor:
    rows = index[:, None].expand(-1, found.shape[1])
    return found.new_zeros((size, found.shape[1])).scatter_reduce(0, rows, found, "amax")


def test_pillars_that_do_not_divide_say_what_would(small: Small) -> None:
    with pytest.raises(SettingsError, match=r"16 x 18 pillars .* multiple of 8 m"):
        build(small(data={"range": (0, -9, -3, 16, 9, 1)}))


# --- What it is taught ----------------------------------------------------------------------------


def batch_of(boxes: list[list[float]], labels: list[int], points: Tensor) -> Batch:
    count = len(boxes)
    return Batch(
        inputs={"points": points[None]},
        targets={
            "boxes": torch.tensor(boxes).reshape(1, count, 7),
            "labels": torch.tensor(labels).reshape(1, count),
            "velocity": torch.full((1, count, 2), torch.nan),
        },
    )


CAR = [8.3, 1.2, -1.0, 4.0, 1.8, 1.5, 0.8]


def test_the_loss_falls_on_one_scan(small: Small) -> None:
    torch.manual_seed(0)
    model = build(small(features=8, channels=(8, 8, 8)))
    batch = batch_of([CAR], [0], cloud(2000))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(15):
        loss = model.losses(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]


def test_padding_and_objects_beyond_the_edge_teach_nothing(small: Small) -> None:
    torch.manual_seed(0)
    model = build(small()).eval()
    points = cloud(500)
    alone = model.losses(batch_of([CAR], [0], points))
    padded = model.losses(batch_of([CAR, [1.0] * 7], [0, PADDING], points))
    assert torch.equal(alone["loss"], padded["loss"])
    nothing = model.losses(batch_of([[1.0] * 7], [PADDING], points))
    assert nothing["box"] == 0
    assert torch.isfinite(nothing["loss"])


def test_inside_an_object_that_is_ignored_anything_may_be_said(small: Small) -> None:
    settings = small()
    objective: Objective = build(settings).objective
    batch = batch_of([CAR, [4.0, -4.0, -1.0, 4.0, 2.0, 1.5, 0.3]], [0, IGNORED], cloud(10))
    logits, boxes = torch.full((1, 3, 16, 16), -4.0), torch.zeros(1, 10, 16, 16)
    overlap = torch.zeros(1, 1, 16, 16)
    quiet = objective(logits, overlap, boxes, batch.targets)["heat"]
    within, beyond = logits.clone(), logits.clone()
    within[0, 0, 4, 4], beyond[0, 0, 12, 12] = 4.0, 4.0
    # Nothing is lost there, and nothing won.
    assert objective(within, overlap, boxes, batch.targets)["heat"] <= quiet
    assert objective(beyond, overlap, boxes, batch.targets)["heat"] > quiet + 1


def test_boxes_learn_the_overlap_and_the_head_how_large_it_is(small: Small) -> None:
    objective: Objective = build(small()).objective
    batch = batch_of([CAR], [0], cloud(10))
    logits, overlap = torch.full((1, 3, 16, 16), -4.0), torch.zeros(1, 1, 16, 16)
    boxes = torch.zeros(1, 10, 16, 16, requires_grad=True)
    off = objective(logits, overlap, boxes, batch.targets)
    off["loss"].backward()
    assert boxes.grad is not None and torch.isfinite(boxes.grad).all() and boxes.grad.any()
    grid = objective.grid
    true = torch.zeros(1, 10, 16, 16)
    x, y, z, *size, yaw = CAR
    rows = grid.x + (torch.arange(16) + 0.5) * grid.side
    columns = grid.y + (torch.arange(16) + 0.5) * grid.side
    true[0, 0] = ((x - rows) / grid.side)[:, None]
    true[0, 1] = ((y - columns) / grid.side)[None, :]
    angles = torch.tensor([yaw, 2 * yaw])
    told = [torch.tensor([z]), torch.tensor(size).log()]
    told += [torch.stack([angle.cos(), angle.sin()]) for angle in angles]
    true[0, 2:] = torch.cat(told)[:, None, None]
    there = objective(logits, overlap + 9, true, batch.targets)
    # It covers the object whole, and the head is right to be sure of it.
    assert there["box"] < 1e-4
    assert there["overlap"] < 1e-2
    assert objective(logits, overlap - 9, true, batch.targets)["overlap"] > 8
    assert off["overlap"] > 1


def test_velocity_is_taught_where_labels_say_it(small: Small) -> None:
    torch.manual_seed(0)
    model = build(small(velocity=True))
    batch = batch_of([CAR], [0], cloud(500))
    unknown = model.losses(batch)["box"]
    batch.targets["velocity"][:] = torch.tensor([10.0, 0.0])
    assert model.losses(batch)["box"] > unknown + 1


# --- One graph ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def request_to_export(
    small: Small, detector: PillarDetector, tmp_path_factory: pytest.TempPathFactory
) -> ExportRequest:
    return ExportRequest(
        deployable=detector,
        signature=signature(small()).windowed(),
        folder=tmp_path_factory.mktemp("exported"),
    )


@pytest.fixture(scope="module")
def exported(request_to_export: ExportRequest) -> Any:
    """Return the detector as one graph in ONNX Runtime."""
    return onnx.load(onnx.export(request_to_export), request_to_export.signature)


SIZES = (1, 5, 3000)


@pytest.mark.slow
@pytest.mark.parametrize("count", SIZES)
def test_the_exported_graph_says_what_torch_says(
    detector: PillarDetector, exported: Any, count: int
) -> None:
    points = cloud(count)
    points[count // 2] = torch.nan
    found = exported({"points": points.numpy()})
    for name, values in maps(detector, points).items():
        np.testing.assert_allclose(found[name], values.numpy(), atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_the_graph_scatters_pillars_whole(exported: Any, request_to_export: ExportRequest) -> None:
    import onnx as format_

    graph = format_.load(request_to_export.folder / onnx.FILE).graph
    kinds = {node.op_type for node in graph.node}
    assert "ScatterND" in kinds
    assert "ScatterElements" not in kinds


@pytest.mark.slow
def test_two_graphs_say_what_one_says(
    detector: PillarDetector, request_to_export: ExportRequest
) -> None:
    path = split_target.export(request_to_export)
    assert path.is_relative_to(request_to_export.folder)
    assert {file.parent.name for file in path.rglob("*.onnx")} == {"encoder", "head"}
    predictor = split_target.load(path, request_to_export.signature)
    for count in SIZES:
        found = predictor({"points": cloud(count).numpy()})
        for name, values in maps(detector, cloud(count)).items():
            np.testing.assert_allclose(found[name], values.numpy(), atol=1e-5, err_msg=name)


def test_a_deployable_without_halves_is_refused(
    request_to_export: ExportRequest, tmp_path: Path
) -> None:
    request = ExportRequest(
        deployable=torch.nn.Identity(), signature=request_to_export.signature, folder=tmp_path
    )
    with pytest.raises(PluginError, match=r"no 'encoder' and 'maps'.*onnx-split"):
        split_target.export(request)
    assert not list(tmp_path.iterdir())
