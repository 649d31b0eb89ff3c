"""The network and its deployable: encodings, exact correction, any batch size in ONNX."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pegboard.records import Batch, ExportRequest
from pegboard.targets import onnx
from pegboard_fraud.deploy import signature
from pegboard_fraud.features import AMOUNT, FEATURE_NAMES
from pegboard_fraud.model import (
    FraudModel,
    FraudScorer,
    PiecewiseLinear,
    Standard,
    build,
    compute_loss,
    share_out_bins,
)
from pegboard_fraud.settings import FraudModel as ModelSettings
from pegboard_fraud.settings import FraudSettings

COUNT = len(FEATURE_NAMES)
VARIANTS = [
    {"architecture": "mlp", "encoding": "standard"},
    {"architecture": "mlp", "encoding": "piecewise_linear"},
    {"architecture": "tabm", "encoding": "standard"},
    {"architecture": "tabm", "encoding": "piecewise_linear"},
]


def features(count: int, seed: int = 0) -> Any:
    inputs = signature(FraudSettings()).example(seed=seed, batch=count)
    return inputs["features"]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(v.values()))
def test_every_variant_is_built_from_its_settings_and_gives_probabilities(variant: Any) -> None:
    settings = FraudSettings(model=ModelSettings(hidden=(8,), bins=4, members=3, **variant))
    model = build(settings, None)
    model.fit(features(200), np.arange(200) % 10 == 0, negative_rate=0.5)
    outputs = FraudScorer(model).eval()(torch.from_numpy(features(7)))
    assert outputs["probability"].shape == outputs["expected_loss"].shape == (7,)
    assert ((outputs["probability"] > 0) & (outputs["probability"] < 1)).all()
    expected = outputs["probability"] * torch.from_numpy(features(7)[:, AMOUNT])
    assert torch.equal(outputs["expected_loss"], expected)


def test_weights_load_into_a_model_that_saw_no_data() -> None:
    model = build(FraudSettings(), None)
    model.fit(features(50), np.arange(50) % 5 == 0, negative_rate=0.1)
    fresh = build(FraudSettings(), None)
    fresh.load_state_dict(model.state_dict())
    row = torch.from_numpy(features(3))
    assert torch.equal(fresh.eval()(row), model.eval()(row))


def test_subsampling_is_taken_back_exactly() -> None:
    # A constant score: of 1000 genuine and 100 frauds a tenth of the genuine is seen, so the
    # sampled world has even odds and the real one 1 in 11.
    model = FraudModel(COUNT, hidden=(4,))
    model.fit(features(20), np.arange(20) % 2, negative_rate=0.1)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    probability = FraudScorer(model)(torch.from_numpy(features(1)))["probability"]
    assert probability.item() == pytest.approx(100 / 1100, rel=1e-6)


def test_the_loss_is_the_mean_cross_entropy_over_rows_and_members() -> None:
    batch = Batch(
        inputs={"features": torch.from_numpy(features(6))},
        targets={"label": torch.tensor([0.0, 1, 0, 0, 1, 0])},
    )
    model = build(FraudSettings(model=ModelSettings(architecture="tabm", hidden=(8,))), None)
    logits = model(batch.inputs["features"])
    labels = batch.targets["label"][:, None].expand_as(logits)
    by_hand = -(labels * logits.sigmoid().log() + (1 - labels) * (1 - logits.sigmoid()).log())
    loss = compute_loss(model, batch)["loss"]
    assert loss.item() == pytest.approx(by_hand.mean().item(), rel=1e-5)


def test_the_standard_encoding_has_mean_zero_and_spread_one() -> None:
    encoding, x = Standard(3), np.random.default_rng(0).lognormal(3, 2, (5000, 3))
    x[:, 2] = 7.0
    encoding.fit(x, np.zeros(5000))
    encoded = encoding(torch.from_numpy(x.astype(np.float32)))
    assert encoded.mean(0).abs().max() < 1e-3
    assert encoded.std(0)[:2].sub(1).abs().max() < 1e-2
    assert encoded.isfinite().all()


def test_the_piecewise_linear_encoding_fills_its_bins_in_order() -> None:
    encoding = PiecewiseLinear(1, 4)
    encoding.fit(np.linspace(0, 8, 801)[:, None], np.arange(801) % 2)
    encoded = encoding(torch.tensor([[-1.0], [3.0], [99.0]]))
    assert encoded[0].tolist() == [0, 0, 0, 0]
    assert encoded[1].tolist() == pytest.approx([1, 0.5, 0, 0], abs=0.02)
    assert encoded[2].tolist() == [1, 1, 1, 1]


def test_bins_are_placed_where_either_class_is() -> None:
    column = np.concatenate([np.zeros(990), np.arange(1, 11)])[:, None]
    labels = np.concatenate([np.zeros(990), np.ones(10)])
    (edges,) = share_out_bins(column, labels, 4)
    # Plain quantiles would all be zero.
    assert edges[0] == 0
    assert edges[-1] == 10
    assert len(edges) > 2


def test_a_feature_with_few_values_leaves_its_bins_to_the_others() -> None:
    generator = np.random.default_rng(0)
    features = np.stack([generator.integers(0, 2, 2000), generator.random(2000)], axis=1)
    edges = share_out_bins(features, generator.integers(0, 2, 2000), 16)
    assert len(edges[0]) == 2
    assert 10 < len(edges[1]) <= 16


def test_amounts_keep_their_digits_when_training_in_half_precision() -> None:
    # Bins of 0.05 around 1000: bfloat16 knows 996, 1000 and 1004 there.
    column = np.arange(1000, 1005, 0.05, dtype=np.float32)[:, None]
    encoding = PiecewiseLinear(1, 50)
    encoding.fit(column, np.arange(len(column)) % 2)
    exact = encoding(torch.from_numpy(column))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(encoding(torch.from_numpy(column)), exact)


def test_a_feature_that_never_varies_leaves_its_inputs_at_zero() -> None:
    encoding = PiecewiseLinear(1, 4)
    encoding.fit(np.full((100, 1), 3.0), np.arange(100) % 2)
    assert encoding(torch.tensor([[3.0], [5.0]])).tolist() == [[0.0] * 4] * 2


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(v.values()))
def test_the_exported_graph_equals_torch_at_any_batch_size(variant: Any, tmp_path: Path) -> None:
    settings = FraudSettings(model=ModelSettings(hidden=(8,), bins=4, members=3, **variant))
    model = build(settings, None)
    model.fit(features(200), np.arange(200) % 10 == 0, negative_rate=0.02)
    scorer = FraudScorer(model).eval()
    (target,) = onnx.deploy_targets()
    request = ExportRequest(deployable=scorer, signature=signature(settings), folder=tmp_path)
    predictor = target.load(target.export(request), signature(settings))
    for count in (1, 33):
        x = features(count, seed=count)
        expected = scorer(torch.from_numpy(x))
        for name, array in predictor({"features": x}).items():
            assert np.allclose(array, expected[name].detach().numpy(), rtol=1e-4, atol=1e-6), name
    assert math.isfinite(model.log_odds_correction.item())
