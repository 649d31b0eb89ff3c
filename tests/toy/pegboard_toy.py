"""A whole solution in one small file: the core's tests run on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pegboard import DataError, RequestError, hookimpl
from pegboard.records import Baseline, Figure, Finding, Metric, Sample, Signature, TensorSpec
from pegboard.settings import DataSettings, ModelSettings, Settings, TrainSettings


class ToyData(DataSettings):
    count: int = 240
    path: Path | None = None


class ToyModel(ModelSettings):
    hidden: int = 16
    dropout: float = 0.1


class ToyTrain(TrainSettings):
    epochs: int = 3
    batch_size: int = 24
    lr: float = 0.01


class ToySettings(Settings):
    data: ToyData = ToyData()
    model: ToyModel = ToyModel()
    train: ToyTrain = ToyTrain()


@hookimpl
def settings_type() -> type[Settings]:
    return ToySettings


@hookimpl
def prepare_data(settings: Any) -> list[Path]:
    path = settings.data.folder / "toy.npz"
    if not path.exists():
        generator = np.random.default_rng(7)
        count = 120 if settings.data.tiny else settings.data.count
        label = generator.integers(0, 2, count)
        x = generator.normal(size=(count, 4)) + label[:, None] * 1.5
        np.savez(path, x=x.astype(np.float32), label=label.astype(np.float32))
    return [path]


@hookimpl
def check_data(settings: Any) -> list[Finding]:
    x = _read(settings)["x"]
    bad = np.flatnonzero(np.isnan(x).any(axis=1))
    if not len(bad):
        return []
    return [
        Finding(
            level="error",
            what=f"{len(bad)} rows hold NaN",
            where=f"row {bad[0]}",
            remedy="remove them",
        )
    ]


def _read(settings: Any) -> dict[str, Any]:
    path = settings.data.folder / "toy.npz"
    try:
        return dict(np.load(path))
    except (OSError, ValueError, EOFError):
        raise DataError("the data cannot be read", where=str(path), remedy="delete it") from None


class ToyDataset:
    def __init__(self, x: Any, label: Any) -> None:
        self.x, self.label = x, label

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Sample:
        return Sample(
            inputs={"x": self.x[index]},
            targets={"label": self.label[index]},
            key=f"row {index}",
        )


@hookimpl
def load_split(settings: Any, split: str) -> Any:
    data = _read(settings)
    count = len(data["x"])
    part = {
        "train": slice(0, count // 2),
        "validation": slice(count // 2, 3 * count // 4),
        "test": slice(3 * count // 4, count),
    }[split]
    return ToyDataset(data["x"][part], data["label"][part])


@hookimpl
def build_model(settings: Any, train_data: Any) -> Any:
    import torch
    from torch import nn

    class Toy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(4))
            hidden = settings.model.hidden
            self.body = nn.Sequential(
                nn.Linear(4, hidden), nn.ReLU(), nn.Dropout(settings.model.dropout)
            )
            self.head = nn.Linear(hidden, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, 4) -> (B,)
            return self.head(self.body(x - self.mean)).squeeze(-1)

    model = Toy()
    if train_data is not None:
        model.mean.copy_(torch.as_tensor(train_data.x).mean(0))
    return model


@hookimpl
def compute_loss(model: Any, batch: Any) -> dict[str, Any]:
    from torch.nn.functional import binary_cross_entropy_with_logits

    logit = model(batch.inputs["x"])
    return {"loss": binary_cross_entropy_with_logits(logit, batch.targets["label"])}


@hookimpl
def build_deployable(model: Any) -> Any:
    from torch import nn

    class Scorer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Any) -> dict[str, Any]:
            return {"probability": self.model(x).sigmoid()}

    return Scorer()


@hookimpl
def build_metrics() -> list[Metric]:
    def accuracy(rows: Any, thresholds: Any) -> float:
        return float(((rows["probability"] >= 0.5) == (rows["label"] > 0.5)).mean())

    return [Metric(name="accuracy", compute=accuracy, direction="higher", headline=True)]


@hookimpl
def choose_thresholds(rows: Any) -> dict[str, float]:
    return {"positive": 0.5}


@hookimpl
def build_baselines() -> list[Baseline]:
    def fit(train: Any, validation: Any) -> Any:
        middle = train.x.sum(axis=1).mean()
        return lambda inputs: {"probability": (inputs["x"].sum(axis=1) > middle).astype("f4")}

    return [Baseline(name="sum of columns", fit=fit, description="One cut, no learning.")]


@hookimpl
def signature() -> Signature:
    return Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 4), low=-3.0, high=4.0),),
        outputs=(
            TensorSpec(name="probability", dtype="float32", shape=("batch",), low=0.0, high=1.0),
        ),
        request={"points": [[0.0, 1.0, 2.0, 3.0]]},
    )


@hookimpl
def decode_request(payload: Any) -> dict[str, Any]:
    try:
        x = np.asarray(payload["points"], dtype=np.float32)
    except (KeyError, TypeError, ValueError):
        raise RequestError(
            "'points' is not a list of four numbers each", where="request", remedy="send it so"
        ) from None
    if x.ndim != 2 or x.shape[1] != 4 or not np.isfinite(x).all():
        raise RequestError(
            "'points' is not a list of four finite numbers each",
            where="request",
            remedy="send it so",
        )
    return {"x": x}


@hookimpl
def encode_answer(outputs: Any, thresholds: Any) -> list[dict[str, Any]]:
    return [
        {"score": float(p), "decision": "yes" if p >= thresholds["positive"] else "no"}
        for p in outputs["probability"]
    ]


@hookimpl
def draw(evaluation: Any) -> list[Figure]:
    return [
        Figure(
            name="score",
            title="Scores",
            caption="How many rows there are.",
            content=f"<svg viewBox='0 0 90 20'><text y='15'>{len(evaluation.rows['label'])}"
            "</text></svg>",
        )
    ]
