"""What a perception engineer can set: the `[data]`, `[model]`, `[train]` and `[serve]` tables."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from pegboard.settings import (
    DataSettings,
    DeploySettings,
    ModelSettings,
    ProjectPath,
    ServeSettings,
    Settings,
    Table,
    TrainSettings,
)

Share = Annotated[float, Field(ge=0.0, lt=1.0)]

Range = tuple[float, float, float, float, float, float]
"""Smallest x, y, z and largest x, y, z, in metres."""


class LidarData(DataSettings):
    """`[data]`: where scans are, what is looked for in them, and how they are split."""

    path: ProjectPath | None = Field(
        default=None,
        description="KITTI or nuScenes folder, or a folder of scans; without it scenes are "
        "generated.",
    )
    layout: Literal["auto", "kitti", "nuscenes", "scans"] = Field(
        default="auto", description="How they lie there; auto: told by what is there."
    )
    classes: tuple[str, ...] = Field(
        default=("Car", "Pedestrian", "Cyclist"),
        min_length=1,
        description="Objects that are looked for; labels of other names are not.",
    )
    range: Range = Field(
        default=(0.0, -40.96, -3.0, 71.68, 40.96, 1.0),
        description="Metres around the scanner that are looked at: smallest x (ahead), y (left), "
        "z (up), then the largest.",
    )
    picture_only: bool = Field(
        default=True,
        description="KITTI: take only points that the camera sees; nothing else is labelled.",
    )
    sweeps: PositiveInt = Field(
        default=1, description="nuScenes sweeps put together to one scan, the latest included."
    )
    validation_share: Share = Field(default=0.1, description="Share that chooses the checkpoint.")
    test_share: Share = Field(default=0.2, description="Share that the report measures.")
    split_seed: NonNegativeInt = Field(default=0, description="Of the split; not of training.")
    scenes: PositiveInt = Field(default=800, description="Generated scenes.")


class StepsSettings(Table):
    """`[model.steps]`: what is done to a scan before clusters are sought in it."""

    voxel: NonNegativeFloat = Field(
        default=0.1, description="Metres of a voxel that keeps one point; 0: every point is kept."
    )
    neighbours: NonNegativeInt = Field(
        default=0, description="Neighbours of the statistical outlier removal; 0: none is done."
    )
    deviations: PositiveFloat = Field(
        default=2.0, description="Deviations of the neighbours' distance that make an outlier."
    )
    ground: Literal["ransac", "patchwork", "none"] = Field(
        default="ransac",
        description="How the ground is found: a plane in each sector, or pypatchworkpp.",
    )
    sectors: PositiveInt = Field(default=6, description="Sectors with a ground plane of their own.")
    ground_distance: PositiveFloat = Field(
        default=0.2, description="Metres above its plane that are still ground."
    )
    cluster_distance: PositiveFloat = Field(
        default=0.6, description="Metres between neighbours of a cluster (DBSCAN)."
    )
    cluster_points: PositiveInt = Field(
        default=6, description="Neighbours that make a point the core of a cluster."
    )


class LidarModel(ModelSettings):
    """`[model]`: the grid, the network, and what counts as found."""

    pillar: PositiveFloat = Field(default=0.32, description="Metres of a pillar's side.")
    features: PositiveInt = Field(default=12, description="Features of each quarter of a pillar.")
    channels: tuple[PositiveInt, PositiveInt, PositiveInt] = Field(
        default=(32, 64, 96), description="Channels at 2, 4 and 8 times the pillar's side."
    )
    blocks: tuple[PositiveInt, PositiveInt, PositiveInt] = Field(
        default=(1, 1, 2), description="Residual blocks there."
    )
    reflectance: bool = Field(
        default=False,
        description="Whether the model sees reflectance; it differs from scanner to scanner.",
    )
    velocity: bool = Field(
        default=False, description="Whether it tells how objects move; the labels must say it."
    )
    smallest_score: Share = Field(default=0.1, description="Objects below it are not reported.")
    overlap: Share = Field(
        default=0.1, description="Largest rotated IoU of two objects of a class that both stay."
    )
    objects: PositiveInt = Field(default=100, description="Most objects of a scan.")
    steps: StepsSettings = StepsSettings()


class AugmentSettings(Table):
    """`[train.augment]`: how a training scan is changed."""

    flip: bool = Field(default=True, description="Mirror left and right, every second time.")
    rotation: NonNegativeFloat = Field(
        default=0.39, description="Largest turn about the scanner, in radians."
    )
    scaling: Share = Field(default=0.05, description="Largest change of all lengths, as a share.")
    noise: NonNegativeFloat = Field(
        default=0.1, description="Deviation of each object's shift, in metres."
    )
    pasted: tuple[NonNegativeInt, ...] = Field(
        default=(5, 10, 5),
        description="Objects of each class pasted in from other scans (ground-truth sampling).",
    )


class LidarTrain(TrainSettings):
    """`[train]`, with what suits scans."""

    window: tuple[PositiveFloat, PositiveFloat] = Field(
        default=(36.0, 40.0),
        description="Metres ahead and across of the part of a scan, around an object, that a step "
        "learns from; large ones take all of it.",
    )

    epochs: PositiveInt = Field(default=19, description="Passes over the train split.")
    batch_size: PositiveInt = Field(default=2, description="Scans per optimiser step.")
    eval_batch_size: NonNegativeInt = Field(
        default=1, description="Scans per batch where nothing is learnt: they differ in length."
    )
    lr: PositiveFloat = Field(
        default=4e-3, description="Peak learning rate; of filters eight times as much."
    )
    weight_decay: NonNegativeFloat = Field(default=1e-2, description="Decoupled weight decay.")
    clip_grad_norm: NonNegativeFloat = Field(default=10.0, description="Largest gradient norm.")
    augment: AugmentSettings = AugmentSettings()


class LidarDeploy(DeploySettings):
    """`[deploy]`, with few golden records: a scan is large."""

    golden: PositiveInt = Field(
        default=8, description="Records of the test split that the bundle carries to verify with."
    )
    reference: PositiveInt = Field(
        default=64, description="Records of the train split behind the reference statistics."
    )


class LidarServe(ServeSettings):
    """`[serve]`, with room for scans."""

    request_mb: PositiveFloat = Field(default=64.0, description="Largest request, in megabytes.")
    batch_size: PositiveInt = Field(default=1, description="Most records run together.")


class LidarSettings(Settings):
    """The settings of a lidar project."""

    solution: str = Field(default="lidar", description="Entry-point name of the solution.")
    data: LidarData = LidarData()
    model: LidarModel = LidarModel()
    train: LidarTrain = LidarTrain()
    deploy: DeploySettings = LidarDeploy()
    serve: ServeSettings = LidarServe()
