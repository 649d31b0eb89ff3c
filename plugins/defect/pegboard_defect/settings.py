"""What an inspection engineer can set: the `[data]`, `[model]` and `[train]` tables."""

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
Side = Annotated[int, Field(ge=32, le=16384)]


class ColumnSettings(Table):
    """`[data.columns]`: what the columns of the CSV file are called; only `image` is needed."""

    image: str = Field(default="image", description="Path of the picture, relative to the file.")
    label: str = Field(default="label", description="Class; empty: not known.")
    probability: str = Field(
        default="probability",
        description="Probability of a defect, where inspectors disagree; from 0.5 on it is one.",
    )
    mask: str = Field(default="mask", description="Path of the mask picture; empty: none.")
    part: str = Field(default="part", description="Part that the picture shows.")
    lot: str = Field(default="lot", description="Lot that the part is of.")
    split: str = Field(default="split", description="train, validation or test; empty: ours.")


class DefectData(DataSettings):
    """`[data]`: where the pictures are, how they are split and how the model sees them."""

    path: ProjectPath | None = Field(
        default=None,
        description="Folder of pictures, or a CSV file; without it textures are generated.",
    )
    layout: Literal["auto", "classes", "mvtec", "masks", "coco", "yolo", "csv"] = Field(
        default="auto",
        description="How they lie there; auto: told by what is there.",
    )
    columns: ColumnSettings = ColumnSettings()
    classes: tuple[str, ...] = Field(
        default=("good", "scratch", "pit", "stain", "crack"),
        min_length=2,
        description="Names of the classes; the first is that of good parts.",
    )
    merge: bool = Field(
        default=False, description="Count every class that is not listed as the last one."
    )
    size: tuple[Side, Side] = Field(
        default=(128, 128), description="Height and width that every picture is brought to."
    )
    color: Literal["grey", "rgb"] = Field(default="grey", description="What the model sees.")
    region: ProjectPath | None = Field(
        default=None,
        description="Picture whose white part is inspected; the rest of every picture is ignored.",
    )
    tile: NonNegativeInt = Field(
        default=0, description="Side of the tiles that the model sees; 0: it sees all at once."
    )
    overlap: Share = Field(default=0.25, description="Share of a tile that the next one repeats.")
    part_pattern: str = Field(
        default="",
        description="Regular expression whose first group, in the file's path, names the part.",
    )
    lot_pattern: str = Field(default="", description="The same for the lot.")
    validation_share: Share = Field(
        default=0.15, description="Share that chooses checkpoint and threshold."
    )
    test_share: Share = Field(default=0.25, description="Share that the report measures.")
    split_seed: NonNegativeInt = Field(default=0, description="Of the split; not of training.")
    fewest: PositiveInt = Field(default=20, description="Fewest pictures that a class should have.")
    duplicates: Share = Field(
        default=0.02,
        description="Difference at equal brightness and contrast, as a share of the grey range, "
        "below which two pictures are near duplicates; 0 looks for exact ones only.",
    )
    augmentation: Literal["none", "classic", "metal", "textile", "solar", "electronics"] = Field(
        default="metal", description="Preset of changes that training pictures undergo."
    )
    textures: tuple[Literal["metal", "cloth", "cells"], ...] = Field(
        default=("metal", "cloth", "cells"), min_length=1, description="Generated surfaces."
    )
    parts: PositiveInt = Field(default=600, description="Generated parts, two pictures each.")


