"""Between the wire and the towers: pictures and texts in, embeddings out. Nothing needs torch."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pegboard.errors import DataError, RequestError
from pegboard.records import Array, Part, Predictor, Signature, TensorSpec
from pegboard_clip.images import fitted, read_image
from pegboard_clip.settings import ClipSettings
from pegboard_clip.sizes import image_size, vocabulary_size, width
from pegboard_clip.tokenizer import tokenizer_of

REMEDY = (
    'send {"text": "what to look for"}, {"image": "<file as base64>"}, both, or lists of them of '
    "equal length"
)
DIGITS = 6
"""Of a number of an embedding in an answer: float32 holds no more."""


def signature(settings: ClipSettings) -> Signature:
    """Pictures and captions in, embeddings out; one may come without the other."""
    side, numbers = image_size(settings), width(settings)
    return Signature(
        inputs=(
            TensorSpec(
                name="image",
                dtype="uint8",
                shape=("batch", side, side, 3),
                low=0,
                high=255,
                description="RGB, the shorter side fitted, the middle cut out.",
            ),
            TensorSpec(
                name="tokens",
                dtype="int64",
                shape=("batch", "tokens"),
                low=0,
                high=vocabulary_size(settings) - 1,
                description=f"A caption, {settings.model.context} tokens at most; 0 behind.",
            ),
        ),
        outputs=tuple(
            TensorSpec(
                name=name,
                dtype="float32",
                shape=("batch", numbers),
                low=-1.0,
                high=1.0,
                description="Of unit length; the product of two is their similarity.",
            )
            for name in ("image_embedding", "text_embedding")
        ),
        request={"text": "a red circle", "image": _example(side)},
        parts={
            "image": Part(inputs=("image",), outputs=("image_embedding",)),
            "text": Part(inputs=("tokens",), outputs=("text_embedding",)),
        },
    )


def _example(side: int) -> str:
    """Return a red disc on white as base64 of a PNG."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (side, side), "white")
    edge = side // 4
    ImageDraw.Draw(picture).ellipse((edge, edge, side - edge, side - edge), fill=(220, 40, 40))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")


# --- Requests -------------------------------------------------------------------------------------


def decode(settings: ClipSettings, payload: Any) -> dict[str, Array]:
    """Read the pictures and texts of a request.

    Raises:
        RequestError: One cannot be read, or there are not as many of both.
    """
    if not isinstance(payload, Mapping) or not payload or set(payload) - {"text", "image"}:
        raise RequestError(
            "the request holds more or less than 'text' and 'image'",
            where="request",
            remedy=REMEDY,
        )
    inputs: dict[str, Array] = {}
    if "image" in payload:
        images = _listed(payload["image"], "image")
        inputs["image"] = np.stack([_image(settings, image) for image in images])
    if "text" in payload:
        texts = _listed(payload["text"], "text")
        inputs["tokens"] = tokenizer_of(settings)([_text(text) for text in texts])
    if len({len(array) for array in inputs.values()}) > 1:
        raise RequestError(
            f"there are {len(inputs['image'])} pictures and {len(inputs['tokens'])} texts",
            where="request",
            remedy=REMEDY,
        )
    return inputs


def _listed(value: Any, field: str) -> Sequence[Any]:
    listed = value if isinstance(value, list) else [value]
    if not listed:
        raise RequestError(f"'{field}' is empty", where=f"'{field}'", remedy=REMEDY)
    return listed


def _text(text: Any) -> str:
    if not isinstance(text, str) or not text.strip():
        raise RequestError("'text' holds no text", where="'text'", remedy=REMEDY)
    return text


def _image(settings: ClipSettings, text: Any) -> Array:
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError):
        raise RequestError("'image' is not base64", where="'image'", remedy=REMEDY) from None
    try:
        image = read_image(content, pixels=settings.data.pixels, where="'image'")
    except DataError as error:
        raise RequestError(error.what, where="'image'", remedy=error.remedy) from None
    return fitted(image, image_size(settings))


# --- Inference ------------------------------------------------------------------------------------


def infer(predictor: Predictor, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
    """Run the towers that are asked, texts no longer than the longest of the batch."""
    if "tokens" not in inputs:
        return predictor(inputs)
    return predictor({**inputs, "tokens": trimmed(inputs["tokens"])})


def trimmed(tokens: Array) -> Array:
    """int64 (B, L) -> (B, l): without the columns that hold nothing but what fills up.

    Exact: a causal tower reads up to the end token, and Chinese-CLIP's leaves zeros out.
    """
    used = np.flatnonzero(tokens.any(axis=0))
    return np.ascontiguousarray(tokens[:, : int(used[-1]) + 1]) if len(used) else tokens


# --- Answers --------------------------------------------------------------------------------------


def encode(
    settings: ClipSettings, outputs: Mapping[str, Array], request: Any
) -> list[dict[str, Any]]:
    """Answer with embeddings, and where there are both, how similar they are."""
    count = len(next(iter(outputs.values())))
    answers: list[dict[str, Any]] = [
        {
            name: [round(float(value), DIGITS) for value in array[index]]
            for name, array in outputs.items()
        }
        for index in range(count)
    ]
    if len(outputs) == 2:
        similarity = (outputs["image_embedding"] * outputs["text_embedding"]).sum(axis=1)
        for answer, value in zip(answers, similarity, strict=True):
            answer["similarity"] = round(float(value), DIGITS)
    for answer, text in zip(answers, _texts(request), strict=False):
        if not tokenizer_of(settings).knows(text):
            answer["warning"] = UNKNOWN_SCRIPT
    return answers


UNKNOWN_SCRIPT = (
    "the vocabulary of this model does not know the script of the text; take a model that was "
    "trained with it, or ask in English"
)


def _texts(request: Any) -> Sequence[str]:
    text = request.get("text", []) if isinstance(request, Mapping) else []
    return text if isinstance(text, list) else [text]
