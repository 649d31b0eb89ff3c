"""Visual words: dictionaries of what small places look like, and a support vector machine on them.

Nothing is learnt by gradient; `fit` fills the buffers in two minutes. From a few thousand pictures
and no pretrained weights this judges better than a network alone, and both together are better yet.

B pictures, H x W pixels, D channels and h x w places of what is seen, P x P places of a patch, E
numbers of a patch, W words, G cells a side, F features, M remembered pictures, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pegboard_defect.data import InspectionDataset, class_probabilities
from pegboard_defect.distances import squares
from pegboard_defect.inputs import Normalise, OrientedGradients

CELL = 8
"""Side of the squares that gradients are averaged over, in pixels."""
SCALES = ((3, 4), (5, 2))
"""P and G of each dictionary: patches of 24 pixels, and of 40 that are placed less finely."""
SMALLEST = CELL * max(patch + grid - 1 for patch, grid in SCALES)
"""Side of the smallest picture, in pixels, that has a patch in every cell."""
REMEMBERED = 2000
"""M: training pictures at most that the machine compares with."""
PATCHES = 40
"""Patches of a picture that a dictionary is made from."""
NOISE = 0.1
"""Variance that whitening takes for noise."""
PENALTY = 8.0
"""C of the support vector machine."""
SHARE = 0.5
"""How much the log odds of a network count beside the machine's."""


class Dictionary(nn.Module):
    """How well each visual word is matched in each cell of a grid.

    Patches are whitened and compared with the words of a k-means dictionary; a word counts as far
    as it is nearer than the mean one ("triangle" encoding: Coates, Lee and Ng, AISTATS 2011), with
    its best match in each cell (Lazebnik et al., CVPR 2006).

    Args:
        channels: D of what is seen.
        words: W.
        patch: P.
        grid: G; F = W G^2.
    """

    def __init__(self, channels: int, words: int, patch: int, grid: int) -> None:
        super().__init__()
        self.patch, self.grid = patch, grid
        numbers, features = channels * patch**2, words * grid**2
        self.whiten: Tensor
        self.mean: Tensor
        self.words: Tensor
        self.feature_mean: Tensor
        self.feature_scale: Tensor
        self.register_buffer("whiten", torch.eye(numbers))
        self.register_buffer("mean", torch.zeros(numbers))
        self.register_buffer("words", torch.zeros(words, numbers))
        self.register_buffer("feature_mean", torch.zeros(features))
        self.register_buffer("feature_scale", torch.ones(features))

    def forward(self, seen: Tensor) -> Tensor:
        """What is seen (B, D, h, w) -> features (B, F); two pictures lie about sqrt(2) apart."""
        return (self.describe(seen) - self.feature_mean) * self.feature_scale

    def describe(self, seen: Tensor) -> Tensor:
        """Return how well each word is matched in each cell, (B, D, h, w) -> (B, F)."""
        filters = self.whiten.T.reshape(-1, seen.shape[1], self.patch, self.patch)  # (E, D, P, P)
        shift = -(self.mean @ self.whiten)
        patches = functional.conv2d(seen, filters, shift)  # (B, E, h - P + 1, w - P + 1)
        square = patches.square().sum(dim=1, keepdim=True)
        product = functional.conv2d(patches, self.words[:, :, None, None])  # (B, W, ...)
        near = square - 2 * product + self.words.square().sum(dim=1)[:, None, None]
        distance = near.clamp(min=1e-4).sqrt()
        found = (distance.mean(dim=1, keepdim=True) - distance).clamp(min=0)
        return _best_in_cells(found, self.grid)

    @torch.no_grad()
    def fit(self, seen: Sequence[Tensor]) -> Tensor:
        """Make the dictionary of what is seen of training pictures, N of (1, D, h, w).

        Returns:
            Their features, (N, F).
        """
        self._find_words(seen)
        features = torch.cat([self.describe(one) for one in seen])
        self.feature_mean.copy_(features.mean(dim=0))
        # Divided by the square root of their number, so that every dictionary counts alike.
        spread = features.std(dim=0, correction=0) + 1e-3
        self.feature_scale.copy_(1 / (spread * features.shape[1] ** 0.5))
        return (features - self.feature_mean) * self.feature_scale

    def _find_words(self, seen: Sequence[Tensor]) -> None:
        """Set mean, whitening and words by some patches of each picture."""
        from sklearn.cluster import MiniBatchKMeans

        generator = torch.Generator().manual_seed(0)
        drawn = []
        for one in seen:
            patches = functional.unfold(one, self.patch)[0].T  # (places, E)
            drawn.append(patches[torch.randperm(len(patches), generator=generator)[:PATCHES]])
        patches = torch.cat(drawn).double()
        mean = patches.mean(dim=0)
        centred = patches - mean
        values, vectors = torch.linalg.eigh(centred.T @ centred / len(patches))
        whiten = vectors @ torch.diag((values.clamp(min=0) + NOISE).rsqrt()) @ vectors.T
        self.mean.copy_(mean)
        self.whiten.copy_(whiten)
        white = (centred @ whiten).float().numpy()
        means = MiniBatchKMeans(
            min(len(self.words), len(white)), batch_size=4096, n_init=1, random_state=0
        )
        words = torch.from_numpy(means.fit(white).cluster_centers_)
        # Words that are too few are repeated: a shape must not depend on data.
        self.words.copy_(words[torch.arange(len(self.words)) % len(words)])


