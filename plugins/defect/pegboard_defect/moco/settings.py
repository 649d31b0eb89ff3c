"""What can be set of a pretraining: the `[data]`, `[model]` and `[train]` tables of moco."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from pegboard.settings import (
    DeploySettings,
    ModelSettings,
    ProjectPath,
    ServeSettings,
    Settings,
    TrainSettings,
)
from pegboard_defect.settings import DefectData, DefectDeploy

BackboneName = Literal["tiny", "small", "resnet18", "resnet34", "resnet50", "vit_tiny"]


class MocoData(DefectData):
    """`[data]`: the pictures, as for defect, and how two views of one are made to differ."""

    labelled: Literal["auto", "yes", "no"] = Field(
        default="auto",
        description="Whether some pictures have a class of data.classes, to measure with and never "
        "to train on; no: every picture below data.path is taken, whatever its folder is called.",
    )
    min_crop: float = Field(
        default=0.25,
        gt=0.0,
        le=1.0,
        description="Least share of a picture that a view shows; less teaches a network not to "
        "see small defects.",
    )
    turns: Literal["quarter", "half", "none"] = Field(
        default="quarter",
        description="How a view may be turned, and with it mirrored; pictures that are no squares "
        "are not turned by a quarter.",
    )
    light: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        default=0.3, description="How much brightness and contrast of a view may differ."
    )
    blur: NonNegativeFloat = Field(
        default=1.0, description="Largest standard deviation of a view's blur, in pixels."
    )
    noise: NonNegativeFloat = Field(
        default=0.03, description="Largest standard deviation of its noise; 1 is white."
    )


class MocoModel(ModelSettings):
    """`[model]`: the network and the task that it teaches itself by."""

    version: Literal["v3", "v2"] = Field(
        default="v3", description="v3: the batch's other pictures; v2: a queue of earlier ones."
    )
    input: Literal["pixels", "gradients"] = Field(
        default="gradients",
        description="What the backbone is given, as in defect, which has to be given the same.",
    )
    cell: PositiveInt = Field(
        default=4, description="Side of the squares that gradients are averaged over, in pixels."
    )
    backbone: BackboneName = Field(
        default="small", description="Network to train; defect takes the one of the same name."
    )
    momentum: float = Field(
        default=0.99,
        ge=0.0,
        le=1.0,
        description="Share of itself that the slow network keeps at a step; v3 lets it rise to 1.",
    )
    temperature: PositiveFloat = Field(
        default=0.2, description="What similarities are divided by; less is stricter."
    )
    queue: PositiveInt = Field(default=1024, description="Earlier pictures to tell apart, v2 only.")
    dim: PositiveInt = Field(default=128, description="Numbers that two views are compared by.")
    hidden: PositiveInt = Field(default=512, description="Width of the heads' hidden layers.")
    checkpoint: ProjectPath | None = Field(
        default=None,
        description="Weights of your own (.safetensors, timm's names) to compare with; never "
        "trained.",
    )
    checkpoint_backbone: BackboneName | None = Field(
        default=None, description="Their network; unset: model.backbone."
    )


class MocoTrain(TrainSettings):
    """`[train]`, with what suits a few thousand pictures."""

    epochs: PositiveInt = Field(default=50, description="Passes over the train split.")
    batch_size: PositiveInt = Field(
        default=64, description="Pictures per step; v3 tells them apart, so more is harder."
    )
    lr: PositiveFloat = Field(default=1e-3, description="Peak learning rate.")
    warmup: float = Field(
        default=0.1, ge=0.0, lt=1.0, description="Share of the steps that the rate rises over."
    )
    keep: Literal["best", "last"] = Field(
        default="last",
        description="The epoch whose weights go on; last: no label has a say in it.",
    )


class MocoSettings(Settings):
    """The settings of a pretraining."""

    solution: str = Field(default="moco", description="Entry-point name of the solution.")
    data: MocoData = MocoData()
    model: MocoModel = MocoModel()
    train: MocoTrain = MocoTrain()
    deploy: DeploySettings = DefectDeploy()
    serve: ServeSettings = ServeSettings()
