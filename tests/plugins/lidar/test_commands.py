"""`pegboard odometry`, `track` and `view`, on generated drives and on real scans."""

from __future__ import annotations

import csv
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner, Result

from pegboard.errors import DataError
from pegboard_lidar import commands, scenes, shapes
from pegboard_lidar.boxes import transformed
from pegboard_lidar.decoding import Detections
from pegboard_lidar.odometry import read_poses, write_poses
from pegboard_lidar.scans import write_bin
from pegboard_lidar.settings import LidarSettings

Array = Any
SETTINGS = LidarSettings()


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 3 scans, and beside it their true poses."""
    folder = tmp_path_factory.mktemp("drive")
    write_drive(folder, frames=3)
    return folder


def write_drive(folder: Path, *, frames: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenes, "library", lambda seed, share: shapes.library(seed, 0.05))
        made = scenes.make_sequence(np.random.default_rng(0), frames=frames, speed=10.0)
    # Names without leading zeros: 10 comes after 9, and not after 1.
    for number, frame in enumerate(made):
        write_bin(folder / "scans" / f"{8 + number}.bin", frame.points)
    write_poses(folder / "poses.txt", np.stack([frame.pose for frame in made]))


@pytest.fixture
def give(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Result]:
    """Return a function that gives a command in an empty project; errors come out as they are."""
    app = typer.Typer()
    commands.register(app)
    (tmp_path / "pegboard.toml").write_text('solution = "lidar"\n')
    monkeypatch.chdir(tmp_path)

    def run(*words: str | Path) -> Result:
        return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)

    return run


# --- odometry -------------------------------------------------------------------------------------


def test_odometry_writes_poses_and_a_picture_and_says_the_drift(
    give: Callable[..., Result], drive: Path, tmp_path: Path
) -> None:
    ended = give("odometry", drive / "scans", "--poses", drive / "poses.txt")
    assert ended.exit_code == 0
    said = ended.stdout.strip()
    assert said.startswith("3 scans, 2.0 m, drift ")
    assert float(said.split()[-2]) < 2.5
    found = read_poses(tmp_path / "odometry" / "poses.txt")
    assert found[2, 0, 3] == pytest.approx(2.0, abs=0.06)
    assert "<svg" in (tmp_path / "odometry" / "trajectory.svg").read_text()


@pytest.mark.parametrize(
    ("names", "words"),
    [([], "there is no scan"), (["a.txt"], "there is no scan"), (["a.bin"], "one scan alone")],
)
def test_a_folder_that_is_no_drive_is_one_sentence(
    tmp_path: Path, names: list[str], words: str
) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=words):
        commands.scans_in(tmp_path)


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        commands.scans_in(tmp_path / "nowhere")


def test_scans_go_by_the_numbers_in_their_names(tmp_path: Path) -> None:
    for name in ("10.pcd", "9.pcd", "b2.bin", "b10.bin", ".hidden.bin", "readme.txt"):
        (tmp_path / name).touch()
    names = [file.name for file in commands.scans_in(tmp_path)]
    assert names == ["9.pcd", "10.pcd", "b2.bin", "b10.bin"]


def test_too_few_true_poses_are_told_before_the_scans_are_read(
    give: Callable[..., Result], tmp_path: Path
) -> None:
    for number in range(3):
        (tmp_path / f"{number}.bin").write_bytes(b"no scan")
    write_poses(tmp_path / "poses.txt", np.eye(4)[None])
    with pytest.raises(DataError, match="1 poses for 3 scans"):
        give("odometry", ".", "--poses", "poses.txt")
    assert not (tmp_path / "odometry").exists()


# --- track ----------------------------------------------------------------------------------------

TURN = 0.02
"""Radians that the vehicle turns from scan to scan."""


def pose_at(number: int) -> Array:
    """Return the pose of a vehicle that drives 10 m a second."""
    cos, sin = np.cos(TURN * number), np.sin(TURN * number)
    pose = np.eye(4)
    pose[:2, :2] = [[cos, -sin], [sin, cos]]
    pose[0, 3] = 1.0 * number
    return pose


def found_in(number: int, *, velocity: bool = False) -> Detections:
    """Return a parked car and a cyclist who rides 5 m a second, in the scanner's frame."""
    still = [20.0, 5.0, -0.9, 4.0, 1.7, 1.5, 0.0]
    rides = [15.0, -4.0 + 0.5 * number, -0.8, 1.8, 0.6, 1.7, np.pi / 2]
    boxes = transformed(np.array([still, rides]), np.linalg.inv(pose_at(number)))
    turned = np.array([[0.0, 0.0], [0.0, 5.0]]) @ pose_at(number)[:2, :2]
    return Detections(
        boxes=boxes.astype(np.float32),
        scores=np.array([0.9, 0.8], dtype=np.float32),
        labels=np.array([0, 2]),
        velocity=turned.astype(np.float32) if velocity else None,
    )


