"""The sizes that each architecture has of its own: what data and serving need without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pegboard_clip.settings import ClipSettings


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What a preset is made for."""

    image_size: int
    """Side of the image in pixels."""
    width: int
    """Numbers of an embedding."""


PRESETS = {
    "small": Sizes(image_size=72, width=256),
    "small-vit": Sizes(image_size=72, width=256),
    "ViT-B-32": Sizes(image_size=224, width=512),
    "ViT-B-16": Sizes(image_size=224, width=512),
    "ViT-L-14": Sizes(image_size=224, width=768),
    "chinese-clip": Sizes(image_size=224, width=512),
}
"""By `model.architecture`."""


def image_size(settings: ClipSettings) -> int:
    """Return the side S of the image in pixels: the setting, or the architecture's own."""
    return settings.model.image_size or PRESETS[settings.model.architecture].image_size


def width(settings: ClipSettings) -> int:
    """Return the numbers D of an embedding: the setting, or the architecture's own."""
    return settings.model.width or PRESETS[settings.model.architecture].width


VOCABULARIES = {"clip": 49408, "bert": 21128}
"""Tokens of the vocabularies that are never learnt here."""


def vocabulary_size(settings: ClipSettings) -> int:
    """Return the tokens that have an embedding: of a learnt vocabulary the most it may have.

    Shapes have to follow from the settings alone, before anything was learnt.
    """
    from pegboard_clip.tokenizer import kind_of

    return VOCABULARIES.get(kind_of(settings), settings.model.vocabulary_size)
