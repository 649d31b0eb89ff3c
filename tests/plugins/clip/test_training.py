from __future__ import annotations

from pegboard_clip import training
from pegboard_clip.configuration import Configuration, Convolution, Transformer
from pegboard_clip.model import Clip
from pegboard_clip.settings import ClipSettings

SMALL = Configuration(
    image=Convolution(widths=(8, 16), depths=(1, 1)),
    text=Transformer(width=16, layers=1, heads=2),
    image_size=16,
    width=8,
    vocabulary=40,
    context=12,
)


def test_the_optimiser_has_clips_betas_and_vectors_do_not_decay() -> None:
    settings = ClipSettings()
    made = training.optimization(settings, Clip(SMALL), 100)
    groups = made.optimizer.param_groups
    assert all(group["betas"] == (0.9, 0.98) and group["eps"] == 1e-6 for group in groups)
    assert [group["weight_decay"] for group in groups] == [settings.train.weight_decay, 0.0]
    # The temperature is among those that do not.
    assert any(parameter.numel() == 1 for parameter in groups[1]["params"])
