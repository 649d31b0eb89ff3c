from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pegboard import CheckpointError, DataError, SettingsError
from pegboard.records import Batch, ExportRequest, Signature, TensorSpec
from pegboard.targets.tracing import trace
from pegboard_clip.model import TextTower, build
from pegboard_clip.objectives import losses
from pegboard_clip.settings import ClipModel, ClipSettings, ClipTrain

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Chinese-CLIP of random weights, as transformers saves it."""
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32}
    configuration = transformers.ChineseCLIPConfig(
        projection_dim=8,
        text_config={
            **layers,
            "intermediate_size": 64,
            "vocab_size": 60,
            "max_position_embeddings": 16,
        },
        vision_config={**layers, "intermediate_size": 64, "image_size": 32, "patch_size": 8},
    )
    torch.manual_seed(0)
    model = transformers.ChineseCLIPModel(configuration)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    path = tmp_path_factory.mktemp("chinese")
    model.save_pretrained(path)
    return path


def settings_of(folder: Path | None, **model: Any) -> ClipSettings:
    sizes = {"architecture": "chinese-clip", "image_size": 32, "width": 8, "context": 12}
    return ClipSettings(model=ClipModel(weights=folder, **{**sizes, **model}))


def pairs() -> Batch:
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (3, 32, 32, 3), generator=generator, dtype=torch.uint8)
    tokens = torch.randint(4, 60, (3, 12), generator=generator)
    tokens[0, 5:], tokens[1, 9:] = 0, 0
    return Batch(inputs={"image": image, "tokens": tokens}, targets={})


def test_it_answers_as_transformers_does(folder: Path) -> None:
    model: Any = build(settings_of(folder)).eval()
    reference = transformers.ChineseCLIPModel.from_pretrained(folder).eval()
    batch = pairs()
    tokens = batch.inputs["tokens"]
    pixels = (batch.inputs["image"].permute(0, 3, 1, 2).float() - model.mean) / model.deviation
    with torch.no_grad():
        expected = reference(
            input_ids=tokens, attention_mask=(tokens != 0).long(), pixel_values=pixels
        )
        found = model(**batch.inputs)
        scale = model.scale()
    torch.testing.assert_close(found["image_embedding"], expected.image_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(found["text_embedding"], expected.text_embeds, atol=1e-5, rtol=0)
    assert scale.item() == pytest.approx(min(100.0, reference.logit_scale.exp().item()))


@torch.no_grad()
def test_padding_changes_no_text(folder: Path) -> None:
    model: Any = build(settings_of(folder)).eval()
    tokens = pairs().inputs["tokens"]
    alone = model.encode_text(tokens[:1, :5])
    torch.testing.assert_close(model.encode_text(tokens)[:1], alone, atol=1e-5, rtol=0)


def test_it_learns_from_pairs(folder: Path) -> None:
    model: Any = build(settings_of(folder))
    losses(model, pairs(), settings_of(folder))["loss"].backward()
    learns = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    wanted = {"vision_model", "text_model", "visual_projection", "text_projection", "logit_scale"}
    assert learns == wanted
    assert all(parameter.ndim for parameter in model.parameters())
    assert any(True for _ in model.visual.parameters())


def test_a_new_one_has_the_shapes_that_trained_weights_are_loaded_into(folder: Path) -> None:
    read, new = build(settings_of(folder)), build(settings_of(folder), loads=False)
    new.load_state_dict(read.state_dict())
    sigmoid = settings_of(folder).model_copy(update={"train": ClipTrain(objective="sigmoid")})
    assert "logit_bias" in build(sigmoid, loads=False).state_dict()


def test_the_text_tower_is_traced_with_any_number_of_tokens(folder: Path, tmp_path: Path) -> None:
    module = TextTower(build(settings_of(folder)).eval())
    signature = Signature(
        inputs=(TensorSpec(name="tokens", dtype="int64", shape=("batch", "tokens"), high=59),),
        outputs=(TensorSpec(name="text_embedding", dtype="float32", shape=("batch", 8)),),
    )
    request = ExportRequest(deployable=module, signature=signature, folder=tmp_path)
    traced = trace(request).module()
    for tokens in (pairs().inputs["tokens"], pairs().inputs["tokens"][:1, :5]):
        with torch.no_grad():
            torch.testing.assert_close(
                traced(tokens=tokens)["text_embedding"],
                module(tokens)["text_embedding"],
                atol=1e-5,
                rtol=0,
            )


def test_settings_that_are_not_the_checkpoints_are_refused(folder: Path) -> None:
    for key, value in (("image_size", 24), ("width", 16), ("context", 17)):
        with pytest.raises(SettingsError, match=rf"model\.{key}"):
            build(settings_of(folder, **{key: value}))


def test_another_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no config\.json"):
        build(settings_of(tmp_path))
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="cannot be read"):
        build(settings_of(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "clip"}', encoding="utf-8")
    with pytest.raises(CheckpointError, match="another model"):
        build(settings_of(tmp_path))
    told = (folder / "config.json").read_text(encoding="utf-8")
    (tmp_path / "config.json").write_text(told, encoding="utf-8")
    with pytest.raises(DataError, match="cannot be read"):
        build(settings_of(tmp_path))
