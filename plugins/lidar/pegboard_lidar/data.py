"""From files to splits: which frames train, validate and test, and what a sample is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from pegboard.errors import DataError
from pegboard.files import digest_of
from pegboard.findings import finding_of
from pegboard.progress import Progress
from pegboard.records import Array, Batch, Finding, Sample, Split
from pegboard.splits import Kept
from pegboard_lidar import kitti
from pegboard_lidar.database import database_of, is_made_of, write_database
from pegboard_lidar.frames import IGNORED, NEIGHBOURS, PADDING, Frame, Labels
from pegboard_lidar.layouts import read_frame_labels, read_frames, read_points
from pegboard_lidar.scans import finite
from pegboard_lidar.settings import LidarData, LidarSettings
from pegboard_lidar.splits import assign

SCENES_SEED = 20261126
TINY_SCENES = 12

SCAN_BYTES = 600_000
"""About what a frame takes in memory: the points in the picture."""

# --- Where the scans are --------------------------------------------------------------------------


def source(data: LidarData) -> Path:
    """Return the user's folder, or the place of the generated one."""
    if data.path is not None:
        return data.path
    scenes = TINY_SCENES if data.tiny else data.scenes
    return data.folder / f"scenes-{digest_of([scenes, data.tiny, SCENES_SEED])[:8]}"


def located(data: LidarData) -> LidarData:
    """Return the settings with the generated data's path where the user gave none."""
    return data if data.path is not None else data.model_copy(update={"path": source(data)})


def prepare(settings: LidarSettings, progress: Progress) -> list[Path]:
    """Generate the embedded scenes, once, and cut the objects of the train split out.

    Returns:
        What the splits are read from.

    Raises:
        DataError: There is nothing where the settings say.
    """
    data = settings.data
    path = source(data)
    if data.path is None and not path.exists():
        from pegboard_lidar.scenes import write_scenes

        scenes = TINY_SCENES if data.tiny else data.scenes
        write_scenes(path, scenes=scenes, seed=SCENES_SEED, tiny=data.tiny, progress=progress)
    frames = splits_of(data)["train"]  # Says what is missing, before anything is trained.
    if any(settings.train.augment.pasted):
        database, made_of = database_of(data), _digest(frames)
        if not is_made_of(database, made_of):
            write_database(database, FrameDataset(frames, data), progress, frames=made_of)
    return [path]


def _digest(frames: Sequence[Frame]) -> str:
    """Return what changes with the frames and their labels.

    A frame more may send others from train to test: their objects must not be trained on.
    """
    files = ((frame.key, frame.labels.stat()) for frame in frames if frame.labels)
    return digest_of([(key, found.st_size, found.st_mtime_ns) for key, found in files])


def splits_of(data: LidarData) -> dict[Split, list[Frame]]:
    """Return the frames of each split that have labels."""
    data = located(data)
    return assign([frame for frame in read_frames(data) if frame.labels], data)


def load(settings: LidarSettings, split: Split) -> FrameDataset:
    """Read the frames of a split.

    Raises:
        DataError: It has none.
    """
    frames = splits_of(settings.data)[split]
    if not frames:
        raise DataError(
            f"the {split} split has no labelled frame",
            where="data",
            remedy="label more frames, or change the shares of the splits",
        )
    return FrameDataset(frames, settings.data)


def check(settings: LidarSettings) -> list[Finding]:
    """See `checks.py`."""
    from pegboard_lidar import checks

    data = located(settings.data)
    try:
        frames = read_frames(data)
    except DataError as error:
        return [finding_of(error)]
    labelled = [frame for frame in frames if frame.labels]
    return checks.check(data, frames, assign(labelled, data))


# --- Samples --------------------------------------------------------------------------------------


