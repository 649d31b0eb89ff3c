"""Pictures that are made in a moment, and settings about them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pegboard.progress import SilentProgress
from pegboard_clip import data
from pegboard_clip.settings import ClipData, ClipSettings


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ClipSettings:
    """Return settings of the embedded data, small and prepared, with their vocabulary."""
    folder = tmp_path_factory.mktemp("clip")
    settings = ClipSettings(data=ClipData(folder=folder, tiny=True))
    data.prepare(settings, SilentProgress())
    return settings


@pytest.fixture(scope="session")
def emoji(test_data: Path) -> Path:
    """Return the folder of Noto Emoji with its captions, or skip."""
    folder = test_data / "captions" / "noto_emoji"
    if not folder.is_dir():
        pytest.skip(f"no captions at {folder}; set PEGBOARD_TEST_DATA")
    return folder


@pytest.fixture
def write_pictures() -> Callable[..., None]:
    """Return a function that writes pictures of noise, each another."""

    def write(folder: Path, names: Sequence[str], size: tuple[int, int] = (24, 24)) -> None:
        for name in names:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            seed = zlib.crc32(name.encode())
            cells = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(cells).resize(size, Image.Resampling.NEAREST).save(path)

    return write


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., ClipSettings]:
    """Return a function that makes settings whose generated files lie in a folder of the test."""

    def settings(model: dict[str, Any] | None = None, **given: Any) -> ClipSettings:
        return ClipSettings.model_validate(
            {"data": {"folder": tmp_path / "made", **given}, "model": model or {}}
        )

    return settings
