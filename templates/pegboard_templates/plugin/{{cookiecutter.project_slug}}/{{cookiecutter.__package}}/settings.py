"""What a user can set: the `[data]`, `[model]` and `[train]` tables of a project."""

from __future__ import annotations

from pegboard.settings import DataSettings, ModelSettings, Settings, TrainSettings
from pydantic import Field, PositiveInt


class WearData(DataSettings):
    """`[data]`: the recordings."""

    recordings: PositiveInt = Field(default=1200, description="Simulated recordings.")
    load_noise: float = Field(
        default=1.0, ge=0.0, description="Noise of the machine, as a multiple of the usual."
    )


class WearModel(ModelSettings):
    """`[model]`: the network and its decision."""

    channels: PositiveInt = Field(default=16, description="Channels of the first layer.")
    false_alarms: float = Field(
        default=0.02, gt=0.0, lt=1.0, description="Share of sound bearings that may be reported."
    )


class WearTrain(TrainSettings):
    """`[train]`, with what suits a thousand recordings."""

    epochs: PositiveInt = Field(default=8, description="Passes over the train split.")
    batch_size: PositiveInt = Field(default=32, description="Recordings per optimiser step.")


class WearSettings(Settings):
    """The settings of a project."""

    data: WearData = WearData()
    model: WearModel = WearModel()
    train: WearTrain = WearTrain()
