"""The fraud model, from raw features to a calibrated probability, in one graph.

B transactions, F features, E encoded inputs, K members, D hidden units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from pegboard.records import Array, Batch
from pegboard_fraud.data import FraudDataset
from pegboard_fraud.features import AMOUNT, FEATURE_NAMES
from pegboard_fraud.settings import FraudSettings

Encoding = Literal["standard", "piecewise_linear"]
Architecture = Literal["mlp", "tabm"]
Floats = NDArray[np.float64]


# --- Encodings: raw features to what a network likes ----------------------------------------------


class Standard(nn.Module):
    """Signed logarithm, then zero mean and unit variance.

    asinh is a logarithm on both sides that is linear around zero: amounts and counts of any size
    come in without clipping, which would cost precision exactly where fraud is.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.size = features
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))

    def fit(self, features: Array, labels: Array) -> None:
        """Measure mean and spread of the training features (N, F)."""
        logs = np.arcsinh(features.astype(np.float64))
        spread = logs.std(axis=0)
        self.mean.copy_(torch.from_numpy(logs.mean(axis=0)))
        # A feature that never varies in training must not explode when it does.
        self.scale.copy_(torch.from_numpy(1 / np.where(spread > 1e-6, spread, 1.0)))

    def forward(self, features: Tensor) -> Tensor:
        """(B, F) -> (B, F)."""
        return (torch.asinh(features) - self.mean) * self.scale


class PiecewiseLinear(nn.Module):
    """Each feature as how far it fills each of its bins (Gorishniy et al., NeurIPS 2022).

    The bins lie at quantiles of a sample in which both classes weigh the same: plain quantiles
    would spend them on the genuine bulk. Features with few values need few bins, so E = F * bins
    are shared out among all; what is left over is zero. Shapes never depend on the data.
    """

    def __init__(self, features: int, bins: int) -> None:
        super().__init__()
        self.size = features * bins
        self.choice: Tensor
        self.shift: Tensor
        self.slope: Tensor
        self.register_buffer("choice", torch.zeros(self.size, features))
        self.register_buffer("shift", torch.zeros(self.size))
        self.register_buffer("slope", torch.zeros(self.size))

    def fit(self, features: Array, labels: Array) -> None:
        """Place the bins by the training features (N, F) and labels (N,)."""
        edges = share_out_bins(features, labels, self.size)
        column = np.repeat(np.arange(len(edges)), [len(of_feature) - 1 for of_feature in edges])
        start = np.concatenate([of_feature[:-1] for of_feature in edges])
        width = np.concatenate([np.diff(of_feature) for of_feature in edges])
        for buffer, values in (
            (self.choice, np.eye(len(edges))[column]),
            (self.shift, -start),
            (self.slope, 1 / width),
        ):
            buffer.zero_()[: len(values)] = torch.from_numpy(values)

    def forward(self, features: Tensor) -> Tensor:
        """(B, F) -> (B, E)."""
        # A product with rows of an identity takes a third of the time of a gather in ONNX Runtime.
        # The difference comes before the slope: it is exact near the start of the narrowest bin.
        with torch.autocast(features.device.type, enabled=False):  # Amounts need all their digits.
            above = functional.linear(features, self.choice, self.shift)
        return (above * self.slope).clamp(0, 1)


def share_out_bins(features: Array, labels: Array, most: int) -> list[Floats]:
    """Divide features (N, F) at equally spaced quantiles into at most `most` bins together.

    Returns:
        The edges of each feature's bins, ascending.
    """
    samples = [_balanced(column, labels) for column in features.T]
    best = [np.unique(values[:1]) for values, _ in samples]
    for count in range(2, most + 2):
        edges = [_quantiles(*sample, count) for sample in samples]
        if sum(len(e) - 1 for e in edges) > most:
            break
        best = edges
    return best


def _balanced(column: Array, labels: Array) -> tuple[Floats, Floats]:
    """The different values of a column (N,), ascending, and running weights: 1 for each class."""
    values, place = np.unique(column, return_inverse=True)
    fraud = labels == 1
    counts = [np.bincount(place[kind], minlength=len(values)) for kind in (fraud, ~fraud)]
    shares = [count / max(1, count.sum()) for count in counts]
    return values.astype(np.float64), np.cumsum(sum(shares))


def _quantiles(values: Floats, weights: Floats, count: int) -> Floats:
    """Those of `count` equally spaced quantiles that differ."""
    places = np.searchsorted(weights, np.linspace(0, weights[-1], count))
    return np.unique(values[places.clip(max=len(values) - 1)])


# --- Networks: encoded features to one logit a member ---------------------------------------------


class MLP(nn.Sequential):
    """A plain feed-forward network: (B, E) -> (B, 1)."""

    def __init__(self, inputs: int, hidden: Sequence[int], dropout: float) -> None:
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [nn.Linear(inputs, width), nn.ReLU(), nn.Dropout(dropout)]
            inputs = width
        super().__init__(*layers, nn.Linear(inputs, 1))


