"""A small real encoder for tests: pictures and words by their colours, nothing learnt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Array = Any

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 160, 40),
    "blue": (30, 60, 210),
    "yellow": (240, 220, 40),
    "white": (255, 255, 255),
    "black": (10, 10, 10),
}
NOUNS = {"apple": "red", "leaf": "green", "sky": "blue", "lemon": "yellow", "snow": "white"}


class ColourEncoder:
    """Embeds a picture as shares of six colours, and a word as its colour."""

    size = 16

    def __init__(self, model: str = "colours-1") -> None:
        self.model = model
        self.dimension = len(COLOURS)
        self.calls: list[int] = []

    def images(self, images: Array) -> Array:
        assert images.dtype == np.uint8 and images.shape[1:] == (self.size, self.size, 3)
        self.calls.append(len(images))
        palette = np.array(list(COLOURS.values()), dtype=np.float32)
        pixels = images.reshape(len(images), -1, 1, 3).astype(np.float32)
        nearest = ((pixels - palette) ** 2).sum(axis=-1).argmin(axis=-1)
        shares = np.stack([(nearest == one).mean(axis=1) for one in range(len(palette))], axis=1)
        return unit(shares + 0.01)

    def texts(self, texts: Sequence[str]) -> Array:
        names = list(COLOURS)
        found = np.full((len(texts), len(names)), 0.02)
        for row, text in enumerate(texts):
            for word in text.lower().split():
                word = NOUNS.get(word, word)
                if word in names:
                    found[row, names.index(word)] += 1
        return unit(found)

    def warning(self, text: str) -> str:
        return "" if text.isascii() else "The vocabulary does not know Chinese."


def unit(vectors: Array) -> Array:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def paint(path: Path, *colours: str, size: tuple[int, int] = (40, 40)) -> Path:
    """Write a picture of stripes."""
    stripes = np.array([COLOURS[name] for name in colours], dtype=np.uint8)
    rows = np.arange(size[1]) * len(colours) // size[1]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.repeat(stripes[rows][:, None], size[0], axis=1)).save(path)
    return path
