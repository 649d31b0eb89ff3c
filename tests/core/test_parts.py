from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pegboard import RequestError
from pegboard.records import (
    Array,
    CompressRequest,
    ExportRequest,
    Part,
    Signature,
    Target,
    TensorSpec,
)
from pegboard.serving import openinference
from pegboard.serving.batching import MicroBatcher
from pegboard.serving.drift import DriftMonitor
from pegboard.signatures import validate
from pegboard.targets import onnx
from pegboard.targets import torch as torch_target
from pegboard.targets.parts import FILE, in_parts
from pegboard.targets.support import find_target


class Tower(nn.Module):
    def __init__(self, taken: str, width: int) -> None:
        super().__init__()
        self.taken, self.layer = taken, nn.Linear(width, 3)

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        return {f"{self.taken}_embedding": self.layer(inputs[self.taken])}


class Picture(Tower):
    def forward(self, picture: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        return super().forward(picture=picture)


class Text(Tower):
    def forward(self, text: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        return super().forward(text=text)


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = Picture("picture", 4), Text("text", 5)


SIGNATURE = Signature(
    inputs=(
        TensorSpec(name="picture", dtype="float32", shape=("batch", 4)),
        TensorSpec(name="text", dtype="float32", shape=("batch", 5)),
    ),
    outputs=(
        TensorSpec(name="picture_embedding", dtype="float32", shape=("batch", 3)),
        TensorSpec(name="text_embedding", dtype="float32", shape=("batch", 3)),
    ),
    parts={
        "left": Part(inputs=("picture",), outputs=("picture_embedding",)),
        "right": Part(inputs=("text",), outputs=("text_embedding",)),
    },
)

ONNX = onnx.deploy_targets()[0]
TORCH = torch_target.deploy_targets()[0]


@pytest.fixture(scope="module")
def pair() -> Pair:
    torch.manual_seed(0)
    return Pair().eval()


def exported(target: Target, pair: Pair, folder: Path) -> Path:
    return in_parts(target).export(
        ExportRequest(deployable=pair, signature=SIGNATURE, folder=folder)
    )


@pytest.mark.parametrize("target", [ONNX, TORCH], ids=["onnx", "torch"])
def test_parts_are_exported_by_themselves_and_answer_together(
    pair: Pair, tmp_path: Path, target: Target
) -> None:
    path = exported(target, pair, tmp_path)
    assert {entry.name for entry in path.iterdir()} == {"left", "right", FILE}
    predictor = in_parts(target).load(path, SIGNATURE)
    inputs = SIGNATURE.example(batch=3)
    outputs = predictor(inputs)
    assert set(outputs) == {"picture_embedding", "text_embedding"}
    for name, layer in (("picture", pair.left.layer), ("text", pair.right.layer)):
        expected = layer(torch.as_tensor(inputs[name])).detach().numpy()
        np.testing.assert_allclose(outputs[f"{name}_embedding"], expected, atol=1e-6)


def test_a_request_for_one_part_runs_that_part_alone(pair: Pair, tmp_path: Path) -> None:
    predictor = in_parts(ONNX).load(exported(ONNX, pair, tmp_path), SIGNATURE)
    assert set(predictor({"text": SIGNATURE.example()["text"]})) == {"text_embedding"}


def test_each_part_is_compressed_with_its_own_inputs(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "fp32").mkdir()
    (tmp_path / "int8").mkdir()
    source = exported(ONNX, pair, tmp_path / "fp32")
    calibration = [SIGNATURE.example(seed=seed, batch=8) for seed in range(4)]
    path = in_parts(ONNX).compressions["int8-static"](
        CompressRequest(
            source=source,
            signature=SIGNATURE,
            folder=tmp_path / "int8",
            calibration=calibration,
        )
    )
    exact, small = (in_parts(ONNX).load(one, SIGNATURE)(calibration[0]) for one in (source, path))
    for name in exact:
        assert 0 < np.abs(exact[name] - small[name]).max() < 0.05


def test_a_target_is_handed_out_with_parts(pair: Pair, tmp_path: Path) -> None:
    target = find_target([ONNX], "onnx")
    request = ExportRequest(deployable=pair, signature=SIGNATURE, folder=tmp_path)
    assert target.export(request) == tmp_path


def test_a_whole_model_is_exported_as_ever(pair: Pair, tmp_path: Path) -> None:
    whole = SIGNATURE.part("left")
    request = ExportRequest(deployable=pair.left, signature=whole, folder=tmp_path)
    assert in_parts(ONNX).export(request) == tmp_path / onnx.FILE


def test_inputs_of_some_parts_suffice_and_none_do_not() -> None:
    example = SIGNATURE.example()
    assert set(validate({"text": example["text"]}, SIGNATURE)) == {"text"}
    assert set(validate(example, SIGNATURE)) == {"picture", "text"}
    with pytest.raises(RequestError, match="'picture' is missing"):
        validate({}, SIGNATURE)


def test_inputs_of_one_part_come_together() -> None:
    masked = Signature(
        inputs=(*SIGNATURE.inputs, TensorSpec(name="mask", dtype="float32", shape=("batch", 5))),
        outputs=SIGNATURE.outputs,
        parts=SIGNATURE.parts | {"right": Part(inputs=("text", "mask"), outputs=())},
    )
    with pytest.raises(RequestError, match="'mask' is missing"):
        validate({"text": SIGNATURE.example()["text"]}, masked)


def test_requests_for_different_parts_do_not_share_a_batch() -> None:
    asked = []

    def infer(inputs: dict[str, Array]) -> dict[str, Array]:
        asked.append({name: len(array) for name, array in inputs.items()})
        return {f"{name}_embedding": array[:, :3] for name, array in inputs.items()}

    async def run() -> list[dict[str, Array]]:
        batcher = MicroBatcher(SIGNATURE, size=8)
        example = SIGNATURE.example(batch=1)
        requests = [{name: example[name]} for name in ("text", "picture", "text", "picture")]
        return await asyncio.gather(*(batcher.submit(one, infer) for one in requests))  # type: ignore[arg-type]

    answers = asyncio.run(run())
    assert asked == [{"text": 2}, {"picture": 2}]
    names = [list(answer) for answer in answers]
    assert names == [[f"{name}_embedding"] for name in ("text", "picture", "text", "picture")]


def test_tensors_are_answered_with_the_outputs_of_the_parts_asked() -> None:
    text = (
        b'{"inputs": [{"name": "text", "datatype": "FP32", "shape": [1, 5], "data": [1,2,3,4,5]}]'
    )
    assert openinference.read(text + b"}", None, SIGNATURE).outputs == ("text_embedding",)
    with pytest.raises(RequestError, match="the model returns text_embedding"):
        openinference.read(text + b', "outputs": [{"name": "picture_embedding"}]}', None, SIGNATURE)


def test_drift_counts_each_part_by_its_own_requests() -> None:
    column = {"channel": "", "edges": [0.5], "shares": [0.5, 0.5], "min": 0.0, "max": 1.0}
    table = [{**column, "missing": 0.0}]
    reference = {
        "inputs": {spec.name: table for spec in SIGNATURE.inputs},
        "outputs": {spec.name: table for spec in SIGNATURE.outputs},
    }
    monitor = DriftMonitor(SIGNATURE, reference, window=100)
    monitor.add({"text": np.zeros((1, 5))}, {"text_embedding": np.zeros((1, 3))}, 1)
    counts = {drift.tensor: drift.count for drift in monitor.summary()}
    assert counts == {"picture": 0, "text": 5, "picture_embedding": 0, "text_embedding": 3}
