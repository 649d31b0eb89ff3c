"""The embedded data set: KITTI's files, labels that fit the points, scans like the real ones."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pegboard.progress import SilentProgress
from pegboard_lidar import scanner, scenes, shapes

Array = Any
DATA = Path(os.environ.get("PEGBOARD_TEST_DATA", "/work/shared/data"))
REAL = DATA / "lidar" / "kitti_object_mini" / "training"
FEW = 0.05
"""Share of the shapes: they are made in a tenth of a second."""


def write(folder: Path, *, seed: int = 3, tiny: bool = True, count: int = 12) -> Path:
    scenes.write_scenes(folder, scenes=count, seed=seed, tiny=tiny, progress=SilentProgress())
    return folder


def digests(folder: Path) -> Mapping[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def made(seed: int) -> scenes.Scene:
    return scenes.make_scene(np.random.default_rng(seed), meshes=shapes.library(0, FEW))


def matrices(path: Path) -> Mapping[str, Array]:
    lines = [line.split(":") for line in path.read_text().splitlines() if line]
    return {name: np.array(numbers.split(), dtype=float) for name, numbers in lines}


def labels(folder: Path, key: str) -> Iterator[tuple[str, list[float], Array]]:
    """Read labels by hand: name, the numbers of the line, box in the scanner's frame."""
    calibration = matrices(folder / "calib" / f"{key}.txt")
    rigid, turn = np.eye(4), np.eye(4)
    rigid[:3] = calibration["Tr_velo_to_cam"].reshape(3, 4)
    turn[:3, :3] = calibration["R0_rect"].reshape(3, 3)
    back = np.linalg.inv(turn @ rigid)
    for line in (folder / "label_2" / f"{key}.txt").read_text().splitlines():
        name, *words = line.split()
        numbers = [float(word) for word in words]
        height, width, length = numbers[7:10]
        place = (back @ [*numbers[10:13], 1.0])[:3] + np.array([0, 0, height / 2])
        ahead = back[:3, :3] @ [np.cos(numbers[13]), 0, -np.sin(numbers[13])]
        yaw = np.arctan2(ahead[1], ahead[0])
        yield name, numbers, np.array([*place, length, width, height, yaw])


def within(points: Array, box: Array, margin: float) -> Array:
    """Return which points (N, 3+) lie in a box that is larger by a margin on all sides."""
    apart = points[:, :3] - box[:3]
    near = np.flatnonzero(np.abs(apart).max(axis=1) <= np.linalg.norm(box[3:6] / 2 + margin))
    lies, apart = np.zeros(len(points), dtype=bool), apart[near]
    sin, cos = np.sin(box[6]), np.cos(box[6])
    local = np.stack(
        [
            apart[:, 0] * cos + apart[:, 1] * sin,
            apart[:, 1] * cos - apart[:, 0] * sin,
            apart[:, 2],
        ],
        axis=1,
    )
    lies[near] = (np.abs(local) <= box[3:6] / 2 + margin).all(axis=1)
    return lies


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("scenes") / "made")


@pytest.fixture(scope="module")
def some() -> list[scenes.Scene]:
    return [made(seed) for seed in range(12)]


# --- Files ----------------------------------------------------------------------------------------


def test_the_tiny_set_has_twelve_scenes_split_into_three_lists(tiny: Path) -> None:
    lists = [(tiny / "ImageSets" / f"{one}.txt").read_text().split() for one in scenes.SPLITS]
    assert [len(keys) for keys in lists] == [8, 2, 2]
    keys = sorted(key for one in lists for key in one)
    for folder, ending in (("velodyne", "bin"), ("label_2", "txt"), ("calib", "txt")):
        found = sorted(path.name for path in (tiny / "training" / folder).iterdir())
        assert found == [f"{key}.{ending}" for key in keys]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(
    tiny: Path, tmp_path: Path
) -> None:
    assert digests(write(tmp_path / "again")) == digests(tiny)
    other = digests(write(tmp_path / "other", seed=4))
    assert not {k: v for k, v in other.items() if "velodyne" in k}.items() & digests(tiny).items()


