"""Six real frames learnt by heart: geometry, loss and decoding agree."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pegboard.lifecycle import open_run, run_stages
from pegboard.progress import SilentProgress
from pegboard.project import open_project
from pegboard.stages.evaluate import read_evaluation
from pegboard_lidar import metrics

KITTI = (
    Path(os.environ.get("PEGBOARD_TEST_DATA", Path(__file__).parents[4] / "shared" / "data"))
    / "lidar"
    / "kitti_object_mini"
).resolve()

SETTINGS = """solution = "lidar"
[data]
path = "{path}"
[train]
epochs = 80
keep = "last"
devices = 1
[train.augment]
flip = false
rotation = 0.0
scaling = 0.0
noise = 0.0
pasted = [0, 0, 0]
"""

HOOKS = '''"""Every frame trains, validates and tests; nothing to compare with."""

from pegboard import hookimpl
from pegboard_lidar.data import FrameDataset, splits_of


@hookimpl
def load_split(settings):
    frames = [frame for split in splits_of(settings.data).values() for frame in split]
    return FrameDataset(frames, settings.data)


@hookimpl(wrapper=True)
def build_baselines():
    yield
    return []
'''


@pytest.mark.slow
def test_real_frames_are_learnt_by_heart(make_project: Callable[..., Path]) -> None:
    if not KITTI.exists():
        pytest.skip(f"there is no {KITTI}")
    folder = make_project(SETTINGS.format(path=KITTI), HOOKS)
    run = open_run(open_project(folder), SilentProgress())
    run_stages(run, "evaluate", SilentProgress())
    rows = read_evaluation(run).rows
    for name in ("Car", "Pedestrian"):
        for kind in ("bev", "3d"):
            assert metrics.kitti(name, kind, 0.5, rows, level=metrics.ALL) > 0.95
