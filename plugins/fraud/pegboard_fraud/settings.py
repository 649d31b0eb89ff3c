"""What a bank's engineer can set: the `[data]` and `[model]` tables of a fraud project."""

from __future__ import annotations

from datetime import date
from typing import Literal

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


class ColumnSettings(Table):
    """`[data.columns]`: what the columns of the file are called."""

    id: str = Field(default="id", description="Identifier of the transaction, unique.")
    time: str = Field(default="time", description="ISO 8601, or seconds since 1970 UTC.")
    customer: str = Field(default="customer", description="Identifier of customer or card.")
    terminal: str = Field(default="terminal", description="Identifier of terminal or merchant.")
    amount: str = Field(default="amount", description="In units of the currency.")
    label: str = Field(default="label", description="1 fraud, 0 genuine, empty unknown.")


class FraudData(DataSettings):
    """`[data]`: where the transactions are and which days train, validate and test."""

    path: ProjectPath | None = Field(
        default=None,
        description="CSV (.csv, .csv.gz) or Parquet file; without it a simulated set is made.",
    )
    columns: ColumnSettings = ColumnSettings()
    currency: str = Field(default="EUR", description="For reports.")
    label_delay_days: PositiveInt = Field(
        default=7, description="Days until it is known whether a transaction was fraud."
    )
    train_from: date | None = Field(
        default=None, description="First day to learn from; unset: the first with a full past."
    )
    train_days: NonNegativeInt = Field(
        default=0, description="Days to learn from, the latest; 0: all since train_from."
    )
    validation_days: PositiveInt = Field(
        default=7, description="Days that choose checkpoint and thresholds, before the test days."
    )
    test_days: PositiveInt = Field(default=14, description="Days that the report measures.")
    test_until: date | None = Field(
        default=None, description="Last test day; unset: the last whole day of the file."
    )
    protocol: Literal["deploy", "handbook"] = Field(
        default="deploy",
        description="deploy: train, delay, validation, delay, test; handbook: the published "
        "train, delay, test, with thresholds from the training days.",
    )
    blocked_days: NonNegativeInt = Field(
        default=7,
        description="Customers whose fraud became known in so many days before the test, or in "
        "it, are left out of the test: their cards are blocked. 0 leaves nobody out.",
    )
    customers: PositiveInt = Field(default=2000, description="Simulated customers.")
    terminals: PositiveInt = Field(default=4000, description="Simulated terminals.")
    days: PositiveInt = Field(default=120, description="Simulated days.")


class FraudModel(ModelSettings):
    """`[model]`: the network, and what a mistake costs."""

    architecture: Literal["mlp", "tabm"] = Field(
        default="mlp", description="Multilayer perceptron, or TabM, an ensemble in one network."
    )
    encoding: Literal["standard", "piecewise_linear"] = Field(
        default="piecewise_linear", description="How numbers enter the network."
    )
    hidden: tuple[PositiveInt, ...] = Field(default=(64, 128), description="Layer widths.")
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0, description="Share of units left out.")
    bins: PositiveInt = Field(default=16, description="Bins a feature, piecewise_linear only.")
    members: PositiveInt = Field(default=8, description="Ensemble members, tabm only.")
    negatives_per_fraud: NonNegativeFloat = Field(
        default=50.0,
        description="Genuine transactions an epoch for each fraud, drawn afresh; 0: all of them.",
    )
    threshold: Literal["cost", "budget"] = Field(
        default="cost", description="Review what is worth it, or as many as can be reviewed."
    )
    review_cost: PositiveFloat = Field(
        default=3.0, description="Cost of reviewing one transaction, in units of the currency."
    )
    alerts_per_day: PositiveInt = Field(default=100, description="Reviews a day, budget only.")


class FraudTrain(TrainSettings):
    """`[train]`, with what suits a few hundred thousand rows."""

    epochs: PositiveInt = Field(default=12, description="Passes over the train split.")
    batch_size: PositiveInt = Field(default=512, description="Rows per optimiser step.")
    lr: PositiveFloat = Field(default=2e-3, description="Peak learning rate.")
    weight_decay: NonNegativeFloat = Field(default=0.1, description="Decoupled weight decay.")
    ema_decay: float = Field(
        default=0.999, ge=0.0, lt=1.0, description="Decay of the averaged weights that are kept."
    )


class FraudServe(ServeSettings):
    """`[serve]`: how decisions are made and what is remembered for them."""

    state: str = Field(
        default="local",
        description="Where the past is kept: local (memory, with SQLite as its log), or a "
        "redis:// URL without password (that comes from PEGBOARD_REDIS_PASSWORD).",
    )
    sync: bool = Field(
        default=True,
        description="Whether a decision is on the disk before it is answered; false survives a "
        "killed process, not a power cut. Local state only.",
    )
    assume_genuine: bool = Field(
        default=True,
        description="Count a transaction as genuine once label_delay_days passed without feedback.",
    )
    clock: Literal["system", "transactions"] = Field(
        default="system",
        description="What time it is: the machine's, or that of the latest transaction, to replay.",
    )
    future_seconds: NonNegativeInt = Field(
        default=300, description="How far ahead of the clock a transaction may be dated."
    )
    late_days: NonNegativeInt = Field(
        default=7, description="How late a transaction may come; a later one is refused."
    )
    rules: ProjectPath | None = Field(
        default=None, description="TOML file with rules and lists; without it the model decides."
    )
    decline_above: float | None = Field(
        default=None,
        gt=0.0,
        le=1.0,
        description="Probability from which a transaction is declined; unset: never.",
    )
    on_failure: Literal["open", "closed"] = Field(
        default="open", description="What is decided when model or state fail: approve or decline."
    )
    reasons: NonNegativeInt = Field(default=3, description="Reason codes in an answer, at most.")


class FraudSettings(Settings):
    """The settings of a fraud project."""

    solution: str = Field(default="fraud", description="Entry-point name of the solution.")
    data: FraudData = FraudData()
    model: FraudModel = FraudModel()
    train: FraudTrain = FraudTrain()
    deploy: DeploySettings = DeploySettings()
    serve: FraudServe = FraudServe()
