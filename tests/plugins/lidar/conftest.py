"""Settings of a detector that is built and exported in a moment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pegboard_lidar.settings import (
    AugmentSettings,
    LidarData,
    LidarModel,
    LidarSettings,
    LidarTrain,
)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., LidarSettings]:
    """Return a function that makes settings of 16 x 16 cells of a metre; nothing is augmented."""
    folder: Path = tmp_path_factory.mktemp("lidar")

    def make(
        data: dict[str, Any] | None = None,
        augment: dict[str, Any] | None = None,
        **model: Any,
    ) -> LidarSettings:
        nothing = {"flip": False, "rotation": 0, "scaling": 0, "noise": 0, "pasted": (0, 0, 0)}
        return LidarSettings(
            data=LidarData.model_validate(
                {"folder": folder, "range": (0, -8, -3, 16, 8, 1), **(data or {})}
            ),
            model=LidarModel.model_validate(
                {"pillar": 1.0, "features": 4, "channels": (4, 4, 4), "blocks": (1, 1, 1), **model}
            ),
            train=LidarTrain(augment=AugmentSettings.model_validate(nothing | (augment or {}))),
        )

    return make
