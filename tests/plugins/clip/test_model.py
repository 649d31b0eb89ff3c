from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pegboard import SettingsError
from pegboard.records import ExportRequest, Signature, TensorSpec
from pegboard.targets.tracing import trace
from pegboard_clip.configuration import (
    PRESETS,
    Configuration,
    Convolution,
    Transformer,
    Vision,
    configuration_of,
)
from pegboard_clip.model import Attention, Clip, ImageTower, TextTower, bounded_scale, build
from pegboard_clip.settings import ClipModel, ClipSettings, ClipTrain

TEXT = Transformer(width=32, layers=2, heads=2)
SMALL = Configuration(
    image=Convolution(widths=(16, 32), depths=(1, 1)),
    text=TEXT,
    image_size=16,
    width=8,
    vocabulary=60,
    context=12,
)
VIT = replace(SMALL, image=Vision(width=32, layers=2, heads=2, patch=8), activation="quickgelu")


@pytest.fixture(params=[SMALL, VIT], ids=["convolution", "transformer"])
def clip(request: pytest.FixtureRequest) -> Clip:
    torch.manual_seed(0)
    return Clip(request.param).eval()


def pictures(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 16, 16, 3), generator=generator, dtype=torch.uint8)


def texts(lengths: list[int], columns: int = 12) -> torch.Tensor:
    """Captions that end with the largest token, padded with zeros."""
    generator = torch.Generator().manual_seed(2)
    tokens = torch.zeros(len(lengths), columns, dtype=torch.int64)
    for row, length in zip(tokens, lengths, strict=True):
        row[: length - 1] = torch.randint(1, 58, (length - 1,), generator=generator)
        row[length - 1] = 59
    return tokens


@torch.no_grad()
def test_embeddings_are_of_unit_length(clip: Clip) -> None:
    outputs = clip(pictures(3), texts([4, 12]))
    assert outputs["image_embedding"].shape == (3, 8)
    assert outputs["text_embedding"].shape == (2, 8)
    for embedding in outputs.values():
        assert embedding.dtype == torch.float32
        torch.testing.assert_close(embedding.norm(dim=1), torch.ones(len(embedding)))


@torch.no_grad()
def test_an_embedding_does_not_depend_on_its_neighbours(clip: Clip) -> None:
    clip.train()
    together, alone = clip.encode_image(pictures(4)), clip.encode_image(pictures(4)[2:3])
    torch.testing.assert_close(together[2:3], alone, atol=1e-6, rtol=0)
    tokens = texts([5, 9, 3])
    torch.testing.assert_close(
        clip.encode_text(tokens)[1:2], clip.encode_text(tokens[1:2]), atol=1e-6, rtol=0
    )


@torch.no_grad()
def test_columns_behind_the_end_of_a_text_change_nothing(clip: Clip) -> None:
    tokens = texts([5, 7])
    other = tokens.clone()
    other[0, 5:] = 3
    whole = clip.encode_text(tokens)
    torch.testing.assert_close(clip.encode_text(tokens[:, :7]), whole, atol=1e-6, rtol=0)
    torch.testing.assert_close(clip.encode_text(other), whole, atol=1e-6, rtol=0)
    assert (clip.encode_text(tokens[:, :6])[1] - whole[1]).abs().max() > 1e-3


@torch.no_grad()
def test_attention_is_that_of_multihead_attention() -> None:
    torch.manual_seed(0)
    reference = nn.MultiheadAttention(32, 4, batch_first=True)
    own = Attention(32, 4, causal=True)
    own.in_proj_weight.copy_(torch.randn(96, 32))
    own.in_proj_bias.copy_(torch.randn(96))
    reference.load_state_dict(own.state_dict())
    x = torch.randn(2, 7, 32)
    mask = nn.Transformer.generate_square_subsequent_mask(7)
    expected, _ = reference(x, x, x, attn_mask=mask, need_weights=False)
    torch.testing.assert_close(own(x), expected, atol=1e-5, rtol=1e-5)


def test_the_temperature_begins_as_the_papers_say() -> None:
    assert Clip(SMALL).scale().item() == pytest.approx(1 / 0.07)
    sigmoid = Clip(replace(SMALL, sigmoid=True))
    assert sigmoid.scale().item() == pytest.approx(10)
    assert sigmoid.logit_bias is not None
    assert sigmoid.logit_bias.item() == -10
    assert "logit_bias" not in Clip(SMALL).state_dict()


