"""Visual words: a dictionary of what small places look like, and a support vector machine on it.

Nothing is learnt by gradient; `fit` fills the buffers in a minute. From a few thousand pictures
and no pretrained weights this judges better than a network alone, and both together are better yet.

B pictures, H x W pixels, D channels and h x w places of what is seen, E numbers of a patch, W
words, G cells a side, F = W G^2 features, M remembered pictures, K classes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pegboard_defect.data import InspectionDataset, class_probabilities
from pegboard_defect.distances import squares
from pegboard_defect.inputs import Normalise, OrientedGradients

CELL = 8
"""Side of the squares that gradients are averaged over, in pixels."""
PATCH = 3
"""Side of a patch, in such squares: 24 pixels."""
GRID = 4
"""Cells a side in which the best match of each word counts."""
SMALLEST = CELL * (PATCH + GRID - 1)
"""Side of the smallest picture, in pixels, that has a patch in every cell."""
REMEMBERED = 2000
"""M: training pictures at most that the machine compares with."""
PATCHES = 40
"""Patches of a picture that the dictionary is made from."""
NOISE = 0.1
"""Variance that whitening takes for noise."""
PENALTY = 4.0
"""C of the support vector machine."""
SHARE = 0.5
"""How much the log odds of a network count beside the machine's."""


class WordMachine(nn.Module):
    """Judges a picture by which visual words are found where.

    Patches are whitened and compared with the words of a k-means dictionary; a word counts as far
    as it is nearer than the mean one ("triangle" encoding: Coates, Lee and Ng, AISTATS 2011), with
    its best match in each cell of a grid (Lazebnik et al., CVPR 2006). Pictures are told apart by a
    support vector machine with a Gaussian kernel, one class against the rest.

    Args:
        channels: C of the pictures.
        words: W.
        classes: K.
    """

    def __init__(self, channels: int, words: int, classes: int) -> None:
        super().__init__()
        self.normalise = Normalise(OrientedGradients(channels, CELL, positions=False))
        numbers, features = self.normalise.channels * PATCH**2, words * GRID**2
        self.whiten: Tensor
        self.mean: Tensor
        self.words: Tensor
        self.feature_mean: Tensor
        self.feature_scale: Tensor
        self.remembered: Tensor
        self.weight: Tensor
        self.bias: Tensor
        self.register_buffer("whiten", torch.eye(numbers))
        self.register_buffer("mean", torch.zeros(numbers))
        self.register_buffer("words", torch.zeros(words, numbers))
        self.register_buffer("feature_mean", torch.zeros(features))
        self.register_buffer("feature_scale", torch.ones(features))
        self.register_buffer("remembered", torch.zeros(REMEMBERED, features))
        self.register_buffer("weight", torch.zeros(REMEMBERED, classes))
        self.register_buffer("bias", torch.zeros(classes))

    def forward(self, image: Tensor) -> Tensor:
        """uint8 (B, H, W, C) -> logits (B, K)."""
        features = (self.describe(image) - self.feature_mean) * self.feature_scale  # (B, F)
        kernel = torch.exp(-squares(features, self.remembered))  # (B, M)
        return kernel @ self.weight + self.bias

    def describe(self, image: Tensor) -> Tensor:
        """Return how well each word is matched in each cell, uint8 (B, H, W, C) -> (B, F)."""
        size = self.normalise.channels, PATCH, PATCH
        filters = self.whiten.T.reshape(-1, *size)  # (E, D, 3, 3)
        shift = -(self.mean @ self.whiten)
        patches = functional.conv2d(self.normalise(image), filters, shift)  # (B, E, h, w)
        square = patches.square().sum(dim=1, keepdim=True)
        product = functional.conv2d(patches, self.words[:, :, None, None])  # (B, W, h, w)
        near = square - 2 * product + self.words.square().sum(dim=1)[:, None, None]
        distance = near.clamp(min=1e-4).sqrt()
        found = (distance.mean(dim=1, keepdim=True) - distance).clamp(min=0)
        return _best_in_cells(found)

    # ----------------------------------------------------------------- what is remembered

    @torch.no_grad()
    def fit(self, data: InspectionDataset) -> None:
        """Make the dictionary, and teach the machine, from the train split."""
        self.normalise.fit(data)
        labels = np.array([np.argmax(class_probabilities(part, data.data)) for part in data.parts])
        # Where there are too many, of each class its share.
        order = np.argsort(labels, kind="stable")
        spread = np.linspace(0, len(order) - 1, min(len(order), REMEMBERED)).round().astype(int)
        chosen = order[spread]
        self._make_dictionary(data, chosen)
        features = torch.cat([self.describe(_picture(data, index)) for index in chosen])
        self.feature_mean.copy_(features.mean(dim=0))
        # Divided by the square root of their number: two pictures then lie about sqrt(2) apart.
        spread_of = features.std(dim=0, correction=0) + 1e-3
        self.feature_scale.copy_(1 / (spread_of * features.shape[1] ** 0.5))
        self._teach((features - self.feature_mean) * self.feature_scale, labels[chosen])

    def _make_dictionary(self, data: InspectionDataset, chosen: np.ndarray) -> None:
        """Set mean, whitening and words by patches of the chosen pictures."""
        from sklearn.cluster import MiniBatchKMeans

        generator = torch.Generator().manual_seed(0)
        drawn = []
        for index in chosen:
            patches = functional.unfold(self.normalise(_picture(data, index)), PATCH)[0].T  # (P, E)
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

    def _teach(self, features: Tensor, labels: np.ndarray) -> None:
        """Set what is remembered and its weights, of features (N, F) of each class."""
        from sklearn.svm import SVC

        kernel = torch.exp(-squares(features, features)).double().numpy()
        self.remembered[: len(features)] = features
        for label in range(len(self.bias)):
            is_it = labels == label
            if is_it.all() or not is_it.any():
                self.bias[label] = 1.0 if is_it.all() else -1.0
                continue
            machine = SVC(C=PENALTY, kernel="precomputed").fit(kernel, is_it)
            self.weight[machine.support_, label] = torch.from_numpy(machine.dual_coef_[0]).float()
            self.bias[label] = float(machine.intercept_[0])


def _picture(data: InspectionDataset, index: int) -> Tensor:
    """Return uint8 (1, H, W, C)."""
    return torch.from_numpy(data[index].inputs["image"])[None]


def _best_in_cells(found: Tensor) -> Tensor:
    """(B, W, h, w) -> (B, W * G * G): the largest value in each cell."""
    height, width = found.shape[-2:]
    cells = [
        found[:, :, top:bottom, left:right].amax(dim=(2, 3))
        for top, bottom in _cells(height)
        for left, right in _cells(width)
    ]
    return torch.stack(cells, dim=2).flatten(1)


def _cells(length: int) -> list[tuple[int, int]]:
    """Return beginning and end of each cell; together they are the whole length."""
    return [(i * length // GRID, -(-(i + 1) * length // GRID)) for i in range(GRID)]