class FrameDataset(Dataset[Sample]):
    """Frames as samples: points, and the objects among them.

    Args:
        frames: Which ones.
        data: Say the classes and the range.
    """

    def __init__(self, frames: Sequence[Frame], data: LidarData) -> None:
        self.frames, self.settings = list(frames), data
        self._kept: Kept[Sample] = Kept(len(self.frames), SCAN_BYTES)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Sample:
        """Return a frame.

        Inputs: `points` float32 (N, 4). Targets, of M objects with their middle in the range:
        `boxes` float32 (M, 7), `labels` int64 (M,), places in `data.classes` or -1 where it may
        be found or not, `names`, `difficulty` int64 (M,), `velocity` float32 (M, 2), and
        `projection` float64 (3, 4), from the scanner's frame to pixels, NaN without a picture; and
        the `sequence` that the frame belongs to, empty where it stands alone.
        """
        return self._kept.get(index, self._read)

    def _read(self, index: int) -> Sample:
        frame, data = self.frames[index], self.settings
        points = finite(read_points(frame, data))
        labels = read_frame_labels(frame, data)
        projection = np.full((3, 4), np.nan)
        if frame.calibration is not None:
            calibration = kitti.read_calibration(frame.calibration)
            projection = calibration.projection @ calibration.matrix
            if data.picture_only:
                points = points[in_picture(points, projection)]
        return Sample(
            inputs={"points": np.ascontiguousarray(points, dtype=np.float32)},
            targets={
                **_objects(labels, data),
                "projection": projection,
                "sequence": frame.sequence,
            },
            key=frame.key,
        )


def in_picture(points: Array, projection: Array) -> Array:
    """Tell which points (N, 4) the camera sees, bool (N,)."""
    across, down, depth = (points[:, :3] @ projection[:, :3].T + projection[:, 3]).T
    width, height = kitti.PICTURE
    # Multiplied out: a point beside the camera has a depth of zero.
    is_across = (across >= 0) & (across < width * depth)
    return (depth > 0) & is_across & (down >= 0) & (down < height * depth)  # type: ignore[no-any-return]


def _objects(labels: Labels, data: LidarData) -> dict[str, Any]:
    """Return the objects that count for something, by name of target."""
    places = {name: place for place, name in enumerate(data.classes)}
    # Who looks for vans, too, says so.
    beside = [name for name, like in NEIGHBOURS.items() if like in places and name not in places]
    places |= dict.fromkeys(beside, IGNORED)
    low, high = np.array(data.range[:2]), np.array(data.range[3:5])
    middles = labels.boxes[:, :2]
    is_inside = np.all((middles >= low) & (middles < high), axis=1)
    kept = [i for i, name in enumerate(labels.names) if name in places and is_inside[i]]
    return {
        "boxes": labels.boxes[kept].astype(np.float32),
        "labels": np.array([places[labels.names[i]] for i in kept], dtype=np.int64),
        "names": [labels.names[i] for i in kept],
        "difficulty": kitti.difficulty(labels)[kept],
        "velocity": labels.velocity[kept].astype(np.float32),
    }


# --- Batches --------------------------------------------------------------------------------------


def collate(samples: Sequence[Sample]) -> Batch:
    """Put B scans beside one another.

    Returns:
        `points` (B, N, 4), the shorter ones continued with NaN, which counts for nothing; targets
        `boxes` (B, M, 7), `labels` (B, M) and `velocity` (B, M, 2), continued with label -2; the
        rest as lists.
    """
    targets = {name: [sample.targets[name] for sample in samples] for name in samples[0].targets}
    return Batch(
        inputs={"points": _padded([sample.inputs["points"] for sample in samples], np.nan)},
        targets={
            **targets,
            "boxes": _padded(targets["boxes"], 1.0),
            "labels": _padded(targets["labels"], PADDING),
            "velocity": _padded(targets["velocity"], np.nan),
        },
        keys=[sample.key for sample in samples],
    )


def _padded(arrays: Sequence[Array], value: float) -> torch.Tensor:
    """Stack arrays of unlike lengths, the shorter ones continued with `value`; never empty."""
    longest = max(1, *(len(array) for array in arrays))
    result = np.full((len(arrays), longest, *arrays[0].shape[1:]), value, dtype=arrays[0].dtype)
    for row, array in zip(result, arrays, strict=True):
        row[: len(array)] = array
    return torch.from_numpy(result)