@pytest.mark.parametrize(("sign", "slope"), [(1.0, 100.0), (-1.0, 0.0)])
def test_the_scale_stops_at_100_and_finds_its_way_back(sign: float, slope: float) -> None:
    logarithm = nn.Parameter(torch.tensor([math.log(250.0)]))
    scale = bounded_scale(logarithm)
    assert scale.item() == pytest.approx(100)
    # Descent follows the slope downwards: a positive one leads back.
    (sign * scale).sum().backward()
    assert logarithm.grad is not None
    assert logarithm.grad.item() == pytest.approx(slope)


def test_no_parameter_is_without_an_axis(clip: Clip) -> None:
    assert all(parameter.ndim for parameter in clip.parameters())


@pytest.mark.parametrize("architecture", PRESETS)
def test_a_preset_has_the_shapes_of_its_settings(architecture: Any) -> None:
    settings = ClipSettings(model=ClipModel(architecture=architecture))
    with torch.device("meta"):
        model = Clip(configuration_of(settings))
    names = model.state_dict()
    assert names["text_projection"].shape[1] == names["visual.proj"].shape[1]
    if architecture == "ViT-B-32":
        # As published: 151,277,313 parameters.
        assert sum(parameter.numel() for parameter in model.parameters()) == 151_277_313


def test_settings_change_the_architecture() -> None:
    model = ClipModel(width=16, image_size=32, context=9, vocabulary_size=300)
    settings = ClipSettings(model=model, train=ClipTrain(objective="sigmoid"))
    built = build(settings)
    assert isinstance(built, Clip)
    assert built.text_projection.shape[1] == 16
    assert built.positional_embedding.shape[0] == 9
    assert built.token_embedding.num_embeddings == 300
    assert built.logit_bias is not None


def test_an_image_that_patches_do_not_fill_is_refused() -> None:
    settings = ClipSettings(model=ClipModel(architecture="small-vit", image_size=70))
    with pytest.raises(SettingsError, match=r"70 pixels.*patches of 8 \(model\.image_size\).*72"):
        build(settings)


def test_an_image_that_the_stages_cannot_halve_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"24 pixels is too small.*image_size\).*32 or more"):
        build(ClipSettings(model=ClipModel(image_size=24)))
    build(ClipSettings(model=ClipModel(image_size=32)))


IMAGE = Signature(
    inputs=(TensorSpec(name="image", dtype="uint8", shape=("batch", 16, 16, 3), high=255),),
    outputs=(TensorSpec(name="image_embedding", dtype="float32", shape=("batch", 8)),),
)
WORDS = Signature(
    inputs=(TensorSpec(name="tokens", dtype="int64", shape=("batch", "tokens"), high=59),),
    outputs=(TensorSpec(name="text_embedding", dtype="float32", shape=("batch", 8)),),
)


@pytest.mark.parametrize(("tower", "signature"), [(ImageTower, IMAGE), (TextTower, WORDS)])
def test_each_tower_is_traced_with_any_number_of_rows_and_tokens(
    clip: Clip, tower: Any, signature: Signature, tmp_path: Path
) -> None:
    module = tower(clip)
    request = ExportRequest(deployable=module, signature=signature, folder=tmp_path)
    traced = trace(request).module()
    for batch, tokens in ((1, 1), (3, 5), (2, 12)):
        inputs = {
            name: torch.as_tensor(array)
            for name, array in signature.example(batch=batch, tokens=tokens).items()
        }
        with torch.no_grad():
            ((name, expected),) = module(**inputs).items()
            np.testing.assert_allclose(traced(**inputs)[name], expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("tower", "signature"), [(ImageTower, IMAGE), (TextTower, WORDS)])
def test_each_tower_answers_alike_as_onnx(
    clip: Clip, tower: Any, signature: Signature, tmp_path: Path
) -> None:
    import onnxruntime

    from pegboard.targets.onnx import export

    module = tower(clip)
    exported = export(ExportRequest(deployable=module, signature=signature, folder=tmp_path))
    session = onnxruntime.InferenceSession(str(exported))
    for batch, tokens in ((1, 1), (3, 5), (2, 12)):
        arrays = signature.example(batch=batch, tokens=tokens)
        with torch.no_grad():
            expected = module(**{name: torch.as_tensor(a) for name, a in arrays.items()})
        np.testing.assert_allclose(
            session.run(None, arrays)[0], next(iter(expected.values())), atol=1e-5
        )
