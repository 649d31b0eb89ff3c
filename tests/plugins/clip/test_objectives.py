from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from pegboard.records import Batch
from pegboard_clip.configuration import Configuration, Convolution, Transformer, Vision
from pegboard_clip.locked import lock
from pegboard_clip.model import Clip
from pegboard_clip.objectives import in_chunks, losses, trimmed
from pegboard_clip.settings import ClipSettings, ClipTrain

SMALL = Configuration(
    image=Convolution(widths=(8, 16), depths=(1, 1)),
    text=Transformer(width=16, layers=1, heads=2),
    image_size=16,
    width=8,
    vocabulary=60,
    context=12,
)


def made(**changes: Any) -> Clip:
    torch.manual_seed(0)
    return Clip(replace(SMALL, **changes))


def pairs(count: int = 5, captions: list[int] | None = None) -> Batch:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, 58, (count, 12), generator=generator)
    for row, length in zip(tokens, range(3, 3 + count), strict=True):
        row[length:], row[length] = 0, 59
    ids = torch.arange(count)
    return Batch(
        inputs={
            "image": torch.randint(
                0, 256, (count, 16, 16, 3), generator=generator, dtype=torch.uint8
            ),
            "tokens": tokens,
        },
        targets={
            "image_id": ids,
            "caption_id": ids if captions is None else torch.tensor(captions),
        },
    )


def settings_of(**train: Any) -> ClipSettings:
    return ClipSettings(train=ClipTrain(**train))