def test_a_failure_leaves_no_folder(tmp_path: Path) -> None:
    class Broken(SilentProgress):
        def track(self, items: Any, title: str, total: int | None = None) -> Iterator[Any]:
            yield next(iter(items))
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        scenes.write_scenes(tmp_path / "made", scenes=4, seed=0, tiny=True, progress=Broken())
    assert list(tmp_path.iterdir()) == []


def test_labels_read_by_the_rigid_transform_hold_the_points_of_the_scene(tiny: Path) -> None:
    folder, inside = tiny / "training", 0
    for path in sorted((folder / "velodyne").iterdir()):
        points = np.fromfile(path, dtype=np.float32).reshape(-1, 4)
        for _, numbers, box in labels(folder, path.stem):
            assert len(numbers) == 14
            # Labels are rounded to millimetres.
            found = within(points, box, 0.01).sum()
            assert found
            inside += found
    assert inside > 1000


def test_the_label_file_gives_back_the_boxes_of_the_scene(tmp_path: Path) -> None:
    scene = made(1)
    for name in ("velodyne", "label_2", "calib"):
        (tmp_path / name).mkdir()
    scenes._write_scene(tmp_path, "000000", scene)
    for (name, numbers, box), known, expected in zip(
        labels(tmp_path, "000000"), scene.names, scene.boxes, strict=True
    ):
        assert name == known
        # The camera's axes lean a little, so that a box's middle moves by millimetres.
        assert np.abs(box[:6] - expected[:6]).max() < 0.02
        turned = box[6] - expected[6]
        assert abs(np.arctan2(np.sin(turned), np.cos(turned))) < 2e-3
        across, _, depth = numbers[10:13]
        alpha = numbers[13] - np.arctan2(across, depth)
        assert abs(np.arctan2(np.sin(alpha - numbers[2]), np.cos(alpha - numbers[2]))) < 0.01


def test_the_picture_box_of_a_label_holds_the_projected_object(tiny: Path) -> None:
    folder = tiny / "training"
    for path in sorted((folder / "label_2").iterdir()):
        for _, numbers, box in labels(folder, path.stem):
            left, top, right, bottom = numbers[3:7]
            assert 0 <= left < right <= 1241
            assert 0 <= top < bottom <= 374
            assert 0 <= numbers[0] < 1
            seen = scenes.to_camera(box[None, :3])[0]
            u, v, depth = scenes.P2[:, :3] @ seen + scenes.P2[:, 3]
            if numbers[0] == 0:
                assert left < u / depth < right
                assert top < v / depth < bottom


# --- Labels ---------------------------------------------------------------------------------------


def test_every_label_has_its_points_and_its_box_is_tight(some: list[scenes.Scene]) -> None:
    for scene in some:
        for box, count in zip(scene.boxes, scene.counts, strict=True):
            assert count > 0
            assert within(scene.points, box, 1e-4).sum() >= count


@pytest.mark.parametrize("kind", ["Car", "Van", "Truck", "Pedestrian", "Cyclist"])
def test_a_mesh_fills_its_box_from_the_ground_up(kind: str) -> None:
    for mesh in shapes.library(0, FEW)[kind]:
        low, high = mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)
        # Mirrors stick out of a car's box.
        beyond = np.array([0.01, 0.35 if kind in ("Car", "Van") else 0.01, 0.01])
        assert abs(low[2]) < 1e-5
        assert (high - low >= mesh.size - 0.02).all()
        assert (high - low <= mesh.size + beyond).all()


def test_labelled_objects_stand_where_the_camera_sees_them(some: list[scenes.Scene]) -> None:
    boxes = np.concatenate([scene.boxes for scene in some])
    assert len(boxes) > 60
    assert (np.abs(np.arctan2(boxes[:, 1], boxes[:, 0])) < scenes.FIELD + 1e-9).all()
    assert (boxes[:, 0] > 2).all()
    assert (boxes[:, 0] < scenes.FARTHEST).all()


