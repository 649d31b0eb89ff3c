"""What is changed in an exported graph so that ONNX Runtime is faster."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from pegboard.records import ExportRequest, Signature, TensorSpec
from pegboard.targets import onnx as target

SIGNATURE = Signature(
    inputs=(
        TensorSpec(name="rows", dtype="float32", shape=("batch", 3)),
        TensorSpec(name="places", dtype="int64", shape=("batch",), low=0, high=5),
    ),
    outputs=(TensorSpec(name="scattered", dtype="float32", shape=(5, 3)),),
)


class Rows(nn.Module):
    """Whole rows, each to its place."""

    def forward(self, rows: torch.Tensor, places: torch.Tensor) -> dict[str, torch.Tensor]:
        index = places[:, None].expand(-1, 3)
        return {"scattered": rows.new_zeros(5, 3).scatter_reduce(0, index, rows, "amax")}


class Elements(nn.Module):
    """Every element to a place of its own."""

    def forward(self, rows: torch.Tensor, places: torch.Tensor) -> dict[str, torch.Tensor]:
        index = (places[:, None] + torch.arange(3)) % 5
        return {"scattered": rows.new_zeros(5, 3).scatter_reduce(0, index, rows, "amax")}


@pytest.mark.parametrize(
    ("module", "operator"), [(Rows(), "ScatterND"), (Elements(), "ScatterElements")]
)
def test_rows_are_scattered_whole_and_nothing_else_is(
    module: nn.Module, operator: str, tmp_path: Path
) -> None:
    path = target.export(ExportRequest(deployable=module, signature=SIGNATURE, folder=tmp_path))
    operators = {node.op_type for node in onnx.load(path).graph.node}
    assert {name for name in operators if name.startswith("Scatter")} == {operator}
    predictor = target.load(path, SIGNATURE)
    for count in (1, 7, 40):
        inputs = SIGNATURE.example(seed=count, batch=count)
        expected = module(**{name: torch.as_tensor(array) for name, array in inputs.items()})
        np.testing.assert_array_equal(predictor(inputs)["scattered"], expected["scattered"])
