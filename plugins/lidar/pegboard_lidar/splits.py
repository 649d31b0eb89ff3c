"""Which frames train, which choose the checkpoint and which measure: drives stay whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from pegboard.records import Split
from pegboard.splits import SPLITS
from pegboard_lidar.frames import Frame
from pegboard_lidar.settings import LidarData


def assign(frames: Sequence[Frame], data: LidarData) -> dict[Split, list[Frame]]:
    """Say which split each frame belongs to; frames of one drive stay together.

    A split that the data set gives is kept. Where it gives all of its frames to train and
    validation and none to test, as KITTI and nuScenes do, its validation is what measures, as in
    the papers on them, and another one is drawn from its train. The rest is drawn by
    `data.test_share`, `data.validation_share` and `data.split_seed`.

    Returns:
        Lists that share no frame, each in the order of `frames`.
    """
    given = _given(frames)
    places = {name: split for name, split in given.items() if split is not None}
    free = [name for name, split in given.items() if split is None]
    if not free and set(places.values()) == {"train", "validation"}:
        free = [name for name, split in places.items() if split == "train"]
        places = {name: "test" for name, split in places.items() if split == "validation"}
    sizes = Counter(_name(frame) for frame in frames)
    free = [free[i] for i in np.random.default_rng(data.split_seed).permutation(len(free))]
    wanted: dict[Split, float] = {"test": data.test_share, "validation": data.validation_share}
    for split, share in wanted.items():
        if split not in places.values():
            taken = _part(free, sizes, share)
            places |= dict.fromkeys(taken, split)
            free = free[len(taken) :]
    places |= dict.fromkeys(free, "train")
    return {split: [frame for frame in frames if places[_name(frame)] == split] for split in SPLITS}


def _name(frame: Frame) -> str:
    return frame.sequence or f"\0{frame.key}"  # A frame that stands alone is no drive.


def _given(frames: Sequence[Frame]) -> dict[str, Split | None]:
    """Return the given split of each drive in the order of appearance.

    Of several it is the one that must not have been trained on.
    """
    splits: dict[str, Split | None] = {}
    for frame in frames:
        known = splits.setdefault(_name(frame), frame.split)
        if frame.split and (known is None or SPLITS.index(frame.split) > SPLITS.index(known)):
            splits[_name(frame)] = frame.split
    return splits


def _part(names: Sequence[str], sizes: Mapping[str, int], share: float) -> list[str]:
    """Take the first drives that hold a share of the frames, never all of them."""
    wanted = max(1, round(sum(sizes.values()) * share)) if share else 0
    taken: list[str] = []
    while sum(sizes[name] for name in taken) < wanted and len(taken) < len(names) - 1:
        taken.append(names[len(taken)])
    return taken
