"""Generated parts for the whole session, and settings to read them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pegboard.progress import SilentProgress
from pegboard_defect import data
from pegboard_defect.settings import DefectData, DefectModel, DefectSettings


@pytest.fixture(scope="session")
def generated(tmp_path_factory: pytest.TempPathFactory) -> DefectSettings:
    """Settings of 60 generated parts, two pictures of 48 x 48 each; not to be changed."""
    folder: Path = tmp_path_factory.mktemp("textures")
    settings = DefectSettings(
        data=DefectData(folder=folder, tiny=True, size=(48, 48)),
        model=DefectModel(input="pixels", backbone="tiny"),
    )
    data.prepare(settings, SilentProgress())
    return settings