class DefectModel(ModelSettings):
    """`[model]`: what is asked of the inspector, the network, and what a mistake costs."""

    task: Literal["classify", "segment", "anomaly"] = Field(
        default="classify",
        description="Which defect (masks help where there are some), where, or whatever is not "
        "as good parts are.",
    )
    input: Literal["pixels", "gradients"] = Field(
        default="gradients",
        description="What the backbone is given: the picture, or which way its edges run, which "
        "learns thin defects from few pictures.",
    )
    cell: PositiveInt = Field(
        default=4, description="Side of the squares that gradients are averaged over, in pixels."
    )
    backbone: Literal["tiny", "small", "resnet18", "resnet34", "resnet50", "vit_tiny"] = Field(
        default="small", description="Network that sees; resnet* and vit* have timm's names."
    )
    weights: ProjectPath | None = Field(
        default=None,
        description="backbone.safetensors of 'pegboard pretrain', or a timm checkpoint.",
    )
    freeze: bool = Field(default=False, description="Leave the backbone as it is loaded.")
    mirrored: bool = Field(
        default=False,
        description="Judge every picture four times, mirrored, and take the mean: surer, slower.",
    )
    dropout: Share = Field(default=0.2, description="Share of features left out before deciding.")
    layout: NonNegativeInt = Field(
        default=0,
        description="Cells a side of a grid by which places of the part are told apart, for parts "
        "that always lie alike; 0: a defect is one anywhere.",
    )
    words: NonNegativeInt = Field(
        default=0,
        description="Visual words, for instance 200, that a support vector machine judges by, "
        "beside the network; a bundle grows by 160 kB a word; 0: the network judges alone.",
    )
    mixup: NonNegativeFloat = Field(
        default=0.0, description="How much training pictures are mixed with one another; 0: not."
    )
    mask_weight: NonNegativeFloat = Field(
        default=1.0, description="Weight of the masks in the loss of classify and segment."
    )
    method: Literal["surface", "patchcore"] = Field(
        default="surface",
        description="What patches of an anomaly model are compared by: edges and brightness, which "
        "needs no weights, or the backbone, which needs model.weights.",
    )
    patch: PositiveInt = Field(default=8, description="Side of the patches of surface, in pixels.")
    memory: PositiveInt = Field(
        default=2000, description="Patches of good parts that an anomaly model remembers."
    )
    neighbours: PositiveInt = Field(
        default=5, description="Remembered patches that its score is weighed by."
    )
    threshold: Literal["cost", "escape"] = Field(
        default="cost",
        description="Where a part is rejected: at least cost, or so that few defects escape.",
    )
    escape_cost: PositiveFloat = Field(
        default=10.0, description="Cost of a defect that passes; of good parts see overkill_cost."
    )
    escape_costs: dict[str, PositiveFloat] = Field(
        default={}, description="The same for single classes, where it differs."
    )
    overkill_cost: PositiveFloat = Field(
        default=1.0, description="Cost of a good part that is rejected."
    )
    escape_limit: Share = Field(
        default=0.02, description="Largest share of defects that may pass; threshold = escape."
    )


class DefectTrain(TrainSettings):
    """`[train]`, with what suits a small network on a few thousand pictures."""

    epochs: PositiveInt = Field(default=40, description="Passes over the train split.")
    batch_size: PositiveInt = Field(default=16, description="Pictures per optimiser step.")
    lr: PositiveFloat = Field(default=2e-3, description="Peak learning rate.")
    weight_decay: NonNegativeFloat = Field(default=0.05, description="Decoupled weight decay.")
    clip_grad_norm: NonNegativeFloat = Field(default=5.0, description="Largest gradient norm.")
    ema_decay: float = Field(
        default=0.995, ge=0.0, lt=1.0, description="Decay of the averaged weights that are kept."
    )


class DefectDeploy(DeploySettings):
    """`[deploy]`, with fewer golden records: a picture is large."""

    golden: PositiveInt = Field(
        default=24, description="Records of the test split that the bundle carries to verify with."
    )


class DefectSettings(Settings):
    """The settings of a defect project."""

    solution: str = Field(default="defect", description="Entry-point name of the solution.")
    data: DefectData = DefectData()
    model: DefectModel = DefectModel()
    train: DefectTrain = DefectTrain()
    deploy: DeploySettings = DefectDeploy()
    serve: ServeSettings = ServeSettings()