class WordMachine(nn.Module):
    """Judges a picture by which visual words are found where.

    Pictures are told apart by a support vector machine with a Gaussian kernel, one class against
    the rest, on the words of two dictionaries: of small patches and of larger ones.

    Args:
        channels: C of the pictures.
        words: W of each dictionary.
        classes: K.
    """

    def __init__(self, channels: int, words: int, classes: int) -> None:
        super().__init__()
        self.normalise = Normalise(OrientedGradients(channels, CELL, positions=False))
        self.dictionaries = nn.ModuleList(
            Dictionary(self.normalise.channels, words, patch, grid) for patch, grid in SCALES
        )
        features = words * sum(grid**2 for _, grid in SCALES)
        self.remembered: Tensor
        self.weight: Tensor
        self.bias: Tensor
        self.register_buffer("remembered", torch.zeros(REMEMBERED, features))
        self.register_buffer("weight", torch.zeros(REMEMBERED, classes))
        self.register_buffer("bias", torch.zeros(classes))

    def forward(self, image: Tensor) -> Tensor:
        """uint8 (B, H, W, C) -> logits (B, K)."""
        return _kernel(self.features(image), self.remembered) @ self.weight + self.bias

    def features(self, image: Tensor) -> Tensor:
        """uint8 (B, H, W, C) -> what it is judged by, (B, F), F of all dictionaries."""
        seen = self.normalise(image)
        return torch.cat([dictionary(seen) for dictionary in self.dictionaries], dim=1)

    @torch.no_grad()
    def fit(self, data: InspectionDataset) -> None:
        """Make the dictionaries, and teach the machine, from the train split."""
        self.normalise.fit(data)
        labels = np.array([np.argmax(class_probabilities(part, data.data)) for part in data.parts])
        # Where there are too many, of each class its share.
        order = np.argsort(labels, kind="stable")
        spread = np.linspace(0, len(order) - 1, min(len(order), REMEMBERED)).round().astype(int)
        chosen = order[spread]
        seen = [self.normalise(_picture(data, index)) for index in chosen]
        features = torch.cat([dictionary.fit(seen) for dictionary in self._parts()], dim=1)
        self._teach(features, labels[chosen])

    def _parts(self) -> list[Dictionary]:
        return [one for one in self.dictionaries if isinstance(one, Dictionary)]

    def _teach(self, features: Tensor, labels: np.ndarray) -> None:
        """Set what is remembered and its weights, of features (N, F) of each class."""
        from sklearn.svm import SVC

        kernel = _kernel(features, features).double().numpy()
        self.remembered[: len(features)] = features
        for label in range(len(self.bias)):
            is_it = labels == label
            if is_it.all() or not is_it.any():
                self.bias[label] = 1.0 if is_it.all() else -1.0
                continue
            machine = SVC(C=PENALTY, kernel="precomputed").fit(kernel, is_it)
            self.weight[machine.support_, label] = torch.from_numpy(machine.dual_coef_[0]).float()
            self.bias[label] = float(machine.intercept_[0])


def _kernel(some: Tensor, others: Tensor) -> Tensor:
    """Gaussian kernel of the mean squared distance, (B, F) and (M, F) -> (B, M)."""
    return torch.exp(-squares(some, others) / len(SCALES))


def _picture(data: InspectionDataset, index: int) -> Tensor:
    """Return uint8 (1, H, W, C)."""
    return torch.from_numpy(data[index].inputs["image"])[None]


def _best_in_cells(found: Tensor, grid: int) -> Tensor:
    """(B, W, h, w) -> (B, W * G * G): the largest value in each cell."""
    height, width = found.shape[-2:]
    cells = [
        found[:, :, top:bottom, left:right].amax(dim=(2, 3))
        for top, bottom in _cells(height, grid)
        for left, right in _cells(width, grid)
    ]
    return torch.stack(cells, dim=2).flatten(1)


def _cells(length: int, grid: int) -> list[tuple[int, int]]:
    """Return beginning and end of each cell; together they are the whole length."""
    return [(i * length // grid, -(-(i + 1) * length // grid)) for i in range(grid)]
