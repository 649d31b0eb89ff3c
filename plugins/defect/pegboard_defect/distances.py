"""Squared distances between features, for whatever compares a picture with remembered ones."""

from __future__ import annotations

from torch import Tensor


def squares(some: Tensor, others: Tensor) -> Tensor:
    """Squared distances of (..., D) and (M, D): (..., M)."""
    lengths = some.square().sum(dim=-1, keepdim=True) + others.square().sum(dim=-1)
    return (lengths - 2 * some @ others.T).clamp(min=0)
