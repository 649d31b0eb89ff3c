"""What a clinical engineer can set: the `[data]`, `[model]`, `[train]` and `[serve]` tables."""

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
Side = Annotated[int, Field(ge=8, le=512, multiple_of=8)]


class ColumnSettings(Table):
    """`[data.columns]`: what the columns of the CSV file are called; only `image` is needed."""

    image: str = Field(default="image", description="NIfTI file or DICOM folder, from the file.")
    mask: str = Field(default="mask", description="NIfTI or DICOM-SEG file; empty: none.")
    label: str = Field(default="label", description="Class of the volume; empty: not known.")
    patient: str = Field(default="patient", description="Patient; cases of one stay together.")
    split: str = Field(default="split", description="train, validation or test; empty: ours.")


class VolumeData(DataSettings):
    """`[data]`: where volumes are, how they are split and how a model sees them."""

    path: ProjectPath | None = Field(
        default=None,
        # People name folders after patients: it is not kept with a run, a report or a bundle.
        exclude=True,
        description="Folder or zip of DICOM or NIfTI files, or a CSV file; without it CT-like "
        "volumes are generated.",
    )
    layout: Literal["auto", "dicom", "nifti", "csv"] = Field(
        default="auto", description="How they lie there; auto: told by what is there."
    )
    columns: ColumnSettings = ColumnSettings()
    modality: Literal["ct", "mr"] = Field(
        default="ct",
        description="ct: Hounsfield units, cut to data.window; mr: brought to mean 0 and deviation "
        "1 volume by volume.",
    )
    window: tuple[float, float] = Field(
        default=(-1000.0, 400.0), description="Hounsfield units that a CT is cut to."
    )
    patient_pattern: str = Field(
        default="",
        description="Regular expression whose first group, in the file's path, names the patient; "
        "DICOM files say it themselves.",
    )
    validation_share: Share = Field(default=0.1, description="Share that chooses the checkpoint.")
    test_share: Share = Field(default=0.2, description="Share that the report measures.")
    folds: NonNegativeInt = Field(
        default=0, description="Folds of a cross-validation; 0: one split by test_share."
    )
    fold: NonNegativeInt = Field(default=0, description="Which fold tests, from 0.")
    split_seed: NonNegativeInt = Field(default=0, description="Of the split; not of training.")
    cases: PositiveInt = Field(default=60, description="Generated volumes.")


class SegmentationData(VolumeData):
    """`[data]` of segmentation."""

    classes: tuple[str, ...] = Field(
        default=("nodule",), min_length=1, description="Structures; the first has 1 in the masks."
    )
    spacing: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat] = Field(
        default=(2.0, 2.0, 2.0),
        description="Millimetres between voxels that the model sees: slices, rows, columns; 0: as "
        "they come.",
    )


class SegmentationModel(ModelSettings):
    """`[model]`: the network, what it sees at once, and what counts as a lesion."""

    network: Literal["unet", "attention_unet", "segresnet", "dynunet"] = Field(
        default="unet", description="Network of MONAI."
    )
    channels: PositiveInt = Field(default=16, description="Channels of its first level.")
    levels: int = Field(default=4, ge=2, le=6, description="Levels; each halves every side.")
    patch: tuple[Side, Side, Side] = Field(
        default=(48, 48, 48), description="Voxels that it sees at once: slices, rows, columns."
    )
    foreground: Share = Field(
        default=0.6, description="Share of training patches with a structure in their middle."
    )
    patches: PositiveInt = Field(default=4, description="Training patches of a case, each epoch.")
    overlap: Share = Field(default=0.5, description="Share of a window that the next one repeats.")
    windows: PositiveInt = Field(default=4, description="Windows in one call of the model.")
    skip_below: float = Field(
        default=-900.0,
        description="Windows without a voxel above this are taken to be empty and not run; of an "
        "mr in deviations from the mean, which by default runs all.",
    )
    symmetric: tuple[Literal["head-feet", "front-back", "left-right"], ...] = Field(
        default=("left-right",),
        description="Directions that what is looked for has no preference in: training patches are "
        "mirrored along them.",
    )
    mirrored: bool = Field(
        default=False,
        description="Judge every window mirrored along model.symmetric too and take the mean.",
    )
    lesions: bool = Field(
        default=True, description="Count connected lesions: recall, precision and FROC."
    )
    smallest_mm3: NonNegativeFloat = Field(
        default=0.0, description="Connected regions below this are dropped from the answer."
    )


class VolumeTrain(TrainSettings):
    """`[train]`, with what suits patches of volumes."""

    epochs: PositiveInt = Field(default=12, description="Passes over the train split.")
    batch_size: PositiveInt = Field(default=4, description="Patches per optimiser step.")
    eval_batch_size: NonNegativeInt = Field(
        default=1, description="Volumes per batch where nothing is learnt: they differ in shape."
    )
    lr: PositiveFloat = Field(default=2e-3, description="Peak learning rate.")
    weight_decay: NonNegativeFloat = Field(default=1e-4, description="Decoupled weight decay.")
    clip_grad_norm: NonNegativeFloat = Field(default=5.0, description="Largest gradient norm.")


class VolumeDeploy(DeploySettings):
    """`[deploy]`, with few golden records: a volume is large."""

    golden: PositiveInt = Field(
        default=4, description="Records of the test split that the bundle carries to verify with."
    )
    reference: PositiveInt = Field(
        default=16, description="Records of the train split behind the reference statistics."
    )


class VolumeServe(ServeSettings):
    """`[serve]`, with room for volumes, and the PACS that series are taken from."""

    request_mb: PositiveFloat = Field(default=512.0, description="Largest request, in megabytes.")
    timeout_seconds: PositiveFloat = Field(
        default=600.0, description="Longest time from the first byte of a request to its answer."
    )
    batch_size: PositiveInt = Field(default=1, description="Most records run together.")
    pacs: str = Field(
        default="",
        description="DICOMweb address of the PACS, as http://127.0.0.1:8042/dicom-web; user and "
        "password are taken from PEGBOARD_PACS_USER and PEGBOARD_PACS_PASSWORD.",
    )


class SegmentationSettings(Settings):
    """The settings of a medical-segmentation project."""

    solution: str = Field(
        default="medical-segmentation", description="Entry-point name of the solution."
    )
    data: SegmentationData = SegmentationData()
    model: SegmentationModel = SegmentationModel()
    train: VolumeTrain = VolumeTrain()
    deploy: DeploySettings = VolumeDeploy()
    serve: VolumeServe = VolumeServe()
