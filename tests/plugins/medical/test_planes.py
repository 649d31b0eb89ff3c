"""Pictures of volumes: which way up, in which proportions, and outlines where structures are."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pegboard_medical import planes

Array = Any


def volume() -> tuple[Array, Array]:
    """20 x 30 x 40 voxels, and a structure in the head, the back and the left of it."""
    image = np.zeros((20, 30, 40), dtype=np.float32)
    mask = np.zeros(image.shape, dtype=np.uint8)
    mask[14:19, 20:28, 25:37] = 1
    image[mask > 0] = 100
    return image, mask


def test_the_largest_structure_is_in_focus() -> None:
    _, mask = volume()
    mask[0, 0, 0] = 2
    there = planes.focus(mask)
    assert there.slices == (14, 20, 25)
    assert there.middle == (16, 23.5, 30.5)
    assert there.size == (5, 8, 12)


def test_without_a_structure_it_is_the_middle() -> None:
    there = planes.focus(np.zeros((20, 30, 40), dtype=np.uint8))
    assert there.slices == (10, 15, 20)
    assert there.size == (0, 0, 0)


def test_a_picture_has_head_up_and_left_on_the_right() -> None:
    image, mask = volume()
    view = planes.whole_view(mask, (1.0, 1.0, 1.0), longest=40)
    axial, coronal, sagittal = view.grey(image, (0, 255))
    assert [one.shape for one in (axial, coronal, sagittal)] == [(30, 40), (20, 40), (20, 30)]
    # Towards the back is down in an axial slice and right in a sagittal one.
    assert axial[24, 30] == coronal[3, 30] == sagittal[3, 24] == 100
    assert axial[5, 30] == coronal[16, 30] == sagittal[3, 5] == 0
    assert axial[24, 9] == coronal[3, 9] == 0


def test_a_millimetre_is_as_long_in_every_direction() -> None:
    image, mask = volume()
    picture = planes.three_planes(image, mask, (5.0, 1.0, 0.5))
    # 100 x 30 x 20 mm at 3.84 pixels a millimetre.
    gap = planes.GAP
    assert picture.shape == (384, 77 + gap + 77 + gap + 115, 3)
    assert picture.dtype == np.uint8


def test_what_lies_outside_is_black() -> None:
    image, mask = volume()
    view = planes.close_view(mask, (1.0, 1.0, 1.0), 64)
    # 40 mm about a structure at the volume's edge.
    axial, _, _ = view.grey(image - 850, (-1000, 400))
    assert axial.shape == (64, 64)
    assert axial[:, -8:].max() == 0
    assert axial[32, 32] == 46
    assert axial[0, 0] == 27


def test_outlines_are_drawn_around_structures_in_their_colours() -> None:
    image, mask = volume()
    mask[:, :, 30:] *= 2
    picture = planes.three_planes(image, mask, (1.0, 1.0, 1.0), window=(0, 100))
    for color in planes.COLORS[:2]:
        drawn = (picture == np.array(color)).all(axis=-1)
        assert drawn.any()
        # A line, not a patch.
        assert drawn.sum() < 2000
    assert not (picture == np.array(planes.COLORS[2])).all(axis=-1).any()


def test_an_outline_is_the_rim() -> None:
    labels = np.zeros((8, 8), dtype=np.uint8)
    labels[1:6, 1:6] = 1
    labels[1:6, 4:6] = 2
    edge = planes.outline(labels)
    assert edge.sum() == 25 - 3
    assert not edge[2:5, 2].any()
    full = planes.outline(np.ones((5, 5), dtype=np.uint8))
    assert full.sum() == 16


def test_grey_follows_the_window() -> None:
    shades = planes.grey(np.array([-2000.0, -1000, -300, 400, 3000]), (-1000, 400))
    assert shades.tolist() == [0, 0, 128, 255, 255]
    assert planes.grey(np.full(3, 7.0), (7, 7)).tolist() == [0, 0, 0]


def test_a_png_holds_the_picture() -> None:
    image, mask = volume()
    picture = planes.three_planes(image, mask, (1.0, 1.0, 1.0))
    read = np.asarray(Image.open(io.BytesIO(planes.png_of(picture))))
    np.testing.assert_array_equal(read, picture)


@pytest.mark.parametrize("shape", [(1, 9, 9), (3, 200, 4)])
def test_odd_shapes_are_drawn_too(shape: tuple[int, int, int]) -> None:
    picture = planes.three_planes(
        np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.uint8), (1.0, 1.0, 1.0)
    )
    assert picture.max() == 0
