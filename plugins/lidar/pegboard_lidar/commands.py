"""`pegboard odometry`, `pegboard track` and `pegboard view`: drives and scans from the disk."""

from __future__ import annotations

import csv
import io
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pegboard.cli.options import ProjectFolder, project_folder
from pegboard.errors import BundleError, DataError
from pegboard.logs import new_progress

if TYPE_CHECKING:
    from pegboard.progress import Progress
    from pegboard.records import Array
    from pegboard_lidar.decoding import Detections
    from pegboard_lidar.frames import Labels
    from pegboard_lidar.settings import LidarSettings
    from pegboard_lidar.tracking import Tracker

SECONDS = 0.1
"""Between two scans of a scanner that turns at 10 Hz."""

FASTEST = {"pedestrian": 3.0, "cyclist": 12.0, "bicycle": 12.0}
"""Metres a second, of classes in small letters."""
FASTEST_OTHERS = 40.0
"""Of every other class: a car on a highway."""
JITTER = 0.5
"""Metres by which the middle of a box that stands still moves from scan to scan."""

Scans = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="Scans of one drive, in the order of their names.")
]
MethodOption = Annotated[
    Literal["icp", "kiss"],
    typer.Option(help="Open3D's ICP, or KISS-ICP (pip install 'pegboard-lidar[odometry]')."),
]
Bundle = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="A bundle; default: that of the project's newest run."),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (odometry, track, view):
        app.command()(command)


# --- pegboard odometry ----------------------------------------------------------------------------


def odometry(
    folder: Scans,
    method: MethodOption = "icp",
    poses: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The true poses, of the scanner: 12 numbers a line, a line a scan. KITTI's are "
            "of the camera.",
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Where the results are written.")
    ] = Path("odometry"),
) -> None:
    """Find where the scanner went: poses.txt, trajectory.svg, length and drift."""
    from pegboard.files import atomic_write
    from pegboard_lidar import odometry as ways

    files = scans_in(folder)
    true = None if poses is None else _poses_from(poses, len(files))
    progress = new_progress()
    found = _poses_by_odometry(files, method, progress)
    ways.write_poses(output / "poses.txt", found)
    atomic_write(output / "trajectory.svg", ways.draw_trajectory(found, true))
    said = f"{len(files)} scans, {ways.length_of(found):.1f} m"
    if true is not None:
        said += f", drift {100 * ways.drift(found, true):.2f} %"
    typer.echo(said)
    progress.say(f"poses.txt and trajectory.svg are in {output}")


def scans_in(folder: Path) -> list[Path]:
    """Return the scans of a drive in the order of their names, `2.bin` before `10.bin`.

    Raises:
        DataError: There are fewer than two.
    """
    from pegboard_lidar.scans import is_scan

    if not folder.is_dir():
        raise DataError("there is no folder", where=str(folder), remedy="name one that holds scans")
    found = [
        file
        for file in folder.iterdir()
        if file.is_file() and is_scan(file) and not file.name.startswith(".")
    ]
    if len(found) < 2:
        raise DataError(
            "there is one scan alone" if found else "there is no scan",
            where=str(folder),
            remedy="name the folder that the scans of a drive lie in",
        )
    return sorted(found, key=_natural)


def _natural(file: Path) -> list[tuple[int, int, str]]:
    """Numbers go by their value, before letters."""
    parts = re.findall(r"(\d+)|(\D+)", file.name)
    return [(0, int(number), "") if number else (1, 0, text) for number, text in parts]


def _poses_from(path: Path, count: int) -> Array:
    """Read a pose for each of `count` scans."""
    from pegboard_lidar.odometry import read_poses

    found = read_poses(path)
    if len(found) != count:
        raise DataError(
            f"there are {len(found)} poses for {count} scans",
            where=str(path),
            remedy="give one line for each scan",
        )
    return found


def _poses_by_odometry(
    files: Sequence[Path], method: Literal["icp", "kiss"], progress: Progress
) -> Array:
    from pegboard_lidar import odometry as ways
    from pegboard_lidar.scans import read_scan

    scans = (read_scan(file) for file in progress.track(files, "odometry", len(files)))
    return ways.odometry(scans, method)


# --- pegboard track -------------------------------------------------------------------------------


def track(
    folder: Scans,
    poses: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Poses of the scanner, 12 numbers a line, a line a scan; default: odometry.",
        ),
    ] = None,
    method: MethodOption = "icp",
    seconds: Annotated[float, typer.Option(help="Seconds between scans.", min=0.001)] = SECONDS,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The table that is written.")
    ] = Path("tracks.csv"),
    project: ProjectFolder = None,
    bundle: Bundle = None,
) -> None:
    """Follow objects from scan to scan: a table with a number for each."""
    from pegboard.files import atomic_write
    from pegboard_lidar.scans import name_of, read_scan

    files = scans_in(folder)
    progress = new_progress()
    # The bundle first: odometry takes a while.
    detector = open_detector(project_folder(project), bundle)
    if poses is None:
        placed = _poses_by_odometry(files, method, progress)
    else:
        placed = _poses_from(poses, len(files))
    # One at a time: a drive does not fit into memory.
    scans = (read_scan(file) for file in progress.track(files, "track", len(files)))
    found = (detector(points, str(file)) for file, points in zip(files, scans, strict=True))
    names = [name_of(file) for file in files]
    rows = list(follow(detector.settings, names, found, placed, seconds))
    atomic_write(output, _table(rows))
    count = len({row["id"] for row in rows})
    typer.echo(f"{count} objects in {len(files)} scans")
    progress.say(f"the table is {output}")


