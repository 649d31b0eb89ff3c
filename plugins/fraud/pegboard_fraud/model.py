"""The fraud model, from raw features to a calibrated probability, in one graph.

B transactions, F features, T bins a feature, E encoded inputs, K members, D hidden units.
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

Encoding = Literal["standard", "piecewise_linear"]
Architecture = Literal["mlp", "tabm"]
Floats = NDArray[np.floating]


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

    def fit(self, features: Floats, labels: NDArray[np.integer]) -> None:
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
    """Each feature as how far it fills each of T bins (Gorishniy et al., NeurIPS 2022).

    The bins lie at quantiles of a sample in which both classes weigh the same: plain quantiles would
    spend all bins on the genuine bulk. Equal quantiles leave a bin empty, and its input is zero, so
    that shapes never depend on the data.
    """

    def __init__(self, features: int, bins: int) -> None:
        super().__init__()
        self.size = features * bins
        self.slope: Tensor
        self.offset: Tensor
        self.register_buffer("slope", torch.ones(features, bins))
        self.register_buffer("offset", torch.zeros(features, bins))

    def fit(self, features: Floats, labels: NDArray[np.integer]) -> None:
        """Place the bins by the training features (N, F) and labels (N,)."""
        bins = self.slope.shape[1]
        edges = np.stack([balanced_quantiles(column, labels, bins + 1) for column in features.T])
        width = np.diff(edges)  # (F, T)
        slope = np.divide(1, width, out=np.zeros_like(width), where=width > 0)
        self.slope.copy_(torch.from_numpy(slope))
        self.offset.copy_(torch.from_numpy(-edges[:, :-1] * slope))

    def forward(self, features: Tensor) -> Tensor:
        """(B, F) -> (B, F * T)."""
        filled = features.unsqueeze(2) * self.slope + self.offset  # (B, F, T)
        return filled.clamp(0, 1).flatten(1)


def balanced_quantiles(column: Floats, labels: NDArray[np.integer], count: int) -> Floats:
    """The `count` equally spaced quantiles (count,) of a column (N,), both classes weighing the same."""
    order = np.argsort(column, kind="stable")
    fraud = labels[order] == 1
    shares = [kind / max(1, kind.sum()) for kind in (fraud, ~fraud)]
    reached = np.cumsum(np.sum(shares, axis=0))  # (N,)
    wanted = np.linspace(0, reached[-1], count)
    places = np.searchsorted(reached, wanted).clip(max=len(column) - 1)
    return column[order][places].astype(np.float64)


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
    """Raw features to logits, in the world that training samples from.

    Shapes follow from the arguments alone; what is fitted from data are buffers.
    """

    def __init__(
        self,
        *,
        features: int,
        architecture: Architecture = "mlp",
        encoding: Encoding = "standard",
        hidden: Sequence[int] = (128, 128),
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

    def fit(self, features: Floats, labels: NDArray[np.integer]) -> None:
        self.encoding.fit(features, labels)

    def forward(self, features: Tensor) -> Tensor:
        return self.network(self.encoding(features))


class FraudScorer(nn.Module):
    def __init__(self, model: FraudModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        logits = self.model(features) + self.model.log_odds_correction
        return {"probability": logits.sigmoid().mean(dim=1)}
