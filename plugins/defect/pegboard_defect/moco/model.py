"""MoCo: a network that teaches itself to tell a picture from all others, however it is shown.

Two networks of one shape see two views of each picture. The fast one learns by gradient to give
for its view what the slow one gives for the other view of the same picture, and not what it gives
for other pictures. The slow one is a moving average of the fast one (momentum contrast: He et al.,
CVPR 2020; v2: Chen, Fan, Girshick and He, 2020; v3: Chen, Xie and He, ICCV 2021).

B pictures, H x W pixels, C channels, F features of the backbone, D numbers that views are compared
by, K keys in the queue, P processes.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from pegboard.records import Batch
from pegboard_defect.backbones import Backbone, build_backbone
from pegboard_defect.inputs import Normalise, OrientedGradients, Pixels, build_input
from pegboard_defect.moco.augment import two_views
from pegboard_defect.moco.data import MocoDataset
from pegboard_defect.moco.settings import BackboneName, MocoData, MocoSettings

# --- Heads ----------------------------------------------------------------------------------------


def projector_v3(features: int, hidden: int, dim: int) -> nn.Sequential:
    """Three layers with batch norm in each (v3, section 3): (B, F) -> (B, D)."""
    return _mlp((features, hidden, hidden, dim))


def predictor_v3(hidden: int, dim: int) -> nn.Sequential:
    """Two layers with batch norm in each, on the fast side only: (B, D) -> (B, D)."""
    return _mlp((dim, hidden, dim))


def _mlp(widths: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        # The norm has a bias of its own.
        layers += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def projector_v2(features: int, hidden: int, dim: int) -> nn.Sequential:
    """Two layers without norm, as in SimCLR (v2): (B, F) -> (B, D)."""
    return nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, dim))


class Encoder(nn.Module):
    """Backbone, mean over all places, projector: (B, C, H, W) -> (B, D)."""

    def __init__(self, backbone: Backbone, projector: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector

    def embed(self, x: Tensor) -> Tensor:
        """Return what is kept when training is over: (B, C, H, W) -> (B, F)."""
        maps: list[Tensor] = self.backbone(x)
        return maps[-1].mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        projected: Tensor = self.projector(self.embed(x))
        return projected


class MovingAverage(nn.Module):
    """A second set of numbers for a module: what the module was, averaged over the steps.

    All of them are buffers. So no gradient and no optimiser reaches them, every process has them
    whole even where FSDP shards the module's own, and they are saved and spread with the rest.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        for name, value in [*module.named_parameters(), *module.named_buffers()]:
            self.register_buffer(_key(name), value.detach().clone())

    def tensors(self) -> dict[str, Tensor]:
        """Return them by the module's names; what changes a buffer in place changes it here."""
        return {name.replace("/", "."): buffer for name, buffer in self.named_buffers()}

    @torch.no_grad()
    def follow(self, module: nn.Module, momentum: float) -> None:
        """Move the parameters to the module's by 1 - momentum; buffers follow their own input."""
        own = self.tensors()
        for name, value in module.named_parameters():
            own[name].lerp_(value.detach().to(own[name].dtype), 1 - momentum)

    def forward(self, module: nn.Module, x: Tensor) -> Tensor:
        """Run the module with these numbers in place of its own, without a gradient."""
        with torch.no_grad():
            output: Tensor = functional_call(module, self.tensors(), (x,))
            return output


def _key(name: str) -> str:
    return name.replace(".", "/")  # torch allows no full stop in a buffer's name.


# --- The model ------------------------------------------------------------------------------------