def rows_of(poses: Array, *, velocity: bool = False) -> list[dict[str, Any]]:
    found = (found_in(number, velocity=velocity) for number in range(10))
    names = [f"{number:06d}" for number in range(10)]
    return list(commands.follow(SETTINGS, names, found, poses, 0.1))


@pytest.mark.parametrize("velocity", [False, True])
def test_a_parked_car_stands_still_though_the_scanner_drives(velocity: bool) -> None:
    rows = rows_of(np.stack([pose_at(number) for number in range(10)]), velocity=velocity)
    assert [(row["id"], row["class"]) for row in rows] == [(1, "Car"), (2, "Cyclist")] * 10
    speeds = np.array([row["speed"] for row in rows[2:]], dtype=float).reshape(-1, 2)
    np.testing.assert_allclose(speeds, np.tile([0.0, 5.0], (9, 1)), atol=0.02)
    # The box is where the scanner sees it, which comes nearer.
    assert rows[0]["x"] == pytest.approx(20)
    assert rows[18]["x"] < 12.5


def test_the_speed_of_an_object_seen_once_is_told_by_the_detector_alone() -> None:
    poses = np.stack([pose_at(number) for number in range(10)])
    assert [row["speed"] for row in rows_of(poses)[:2]] == ["", ""]
    assert [row["speed"] for row in rows_of(poses, velocity=True)[:2]] == [0.0, 5.0]


def test_without_poses_the_parked_car_would_drive() -> None:
    rows = rows_of(np.tile(np.eye(4), (10, 1, 1)))
    assert max(row["speed"] or 0 for row in rows if row["class"] == "Car") > 8


class Pretended:
    """In the place of a bundle: finds what `found_in` says, scan after scan."""

    def __init__(self) -> None:
        self.settings = SETTINGS
        self.numbers: Iterator[int] = iter(range(10))

    def __call__(self, points: Array, where: str) -> Detections:
        return found_in(next(self.numbers))


def test_track_writes_a_table(
    give: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for number in range(10):
        write_bin(tmp_path / "scans" / f"{number}.bin", np.ones((5, 4), dtype=np.float32))
    write_poses(tmp_path / "poses.txt", np.stack([pose_at(number) for number in range(10)]))
    monkeypatch.setattr(commands, "open_detector", lambda folder, bundle: Pretended())
    ended = give("track", "scans", "--poses", "poses.txt", "--output", "out/tracks.csv")
    assert ended.stdout == "2 objects in 10 scans\n"
    rows = list(csv.DictReader((tmp_path / "out" / "tracks.csv").read_text().splitlines()))
    assert len(rows) == 20
    assert list(rows[0]) == [
        *("frame", "id", "class", "score"),
        *("x", "y", "z", "length", "width", "height", "yaw", "speed"),
    ]
    assert rows[0] | {"yaw": ""} == {
        **{"frame": "0", "id": "1", "class": "Car", "score": "0.9", "x": "20.0", "y": "5.0"},
        **{"z": "-0.9", "length": "4.0", "width": "1.7", "height": "1.5", "yaw": "", "speed": ""},
    }


# --- view -----------------------------------------------------------------------------------------


@pytest.fixture
def no_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)


@pytest.fixture
def real(test_data: Path) -> Path:
    folder = test_data / "lidar" / "kitti_object_mini"
    if not folder.is_dir():
        pytest.skip(f"no real scans at {folder}")
    return folder


def colored(picture: Path, color: tuple[int, int, int]) -> int:
    """Count the pixels of about a colour."""
    pixels = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    return int((np.abs(pixels - color).max(axis=-1) < 40).sum())


@pytest.mark.usefixtures("no_screen")
def test_without_a_screen_a_scan_becomes_a_picture(
    give: Callable[..., Result], real: Path, tmp_path: Path
) -> None:
    ended = give("view", real / "training" / "velodyne" / "000003.bin")
    assert ended.stderr == "There is no screen (neither DISPLAY nor WAYLAND_DISPLAY is set).\n"
    assert ended.stdout == "The picture is view-000003.png; no bundle looked at it.\n"
    picture = np.asarray(Image.open(tmp_path / "view-000003.png"))
    assert picture.std() > 5