class MemberLinear(nn.Module):
    """A linear layer that K members share but for scales and biases (BatchEnsemble).

    Wen, Tran and Ba, ICLR 2020: y_k = s_k * (W (r_k * x_k)) + b_k.
    """

    def __init__(self, members: int, inputs: int, outputs: int, *, first: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        # Random signs make the members differ; one layer of them is enough (TabM, section 3).
        signs = torch.randint(0, 2, (members, inputs)) * 2.0 - 1.0
        self.scale_in = nn.Parameter(signs if first else torch.ones(members, inputs))
        self.scale_out = nn.Parameter(torch.ones(members, outputs))
        bound = inputs**-0.5
        self.bias = nn.Parameter(torch.empty(members, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """(B, K, inputs) or (B, 1, inputs) -> (B, K, outputs)."""
        return functional.linear(x * self.scale_in, self.weight) * self.scale_out + self.bias


class TabM(nn.Module):
    """K networks in one (Gorishniy, Kotelnikov and Babenko, ICLR 2025): (B, E) -> (B, K)."""

    def __init__(self, inputs: int, hidden: Sequence[int], dropout: float, members: int) -> None:
        super().__init__()
        widths = [inputs, *hidden]
        self.layers = nn.ModuleList(
            MemberLinear(members, before, after, first=index == 0)
            for index, (before, after) in enumerate(zip(widths, hidden, strict=False))
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Parameter(torch.empty(members, widths[-1]))
        self.head_bias = nn.Parameter(torch.zeros(members))
        nn.init.uniform_(self.head, -(widths[-1] ** -0.5), widths[-1] ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(B, E) -> (B, K)."""
        x = x.unsqueeze(1)
        for layer in self.layers:
            x = self.dropout(functional.relu(layer(x)))  # (B, K, D)
        return (x * self.head).sum(dim=2) + self.head_bias


# --- Model and deployable -------------------------------------------------------------------------


class FraudModel(nn.Module):
    """From raw features to the logits of the members, in the world that training samples from.

    Shapes follow from the arguments alone; all that is fitted from data is in buffers.

    Args:
        features: F.
        architecture: What comes after the encoding.
        encoding: How numbers enter the network.
        hidden: Widths of the hidden layers.
        dropout: Share of hidden units left out in training.
        bins: How many a feature has on average, for `piecewise_linear`.
        members: K, for `tabm`; an `mlp` has one.
    """

    def __init__(
        self,
        features: int,
        *,
        architecture: Architecture = "mlp",
        encoding: Encoding = "piecewise_linear",
        hidden: Sequence[int] = (64, 128),
        dropout: float = 0.0,
        bins: int = 16,
        members: int = 8,
    ) -> None:
        super().__init__()
        self.encoding: Standard | PiecewiseLinear = (
            Standard(features) if encoding == "standard" else PiecewiseLinear(features, bins)
        )
        size = self.encoding.size
        self.network: MLP | TabM = (
            MLP(size, hidden, dropout)
            if architecture == "mlp"
            else TabM(size, hidden, dropout, members)
        )
        self.log_odds_correction: Tensor
        self.register_buffer("log_odds_correction", torch.zeros(()))

    def fit(self, features: Array, labels: Array, negative_rate: float = 1.0) -> None:
        """Fit what is not learnt by gradients.

        Args:
            features: All training features (N, F).
            labels: 1 fraud, 0 genuine. (N,)
            negative_rate: The share of genuine rows that training will see, above 0. It multiplies
                the odds of fraud by its inverse; the correction takes that back exactly (King and
                Zeng, Political Analysis, 2001), so the probabilities stay calibrated.
        """
        self.encoding.fit(features, labels)
        self.log_odds_correction.fill_(math.log(negative_rate))

    def forward(self, features: Tensor) -> Tensor:
        """(B, F) -> (B, K)."""
        logits: Tensor = self.network(self.encoding(features))
        return logits


class FraudScorer(nn.Module):
    """What is deployed: raw features in, probability and expected loss out."""

    def __init__(self, model: FraudModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """(B, F) -> probability (B,) and expected_loss (B,), in units of the currency."""
        logits = self.model(features) + self.model.log_odds_correction  # (B, K)
        probability = logits.sigmoid().mean(dim=1)
        return {
            "probability": probability,
            "expected_loss": probability * features[:, AMOUNT],
        }


def build(settings: FraudSettings, train_data: FraudDataset | None) -> FraudModel:
    """Build the model, fitted to the train split unless trained weights will follow."""
    table = settings.model
    model = FraudModel(
        len(FEATURE_NAMES),
        architecture=table.architecture,
        encoding=table.encoding,
        hidden=table.hidden,
        dropout=table.dropout,
        bins=table.bins,
        members=table.members,
    )
    if train_data is not None:
        model.fit(train_data.features, train_data.labels, negative_rate=train_data.negative_rate)
    return model


def compute_loss(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Cross-entropy, the mean over members: each is to be right on its own (TabM, section 3).

    Weights and focal terms raise the area under the ROC curve and spoil precision and calibration.
    """
    logits = model(batch.inputs["features"])  # (B, K)
    labels = batch.targets["label"].unsqueeze(1).expand_as(logits)
    return {"loss": functional.binary_cross_entropy_with_logits(logits, labels)}