class MocoNet(nn.Module):
    """The fast network, the slow one, and what they are compared by.

    Shapes follow from the arguments alone.

    Args:
        backbone: To train; its last map is averaged.
        seen: Makes of pictures what the backbone is given.
        data: How views are made.
        version: `v3` or `v2`.
        dim: D.
        hidden: Width of the heads.
        momentum: The slow network's; v3's first one.
        temperature: What cosines are divided by.
        queue: K, for v2.
    """

    def __init__(
        self,
        backbone: Backbone,
        seen: Pixels | OrientedGradients,
        *,
        data: MocoData,
        version: str = "v3",
        dim: int = 128,
        hidden: int = 512,
        momentum: float = 0.99,
        temperature: float = 0.2,
        queue: int = 1024,
    ) -> None:
        super().__init__()
        self.data, self.version = data, version
        self.momentum, self.temperature = momentum, temperature
        self.normalise = Normalise(seen)
        head = projector_v3 if version == "v3" else projector_v2
        self.encoder = Encoder(backbone, head(backbone.widths[-1], hidden, dim))
        self.predictor = predictor_v3(hidden, dim) if version == "v3" else None
        self.slow = MovingAverage(self.encoder)
        self.step: Tensor
        self.total_steps: Tensor
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("total_steps", torch.zeros((), dtype=torch.int64))
        if version == "v2":
            self.queue: Tensor
            self.next: Tensor
            self.register_buffer("queue", functional.normalize(torch.randn(queue, dim), dim=1))
            self.register_buffer("next", torch.zeros((), dtype=torch.int64))

    def fit(self, train_data: MocoDataset, total_steps: int) -> None:
        """Measure brightness and contrast, and note how long training will take."""
        self.normalise.fit(train_data)
        self.total_steps.fill_(total_steps)

    def embed(self, image: Tensor) -> Tensor:
        """uint8 (B, H, W, C) -> (B, F)."""
        return self.encoder.embed(self.normalise(image))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the contrastive loss of a batch, and how far its embeddings are spread.

        The slow network follows what the last step did to the fast one at the beginning of the
        next one, before it is needed: all that is remembered between steps is in buffers.
        """
        if self.training:
            self.slow.follow(self.encoder, self.momentum_now())
        pictures = batch.inputs["image"].permute(0, 3, 1, 2).float() / 255
        views = [self._normalised(view) for view in two_views(pictures, self.data)]
        loss, queries = self._v3(*views) if self.version == "v3" else self._v2(*views)
        if self.training:
            self.step += 1
        return {"loss": loss, "spread": spread(queries.detach())}

    def _normalised(self, view: Tensor) -> Tensor:
        seen: Tensor = self.normalise(255 * view.permute(0, 2, 3, 1))
        return seen

    def momentum_now(self) -> float:
        """Return the slow network's momentum at this step: in v2 it does not change."""
        if self.version == "v2":
            return self.momentum
        return momentum_at(self.momentum, int(self.step), int(self.total_steps))

    def _v3(self, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """Each view is compared with the slow network's of the other, in both orders."""
        predict = cast(nn.Module, self.predictor)
        queries = [predict(self.encoder(view)) for view in (one, other)]
        keys = [gathered(self.slow(self.encoder, view)) for view in (one, other)]
        loss = symmetric_loss(queries, keys, self.temperature)
        return loss, queries[0]

    def _v2(self, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """One view is compared with the slow network's of the other, and with earlier pictures.

        The paper shuffles the batch between processes before the slow network sees it, so that
        batch norm cannot tell it which pictures belong together. Within one process a shuffle
        changes nothing: the norm sees the same batch. On several GPUs the core has batch norm see
        all processes' pictures, which comes to the same.
        """
        queries = self.encoder(one)
        keys = self.slow(self.encoder, other)
        loss = queue_loss(queries, keys, self.queue, self.temperature)
        if self.training:
            self._remember(functional.normalize(gathered(keys)[0].float(), dim=1))
        return loss, queries

    @torch.no_grad()
    def _remember(self, keys: Tensor) -> None:
        """Put keys (B, D) in the place of the oldest ones."""
        size = len(self.queue)
        keys = keys[-size:]
        places = (self.next + torch.arange(len(keys), device=keys.device)) % size
        self.queue[places] = keys
        self.next.copy_((self.next + len(keys)) % size)


# --- Losses ---------------------------------------------------------------------------------------


def momentum_at(first: float, step: int, total: int) -> float:
    """Return the momentum after `step` of `total` steps: from `first` to 1 along half a cosine."""
    done = min(1.0, step / total) if total else 0.0
    return 1 - (1 - first) * (math.cos(math.pi * done) + 1) / 2


def contrast(queries: Tensor, keys: Tensor, place: int, temperature: float) -> Tensor:
    """InfoNCE over a batch (van den Oord et al., 2018), scaled by 2 * temperature as in v3.

    Args:
        queries: (B, D).
        keys: Of all processes' pictures (N, D).
        place: Where in them the key of the first query is; the others follow.
        temperature: What cosines are divided by.
    """
    with torch.autocast(queries.device.type, enabled=False):  # bf16 has three digits.
        q, k = (functional.normalize(x.float(), dim=1) for x in (queries, keys))
        logits = q @ k.T / temperature  # (B, N)
    own = place + torch.arange(len(q), device=q.device)
    return 2 * temperature * functional.cross_entropy(logits, own)


def symmetric_loss(
    queries: list[Tensor], keys: list[tuple[Tensor, int]], temperature: float
) -> Tensor:
    """Return the mean over both orders of views; the paper adds them, which AdamW cannot tell."""
    orders = zip(queries, reversed(keys), strict=True)
    losses = [contrast(query, *key, temperature) for query, key in orders]
    return torch.stack(losses).mean()


def queue_loss(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """InfoNCE of one key that fits against a queue of others (He et al., CVPR 2020).

    Args:
        queries: (B, D).
        keys: The key of each (B, D).
        queue: Keys of other pictures (K, D), of length one.
        temperature: What cosines are divided by.
    """
    with torch.autocast(queries.device.type, enabled=False):
        q, k = (functional.normalize(x.float(), dim=1) for x in (queries, keys))
        # A copy: the queue moves on before the gradient is taken.
        others = q @ queue.detach().clone().T  # (B, K)
        logits = torch.cat([(q * k).sum(dim=1, keepdim=True), others], dim=1) / temperature
    return functional.cross_entropy(logits, torch.zeros(len(q), dtype=torch.int64, device=q.device))


def spread(embeddings: Tensor) -> Tensor:
    """Return how far embeddings (N, D) are from all pointing one way: 0 they do, 1 all ways.

    The standard deviation of each number once embeddings have length one, times the root of D
    (Chen and He, CVPR 2021, section 4.1).
    """
    unit = functional.normalize(embeddings.float(), dim=1)
    return unit.std(dim=0, correction=0).mean() * math.sqrt(embeddings.shape[1])


def gathered(keys: Tensor) -> tuple[Tensor, int]:
    """Return the keys of all processes (N, D), and where this process's begin.

    So a picture is told from those of the whole batch, however many processes share it.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return keys, 0
    size, rank = dist.get_world_size(), dist.get_rank()
    count = torch.tensor([len(keys)], device=keys.device)
    counts = [torch.zeros_like(count) for _ in range(size)]
    dist.all_gather(counts, count)
    lengths = [int(length) for length in counts]
    # Shares of a batch may differ by one, and all_gather wants equal shapes.
    padded = keys.new_zeros(max(lengths), keys.shape[1])
    padded[: len(keys)] = keys
    shares = [torch.empty_like(padded) for _ in range(size)]
    dist.all_gather(shares, padded)
    joined = torch.cat([share[:length] for share, length in zip(shares, lengths, strict=True)])
    return joined, sum(lengths[:rank])


# --- Building -------------------------------------------------------------------------------------


def build(settings: MocoSettings, train_data: MocoDataset | None) -> MocoNet:
    """Build the model, fitted to the train split unless trained weights will follow."""
    table, data = settings.model, settings.data
    # Only v3 asks for it, and only of a transformer: see `ViT`.
    seen, backbone = untrained(settings, table.backbone, freeze_patches=table.version == "v3")
    model = MocoNet(
        backbone,
        seen,
        data=data,
        version=table.version,
        dim=table.dim,
        hidden=table.hidden,
        momentum=table.momentum,
        temperature=table.temperature,
        queue=table.queue,
    )
    if train_data is not None:
        model.fit(train_data, steps_of(settings, len(train_data)))
    # A quarter faster on CPUs, and what tensor cores want.
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # In no stub.
    return model


def untrained(
    settings: MocoSettings, name: BackboneName, *, freeze_patches: bool = False
) -> tuple[Pixels | OrientedGradients, Backbone]:
    """Return what makes of pictures what a backbone is given, and the backbone, weights random."""
    table, data = settings.model, settings.data
    seen = build_input(data, table.input, table.cell)
    size = (data.size[0] // seen.stride, data.size[1] // seen.stride)
    return seen, build_backbone(name, seen.channels, size, freeze_patches=freeze_patches)


def steps_of(settings: MocoSettings, pictures: int) -> int:
    """Return how many steps the core will take on so many pictures."""
    train = settings.train
    steps = train.epochs * max(1, pictures // train.batch_size)
    return min(steps, train.max_steps or steps)


class Embedder(nn.Module):
    """What is deployed: a picture in, the backbone's features out."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """uint8 (B, H, W, C) -> embedding (B, F)."""
        return {"embedding": self.model.embed(image)}