def gradient(model: Clip, batch: Batch, **train: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    losses(model, batch, settings_of(**train))["loss"].backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(
            found[name], expected[name], atol=5e-5, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_infonce_is_the_papers_pseudocode() -> None:
    model, batch = made(), pairs()
    found = losses(model, batch, settings_of())
    outputs = model(**batch.inputs)
    logits = outputs["image_embedding"] @ outputs["text_embedding"].T / 0.07
    labels = torch.arange(5)
    by_image = functional.cross_entropy(logits, labels)
    by_text = functional.cross_entropy(logits.T, labels)
    torch.testing.assert_close(found["loss"], (by_image + by_text) / 2)
    assert found["temperature"].item() == pytest.approx(0.07)
    assert not found["temperature"].requires_grad


def test_the_sigmoid_loss_is_the_papers_pseudocode() -> None:
    model, batch = made(sigmoid=True), pairs()
    found = losses(model, batch, settings_of(objective="sigmoid"))
    outputs = model(**batch.inputs)
    logits = 10 * outputs["image_embedding"] @ outputs["text_embedding"].T - 10
    labels = 2 * torch.eye(5) - 1
    expected = -functional.logsigmoid(labels * logits).sum() / 5
    torch.testing.assert_close(found["loss"], expected)


def test_a_caption_of_two_pictures_is_not_held_against_either() -> None:
    model, batch = made(), pairs(3, captions=[0, 1, 0])
    outputs = model(**batch.inputs)
    logits = outputs["image_embedding"] @ outputs["text_embedding"].T / 0.07
    logits[0, 2] = logits[2, 0] = -torch.inf
    labels = torch.arange(3)
    by_image = functional.cross_entropy(logits, labels)
    by_text = functional.cross_entropy(logits.T, labels)
    found = losses(model, batch, settings_of())["loss"]
    torch.testing.assert_close(found, (by_image + by_text) / 2)


def test_a_caption_of_two_pictures_belongs_to_both() -> None:
    model, batch = made(sigmoid=True), pairs(3, captions=[0, 1, 0])
    outputs = model(**batch.inputs)
    logits = 10 * outputs["image_embedding"] @ outputs["text_embedding"].T - 10
    labels = torch.tensor([[1.0, -1, 1], [-1, 1, -1], [1, -1, 1]])
    found = losses(model, batch, settings_of(objective="sigmoid"))["loss"]
    torch.testing.assert_close(found, -functional.logsigmoid(labels * logits).sum() / 3)


@pytest.mark.parametrize("chunk", [1, 2, 4])
@pytest.mark.parametrize("image", [SMALL.image, Vision(width=16, layers=1, heads=2, patch=8)])
def test_the_gradient_in_chunks_is_that_of_the_whole_batch(chunk: int, image: Any) -> None:
    model, batch = made(image=image), pairs()
    assert_close(gradient(model, batch, chunk=chunk), gradient(model, batch))


def test_a_chunk_is_encoded_alone_and_again_for_its_gradient() -> None:
    sizes = []
    weight = torch.ones(3, requires_grad=True)

    def encode(rows: torch.Tensor) -> torch.Tensor:
        sizes.append(len(rows))
        return rows * weight

    in_chunks(encode, torch.randn(5, 3), 2).sum().backward()
    assert sizes[:3] == [2, 2, 1]
    assert sorted(sizes[3:]) == [1, 2, 2]


def test_trimming_loses_padding_alone() -> None:
    batch = pairs()
    short = trimmed(batch.inputs["tokens"])
    assert short.shape == (5, 8)
    assert not batch.inputs["tokens"][:, 8:].any()
    # A token may be 0 itself, as CLIP's "!" is.
    assert trimmed(torch.tensor([[58, 0, 59, 0], [58, 59, 0, 0]])).shape == (2, 3)


def test_the_gradient_of_trimmed_texts_is_that_of_whole_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, batch = made(), pairs()
    short = gradient(model, batch)
    monkeypatch.setattr("pegboard_clip.objectives.trimmed", lambda tokens: tokens)
    assert_close(short, gradient(model, batch))


# --- a locked tower


class Pictures:
    """As much of a `PairDataset` as locking asks for."""

    def __init__(self, images: torch.Tensor) -> None:
        self.images = images.numpy()
        self.image_keys = [str(index) for index in range(len(images))]

    def image(self, image_id: int) -> np.ndarray[Any, Any]:
        return self.images[image_id]  # type: ignore[no-any-return]


def test_a_locked_tower_is_looked_up_and_does_not_learn() -> None:
    batch = pairs()
    free = gradient(made(), batch)
    model = made()
    lock(model, Pictures(batch.inputs["image"]), settings_of(batch_size=2))  # type: ignore[arg-type]
    names = model.state_dict().keys()
    model.encode_image = None  # type: ignore[assignment]  # It is not asked again.
    found = gradient(model, batch)
    assert not any(name.startswith("visual.") for name in found)
    assert_close(found, {name: free[name] for name in found})
    assert names == made().state_dict().keys()


# --- many processes

WORKER = """
import sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, sys.argv[1])
import test_objectives as t

rank = int(sys.argv[3])
dist.init_process_group(
    "gloo", init_method=f"file://{sys.argv[2]}/store", rank=rank, world_size=2
)
found = {}
for name, changes, train in t.TOGETHER:
    model, whole = t.made(**changes), t.pairs(5, captions=[0, 1, 2, 1, 4])
    # As the core shares five out: three, two.
    own = slice(0, 3) if rank == 0 else slice(3, 5)
    batch = t.Batch(
        inputs={n: x[own] for n, x in whole.inputs.items()},
        targets={n: x[own] for n, x in whole.targets.items()},
    )

    class WithLoss(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self):
            return t.losses(self.model, batch, t.settings_of(**train))

    module = DistributedDataParallel(WithLoss(), find_unused_parameters=True)
    loss = module()["loss"] * len(batch) * 2 / 5
    loss.backward()
    dist.all_reduce(loss := loss.detach())
    found[name] = {n: p.grad for n, p in model.named_parameters()}, loss / 2
torch.save(found, f"{sys.argv[2]}/{rank}.pt")
dist.destroy_process_group()
"""

TOGETHER: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("infonce", {}, {}),
    ("infonce in chunks", {}, {"chunk": 2}),
    ("sigmoid", {"sigmoid": True}, {"objective": "sigmoid"}),
]


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """What two processes found, by name of the case."""
    folder = tmp_path_factory.mktemp("together")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(Path(__file__).parent), str(folder), str(rank)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    found = [torch.load(folder / f"{rank}.pt") for rank in range(2)]
    return lambda name: [part[name] for part in found]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "changes", "train"), TOGETHER, ids=[case[0] for case in TOGETHER])
def test_two_processes_learn_as_one_does_from_the_whole_batch(
    name: str, changes: Any, train: Any, together: Callable[[str], Any]
) -> None:
    model, batch = made(**changes), pairs(5, captions=[0, 1, 2, 1, 4])
    expected = gradient(model, batch, **train)
    loss = losses(model, batch, settings_of(**train))["loss"].detach()
    for found, mean in together(name):
        assert_close(found, expected)
        torch.testing.assert_close(mean, loss)
