"""What can be set of a classification: the `[data]`, `[model]` and `[train]` tables."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from pegboard.settings import DeploySettings, ModelSettings, Settings
from pegboard_medical.settings import (
    Share,
    VolumeData,
    VolumeDeploy,
    VolumeServe,
    VolumeTrain,
)

Side = Annotated[int, Field(ge=16, le=512)]


class ClassificationData(VolumeData):
    """`[data]` of classification: findings, their kinds, and how a model sees them."""

    classes: tuple[str, ...] = Field(
        default=("benign", "malignant"),
        min_length=2,
        description="Kinds of findings, as the label column says them; the first is harmless.",
    )
    size: tuple[Side, Side, Side] = Field(
        default=(16, 32, 32),
        description="Voxels of the box around the middle that the model sees: slices, rows, "
        "columns; a model of 2 dimensions sees one slice.",
    )
    spacing: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat] = Field(
        default=(2.0, 1.0, 1.0),
        description="Millimetres between its voxels: slices, rows, columns; 0: as they come, and "
        "sizes are not told any more.",
    )
    mirror: bool = Field(
        default=True, description="Whether training findings are mirrored in every direction."
    )
    rotation: Annotated[float, Field(ge=0.0, le=180.0)] = Field(
        default=180.0, description="How far they are turned in the slice, in degrees."
    )
    tilt: Annotated[float, Field(ge=0.0, le=90.0)] = Field(
        default=10.0, description="How far they are tilted out of it, in degrees."
    )
    scale: Share = Field(
        default=0.1, description="How much larger or smaller they are made, as a share."
    )
    shift: NonNegativeFloat = Field(default=2.0, description="How far they are moved, in mm.")
    brightness: NonNegativeFloat = Field(
        default=0.02,
        description="How much brighter or darker they are made, as a share of data.window; of an "
        "mr, of four deviations.",
    )
    noise: NonNegativeFloat = Field(
        default=0.015, description="Largest deviation of the noise that is added, likewise."
    )


class ClassificationModel(ModelSettings):
    """`[model]`: the network, and when a finding counts as one to act on."""

    dimensions: Literal[2, 3] = Field(
        default=3, description="3: the model sees the volume; 2: its middle slice."
    )
    network: Literal["densenet_small", "densenet121"] = Field(
        default="densenet_small",
        description="DenseNet of MONAI: densenet_small is trained in minutes on a CPU, "
        "densenet121 wants a GPU.",
    )
    dropout: Share = Field(default=0.2, description="Share of features left out in training.")
    mask_weight: NonNegativeFloat = Field(
        default=1.0,
        description="Weight of the masks in training, where there are some; 0: none is read. The "
        "trained model is given images alone.",
    )
    mirrored: bool = Field(
        default=True, description="Judge every finding mirrored too and take the mean."
    )
    threshold: Literal["sensitivity", "cost"] = Field(
        default="sensitivity",
        description="How the threshold is chosen on the validation split: the highest that finds "
        "model.sensitivity, or the one whose mistakes cost least.",
    )
    sensitivity: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        default=0.9, description="Least share of the findings to act on that is found."
    )
    miss_cost: PositiveFloat = Field(default=5.0, description="What a missed one costs.")
    alarm_cost: PositiveFloat = Field(
        default=1.0, description="What a harmless one costs that is taken for one to act on."
    )


class ClassificationTrain(VolumeTrain):
    """`[train]`, with what suits a thousand findings."""

    epochs: PositiveInt = Field(default=16, description="Passes over the train split.")
    batch_size: PositiveInt = Field(default=16, description="Findings per optimiser step.")
    eval_batch_size: NonNegativeInt = Field(
        default=32, description="Findings per batch where nothing is learnt."
    )
    lr: PositiveFloat = Field(default=3e-3, description="Peak learning rate.")
    weight_decay: NonNegativeFloat = Field(default=1e-2, description="Decoupled weight decay.")
    warmup: Share = Field(default=0.1, description="Share of the steps that the rate rises over.")
    ema_decay: Share = Field(
        default=0.98,
        description="Decay of the averaged weights that are validated and kept; 0 averages none.",
    )
    keep: Literal["best", "last"] = Field(
        default="last",
        description="The epoch whose weights go on; last: of few findings the best is luck.",
    )


class ClassificationDeploy(VolumeDeploy):
    """`[deploy]`: findings are small."""

    golden: PositiveInt = Field(
        default=32, description="Records of the test split that the bundle carries to verify with."
    )


class ClassificationServe(VolumeServe):
    """`[serve]`: findings are small, and no PACS is asked for them."""

    request_mb: PositiveFloat = Field(default=64.0, description="Largest request, in megabytes.")
    timeout_seconds: PositiveFloat = Field(
        default=60.0, description="Longest time from the first byte of a request to its answer."
    )
    batch_size: PositiveInt = Field(default=16, description="Most records run together.")


class ClassificationSettings(Settings):
    """The settings of a medical-classification project."""

    solution: str = Field(
        default="medical-classification", description="Entry-point name of the solution."
    )
    data: ClassificationData = ClassificationData()
    model: ClassificationModel = ClassificationModel()
    train: ClassificationTrain = ClassificationTrain()
    deploy: DeploySettings = ClassificationDeploy()
    serve: ClassificationServe = ClassificationServe()
