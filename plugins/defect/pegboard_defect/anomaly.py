"""Models that see good parts only: they remember their patches, and how far others are from them.

Patches are compared by what a pretrained backbone says of them, or without one by which way their
edges run and how bright they are. B pictures, H height, W width, C channels, D features, P patches
of a picture, M remembered patches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pegboard.errors import DataError, SettingsError
from pegboard.records import Array
from pegboard_defect.backbones import Backbone
from pegboard_defect.data import InspectionDataset
from pegboard_defect.distances import squares
from pegboard_defect.images import channels_of
from pegboard_defect.inputs import Normalise, OrientedGradients, Pixels, build_input
from pegboard_defect.settings import DefectSettings
from pegboard_defect.tiling import places

# --- What patches are compared by -----------------------------------------------------------------

STAGES = (1, 2)
"""The backbone's maps that are compared: the first sees too little, the last too little detail."""


class Surface(nn.Module):
    """uint8 (B, H, W, C) -> float (B, 6 + 4 C, H / cell, W / cell): how a surface is at each place.

    Which way its edges run and how strong they are (see `OrientedGradients`), how bright it is, how
    much that varies, and its extremes, against the whole picture: lamps may differ. None of it is
    learnt, so it needs no pretrained weights.

    Args:
        channels: C.
        cell: Side of the squares that are compared, in pixels.
    """

    def __init__(self, channels: int, cell: int) -> None:
        super().__init__()
        self.edges = OrientedGradients(channels, cell, positions=False)
        self.cell = cell
        self.channels = OrientedGradients.HARMONICS + 1 + 4 * channels

    def forward(self, image: Tensor) -> Tensor:
        """See the class."""
        edges = self.edges(image)[:, : OrientedGradients.HARMONICS + 1]
        pixels = image.permute(0, 3, 1, 2).float() / 64  # (B, C, H, W)
        whole = pixels.mean(dim=(2, 3), keepdim=True)
        spread = (pixels - whole).square().mean(dim=(2, 3), keepdim=True).sqrt() + 0.05
        bright = functional.avg_pool2d(pixels, self.cell)
        square = functional.avg_pool2d(pixels.square(), self.cell)
        varies = (square - bright.square()).clamp(min=0).sqrt()
        brightest = functional.max_pool2d(pixels, self.cell)
        darkest = -functional.max_pool2d(-pixels, self.cell)
        levels = torch.cat(
            [level - whole for level in (bright, brightest, darkest)] + [varies], dim=1
        )
        return torch.cat([edges, levels / spread.repeat(1, 4, 1, 1)], dim=1)


class SurfaceFeatures(nn.Module):
    """`Surface`, each channel of zero mean and unit variance on good parts.

    Args:
        channels: C.
        cell: Side of the squares that are compared, in pixels.
    """

    def __init__(self, channels: int, cell: int) -> None:
        super().__init__()
        self.normalise = Normalise(Surface(channels, cell))
        self.width, self.stride = self.normalise.channels, cell

    def forward(self, image: Tensor) -> Tensor:
        """uint8 (B, H, W, C) -> (B, D, h, w)."""
        features: Tensor = self.normalise(image)
        return features


class BackboneFeatures(nn.Module):
    """Two stages of a pretrained backbone, each averaged over 3 x 3 places, one beside the other.

    Args:
        seen: Makes of pictures what the backbone is given.
        backbone: Makes maps of features of that; pretrained, or this does not work.
    """

    def __init__(self, seen: Pixels | OrientedGradients, backbone: Backbone) -> None:
        super().__init__()
        self.normalise = Normalise(seen)
        self.backbone = backbone.requires_grad_(False)
        self.width = sum(backbone.widths[stage] for stage in STAGES)
        self.stride = seen.stride * backbone.strides[STAGES[0]]

    def forward(self, image: Tensor) -> Tensor:
        """uint8 (B, H, W, C) -> (B, D, h, w)."""
        maps = self.backbone(self.normalise(image))
        fine, coarse = (functional.avg_pool2d(maps[stage], 3, 1, 1) for stage in STAGES)
        coarse = functional.interpolate(
            coarse, size=fine.shape[2:], mode="bilinear", align_corners=False
        )
        return torch.cat([fine, coarse], dim=1)


