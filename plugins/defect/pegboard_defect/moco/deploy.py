"""Between the wire and the graph: a picture in, its embedding out."""

from __future__ import annotations

import base64
from typing import Any, cast

from pegboard.records import Array, Signature, TensorSpec
from pegboard_defect import deploy as defect
from pegboard_defect.images import as_png, channels_of
from pegboard_defect.moco.settings import MocoSettings

FEATURES = {
    "tiny": 128,
    "small": 256,
    "resnet18": 512,
    "resnet34": 512,
    "resnet50": 2048,
    "vit_tiny": 192,
}
"""Numbers of an embedding, by backbone: a server has no torch to ask."""


def signature(settings: MocoSettings) -> Signature:
    """A picture in; its embedding out."""
    data = settings.data
    return Signature(
        inputs=(
            TensorSpec(
                name="image",
                dtype="uint8",
                shape=("batch", *data.size, channels_of(data)),
                low=0,
                high=255,
                description="The picture, grey or red, green, blue.",
            ),
        ),
        outputs=(
            TensorSpec(
                name="embedding",
                dtype="float32",
                shape=("batch", FEATURES[settings.model.backbone]),
                description="What the backbone sees in it: alike pictures, alike directions.",
            ),
        ),
        request={"image": base64.b64encode(as_png(defect.example_picture(data.size))).decode()},
    )


def decode(settings: MocoSettings, payload: Any) -> dict[str, Array]:
    """Read the pictures of a request, as defect does.

    Raises:
        RequestError: Names the picture that is wrong. Its content is not repeated.
    """
    # It looks at `data` alone, which is the same here.
    return defect.decode(cast(Any, settings), payload)