@pytest.mark.usefixtures("no_screen")
def test_a_frame_of_the_project_is_shown_with_its_labels_and_what_a_bundle_finds(
    give: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, real: Path, tmp_path: Path
) -> None:
    from pegboard_lidar.pictures import FOUND, TRUE

    (tmp_path / "pegboard.toml").write_text(f'solution = "lidar"\n[data]\npath = "{real}"\n')
    give("view", "000003", "--output", "labels.png")
    assert colored(tmp_path / "labels.png", TRUE) > 20
    assert colored(tmp_path / "labels.png", FOUND) == 0
    pretended = Pretended()
    pretended.settings = LidarSettings(data=SETTINGS.data.model_copy(update={"path": real}))
    monkeypatch.setattr(commands, "open_detector", lambda folder, bundle: pretended)
    ended = give("view", "000003", "--bundle", "some", "--output", "both.png")
    assert ended.stdout == "The picture is both.png; 2 objects found.\n"
    assert colored(tmp_path / "both.png", TRUE) > 20
    assert colored(tmp_path / "both.png", FOUND) > 20


@pytest.mark.usefixtures("no_screen")
def test_what_is_neither_a_file_nor_a_frame_is_one_sentence(give: Callable[..., Result]) -> None:
    with pytest.raises(DataError, match=r"neither a file nor a frame .*\(nothing\)"):
        give("view", "nothing")


@pytest.mark.parametrize("variable", ["DISPLAY", "WAYLAND_DISPLAY"])
@pytest.mark.usefixtures("no_screen")
def test_where_there_is_a_screen_the_viewer_opens(
    give: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, variable: str, tmp_path: Path
) -> None:
    import open3d

    shown: list[Any] = []

    class Viewer:
        def create_window(self, window_name: str) -> bool:
            shown.append(window_name)
            return True

        def add_geometry(self, geometry: Any) -> None:
            shown.append(geometry)

        def run(self) -> None: ...

        def destroy_window(self) -> None: ...

    monkeypatch.setenv(variable, ":0")
    monkeypatch.setattr(open3d.visualization, "Visualizer", Viewer)
    monkeypatch.setattr(commands, "open_detector", lambda folder, bundle: Pretended())
    write_bin(tmp_path / "one.bin", np.ones((50, 4), dtype=np.float32))
    give("view", "one.bin", "--bundle", "some")
    title, cloud, lines = shown
    assert title == "pegboard view one"
    assert len(cloud.points) == 50
    assert len(lines.lines) == 2 * 12
    sides = {
        round(float(np.linalg.norm(np.subtract(*lines.get_line_coordinate(n)))), 1)
        for n in range(24)
    }
    assert sides == {4.0, 1.7, 1.5, 1.8, 0.6}
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.usefixtures("no_screen")
def test_where_no_window_opens_a_picture_is_written(
    give: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(commands, "show", lambda seen: False)
    write_bin(tmp_path / "one.bin", np.ones((50, 4), dtype=np.float32))
    assert "The picture is view-one.png" in give("view", "one.bin").stdout
    assert (tmp_path / "view-one.png").is_file()


# --- With a bundle --------------------------------------------------------------------------------

SMALL = """solution = "lidar"
[data]
tiny = true
[model]
features = 4
channels = [4, 4, 4]
blocks = [1, 1, 1]
[train]
epochs = 1
max_steps = 2
devices = 1
[deploy]
targets = ["onnx"]
golden = 1
reference = 2
"""


@pytest.mark.slow
def test_the_bundle_of_a_project_tracks_a_drive_and_is_viewed(
    make_project: Callable[..., Path],
    pegboard: Callable[..., subprocess.CompletedProcess[str]],
    drive: Path,
) -> None:
    folder = make_project(SMALL)
    ended = pegboard("export", folder=folder)
    assert ended.returncode == 0, ended.stderr
    ended = pegboard("track", drive / "scans", folder=folder)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.endswith(" objects in 3 scans\n")
    assert (folder / "tracks.csv").read_text().startswith("frame,id,class,score,x,y,z,")
    scan = drive / "scans" / "9.bin"
    ended = pegboard("view", scan, folder=folder, DISPLAY="", WAYLAND_DISPLAY="")
    assert ended.returncode == 0, ended.stderr
    assert "There is no screen" in ended.stderr
    assert " objects found." in ended.stdout
    assert (folder / "view-9.png").is_file()
    key = next((folder / "data").glob("scenes-*/training/velodyne/*.bin")).stem
    ended = pegboard("view", key, folder=folder, DISPLAY="", WAYLAND_DISPLAY="")
    assert ended.returncode == 0, ended.stderr


def test_tracking_without_a_bundle_is_one_sentence(
    make_project: Callable[..., Path],
    pegboard: Callable[..., subprocess.CompletedProcess[str]],
    drive: Path,
) -> None:
    ended = pegboard("track", drive / "scans", folder=make_project('solution = "lidar"\n'))
    assert ended.returncode == 2
    assert "there is no bundle yet" in ended.stderr