# --- PatchCore: remember patches of good parts, measure how far others are from them --------------

WIDEST = 256
"""Features of a patch at most; wider ones are projected."""
CANDIDATES = 20_000
"""Patches of good parts at most that the remembered ones are chosen from."""
PICTURES = 2_000
"""Good pictures at most that they come from."""
TILES = 16
"""Tiles of a picture at most that are looked at."""
HELD_OUT = 5
"""Nothing is remembered of one part in so many: these show how far good parts usually are."""
CHUNK = 512
"""Remembered patches that are compared at a time: all at once would take too much memory."""
MARGIN = 2.0
"""The value 0.5 lies so many times as far as nearly all good parts do."""


class PatchCore(nn.Module):
    """Compares every patch of a picture with remembered patches of good parts.

    Roth et al., Towards total recall in industrial anomaly detection, CVPR 2022. Nothing is learnt:
    `fit` fills the buffers.

    Args:
        features: What patches are compared by; has `width` D, `stride` in pixels, `normalise`.
        memory: M.
        neighbours: Remembered patches around the nearest one that a score is weighed by; 1 weighs
            nothing.
        tile: Side of the squares that the model will see; 0: whole pictures.
    """

    def __init__(
        self,
        features: SurfaceFeatures | BackboneFeatures,
        *,
        memory: int,
        neighbours: int,
        tile: int = 0,
    ) -> None:
        super().__init__()
        self.features = features
        self.neighbours, self.tile = min(neighbours, memory), tile
        width = features.width
        self.project: Tensor | None
        self.register_buffer("project", _projection(width, WIDEST) if width > WIDEST else None)
        self.memory: Tensor
        self.center: Tensor
        self.usual: Tensor
        self.usual_score: Tensor
        self.blur: Tensor
        self.register_buffer("memory", torch.zeros(memory, min(width, WIDEST)))
        self.register_buffer("center", torch.zeros(min(width, WIDEST)))
        self.register_buffer("usual", torch.ones(()))
        self.register_buffer("usual_score", torch.ones(()))
        # As wide as in the paper, where a patch is 8 pixels and the Gaussian's deviation 4.
        self.register_buffer("blur", _gaussian(features.stride / 2))
        self.eval()

    def train(self, mode: bool = True) -> PatchCore:
        """Stay as it is: batch normalisation must not move while good parts are remembered."""
        return super().train(False)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """See how far pictures are from good ones.

        Args:
            image: uint8 (B, H, W, C)

        Returns:
            `score` (B,) and `map` (B, H, W) in [0, 1]; nearly all good parts lie below a third.
        """
        patches = self._patches(image)  # (B, D, h, w)
        flat = patches.flatten(2).transpose(1, 2)  # (B, P, D)
        distances = self._nearest(flat)  # (B, P)
        score = self._weigh(*_oddest(flat, distances))
        where = self._enlarge(distances.reshape(-1, *patches.shape[2:]), image.shape[1:3])
        return {
            "score": score / (score + self.usual_score),
            "map": where / (where + self.usual),
        }

    # ----------------------------------------------------------------- what is seen

    def _patches(self, image: Tensor) -> Tensor:
        """Return features of patches (B, D, h, w)."""
        features: Tensor = self.features(image)
        if self.project is not None:
            features = torch.einsum("bdhw,de->behw", features, self.project)
        # Around zero, squares are small and their differences exact.
        return features - self.center[:, None, None]

    def _nearest(self, patches: Tensor) -> Tensor:
        """Return how far patches (B, P, D) are from the nearest remembered one: (B, P)."""
        nearest = [
            squares(patches, chunk).amin(dim=-1) for chunk in torch.split(self.memory, CHUNK)
        ]
        return torch.stack(nearest).amin(dim=0).sqrt()

    def _weigh(self, patch: Tensor, distance: Tensor) -> Tensor:
        """Weigh distances (B,) of patches (B, D): the paper's equation 7.

        A patch counts fully where the neighbours of the remembered one that is nearest are much
        farther from it, and less where all of them are as near: good parts vary there.
        """
        if self.neighbours == 1:
            return distance
        nearest = self.memory[squares(patch, self.memory).argmin(dim=1)]  # (B, D)
        crowd = squares(nearest, self.memory).topk(self.neighbours, largest=False).indices
        away = (patch[:, None] - self.memory[crowd]).square().sum(dim=2).sqrt()  # (B, N)
        # In units of what is usual: the weight must not depend on the scale of the features.
        others = torch.exp((away - distance[:, None]) / self.usual).sum(dim=1)
        return distance * (1 - 1 / others)

    def _enlarge(self, distances: Tensor, size: Sequence[int]) -> Tensor:
        """(B, h, w) -> (B, H, W), smooth."""
        large = functional.interpolate(
            distances[:, None], size=tuple(size), mode="bilinear", align_corners=False
        )
        return blurred(large, self.blur)[:, 0]

    # ----------------------------------------------------------------- what is remembered

    @torch.no_grad()
    def fit(self, data: InspectionDataset) -> None:
        """Remember good parts of the train split, and measure how far others are from them.

        Raises:
            DataError: There is no good part.
        """
        self.features.normalise.fit(data)
        kept, held_out = _good_pictures(data)
        if not held_out:
            raise DataError(
                "there are no good parts to remember",
                where="train split",
                remedy="add pictures of good parts, or correct data.classes",
            )
        # Of a single part, what is remembered has to show what is usual, too.
        self._remember(data, kept or held_out)
        self._measure(data, held_out)

    def _remember(self, data: InspectionDataset, indices: Sequence[int]) -> None:
        """Choose the patches to remember among those of good pictures."""
        generator = torch.Generator().manual_seed(0)
        most = max(1, CANDIDATES // len(indices))
        candidates = []
        for tiles in self._tiles(data, indices):
            patches = self._patches(tiles).permute(0, 2, 3, 1).flatten(0, 2)
            candidates.append(patches[torch.randperm(len(patches), generator=generator)[:most]])
        patches = torch.cat(candidates)  # (P, D)
        chosen = coreset(patches, len(self.memory), generator)
        # Patches that are too few are remembered again: a shape must not depend on data.
        chosen = chosen[torch.arange(len(self.memory)) % len(chosen)]
        center = patches.mean(dim=0)
        self.memory.copy_(patches[chosen] - center)
        self.center.add_(center)

    def _measure(self, data: InspectionDataset, indices: Sequence[int]) -> None:
        """Set what is usual by good pictures that nothing is remembered of."""
        every, odd = [], []
        for tiles in self._tiles(data, indices):
            flat = self._patches(tiles).flatten(2).transpose(1, 2)
            distances = self._nearest(flat)
            every.append(distances.flatten())
            patch, largest = _oddest(flat, distances)
            worst = largest.argmax()
            odd.append((patch[worst], largest[worst]))
        self.usual.copy_(MARGIN * _quantile(torch.cat(every), 0.995))
        patch, largest = (torch.stack(values) for values in zip(*odd, strict=True))
        self.usual_score.copy_(MARGIN * _quantile(self._weigh(patch, largest), 0.95))

    def _tiles(self, data: InspectionDataset, indices: Sequence[int]) -> Iterator[Tensor]:
        """Yield what the model sees of each picture: uint8 (T, H, W, C), T = 1 without tiles."""
        for index in indices:
            image = data[index].inputs["image"]
            tiles = _cut(image, self.tile) if self.tile else image[None]
            yield torch.from_numpy(np.ascontiguousarray(tiles))


def coreset(patches: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Choose patches that all others are near to.

    The greedy k-center of Sener and Savarese, ICLR 2018: whichever is farthest from those chosen
    comes next. Distances are measured on random projections, as PatchCore does.

    Args:
        patches: (P, D)
        count: How many to choose; all where there are no more.
        generator: Where the first one and the projection come from.

    Returns:
        Indices (min(P, count),).
    """
    if len(patches) <= count:
        return torch.arange(len(patches))
    if patches.shape[1] > WIDEST // 2:
        patches = patches @ _projection(patches.shape[1], WIDEST // 2, generator)
    patches = patches - patches.mean(dim=0)
    chosen = torch.zeros(count, dtype=torch.long)
    chosen[0] = torch.randint(len(patches), (), generator=generator)
    nearest = squares(patches[chosen[:1]], patches)[0]  # (P,)
    for index in range(1, count):
        chosen[index] = nearest.argmax()
        one = patches[chosen[index : index + 1]]
        nearest = torch.minimum(nearest, squares(one, patches)[0])
    return chosen


def blurred(maps: Tensor, kernel: Tensor) -> Tensor:
    """Convolve maps (B, 1, H, W) with a kernel (K,) along both axes; edges are continued."""
    radius = len(kernel) // 2
    padded = functional.pad(maps, (radius,) * 4, mode="replicate")
    down = functional.conv2d(padded, kernel[None, None, :, None])
    return functional.conv2d(down, kernel[None, None, None, :])


def _oddest(patches: Tensor, distances: Tensor) -> tuple[Tensor, Tensor]:
    """Of patches (B, P, D) the one farthest from good ones (B, D), and how far it is (B,)."""
    largest, place = distances.max(dim=1)
    index = place[:, None, None].expand(-1, 1, patches.shape[2])
    return patches.gather(1, index)[:, 0], largest


def _projection(inputs: int, outputs: int, generator: torch.Generator | None = None) -> Tensor:
    """A random matrix (inputs, outputs) that nearly keeps distances (Johnson, Lindenstrauss)."""
    generator = generator or torch.Generator().manual_seed(0)
    return torch.randn(inputs, outputs, generator=generator) / math.sqrt(outputs)


def _gaussian(deviation: float) -> Tensor:
    radius = math.ceil(3 * deviation)
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / deviation) ** 2)
    return weights / weights.sum()


def _quantile(values: Tensor, share: float) -> Tensor:
    """A quantile that is above 0; torch's own refuses many values."""
    ascending = values.sort().values
    return ascending[math.ceil(share * (len(values) - 1))].clamp(min=1e-6)


def _good_pictures(data: InspectionDataset) -> tuple[list[int], list[int]]:
    """Indices of good pictures, those to remember and those held out, at most `PICTURES`."""
    kept: list[int] = []
    held_out: list[int] = []
    parts: dict[str, int] = {}
    for index in range(0, len(data), -(-len(data) // PICTURES) or 1):
        sample = data[index]
        if sample.targets["defective"] < 0.5:
            # Pictures of one part are nearly the same: they stay together.
            number = parts.setdefault(sample.targets["part"], len(parts))
            (kept if number % HELD_OUT else held_out).append(index)
    return kept, held_out


def _cut(image: Array, side: int) -> Array:
    """Tiles (T, side, side, C) of a picture (H, W, C), evenly spread."""
    missing = [(0, max(0, side - length)) for length in image.shape[:2]]
    image = np.pad(image, (*missing, (0, 0)), mode="edge")
    rows, columns = (places(length, side, 0.0) for length in image.shape[:2])
    corners = [(top, left) for top in rows for left in columns]
    some = corners[:: -(-len(corners) // TILES)]
    return np.stack([image[top : top + side, left : left + side] for top, left in some])


# --- Building -------------------------------------------------------------------------------------


def build(
    settings: DefectSettings,
    backbone_factory: Callable[[Pixels | OrientedGradients], Backbone],
    train_data: InspectionDataset | None,
) -> nn.Module:
    """Build the anomaly model, fitted to the train split unless trained weights will follow.

    Args:
        settings: `model.method` chooses.
        backbone_factory: Builds the backbone for what it is given, with the user's weights; only
            patchcore calls it.
        train_data: Good parts.

    Raises:
        SettingsError: patchcore has no weights to begin from.
        DataError: The train split has no good part.
    """
    table, channels = settings.model, channels_of(settings.data)
    features: SurfaceFeatures | BackboneFeatures
    if table.method == "surface":
        features = SurfaceFeatures(channels, table.patch)
    elif table.weights is None:
        raise SettingsError(
            "patchcore needs a pretrained backbone, and there is none",
            where="model.weights",
            remedy="run 'pegboard pretrain' and set it to its backbone.safetensors, set it to a "
            'timm checkpoint, or set model.method = "surface"',
        )
    else:
        seen = build_input(settings.data, table.input, table.cell)
        features = BackboneFeatures(seen, backbone_factory(seen))
    model = PatchCore(
        features, memory=table.memory, neighbours=table.neighbours, tile=settings.data.tile
    )
    if train_data is not None:
        model.fit(train_data)
    return model
