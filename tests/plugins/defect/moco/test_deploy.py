"""A picture in, its embedding out; what serves it needs no torch."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from pegboard.errors import RequestError
from pegboard_defect.backbones import RESNETS, VITS, build_backbone
from pegboard_defect.moco import deploy
from pegboard_defect.moco.settings import MocoData, MocoModel, MocoSettings

SETTINGS = MocoSettings(data=MocoData(size=(48, 64)), model=MocoModel(backbone="small"))


def test_an_embedding_is_as_long_as_its_backbone_is_wide() -> None:
    assert deploy.FEATURES.keys() == {*RESNETS, *VITS}
    for name in ("tiny", "small", "resnet18", "vit_tiny"):
        assert deploy.FEATURES[name] == build_backbone(name, 1, (32, 32)).widths[-1]
    assert deploy.FEATURES["resnet50"] == 2048


def test_the_example_request_becomes_what_the_signature_says() -> None:
    signature = deploy.signature(SETTINGS)
    inputs = deploy.decode(SETTINGS, signature.request)
    assert inputs["image"].shape == (1, 48, 64, 1)
    assert inputs["image"].dtype == np.uint8
    assert signature.outputs[0].shape == ("batch", 256)


@pytest.mark.parametrize("payload", [None, 7, [], {}, {"image": "nonsense"}, {"image": 3}])
def test_what_is_no_picture_is_refused(payload: object) -> None:
    with pytest.raises(RequestError):
        deploy.decode(SETTINGS, payload)


def test_describing_and_serving_it_import_no_heavy_library() -> None:
    code = (
        "import sys, pegboard_defect.moco.hooks, pegboard_defect.moco.settings, "
        "pegboard_defect.moco.deploy, pegboard_defect.moco.commands; "
        "print(*[n for n in ('torch', 'sklearn', 'scipy', 'cv2', 'matplotlib', 'albumentations') "
        "if n in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == ""
