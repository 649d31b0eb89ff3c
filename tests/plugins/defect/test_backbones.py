"""Backbones by timm's names, and weights that fit or say in one sentence why not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pegboard.errors import CheckpointError, SettingsError
from pegboard_defect.backbones import (
    RESNETS,
    VITS,
    BackboneNote,
    ViT,
    ViTShape,
    build_backbone,
    load_backbone,
    read_note,
    save_backbone,
)

SMALL_VIT = ViTShape(width=24, depth=2, heads=3, patch=16)
NOTE = BackboneNote(backbone="tiny", color="grey", size=(64, 64))


def test_every_backbone_gives_the_maps_that_it_promises() -> None:
    for name in ("tiny", "small", "resnet50", "vit_tiny"):
        backbone = build_backbone(name, 3, (64, 96)).eval()
        with torch.inference_mode():
            maps = backbone(torch.rand(2, 3, 64, 96))
        assert [tuple(m.shape) for m in maps] == [
            (2, width, 64 // stride, 96 // stride)
            for width, stride in zip(backbone.widths, backbone.strides, strict=True)
        ], name
    assert {*RESNETS, *VITS} == {
        "tiny", "small", "resnet18", "resnet34", "resnet50", "vit_tiny",
    }  # fmt: skip


def test_names_and_shapes_are_those_of_timm() -> None:
    """As `timm.create_model(...).state_dict()` of timm 1.0 lists them, without the head."""
    resnet = build_backbone("resnet18", 3, (64, 64)).state_dict()
    # 62 parameters and 60 buffers, of which two and none are the head's.
    assert len(resnet) == 120
    assert sum(p.numel() for p in build_backbone("resnet18", 3, (64, 64)).parameters()) == 11176512
    assert resnet["layer2.0.downsample.0.weight"].shape == (128, 64, 1, 1)
    vit = build_backbone("vit_tiny", 3, (224, 224))
    assert sum(p.numel() for p in vit.parameters()) == 5524416
    shapes = {name: tuple(value.shape) for name, value in vit.state_dict().items()}
    assert shapes["pos_embed"] == (1, 197, 192)
    assert shapes["blocks.11.attn.qkv.weight"] == (576, 192)
    assert shapes["blocks.0.mlp.fc1.weight"] == (768, 192)
    assert {name for name in shapes if not name.startswith("blocks.")} == {
        "cls_token",
        "pos_embed",
        "patch_embed.proj.weight",
        "patch_embed.proj.bias",
        "norm.weight",
        "norm.bias",
    }


def test_a_frozen_projection_learns_nothing_while_the_rest_does() -> None:
    vit = ViT(SMALL_VIT, 1, (32, 32), freeze_patches=True)
    vit(torch.rand(2, 1, 32, 32))[0].square().mean().backward()
    assert vit.patch_embed.proj.weight.grad is None
    assert vit.pos_embed.grad is not None
    assert all(p.requires_grad for p in ViT(SMALL_VIT, 1, (32, 32)).parameters())


def test_a_transformer_knows_where_a_patch_is() -> None:
    vit = ViT(SMALL_VIT, 1, (32, 48)).eval()
    with torch.inference_mode():
        (seen,) = vit(torch.ones(1, 1, 32, 48))
    assert seen.shape == (1, 24, 2, 3)
    assert seen.flatten(2).std(dim=2).max() > 1e-3


def test_a_picture_that_cannot_be_cut_into_patches_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"60 x 64 pixels .* multiples of 16"):
        build_backbone("vit_tiny", 1, (60, 64))


# --- Weights --------------------------------------------------------------------------------------


def test_what_is_saved_is_loaded_bit_for_bit_and_says_what_it_is(tmp_path: Path) -> None:
    saved, loaded = (build_backbone("tiny", 1, (64, 64)) for _ in range(2))
    # A file of ours is whole even where the layout in memory is another one.
    saved.to(memory_format=torch.channels_last)
    save_backbone(saved, tmp_path / "b.safetensors", NOTE)
    load_backbone(loaded, tmp_path / "b.safetensors")
    for name, value in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert read_note(tmp_path / "b.safetensors") == NOTE
    assert [path.name for path in tmp_path.iterdir()] == ["b.safetensors"]


def test_the_head_of_a_classifier_is_left_out_and_old_files_need_no_counters(
    tmp_path: Path,
) -> None:
    backbone = build_backbone("tiny", 3, (64, 64))
    weights = {
        name: value for name, value in backbone.state_dict().items() if "tracked" not in name
    }
    save_file(
        weights | {"fc.weight": torch.ones(10, 128), "fc.bias": torch.ones(10)},
        tmp_path / "t.safetensors",
    )
    load_backbone(build_backbone("tiny", 3, (64, 64)), tmp_path / "t.safetensors")
    assert read_note(tmp_path / "t.safetensors") is None


@pytest.mark.parametrize(("name", "first"), [("tiny", "conv1"), ("vit_tiny", "patch_embed.proj")])
def test_a_grey_picture_gives_the_same_with_weights_of_colour_and_back(
    name: str, first: str, tmp_path: Path
) -> None:
    colour, grey, again = (build_backbone(name, c, (32, 32)).eval() for c in (3, 1, 3))
    x = torch.rand(2, 1, 32, 32)
    for source, target, file in ((colour, grey, "3.safetensors"), (grey, again, "1.safetensors")):
        save_backbone(source, tmp_path / file, NOTE)
        load_backbone(target, tmp_path / file)
    assert grey.get_submodule(first).weight.shape[1] == 1
    with torch.inference_mode():
        expected = colour(x.expand(-1, 3, -1, -1))[-1]
        assert torch.allclose(grey(x)[-1], expected, atol=1e-4)
        assert torch.allclose(again(x.expand(-1, 3, -1, -1))[-1], expected, atol=1e-4)


def test_places_are_interpolated_to_another_grid(tmp_path: Path) -> None:
    trained, larger = ViT(SMALL_VIT, 1, (64, 64)), ViT(SMALL_VIT, 1, (64, 128))
    with torch.no_grad():
        ramp = torch.arange(4.0)[None, :].expand(4, 4)  # It grows from left to right.
        trained.pos_embed[:, 1:] = ramp.flatten()[None, :, None]
        trained.pos_embed[:, 0] = 7.0
    save_file(dict(trained.state_dict()), tmp_path / "v.safetensors")
    load_backbone(larger, tmp_path / "v.safetensors")
    places = larger.pos_embed[0, 1:, 0].reshape(4, 8)
    assert larger.pos_embed[0, 0, 0] == 7.0
    assert torch.allclose(places[0], places[3], atol=1e-4)
    assert (places[0].diff() > 0).all()
    assert places[0, 2:6].tolist() == pytest.approx([0.75, 1.25, 1.75, 2.25], abs=0.1)


def test_the_grid_of_a_file_of_ours_need_not_be_a_square(tmp_path: Path) -> None:
    wide, square = ViT(SMALL_VIT, 1, (32, 128)), ViT(SMALL_VIT, 1, (64, 64))
    with torch.no_grad():  # 2 x 8 and 4 x 4 have as many places; only the note tells them apart.
        wide.pos_embed[0, 1:, 0] = torch.arange(2.0).repeat_interleave(8)
    note = BackboneNote(backbone="vit", color="grey", size=(32, 128))
    save_backbone(wide, tmp_path / "w.safetensors", note)
    load_backbone(square, tmp_path / "w.safetensors")
    places = square.pos_embed[0, 1:, 0].reshape(4, 4)
    assert places.std(dim=1).max() < 1e-5
    assert (places[:, 0].diff() > 0).all()


def spoilt(name: str, folder: Path) -> Path:
    path = folder / ("weights.pth" if name == "pickle" else "weights.safetensors")
    weights = dict(build_backbone("tiny", 1, (64, 64)).state_dict())
    if name == "missing":
        return path
    if name in ("pickle", "noise"):
        path.write_bytes(b"\x80\x04nonsense" * 9)
    elif name == "lacking":
        del weights["layer3.0.conv2.weight"]
        save_file(weights, path)
    elif name == "unknown":
        save_file(weights | {"layer9.weight": torch.ones(1)}, path)
    elif name == "shape":
        save_file(weights | {"conv1.weight": torch.ones(16, 1, 7, 7)}, path)
    elif name == "channels":
        save_file(weights | {"conv1.weight": torch.ones(16, 5, 5, 5)}, path)
    else:
        other = BackboneNote(backbone="resnet18", color="grey", size=(64, 64))
        save_backbone(build_backbone("resnet18", 1, (64, 64)), path, other)
    return path


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing", "the weights are missing"),
        ("pickle", "a pickle may run anything"),
        ("noise", "cannot be read"),
        ("lacking", "'layer3.0.conv2.weight' is not in the file"),
        ("unknown", "'layer9.weight' is not in the backbone"),
        ("shape", r"'conv1.weight' has the shape \(16, 1, 7, 7\) in the file and \(16, 1, 5, 5\)"),
        ("channels", r"'conv1.weight' has the shape \(16, 5, 5, 5\)"),
        ("other", r"the file holds resnet18 for grey pixels"),
    ],
)
def test_every_misfit_is_one_sentence_and_changes_nothing(
    name: str, words: str, tmp_path: Path
) -> None:
    backbone = build_backbone("tiny", 1, (64, 64))
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    path = spoilt(name, tmp_path)
    with pytest.raises(CheckpointError, match=words) as caught:
        load_backbone(backbone, path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def test_a_grid_that_does_not_fit_is_named(tmp_path: Path) -> None:
    vit = ViT(SMALL_VIT, 1, (32, 32))
    weights = dict(vit.state_dict()) | {"pos_embed": torch.zeros(1, 8, 24)}
    save_file(weights, tmp_path / "v.safetensors")
    with pytest.raises(CheckpointError, match="'pos_embed' has the shape"):
        load_backbone(vit, tmp_path / "v.safetensors")
    assert load_file(tmp_path / "v.safetensors")["pos_embed"].shape == (1, 8, 24)