def test_scenes_hold_all_three_classes_and_all_levels_of_occlusion(
    some: list[scenes.Scene],
) -> None:
    names = Counter(name for scene in some for name in scene.names)
    assert min(names[kind] for kind in ("Car", "Pedestrian", "Cyclist")) >= 8
    assert {int(level) for scene in some for level in scene.occlusion} == {0, 1, 2, 3}


def test_what_stands_behind_a_wall_is_hidden_and_the_wall_is_not() -> None:
    random = np.random.default_rng(0)
    ground = scenes.Ground()
    wall = shapes.block(0.2, 3.0, 3.0, shapes.WALL)
    man = shapes.block(0.3, 0.5, 1.0, shapes.CLOTH)
    placed = [
        scenes.Placed(kind="x", mesh=mesh, x=x, y=y, yaw=0.0, scale=np.ones(3), albedo=1.0)
        for mesh, x, y in ((wall, 8, 0), (man, 12, 0), (man, 12, 6))
    ]
    floor = ground.mesh((-30.0, 110.0), rough=0.0, random=random)
    everything = scenes.surfaces(ground, floor, placed)
    sent = scanner.rays(random, np.pi)
    echoes = scanner.scan(random, sent, everything, reach=100)
    alone = scanner.unobstructed(sent, everything, np.array([1, 2, 3]))
    assert echoes.struck[2] == 0
    assert alone[1] > 100
    assert echoes.struck[[1, 3]] == pytest.approx(alone[[0, 2]], rel=0.1)


# --- Scanner --------------------------------------------------------------------------------------


def test_on_flat_ground_the_rings_lie_where_the_beams_meet_it() -> None:
    random = np.random.default_rng(0)
    ground = scenes.Ground()
    floor = ground.mesh((-60.0, 110.0), rough=0.0, random=random)
    sent = scanner.rays(random, np.pi)
    points = scanner.scan(random, sent, scenes.surfaces(ground, floor, []), reach=100).points
    near = points[np.hypot(points[:, 0], points[:, 1]) < 20]
    assert abs(near[:, 2].mean() + scenes.HEIGHT) < 0.01
    # The steepest laser, 0.12 m above the origin, meets it 4 m ahead.
    steepest = (scenes.HEIGHT + 0.12) / np.tan(np.radians(25))
    assert np.hypot(near[:, 0], near[:, 1]).min() == pytest.approx(steepest, abs=0.12)


def test_range_noise_has_the_deviation_that_is_said() -> None:
    random = np.random.default_rng(0)
    wall = shapes.block(0.2, 60.0, 30.0, shapes.WALL)
    placed = scenes.Placed(kind="x", mesh=wall, x=10.1, y=0, yaw=0.0, scale=np.ones(3), albedo=1.0)
    ground = scenes.Ground()
    floor = ground.mesh((-60.0, 110.0), rough=0.0, random=random)
    sent = scanner.rays(random, np.radians(4))
    echoes = scanner.scan(random, sent, scenes.surfaces(ground, floor, [placed]), reach=100)
    on_wall = echoes.points[echoes.objects == 1]
    level = on_wall[np.abs(on_wall[:, 2]) < 1]
    assert level[:, 0].mean() == pytest.approx(10.0, abs=0.01)
    assert level[:, 0].std() == pytest.approx(scanner.RANGE_NOISE, rel=0.15)


def test_rays_pass_through_the_windows_of_a_car() -> None:
    random = np.random.default_rng(0)
    mesh = shapes.car(random)
    above = mesh.triangles[mesh.materials == shapes.GLASS].ravel()
    assert mesh.vertices[above, 2].min() > 0.4 * mesh.size[2]
    ground = scenes.Ground()
    car = scenes.Placed(kind="Car", mesh=mesh, x=10, y=0, yaw=1.5, scale=np.ones(3), albedo=1.0)
    floor = ground.mesh((-30.0, 110.0), rough=0.0, random=random)
    sent = scanner.rays(random, np.pi)
    echoes = scanner.scan(random, sent, scenes.surfaces(ground, floor, [car]), reach=100)
    points = np.bincount(echoes.objects, minlength=2)[1]
    assert 0.5 * echoes.struck[1] < points < 0.95 * echoes.struck[1]


