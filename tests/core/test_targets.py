from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from pegboard import (
    BundleError,
    MissingExtraError,
    PegboardError,
    PluginError,
    RequestError,
    SettingsError,
)
from pegboard.board import build_board
from pegboard.records import (
    CompressRequest,
    ExportRequest,
    Predictor,
    Signature,
    Target,
    TensorSpec,
)
from pegboard.targets import onnx as onnx_target
from pegboard.targets import torch as torch_target
from pegboard.targets.support import find_target, missing

TARGETS: dict[str, Target] = {
    target.name: target for target in build_board().collect("deploy_targets")
}

SIGNATURE = Signature(
    inputs=(
        TensorSpec(name="image", dtype="float32", shape=("batch", 1, 8, 8)),
        TensorSpec(name="marks", dtype="int64", shape=("batch", "count"), low=0, high=9),
    ),
    outputs=(
        TensorSpec(name="score", dtype="float32", shape=("batch",)),
        TensorSpec(name="label", dtype="int64", shape=("batch",)),
        TensorSpec(name="map", dtype="float32", shape=("batch", 4, 6, 6)),
    ),
)


class Reader(nn.Module):
    """Arguments and outputs in another order than the signature's, a constant, a buffer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.embedding = nn.Embedding(10, 4)
        self.head = nn.Linear(4, 3)
        self.register_buffer("scale", torch.tensor([0.5]), persistent=False)

    def forward(self, marks: torch.Tensor, image: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.norm(self.convolution(image)).relu()  # (B, 4, 6, 6)
        pooled = features.mean((2, 3)) + self.embedding(marks).sum(1) * self.scale  # (B, 4)
        logits = self.head(pooled) + torch.tensor([0.0, 0.1, 0.2])  # (B, 3)
        return {
            "map": features,
            "label": logits.argmax(-1),
            "score": logits.softmax(-1).amax(-1),
            "unasked": pooled,
        }


Exported = Callable[[str], tuple[Path, Predictor]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    made: dict[str, tuple[Path, Predictor]] = {}

    def export(name: str) -> tuple[Path, Predictor]:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            request = ExportRequest(deployable=Reader(), signature=SIGNATURE, folder=folder)
            path = TARGETS[name].export(request)
            made[name] = path, TARGETS[name].load(path, SIGNATURE)
        return made[name]

    return export


both = pytest.mark.parametrize("name", ["onnx", "torch"])


# --------------------------------------------------------------------------- what is exported


@both
@pytest.mark.parametrize(("batch", "count"), [(1, 1), (1, 5), (2, 2), (13, 3)])
def test_any_length_of_the_dynamic_axes_gives_what_torch_gives(
    exported: Exported, name: str, batch: int, count: int
) -> None:
    _, predictor = exported(name)
    inputs = SIGNATURE.example(seed=1, batch=batch, count=count)
    outputs = predictor(inputs)
    with torch.no_grad():
        expected = Reader().eval()(**{n: torch.as_tensor(array) for n, array in inputs.items()})
    assert list(outputs) == ["score", "label", "map"]
    for spec in SIGNATURE.outputs:
        assert outputs[spec.name].dtype == spec.dtype
        np.testing.assert_allclose(outputs[spec.name], expected[spec.name], rtol=1e-4, atol=1e-6)


def test_onnx_names_axes_inputs_and_outputs_as_the_signature_does(exported: Exported) -> None:
    path, _ = exported("onnx")
    model = onnx.load(path)

    def described(value: Any) -> tuple[str, list[str | int]]:
        return value.name, [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]

    assert [described(value) for value in model.graph.input] == [
        ("image", ["batch", 1, 8, 8]),
        ("marks", ["batch", "count"]),
    ]
    assert [described(value) for value in model.graph.output] == [
        ("score", ["batch"]),
        ("label", ["batch"]),
        ("map", ["batch", 4, 6, 6]),
    ]
    assert (model.producer_name, model.opset_import[0].version) == ("pegboard", 20)
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert not (model.metadata_props or model.graph.metadata_props or model.graph.doc_string)
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]


@both
def test_no_path_or_source_line_of_this_machine_is_in_the_file(
    exported: Exported, name: str
) -> None:
    path, _ = exported(name)
    data = path.read_bytes()
    for trace in (str(path.parent), "site-packages", "test_targets", "features.mean", ".py"):
        assert trace.encode() not in data


@pytest.mark.slow
@both
def test_an_export_leaves_the_terminal_alone(tmp_path: Path, name: str) -> None:
    script = (
        "import sys, pathlib\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_targets import TARGETS, SIGNATURE, Reader\n"
        "from pegboard.records import ExportRequest\n"
        "request = ExportRequest(deployable=Reader(), signature=SIGNATURE, "
        "folder=pathlib.Path(sys.argv[1]))\n"
        "target = TARGETS[sys.argv[2]]\n"
        "target.load(target.export(request), SIGNATURE)(SIGNATURE.example())\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path), name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


# --------------------------------------------------------------------------- what cannot be


def refusal(name: str, forward: Callable[..., Any], tmp_path: Path) -> PegboardError:
    class Deployable(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return forward(x)

    spec = TensorSpec(name="x", dtype="float32", shape=("batch", 4))
    output = TensorSpec(name="y", dtype="float32", shape=("batch", 4))
    signature = Signature(inputs=(spec,), outputs=(output,))
    request = ExportRequest(deployable=Deployable(), signature=signature, folder=tmp_path)
    with pytest.raises(PegboardError) as caught:
        TARGETS[name].export(request)
    assert list(tmp_path.iterdir()) == []
    return caught.value


def test_an_operation_that_onnx_lacks_is_named(tmp_path: Path) -> None:
    error = refusal("onnx", lambda x: {"y": torch.special.airy_ai(x)}, tmp_path)
    assert "ONNX has no counterpart of 'aten.special_airy_ai' (opset 20)" in str(error)
    assert error.__cause__ is not None


@both
def test_a_branch_on_values_is_named_with_its_remedy(name: str, tmp_path: Path) -> None:
    error = refusal(name, lambda x: {"y": x + 1 if x.sum() > 0 else x}, tmp_path)
    assert "its code branches on a tensor's values (Deployable)" in str(error)
    assert "torch.where" in error.remedy


@both
def test_code_that_fixes_a_dynamic_axis_is_named_with_the_axis(name: str, tmp_path: Path) -> None:
    error = refusal(name, lambda x: {"y": x.view(2, 4)}, tmp_path)
    assert "its code fixes the axis 'batch' to 2" in str(error)


@pytest.mark.parametrize(
    ("forward", "sentence"),
    [
        (lambda x: {"z": x}, "returns no output 'y'"),
        (lambda x: x, "returns a Tensor and not a dict"),
        (lambda x: {"y": x.double()}, r"'y' is float64 [2, 4] and not float32 [batch, 4]"),
        (lambda x: {"y": x[:, :3]}, r"'y' is float32 [2, 3] and not float32 [batch, 4]"),
        (lambda x: {"y": x @ x}, "fails on an example of its signature: mat1 and mat2"),
    ],
)
def test_a_deployable_that_breaks_its_signature_is_refused(
    forward: Callable[..., Any], sentence: str, tmp_path: Path
) -> None:
    error = refusal("torch", forward, tmp_path)
    assert isinstance(error, PluginError)
    assert sentence in str(error)


# --------------------------------------------------------------------------- predictors


@both
def test_a_predictor_casts_what_can_be_cast(exported: Exported, name: str) -> None:
    _, predictor = exported(name)
    inputs = SIGNATURE.example()
    wide = {"image": inputs["image"].astype(np.float64), "marks": inputs["marks"].astype(np.int32)}
    np.testing.assert_array_equal(predictor(wide)["score"], predictor(inputs)["score"])


@both
def test_a_predictor_takes_arrays_that_are_strided_or_read_only(
    exported: Exported, name: str
) -> None:
    _, predictor = exported(name)
    inputs = SIGNATURE.example(batch=6, count=3)
    every_second = {name: array[::2] for name, array in inputs.items()}
    for array in inputs.values():
        array.flags.writeable = False
    np.testing.assert_allclose(
        predictor(every_second)["score"], predictor(inputs)["score"][::2], rtol=1e-5
    )


@both
@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"image": None}, "the input 'image' is missing"),
        ({"image": np.zeros((2, 1, 8, 9), "f4")}, "[2, 1, 8, 9] with 9 in the place of 8"),
        ({"image": np.zeros((2, 8, 8), "f4")}, "'image' has 3 axes"),
        ({"marks": np.zeros((2, 3), "f4")}, "'marks' is float32 and not int64"),
    ],
)
def test_inputs_that_do_not_fit_are_named_and_not_just_refused(
    exported: Exported, name: str, changed: dict[str, Any], sentence: str
) -> None:
    _, predictor = exported(name)
    inputs = {k: v for k, v in {**SIGNATURE.example(), **changed}.items() if v is not None}
    with pytest.raises(RequestError) as caught:
        predictor(inputs)
    assert sentence in str(caught.value)


@both
def test_a_value_that_the_graph_cannot_use_is_one_sentence(exported: Exported, name: str) -> None:
    _, predictor = exported(name)
    with pytest.raises(PegboardError, match=r"failed: .*[Ii]nd") as caught:
        predictor({**SIGNATURE.example(), "marks": np.full((2, 2), 99)})
    assert caught.value.__cause__ is not None


def test_torch_answers_on_one_thread_and_gives_the_others_back(exported: Exported) -> None:
    _, predictor = exported("torch")
    seen: list[int] = []
    forward = predictor.forward  # type: ignore[attr-defined]

    def spy(*tensors: Any) -> Any:
        seen.append(torch.get_num_threads())
        return forward(*tensors)

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    predictor.forward = spy  # type: ignore[attr-defined]
    try:
        predictor(SIGNATURE.example())
        assert (seen, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(before)
        predictor.forward = forward  # type: ignore[attr-defined]


# --------------------------------------------------------------------------- compression


@pytest.mark.parametrize("name", ["int8-dynamic", "int8-static"])
def test_int8_is_close_to_float_and_keeps_the_signature(
    exported: Exported, name: str, tmp_path: Path
) -> None:
    source, predictor = exported("onnx")
    calibration = [SIGNATURE.example(seed=seed, batch=8) for seed in range(8)]
    request = CompressRequest(
        source=source, signature=SIGNATURE, folder=tmp_path, calibration=calibration
    )
    path = TARGETS["onnx"].compressions[name](request)
    inputs = SIGNATURE.example(seed=9, batch=20)
    small, full = TARGETS["onnx"].load(path, SIGNATURE)(inputs), predictor(inputs)
    assert list(small) == list(full)
    assert 0 < np.abs(small["map"] - full["map"]).max() < 0.05
    np.testing.assert_allclose(small["score"], full["score"], atol=0.03)
    kinds = {tensor.data_type for tensor in onnx.load(path).graph.initializer}
    assert kinds & {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}
    assert str(tmp_path).encode() not in path.read_bytes()


# --------------------------------------------------------------------------- what is missing


def test_a_module_that_is_missing_is_named_with_its_remedy() -> None:
    assert missing("numpy")() is None
    reason = missing("numpy", "no_such_runtime")()
    assert reason == 'no_such_runtime is not installed: run "pip install no_such_runtime"'


def test_a_target_is_found_by_name_or_its_neighbour_named() -> None:
    targets = list(TARGETS.values())
    assert find_target(targets, "torch").name == "torch"
    with pytest.raises(SettingsError, match=r"unknown target 'onnxx'.*did you mean 'onnx'"):
        find_target(targets, "onnxx")


def test_a_target_without_its_runtime_is_not_found() -> None:
    gone = replace(TARGETS["torch"], name="gone", unavailable=missing("no_such_runtime"))
    with pytest.raises(MissingExtraError, match=r"'gone' cannot be used here.*pip install"):
        find_target([gone], "gone")


def test_onnx_runtime_tells_nobody_and_leaves_nothing_at_home(
    exported: Exported, tmp_path: Path
) -> None:
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from pegboard.targets import onnx\n"
        "import onnxruntime\n"
        "onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])\n"
    )
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment.pop("ORT_DISABLE_TELEMETRY", None)  # This very process has set it.
    path = str(exported("onnx")[0])
    subprocess.run([sys.executable, "-c", code, path], check=True, env=environment)
    assert list(tmp_path.rglob("*")) == []


def test_offering_the_targets_imports_no_runtime() -> None:
    script = (
        "import sys\n"
        "from pegboard.board import build_board\n"
        "names = [target.name for target in build_board().collect('deploy_targets')]\n"
        "print(names, sorted({'torch', 'onnx', 'onnxruntime', 'openvino'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "['onnx', 'openvino', 'torch'] []"


# --------------------------------------------------------------------------- archives with code


def rebuilt(source: Path, folder: Path, change: Callable[[str, bytes], bytes]) -> Path:
    """Copy an archive, changing its parts."""
    path = folder / "changed.pt2"
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for member in old.namelist():
            new.writestr(member, change(member, old.read(member)))
    return path


def refused_archive(path: Path) -> str:
    with pytest.raises(BundleError) as caught:
        torch_target.load(path, SIGNATURE)
    return str(caught.value)


def test_an_archive_as_torch_saves_it_holds_a_pickle_and_is_refused(tmp_path: Path) -> None:
    program = torch.export.export(nn.Linear(4, 2), (torch.ones(2, 4),))
    torch.export.save(program, tmp_path / "plain.pt2")
    assert "holds pickled example inputs" in refused_archive(tmp_path / "plain.pt2")


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("target", "torch.ops.load_library", "the function 'torch.ops.load_library'"),
        ("target", "torch.ops.load_library.__call__", "the function"),
        ("target", "torch.hub.load", "the function 'torch.hub.load'"),
        ("target", "_operator.methodcaller", "the function '_operator.methodcaller'"),
        ("expr_str", "exec(chr(112))", "the expression 'exec'"),
        ("expr_str", "Symbol('s0').__class__", "the expression '__class__'"),
        ("guards_code", "print(1)", "checks written in Python"),
    ],
)
def test_an_archive_that_would_run_code_is_refused(
    exported: Exported, tmp_path: Path, key: str, value: str, sentence: str
) -> None:
    def plant(member: str, data: bytes) -> bytes:
        if not member.endswith("models/model.json"):
            return data
        model = json.loads(data)
        if key == "target":
            model["graph_module"]["graph"]["nodes"][0]["target"] = value
        elif key == "guards_code":
            model["guards_code"] = [value]
        else:
            model["planted"] = {"expr_str": value}
        return json.dumps(model).encode()

    path = rebuilt(exported("torch")[0], tmp_path, plant)
    assert sentence in refused_archive(path)


def test_an_archive_with_a_pickled_weight_is_refused(exported: Exported, tmp_path: Path) -> None:
    def plant(member: str, data: bytes) -> bytes:
        return data.replace(b'"use_pickle": false', b'"use_pickle": true')

    path = rebuilt(exported("torch")[0], tmp_path, plant)
    assert "holds a pickled tensor" in refused_archive(path)


def test_an_archive_with_an_unknown_part_is_refused(exported: Exported, tmp_path: Path) -> None:
    path = rebuilt(exported("torch")[0], tmp_path, lambda member, data: data)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("model/data/constants/custom_obj_0", b"")
    assert "an unknown part 'model/data/constants/custom_obj_0'" in refused_archive(path)


def test_an_archive_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_bytes(b"no archive")
    assert "this is not a torch.export archive" in refused_archive(tmp_path / "model.pt2")


def test_the_targets_are_those_of_the_board() -> None:
    assert onnx_target.deploy_targets()[0].name == "onnx"
    assert torch_target.deploy_targets()[0].name == "torch"
