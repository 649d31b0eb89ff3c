from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from pegboard import CheckpointError, DataError, SettingsError
from pegboard_clip.configuration import Configuration, Transformer, Vision, activation_of
from pegboard_clip.model import Clip
from pegboard_clip.settings import ClipModel, ClipSettings
from pegboard_clip.weights import interpolate, load, read_weights, resized_places

VIT = Configuration(
    image=Vision(width=64, layers=2, heads=1, patch=8),
    text=Transformer(width=32, layers=2, heads=2),
    image_size=32,
    width=16,
    vocabulary=60,
    context=12,
)


def made(configuration: Configuration = VIT, seed: int = 0) -> Clip:
    torch.manual_seed(seed)
    return Clip(configuration).eval()


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (3, 32, 32, 3), generator=generator, dtype=torch.uint8)
    tokens = torch.randint(1, 58, (3, 12), generator=generator)
    tokens[0, 4:], tokens[0, 4] = 0, 59
    tokens[1:, -1] = 59
    return image, tokens


def saved(folder: Path, weights: dict[str, torch.Tensor] | None = None) -> Path:
    """open_clip's form of a model: the temperature has no axis."""
    weights = {**(weights or made(seed=1).state_dict())}
    weights["logit_scale"] = weights["logit_scale"].reshape(())
    path = folder / "open_clip_model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
    return path


def test_open_clips_file_loads_to_the_last_number(tmp_path: Path) -> None:
    model, other = made(), made(seed=1)
    load(model, saved(tmp_path))
    for name, tensor in other.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_pickle_of_tensors_loads(wrapped: bool, tmp_path: Path) -> None:
    weights: Any = made(seed=1).half().state_dict()
    if wrapped:
        weights = {"epoch": 3, "state_dict": {f"module.{n}": t for n, t in weights.items()}}
    path = tmp_path / "epoch_3.pt"
    torch.save(weights, path)
    model = made()
    load(model, path)
    expected = made(seed=1).half().float().state_dict()
    assert torch.equal(model.state_dict()["visual.proj"], expected["visual.proj"])
    assert model.visual.proj.dtype == torch.float32


def test_a_pickle_of_anything_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    torch.save({"state_dict": made()}, path)
    with pytest.raises(DataError, match="cannot be read"):
        load(made(), path)


@pytest.mark.parametrize("name", ["model.bin", "model.safetensors"])
def test_a_file_that_is_no_checkpoint_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    with pytest.raises(DataError, match="there is no checkpoint"):
        load(made(), path)
    path.write_bytes(b"not weights")
    with pytest.raises(DataError, match="cannot be read"):
        load(made(), path)
    with pytest.raises(DataError, match="folder has no weights"):
        (tmp_path / "empty").mkdir()
        load(made(), tmp_path / "empty")


def test_another_architecture_is_told_by_one_parameter(tmp_path: Path) -> None:
    path = saved(tmp_path)
    wide = made(replace(VIT, width=8))
    with pytest.raises(CheckpointError, match=r"is \(32, 16\) and the model's \(32, 8\)") as told:
        load(wide, path)
    assert "model.architecture" in told.value.remedy
    deep = made(replace(VIT, text=Transformer(width=32, layers=3, heads=2)))
    with pytest.raises(CheckpointError, match=r"lacks 12 parameters.*resblocks\.2"):
        load(deep, path)
    flat = made(replace(VIT, text=Transformer(width=32, layers=1, heads=2)))
    with pytest.raises(CheckpointError, match="the model lacks 12 parameters"):
        load(flat, path)


def test_a_refused_checkpoint_changes_nothing(tmp_path: Path) -> None:
    model = made(replace(VIT, width=8))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError):
        load(model, saved(tmp_path))
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_a_shorter_context_reads_short_texts_alike(tmp_path: Path) -> None:
    model = made(replace(VIT, context=8))
    load(model, saved(tmp_path))
    _, tokens = inputs()
    with torch.no_grad():
        expected = made(seed=1).encode_text(tokens[:1])
        torch.testing.assert_close(model.encode_text(tokens[:1, :8]), expected)
    with pytest.raises(CheckpointError, match=r"'positional_embedding' is \(12, 32\)"):
        load(made(replace(VIT, context=13)), tmp_path)


def test_another_image_size_interpolates_the_places(tmp_path: Path) -> None:
    model, source = made(replace(VIT, image_size=48)), made(seed=1)
    load(model, saved(tmp_path))
    places = source.state_dict()["visual.positional_embedding"]
    found = model.state_dict()["visual.positional_embedding"]
    assert torch.equal(found[0], places[0])
    grid = places[1:].T.reshape(1, 64, 4, 4)
    # What open_clip's resize_pos_embed does.
    wanted = functional.interpolate(grid, (6, 6), mode="bicubic", antialias=True)
    torch.testing.assert_close(found[1:].T.reshape(1, 64, 6, 6), wanted)
    even = torch.ones(17, 5)
    torch.testing.assert_close(resized_places(even, 65), torch.ones(65, 5))


def test_a_bias_of_siglip_is_taken_where_it_is_learnt(tmp_path: Path) -> None:
    sigmoid = replace(VIT, sigmoid=True)
    path = saved(tmp_path)
    load(made(sigmoid), path)
    path = saved(tmp_path, made(sigmoid, seed=1).state_dict())
    load(made(), path)
    model = made(sigmoid)
    load(model, path)
    assert model.logit_bias is not None
    assert model.logit_bias.item() == -10