@pytest.mark.skipif(not REAL.exists(), reason=f"no real frames in {REAL}")
def test_cars_have_as_many_points_for_their_angle_as_the_real_ones(
    some: list[scenes.Scene],
) -> None:
    def share(points: Array, box: Array) -> float:
        """Points against what a screen as large as the car, seen from the side, would take."""
        away = float(np.hypot(box[0], box[1]))
        turn = box[6] - np.arctan2(box[1], box[0])
        wide = box[3] * abs(np.sin(turn)) + box[4] * abs(np.cos(turn))
        rows = np.degrees(box[5] / away) / 0.36
        return float(within(points, box, 0.1).sum() / (rows * wide / away / scanner.AZIMUTH_STEP))

    real = []
    for key in ("000002", "000003", "000004"):
        points = np.fromfile(REAL / "velodyne" / f"{key}.bin", dtype=np.float32).reshape(-1, 4)
        real += [share(points, box) for name, _, box in labels(REAL, key) if name == "Car"]
    generated = [
        share(scene.points, box)
        for scene in some
        for name, box, level in zip(scene.names, scene.boxes, scene.occlusion, strict=True)
        if name == "Car" and level == 0 and 12 < box[0] < 55
    ]
    assert len(generated) > 10
    assert np.median(generated) == pytest.approx(np.median(real), rel=0.35)


# --- Sequences ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drive() -> list[scenes.SequenceFrame]:
    return list(scenes.make_sequence(np.random.default_rng(0), frames=3, speed=8.0))


def test_a_drive_begins_at_the_origin_and_goes_on_at_its_speed(
    drive: list[scenes.SequenceFrame],
) -> None:
    assert np.allclose(drive[0].pose, np.eye(4))
    for frame in drive:
        assert np.allclose(frame.pose[:3, :3] @ frame.pose[:3, :3].T, np.eye(3))
    step = np.linalg.norm(drive[2].pose[:3, 3] - drive[1].pose[:3, 3])
    assert step == pytest.approx(0.8, abs=0.02)
    assert [frame.seconds for frame in drive] == pytest.approx([0, 0.1, 0.2])


def test_in_the_world_objects_move_by_their_velocity(drive: list[scenes.SequenceFrame]) -> None:
    first, last = drive[0], drive[2]
    common = [number for number in first.ids if number in last.ids]
    moving = 0
    assert len(common) >= 10
    for number in common:
        a, b = list(first.ids).index(number), list(last.ids).index(number)
        assert first.names[a] == last.names[b]
        before = first.pose[:3, :3] @ first.boxes[a, :3] + first.pose[:3, 3]
        after = last.pose[:3, :3] @ last.boxes[b, :3] + last.pose[:3, 3]
        way = first.pose[:2, :2] @ first.velocity[a] * 0.2
        assert np.abs(after[:2] - before[:2] - way).max() < 0.02
        moving += bool(np.linalg.norm(way) > 0.05)
    assert moving >= 3


def test_what_stands_still_is_seen_at_one_place_from_every_pose(
    drive: list[scenes.SequenceFrame],
) -> None:
    from scipy.spatial import cKDTree

    def in_world(frame: scenes.SequenceFrame) -> Array:
        near = frame.points[np.linalg.norm(frame.points[:, :2], axis=1) < 20, :3]
        high = near[near[:, 2] > -1.0]
        return high @ frame.pose[:3, :3].T + frame.pose[:3, 3]

    first, last = in_world(drive[0]), in_world(drive[2])
    apart, _ = cKDTree(first).query(last)
    unmoved, _ = cKDTree(first).query(last + np.array([0.6, 0, 0]))
    assert np.median(apart) < 0.1
    assert np.median(apart) < np.median(unmoved)
