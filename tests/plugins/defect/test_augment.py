from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
import pytest

from pegboard.records import Array
from pegboard_defect.augment import PRESETS, change


def picture(channels: int) -> tuple[Array, Array]:
    image = np.random.default_rng(0).integers(0, 256, (64, 48, channels), dtype=np.uint8)
    mask = np.zeros((64, 48), np.uint8)
    mask[20:30, 10:30] = 1
    return image, mask


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_preset_keeps_types_and_follows_from_the_seed(preset: str, channels: int) -> None:
    image, mask = picture(channels)
    found = []
    for _ in range(2):
        random.seed(3)
        found.append([change(image, mask, preset) for _ in range(5)])
    for (one, its_mask), (other, other_mask) in zip(*found, strict=True):
        assert one.dtype == its_mask.dtype == np.uint8
        # Not square: a quarter turn would give another shape than the rest of the batch has.
        assert one.shape == image.shape
        assert its_mask.shape == mask.shape
        assert np.array_equal(one, other)
        assert np.array_equal(its_mask, other_mask)


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "none"])
def test_a_preset_changes_pictures(preset: str) -> None:
    image, mask = picture(1)
    random.seed(0)
    changed = [change(image, mask, preset)[0] for _ in range(10)]
    assert sum(not np.array_equal(one, image) for one in changed) >= 7


def test_a_mask_moves_with_its_picture() -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[8:24, 8:24] = 1
    image = (mask * 200)[:, :, None]
    random.seed(1)
    for _ in range(20):
        changed, moved = change(image, mask, "solar")
        bright = changed[:, :, 0] > 100
        assert (bright != (moved > 0)).mean() < 0.02


def test_a_square_part_of_metal_lies_any_way_round() -> None:
    image = np.zeros((64, 64, 1), np.uint8)
    image[::8] = 255
    random.seed(0)
    changed = [change(image, np.zeros((64, 64), np.uint8), "metal")[0] for _ in range(20)]
    middles = [one[8:-8, 8:-8, 0].astype(float) for one in changed]
    turned = [m.mean(axis=0).std() > m.mean(axis=1).std() for m in middles]
    assert 0 < sum(turned) < 20


def test_textiles_and_cells_are_never_turned_by_a_quarter() -> None:
    image = np.zeros((64, 64, 1), np.uint8)
    image[::8] = 255
    for preset in ("textile", "solar"):
        random.seed(0)
        for _ in range(20):
            rows = change(image, np.zeros((64, 64), np.uint8), preset)[0][8:-8, 8:-8, 0]
            assert rows.mean(axis=1).std() > 2 * rows.mean(axis=0).std()


def test_albumentations_calls_nobody() -> None:
    code = (
        "import socket\n"
        "def refuse(*a, **k): raise SystemExit('it calls home')\n"
        "socket.create_connection = socket.socket.connect = refuse\n"
        "import pegboard_defect.augment, os, threading, time\n"
        "time.sleep(0.2)\n"
        "assert os.environ['NO_ALBUMENTATIONS_UPDATE'] == '1'\n"
        "assert threading.active_count() == 1\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