# --- Hugging Face's


@pytest.mark.parametrize(("theirs", "ours"), [("quick_gelu", "quickgelu"), ("gelu", "gelu")])
def test_hugging_faces_model_answers_alike(theirs: str, ours: Any, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    shared = {"num_hidden_layers": 2, "hidden_act": theirs}
    configuration = transformers.CLIPConfig(
        projection_dim=16,
        text_config={
            **shared,
            "hidden_size": 32,
            "intermediate_size": 128,
            "num_attention_heads": 2,
            "vocab_size": 60,
            "max_position_embeddings": 12,
            # Any but 2, where transformers looks for the largest token as it once did.
            "eos_token_id": 59,
        },
        vision_config={
            **shared,
            "hidden_size": 64,
            "intermediate_size": 256,
            "num_attention_heads": 1,
            "image_size": 32,
            "patch_size": 8,
        },
    )
    torch.manual_seed(3)
    reference = transformers.CLIPModel(configuration).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    reference.save_pretrained(tmp_path)
    settings = ClipSettings(model=ClipModel(architecture="ViT-B-32", weights=tmp_path))
    assert activation_of(settings) == ours

    model = made(replace(VIT, activation=ours))
    load(model, tmp_path)
    image, tokens = inputs()
    pixels = (image.permute(0, 3, 1, 2).float() - model.mean) / model.deviation
    with torch.no_grad():
        expected = reference(input_ids=tokens, pixel_values=pixels)
        found = model(image, tokens)
        scale = model.scale()
    torch.testing.assert_close(found["image_embedding"], expected.image_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(found["text_embedding"], expected.text_embeds, atol=1e-5, rtol=0)
    assert scale.item() == pytest.approx(reference.logit_scale.exp().item())


# --- open_clip itself, where it is installed


@pytest.mark.parametrize("quick", [True, False])
def test_open_clips_model_answers_alike(quick: bool, tmp_path: Path) -> None:
    open_clip = pytest.importorskip("open_clip", reason="open_clip needs a working torchvision")
    torch.manual_seed(4)
    reference = open_clip.CLIP(
        embed_dim=16,
        vision_cfg={"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
        text_cfg={"context_length": 12, "vocab_size": 60, "width": 32, "heads": 2, "layers": 2},
        quick_gelu=quick,
    ).eval()
    model = made(replace(VIT, activation="quickgelu" if quick else "gelu"))
    load(model, saved(tmp_path, reference.state_dict()))
    image, tokens = inputs()
    pixels = (image.permute(0, 3, 1, 2).float() - model.mean) / model.deviation
    with torch.no_grad():
        expected = reference(pixels, tokens)
        found = model(image, tokens)
    torch.testing.assert_close(found["image_embedding"], expected[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(found["text_embedding"], expected[1], atol=1e-5, rtol=0)
    # And back: open_clip takes ours strictly.
    reference.load_state_dict(made(seed=2).state_dict(), strict=True)


# --- which activation


def settings_of(weights: Path | None, **model: Any) -> ClipSettings:
    return ClipSettings(model=ClipModel(**{"architecture": "ViT-B-32", **model}, weights=weights))


def test_open_clips_configuration_tells_the_activation(tmp_path: Path) -> None:
    path = saved(tmp_path)
    for model, ours in (({"quick_gelu": True}, "quickgelu"), ({}, "gelu")):
        told = json.dumps({"model_cfg": {"embed_dim": 512, **model}})
        (tmp_path / "open_clip_config.json").write_text(told, encoding="utf-8")
        assert activation_of(settings_of(path)) == ours
        assert activation_of(settings_of(tmp_path)) == ours


def test_an_activation_that_nothing_tells_is_asked_for(tmp_path: Path) -> None:
    path = saved(tmp_path)
    with pytest.raises(SettingsError, match=r"GELU or QuickGELU.*model\.activation"):
        activation_of(settings_of(path))
    assert activation_of(settings_of(path, activation="quickgelu")) == "quickgelu"
    assert activation_of(settings_of(None)) == "gelu"


def test_a_checkpoint_that_is_not_there_is_not_asked_about(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no checkpoint.*nothing\.bin"):
        activation_of(settings_of(tmp_path / "nothing.bin"))


def test_a_broken_configuration_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match=r"config\.json"):
        activation_of(settings_of(tmp_path))
    told = {"model_type": "clip", "text_config": {"hidden_act": "relu"}}
    (tmp_path / "config.json").write_text(json.dumps(told), encoding="utf-8")
    with pytest.raises(CheckpointError, match="relu"):
        activation_of(settings_of(tmp_path))


# --- interpolation


def test_interpolation_goes_from_the_checkpoint_to_the_tuned_weights() -> None:
    initial, tuned = made(seed=1).state_dict(), made(seed=2).state_dict()
    half = interpolate(initial, tuned, 0.5)
    for name in tuned:
        assert torch.equal(interpolate(initial, tuned, 1.0)[name], tuned[name])
        assert torch.equal(interpolate(initial, tuned, 0.0)[name], initial[name])
        torch.testing.assert_close(half[name], (initial[name] + tuned[name]) / 2)
    del initial["logit_scale"]
    assert torch.equal(interpolate(initial, tuned, 0.0)["logit_scale"], tuned["logit_scale"])


def test_weights_of_a_folder_are_those_of_its_file(tmp_path: Path) -> None:
    path = saved(tmp_path)
    assert read_weights(path).keys() == read_weights(tmp_path).keys()