def follow(
    settings: LidarSettings,
    names: Sequence[str],
    found: Iterator[Detections],
    poses: Array,
    seconds: float,
) -> Iterator[dict[str, Any]]:
    """Yield a row of the table for each object of each scan.

    Args:
        settings: Say the classes.
        names: Of the T scans.
        found: What was found in each, in the scanner's frame.
        poses: (T, 4, 4): in the frame of the scanner, standing things would move.
        seconds: Between scans.
    """
    tracker = _tracker(settings, seconds)
    for number, (name, detections) in enumerate(zip(names, found, strict=True)):
        identities = tracker.update(placed_at(poses[number], detections), number * seconds)
        tracks = {one.identity: one for one in tracker.tracks}
        for index, identity in enumerate(identities.tolist()):
            # The way of an object that was seen once tells no speed.
            known = tracks[identity].count > 1 or detections.velocity is not None
            velocity = tracks[identity].velocity
            box = (round(float(value), 3) for value in detections.boxes[index])
            yield {
                "frame": name,
                "id": identity,
                "class": settings.data.classes[int(detections.labels[index])],
                "score": round(float(detections.scores[index]), 4),
                **dict(zip(_BOX, box, strict=True)),
                "speed": round(float((velocity**2).sum() ** 0.5), 2) if known else "",
            }


def _tracker(settings: LidarSettings, seconds: float) -> Tracker:
    """Return a tracker that lets each class go as far as it can in that time."""
    from pegboard_lidar.tracking import Tracker

    fastest = [FASTEST.get(name.lower(), FASTEST_OTHERS) for name in settings.data.classes]
    return Tracker(
        max_distance=[JITTER + speed * seconds for speed in fastest],
        max_age=max(1.0, 2.5 * seconds),  # A slow scanner may miss an object twice, too.
    )


def placed_at(pose: Array, detections: Detections) -> Detections:
    """Return detections in the frame that a pose (4, 4) takes them to."""
    from pegboard_lidar.boxes import transformed

    velocity = detections.velocity
    return replace(
        detections,
        boxes=transformed(detections.boxes, pose),
        velocity=None if velocity is None else velocity @ pose[:2, :2].T,
    )


_BOX = ("x", "y", "z", "length", "width", "height", "yaw")
_COLUMNS = ("frame", "id", "class", "score", *_BOX, "speed")


def _table(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


# --- pegboard view --------------------------------------------------------------------------------


def view(
    scan: Annotated[
        str,
        typer.Argument(metavar="SCAN-OR-KEY", help="A file, or the key of a frame of the project."),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="The picture; default: view-KEY.png, here."
        ),
    ] = None,
    project: ProjectFolder = None,
    bundle: Bundle = None,
) -> None:
    """Look at a scan with what is labelled (blue) and what the newest bundle finds (orange)."""
    folder = project_folder(project)
    settings, find = _finder(folder, bundle)
    seen = _seen(scan, settings)
    if find is not None:
        seen = replace(seen, found=find(seen.points, seen.name))
    if output is None and has_screen() and show(seen):
        return
    if output is None and not has_screen():
        typer.echo("There is no screen (neither DISPLAY nor WAYLAND_DISPLAY is set).", err=True)
    path = output or Path(f"view-{seen.name.replace('/', '-')}.png")
    _write_picture(path, settings, seen)
    typer.echo(f"The picture is {path}; {_count(seen.found)}.")


