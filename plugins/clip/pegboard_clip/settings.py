"""What a user can set: the `[data]`, `[model]`, `[train]` and `[serve]` tables."""

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
Portion = Annotated[float, Field(ge=0.0, le=1.0)]


class ClipData(DataSettings):
    """`[data]`: where pictures and captions are, and how they are split."""

    path: ProjectPath | None = Field(
        default=None,
        description="A CSV or JSONL file of images and captions, COCO's captions, a Flickr folder "
        "or WebDataset shards; without it scenes are generated.",
    )
    layout: Literal["auto", "table", "coco", "flickr", "webdataset"] = Field(
        default="auto", description="How they lie there; auto: told by what is there."
    )
    image_column: str = Field(default="image", description="Column of a table: the image's file.")
    caption_column: str = Field(default="caption", description="Column of a table: the caption.")
    split_column: str = Field(
        default="split", description="Column of a table: train, validation or test, where it is."
    )
    label_column: str = Field(
        default="label", description="Column of a table: the class for zero-shot, where it is."
    )
    images: ProjectPath | None = Field(
        default=None, description="Folder that file names are relative to; else the path's own."
    )
    labels: tuple[str, ...] = Field(
        default=(), description="Classes for zero-shot; without them the label column's values."
    )
    prompts: tuple[str, ...] = Field(
        default=("a picture of {}",),
        min_length=1,
        description="Sentences that a class is put in; their embeddings are averaged.",
    )
    languages: tuple[Literal["en", "zh"], ...] = Field(
        default=("en", "zh"), min_length=1, description="Of the generated captions."
    )
    scenes: PositiveInt = Field(default=4000, description="Generated scenes.")
    validation_share: Share = Field(default=0.1, description="Share that chooses the checkpoint.")
    test_share: Share = Field(default=0.1, description="Share that the report measures.")
    split_seed: NonNegativeInt = Field(default=0, description="Of the split; not of training.")
    pixels: PositiveInt = Field(
        default=100_000_000, description="Most pixels of an image; larger ones are refused."
    )
    cache_mb: NonNegativeInt = Field(
        default=2048, description="Memory for decoded images; beyond it they are read again."
    )


class ClipModel(ModelSettings):
    """`[model]`: two towers, and where their weights come from."""

    architecture: Literal[
        "small", "small-vit", "ViT-B-32", "ViT-B-16", "ViT-L-14", "chinese-clip"
    ] = Field(
        default="small",
        description="small: a convolutional image tower and a text transformer to train from "
        "scratch; small-vit: the same with a transformer; the others take published weights.",
    )
    weights: ProjectPath | None = Field(
        default=None,
        description="A local checkpoint to begin with: open_clip's .safetensors or .bin, or a "
        "folder of Hugging Face's CLIPModel or ChineseCLIPModel.",
    )
    activation: Literal["auto", "gelu", "quickgelu"] = Field(
        default="auto",
        description="Of the transformers; the wrong one loads and answers worse. auto: what the "
        "checkpoint's configuration says.",
    )
    image_size: NonNegativeInt = Field(
        default=0, description="Side of the image in pixels; 0: the architecture's own."
    )
    width: NonNegativeInt = Field(
        default=0, description="Numbers of an embedding; 0: the architecture's own."
    )
    tokenizer: Literal["auto", "clip", "trained", "bert"] = Field(
        default="auto",
        description="clip: OpenAI's byte-pair encoding; trained: one learnt from the captions; "
        "bert: Chinese-CLIP's. auto: what fits the architecture and the weights.",
    )
    vocabulary: ProjectPath | None = Field(
        default=None,
        description="The tokenizer's file: bpe_simple_vocab_16e6.txt.gz, vocab.txt, or a trained "
        "vocabulary.json; without it the one that is installed or was trained.",
    )
    vocabulary_size: PositiveInt = Field(default=4096, description="Of a trained tokenizer.")
    context: PositiveInt = Field(default=77, description="Tokens of a caption that are read.")
    locked: bool = Field(
        default=False,
        description="Whether the image tower keeps the checkpoint's weights (LiT); its embeddings "
        "are computed once.",
    )


class AugmentSettings(Table):
    """`[train.augment]`: how a training image is changed; a caption must stay true."""

    crop: Portion = Field(
        default=0.7, description="Smallest share of the image's area that a crop keeps; 1: none."
    )
    flip: bool = Field(
        default=False, description="Mirror left and right; a caption may say 'left'."
    )
    colour: Portion = Field(
        default=0.0, description="Change of brightness and contrast; a caption may say 'red'."
    )


class ClipTrain(TrainSettings):
    """`[train]`, with what suits pairs."""

    objective: Literal["infonce", "sigmoid"] = Field(
        default="infonce", description="CLIP's symmetric InfoNCE, or SigLIP's sigmoid loss."
    )
    chunk: NonNegativeInt = Field(
        default=0,
        description="Pairs that are encoded at once: memory of a small batch for the negatives of "
        "a large one (GradCache); 0: the whole batch.",
    )
    interpolation: Portion = Field(
        default=1.0,
        description="Share of the fine-tuned weights between the checkpoint's and theirs "
        "(WiSE-FT); 1: fine-tuned alone.",
    )
    epochs: PositiveInt = Field(default=40, description="Passes over the train split.")
    batch_size: PositiveInt = Field(default=256, description="Pairs per optimiser step.")
    lr: PositiveFloat = Field(
        default=2e-3, description="Peak learning rate; from a checkpoint about 1e-5."
    )
    weight_decay: NonNegativeFloat = Field(default=0.05, description="Decoupled weight decay.")
    augment: AugmentSettings = AugmentSettings()


class ClipServe(ServeSettings):
    """`[serve]`, with the index that the page searches."""

    index: ProjectPath | None = Field(
        default=None, description="Index that the page searches; 'pegboard index' writes it."
    )
    request_mb: PositiveFloat = Field(default=32.0, description="Largest request, in megabytes.")


class ClipSettings(Settings):
    """The settings of a clip project."""

    solution: str = Field(default="clip", description="Entry-point name of the solution.")
    data: ClipData = ClipData()
    model: ClipModel = ClipModel()
    train: ClipTrain = ClipTrain()
    deploy: DeploySettings = DeploySettings()
    serve: ClipServe = ClipServe()
