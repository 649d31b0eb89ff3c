"""What makes an architecture, read off the settings without torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pegboard.errors import CheckpointError, DataError, SettingsError
from pegboard_clip import sizes
from pegboard_clip.settings import ClipSettings

Activation = Literal["gelu", "quickgelu"]


@dataclass(frozen=True, kw_only=True)
class Transformer:
    """The shape of a transformer."""

    width: int
    """W."""
    layers: int
    """Blocks."""
    heads: int
    """H; W is a multiple of it."""


@dataclass(frozen=True, kw_only=True)
class Vision(Transformer):
    """The shape of a vision transformer."""

    patch: int
    """Pixels of a patch's side; S is a multiple of it."""


@dataclass(frozen=True, kw_only=True)
class Convolution:
    """The shape of a convolutional image tower: stages, each half as large as the one before."""

    widths: tuple[int, ...]
    """Channels of each stage."""
    depths: tuple[int, ...]
    """Blocks of each stage."""
    patch: int = 4
    """Pixels of the side that the first stage makes one place."""

    @property
    def smallest(self) -> int:
        """Return the smallest S that leaves the last stage a place."""
        return self.patch << (len(self.widths) - 1)


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """What makes an architecture."""

    image: Vision | Convolution
    """The image tower."""
    text: Transformer
    """The text tower."""
    image_size: int
    """S."""
    width: int
    """D."""
    vocabulary: int = 49408
    """Tokens that have an embedding."""
    context: int = 77
    """Largest L."""
    activation: Activation = "gelu"
    """Of the transformers: OpenAI trained with QuickGELU, most others with GELU."""
    sigmoid: bool = False
    """Whether the objective is SigLIP's, which learns a bias too."""


PRESETS: dict[str, tuple[Vision | Convolution, Transformer]] = {
    "small": (
        Convolution(widths=(32, 64, 128, 256), depths=(1, 1, 1, 1)),
        Transformer(width=192, layers=3, heads=3),
    ),
    "small-vit": (
        Vision(width=192, layers=6, heads=3, patch=8),
        Transformer(width=192, layers=3, heads=3),
    ),
    "ViT-B-32": (
        Vision(width=768, layers=12, heads=12, patch=32),
        Transformer(width=512, layers=12, heads=8),
    ),
    "ViT-B-16": (
        Vision(width=768, layers=12, heads=12, patch=16),
        Transformer(width=512, layers=12, heads=8),
    ),
    "ViT-L-14": (
        Vision(width=1024, layers=24, heads=16, patch=14),
        Transformer(width=768, layers=12, heads=12),
    ),
}
"""Both towers by `model.architecture`; `sizes.PRESETS` has S and D."""


def configuration_of(settings: ClipSettings) -> Configuration:
    """Return the architecture that settings describe; of the weights only their words are read.

    Raises:
        SettingsError: The image does not suit the image tower, or nothing tells the activation.
    """
    image, text = PRESETS[settings.model.architecture]
    configuration = Configuration(
        image=image,
        text=text,
        image_size=sizes.image_size(settings),
        width=sizes.width(settings),
        vocabulary=sizes.vocabulary_size(settings),
        context=settings.model.context,
        activation=activation_of(settings),
        sigmoid=settings.train.objective == "sigmoid",
    )
    _check_image_size(configuration)
    return configuration


def _check_image_size(configuration: Configuration) -> None:
    image, side = configuration.image, configuration.image_size
    if isinstance(image, Vision):
        if side % image.patch:
            raise SettingsError(
                f"an image of {side} pixels cannot be cut into patches of {image.patch}",
                where="model.image_size",
                remedy=f"set it to {max(1, round(side / image.patch)) * image.patch}",
            )
    elif side < image.smallest:
        raise SettingsError(
            f"an image of {side} pixels is too small to be halved by every stage of the tower",
            where="model.image_size",
            remedy=f"set it to {image.smallest} or more",
        )


# --- Which activation -----------------------------------------------------------------------------


def activation_of(settings: ClipSettings) -> Activation:
    """Return the transformers' activation: the setting, or what lies beside the checkpoint says.

    Raises:
        DataError: There is no checkpoint.
        SettingsError: Nothing says it. The wrong one loads as well and only answers worse.
    """
    model = settings.model
    if model.activation != "auto":
        return model.activation
    if model.weights is None or model.architecture.startswith("small"):
        return "gelu"
    if not model.weights.exists():
        raise no_checkpoint(model.weights)
    folder = model.weights if model.weights.is_dir() else model.weights.parent
    told = _told_by_open_clip(folder) or _told_by_hugging_face(folder)
    if told is None:
        raise SettingsError(
            "nothing beside the checkpoint tells whether it was trained with GELU or QuickGELU",
            where=str(model.weights),
            remedy='set model.activation to "quickgelu" for OpenAI\'s weights and for those whose '
            'name says so, else to "gelu"',
        )
    return told


def no_checkpoint(path: Path) -> DataError:
    """Return the error that says that there is none."""
    return DataError(
        "there is no checkpoint", where=str(path), remedy="set model.weights to a local one"
    )


def _told_by_open_clip(folder: Path) -> Activation | None:
    configuration = read_json(folder / "open_clip_config.json")
    if configuration is None:
        return None
    model = configuration.get("model_cfg", configuration)
    return "quickgelu" if model.get("quick_gelu", False) else "gelu"


def _told_by_hugging_face(folder: Path) -> Activation | None:
    configuration = read_json(folder / "config.json")
    if configuration is None or configuration.get("model_type", "clip") != "clip":
        return None
    # What equals the default, QuickGELU, is often left out.
    told = {
        (configuration.get(f"{half}_config") or {}).get("hidden_act", "quick_gelu")
        for half in ("text", "vision")
    }
    names: dict[str, Activation] = {"quick_gelu": "quickgelu", "gelu": "gelu"}
    if len(told) > 1 or not told <= names.keys():
        raise CheckpointError(
            f"the checkpoint's activations are {' and '.join(sorted(map(str, told)))}",
            where=str(folder / "config.json"),
            remedy="use one whose towers both have GELU or QuickGELU",
        )
    return names[told.pop()]


def read_json(file: Path) -> dict[str, Any] | None:
    """Return what a configuration says; None where there is none."""
    if not file.is_file():
        return None
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"the checkpoint's configuration cannot be read: {error}",
            where=str(file),
            remedy="fetch it again, or set model.activation and remove it",
        ) from error
    return read if isinstance(read, dict) else None