def _count(found: Detections | None) -> str:
    return "no bundle looked at it" if found is None else f"{len(found.boxes)} objects found"


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A scan that is looked at."""

    name: str
    """Of the file, or the key."""
    points: Array
    """(N, 4)."""
    labels: Labels | None = None
    """None where nobody labelled it."""
    found: Detections | None = None
    """What a bundle found; None without one."""


def _finder(
    folder: Path, bundle: Path | None
) -> tuple[LidarSettings, Callable[[Array, str], Detections] | None]:
    """Return settings, and the detector where there is a bundle."""
    from pegboard.cli.options import open_project
    from pegboard.cli.predict import newest_bundle

    if bundle is None:
        try:
            bundle = newest_bundle(folder)
        except BundleError:
            settings: Any = open_project(folder, ()).settings
            return settings, None
    detector = open_detector(folder, bundle)
    return detector.settings, detector


def _seen(scan: str, settings: LidarSettings) -> Seen:
    """Read a file, or else the frame of that key.

    Raises:
        DataError: There is neither.
    """
    from pegboard_lidar.scans import name_of, read_scan

    path = Path(scan)
    if path.is_file():
        return Seen(name=name_of(path), points=read_scan(path))
    from pegboard_lidar.data import located  # Waits for torch.
    from pegboard_lidar.layouts import read_frame_labels, read_frames, read_points

    data = located(settings.data)
    frames = read_frames(data) if data.path is not None and data.path.exists() else []
    frame = next((frame for frame in frames if frame.key == scan), None)
    if frame is None:
        raise DataError(
            "there is neither a file nor a frame of that name",
            where=scan,
            remedy="name a scan's file, or a key as 'pegboard check' writes it",
        )
    labels = read_frame_labels(frame, data) if frame.labels or frame.tokens else None
    return Seen(name=frame.key, points=read_points(frame, data), labels=labels)


def has_screen() -> bool:
    """Whether a window can be opened here."""
    if not sys.platform.startswith("linux"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def show(seen: Seen) -> bool:
    """Open Open3D's viewer until it is closed; False where it opens no window."""
    from pegboard_lidar import pictures
    from pegboard_lidar.scans import finite
    from pegboard_lidar.steps import cloud_of

    cloud = cloud_of(finite(seen.points))
    import open3d

    viewer = open3d.visualization.Visualizer()
    if not viewer.create_window(window_name=f"pegboard view {seen.name}"):
        return False
    viewer.add_geometry(cloud)
    for some, color in ((seen.labels, pictures.TRUE), (seen.found, pictures.FOUND)):
        if some is not None and len(some.boxes):
            viewer.add_geometry(_lines(some.boxes, color))
    viewer.run()
    viewer.destroy_window()
    return True


def _lines(boxes: Array, color: tuple[int, int, int]) -> Any:
    """Return the edges of boxes (M, 7) as Open3D's lines."""
    import numpy as np
    import open3d

    from pegboard_lidar.boxes import corners
    from pegboard_lidar.pictures import EDGES

    edges = np.array(EDGES) + 8 * np.arange(len(boxes))[:, None, None]  # (M, 12, 2)
    lines = open3d.geometry.LineSet(
        open3d.utility.Vector3dVector(corners(boxes).reshape(-1, 3)),
        open3d.utility.Vector2iVector(edges.reshape(-1, 2).astype(np.int32)),
    )
    lines.paint_uniform_color([value / 255 for value in color])
    return lines


def _write_picture(path: Path, settings: LidarSettings, seen: Seen) -> None:
    from pegboard.files import atomic_write
    from pegboard_lidar.pictures import birds_eye, png_bytes

    if path.suffix.lower() != ".png":
        raise DataError("the picture is no PNG", where=str(path), remedy="give a name with .png")
    labels, found, classes = seen.labels, seen.found, settings.data.classes
    picture = birds_eye(
        settings,
        seen.points,
        None if labels is None else labels.boxes,
        None if found is None else found.boxes,
        true_names=() if labels is None else labels.names,
        found_names=() if found is None else [classes[label] for label in found.labels],
    )
    atomic_write(path, png_bytes(picture))


# --- What a bundle finds --------------------------------------------------------------------------


def open_detector(folder: Path, bundle: Path | None) -> Detector:
    """Open a bundle as `pegboard predict` does.

    Raises:
        BundleError: There is none, or it is damaged.
    """
    from pegboard.answering import Answerer
    from pegboard.bundle import read_bundle
    from pegboard.cli.predict import board_for, newest_bundle
    from pegboard.serving.deployment import resolve_settings
    from pegboard.settings import Sources

    opened = read_bundle(bundle or newest_bundle(folder))
    board = board_for(opened, folder)
    settings: Any = resolve_settings(board, opened, Sources(), folder)
    chosen = opened.chosen()
    predictor = opened.load_predictor(board.collect("deploy_targets"), chosen)
    answerer = Answerer(board, settings, predictor, opened.thresholds, opened.signature)
    return Detector(answerer=answerer, settings=settings, target=chosen.name)


@dataclass(frozen=True, kw_only=True)
class Detector:
    """A bundle that takes scans."""

    answerer: Any
    """The core's `Answerer`."""
    settings: LidarSettings
    """As the bundle carries them."""
    target: str
    """What runs it: `onnx/fp32`."""

    def __call__(self, points: Array, where: str) -> Detections:
        """Return the objects in a scan (N, 4) above the bundle's thresholds.

        Raises:
            DataError: The scan, which `where` names, has no point.
        """
        from pegboard_lidar.deploy import reported
        from pegboard_lidar.scans import finite

        points = finite(points)
        if not len(points):
            raise DataError("the scan has no point", where=where, remedy="take it out")
        began = time.perf_counter()
        outputs = self.answerer.infer({"points": points[None]})
        self._tell(time.perf_counter() - began)
        first = {name: array[0] for name, array in outputs.items()}
        return reported(self.settings, first, self.answerer.thresholds)

    def _tell(self, seconds: float) -> None:
        """Let hooks know that a scan was answered, as `predict` and `serve` do."""
        from pegboard.records import AnswerEvent

        event = AnswerEvent(
            solution=self.settings.solution, count=1, seconds=seconds, target=self.target
        )
        self.answerer.board.hook.after_answer(settings=self.settings, event=event)
