"""What is particular to this project. Delete what you do not need.

A function here comes before the solution's own of the same name. `pegboard doctor` shows who is
called in which order, `pegboard describe` which hooks there are.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from pegboard import hookimpl
from pegboard.records import Finding

if TYPE_CHECKING:
    from pegboard.records import Sample
    from pegboard_clip.settings import ClipSettings

Answers = Sequence[Mapping[str, Any]]

MARKED = 0.1
"""Share of training pictures that get a watermark."""

WATERMARK = "SAMPLE"
"""What the watermark of this house says."""

STRENGTH = 0.3
"""How much of the watermark covers what is behind it."""

FILE_NAME = re.compile(r"(img|image|dsc[nf]?|pict?|photo|scan)?[-_ ]*\d+([.]\w+)?", re.I)
"""A caption that a camera wrote, and nobody who looked at the picture."""


@hookimpl
def augment(sample: Sample) -> Sample:
    """CHAIN: after a picture is cropped, lay a watermark on some, because this house has them.

    It is so faint that the caption stays true. Without it, two pictures with a watermark could be
    taken for alike because of it.
    """
    if np.random.random() >= MARKED:
        return sample
    from PIL import Image, ImageDraw

    picture = Image.fromarray(sample.inputs["image"])
    place = (np.random.randint(picture.width // 2), np.random.randint(picture.height))
    marked = picture.copy()
    ImageDraw.Draw(marked).text(place, WATERMARK, fill=["white", "black"][np.random.randint(2)])
    image = np.array(Image.blend(picture, marked, STRENGTH))
    return replace(sample, inputs={**sample.inputs, "image": image})


@hookimpl(wrapper=True)
def encode_answer() -> Generator[None, Answers, Answers]:
    """WRAPPER: take the solution's answers and add each embedding in bytes, for a database."""
    answers = yield
    return [{**answer, **_in_bytes(answer)} for answer in answers]


def _in_bytes(answer: Mapping[str, Any]) -> dict[str, str]:
    """Return each embedding as int8, as base64: a quarter of float32's memory.

    The largest number becomes 127, so lengths differ: compare them by their cosine.
    """
    codes = {}
    for name in ("image_embedding", "text_embedding"):
        if name in answer:
            numbers = np.asarray(answer[name])
            code = np.round(127 * numbers / np.abs(numbers).max()).astype(np.int8)
            codes[f"{name}_int8"] = base64.b64encode(code.tobytes()).decode("ascii")
    return codes


@hookimpl
def check_data(settings: ClipSettings) -> list[Finding]:
    """COLLECTED: name, beside what the solution finds, captions that are the names of files."""
    from pegboard_clip.data import all_pairs

    named = [pair.key for pair in all_pairs(settings.data) if FILE_NAME.fullmatch(pair.caption)]
    if not named:
        return []
    return [
        Finding(
            level="warning",
            what=f"{len(named)} captions are the names of files, and not what the pictures show",
            where=", ".join(named[:3]),
            remedy="write what the pictures show, or take the pictures out",
        )
    ]
