from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pegboard import BundleError, MissingExtraError, PegboardError, RequestError
from pegboard.bundle import read_bundle
from pegboard.files import remove
from pegboard.progress import SilentProgress
from pegboard.records import CompressRequest, ExportRequest, Signature, TensorSpec
from pegboard.runs import Run
from pegboard.stages import compress, export, verify
from pegboard.targets import openvino as target

pytestmark = [
    # A process that computed with OpenVINO and is forked, as loaders of training data are, dies.
    pytest.mark.own_process,
    pytest.mark.skipif(find_spec("openvino") is None, reason="needs pegboard[openvino]"),
]

SIGNATURE = Signature(
    inputs=(
        TensorSpec(name="volume", dtype="float32", shape=("batch", 1, 8, 8, 8), low=-900, high=400),
        TensorSpec(name="marks", dtype="int64", shape=("batch", "count"), low=0, high=9),
        TensorSpec(name="spare", dtype="uint8", shape=("batch", 2), low=0, high=255),
    ),
    outputs=(
        TensorSpec(name="score", dtype="float32", shape=("batch",)),
        TensorSpec(name="label", dtype="int64", shape=("batch",)),
        TensorSpec(name="map", dtype="float32", shape=("batch", 4, 8, 8, 8)),
    ),
)


class Reader(nn.Module):
    """A window of raw values in the graph, convolutions, an embedding; another order of names."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv3d(1, 8, 3, padding=1)
        self.second = nn.Conv3d(8, 4, 3, padding=1)
        self.embedding = nn.Embedding(10, 4)
        self.head = nn.Linear(4, 3)

    def forward(
        self, marks: torch.Tensor, volume: torch.Tensor, spare: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        windowed = (volume.clamp(-1000, 400) + 300) / 700  # (B, 1, 8, 8, 8)
        features = self.second(self.first(windowed).relu())  # (B, 4, 8, 8, 8)
        pooled = features.mean((2, 3, 4)) + self.embedding(marks).sum(1)  # (B, 4)
        pooled = pooled + spare.float().mean(1, keepdim=True) / 255
        logits = self.head(pooled)  # (B, 3)
        return {
            "map": features,
            "label": logits.argmax(-1),
            "score": logits.softmax(-1).amax(-1),
            "unasked": pooled,
        }


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("openvino")
    return target.export(ExportRequest(deployable=Reader(), signature=SIGNATURE, folder=folder))


@pytest.fixture(scope="module")
def predictor(path: Path) -> target.OpenVinoPredictor:
    return target.load(path, SIGNATURE)


def by_torch(inputs: dict[str, Any]) -> dict[str, Any]:
    with torch.no_grad():
        outputs = Reader().eval()(**{n: torch.as_tensor(array) for n, array in inputs.items()})
    return {name: tensor.numpy() for name, tensor in outputs.items()}


# --------------------------------------------------------------------------- what is exported


@pytest.mark.parametrize(("batch", "count"), [(1, 1), (1, 5), (2, 2), (13, 3)])
def test_any_length_of_the_dynamic_axes_gives_what_torch_gives(
    predictor: target.OpenVinoPredictor, batch: int, count: int
) -> None:
    inputs = SIGNATURE.example(seed=1, batch=batch, count=count)
    outputs, expected = predictor(inputs), by_torch(inputs)
    assert list(outputs) == ["score", "label", "map"]
    for spec in SIGNATURE.outputs:
        assert outputs[spec.name].dtype == spec.dtype
        np.testing.assert_allclose(outputs[spec.name], expected[spec.name], rtol=1e-4, atol=1e-5)


def test_a_fixed_window_gives_what_torch_gives(tmp_path: Path) -> None:
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 1, "depth")),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 1, "depth")),),
        window={"depth": 16},
    ).windowed()

    class Filter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv1d(1, 1, 3, padding=1)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"y": self.convolution(x)}

    deployable = Filter().eval()
    request = ExportRequest(deployable=deployable, signature=signature, folder=tmp_path)
    inputs = signature.example(batch=3)
    outputs = target.load(target.export(request), signature)(inputs)
    with torch.no_grad():
        expected = deployable(torch.as_tensor(inputs["x"]))["y"]
    np.testing.assert_allclose(outputs["y"], expected, rtol=1e-5, atol=1e-6)


def test_a_model_is_a_folder_of_two_files_without_a_path_or_source_line_of_this_machine(
    path: Path,
) -> None:
    assert sorted(file.name for file in path.iterdir()) == ["model.bin", "model.xml"]
    for file in path.iterdir():
        for trace in (str(path), str(Path.home()), "site-packages", "test_targets", ".py"):
            assert trace.encode() not in file.read_bytes()


def test_what_openvino_cannot_convert_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx
    from onnx import TensorProto, helper

    node = helper.make_node("Invented", ["x"], ["y"], domain="nowhere")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch"]) for name in "xy"]
    graph = helper.make_graph([node], "graph", values[:1], values[1:])
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("nowhere", 1)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=imports)
    monkeypatch.setattr("pegboard.targets.onnx.to_onnx", lambda request: model)
    request = ExportRequest(deployable=Reader(), signature=SIGNATURE, folder=tmp_path)
    with pytest.raises(PegboardError) as caught:
        target.export(request)
    assert "cannot be converted to OpenVINO: " in str(caught.value)
    assert "Invented" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------- predictor


def test_a_predictor_casts_what_can_be_cast(predictor: target.OpenVinoPredictor) -> None:
    inputs = SIGNATURE.example()
    other = {
        "volume": inputs["volume"].astype(np.float64),
        "marks": inputs["marks"].astype(np.int32),
        "spare": inputs["spare"].astype(np.int64),
    }
    np.testing.assert_array_equal(predictor(other)["score"], predictor(inputs)["score"])


def test_a_predictor_takes_arrays_that_are_strided_or_read_only(
    predictor: target.OpenVinoPredictor,
) -> None:
    inputs = SIGNATURE.example(batch=6, count=3)
    every_second = {name: array[::2] for name, array in inputs.items()}
    for array in inputs.values():
        array.flags.writeable = False
    np.testing.assert_allclose(
        predictor(every_second)["score"], predictor(inputs)["score"][::2], rtol=1e-5
    )


def test_an_answer_is_kept_when_the_next_batch_comes(predictor: target.OpenVinoPredictor) -> None:
    first = predictor(SIGNATURE.example(seed=1))["map"]
    kept = first.copy()
    predictor(SIGNATURE.example(seed=2))
    np.testing.assert_array_equal(first, kept)


def test_threads_may_ask_at_the_same_time(predictor: target.OpenVinoPredictor) -> None:
    inputs = [SIGNATURE.example(seed=seed, batch=seed + 1) for seed in range(8)]
    expected = [predictor(each)["map"] for each in inputs]
    answers: dict[int, Any] = {}

    def ask(index: int) -> None:
        for _ in range(20):
            answers[index] = predictor(inputs[index])["map"]

    threads = [threading.Thread(target=ask, args=[index]) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, array in enumerate(expected):
        np.testing.assert_allclose(answers[index], array, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"volume": None}, "the input 'volume' is missing"),
        ({"volume": np.zeros((2, 1, 8, 8, 9), "f4")}, "[2, 1, 8, 8, 9] with 9 in the place of 8"),
        ({"volume": np.zeros((2, 8, 8), "f4")}, "'volume' has 3 axes"),
        ({"volume": [[1.0]]}, "'volume' has 2 axes"),
        ({"marks": np.zeros((2, 3), "f4")}, "'marks' is float32 and not int64"),
        (
            {"marks": np.full((2, 2), 2**40)},
            "'marks' holds 1099511627776, which does not fit int32",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_named_and_not_just_refused(
    predictor: target.OpenVinoPredictor, changed: dict[str, Any], sentence: str
) -> None:
    inputs = {k: v for k, v in {**SIGNATURE.example(), **changed}.items() if v is not None}
    with pytest.raises(RequestError) as caught:
        predictor(inputs)
    assert sentence in str(caught.value)


def test_a_failure_of_openvino_itself_is_one_sentence(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = target.load(path, SIGNATURE)

    def fails(feeds: object) -> None:
        raise RuntimeError(
            "Exception from src/inference/src/cpp/infer_request.cpp:104:\n"
            "Check 'false' failed at src/plugins/intel_cpu/src/node.cpp:1:\nno memory left.\n\n"
        )

    monkeypatch.setattr(predictor, "_run", fails)
    with pytest.raises(PegboardError, match=r"^OpenVINO failed: no memory left \(an input"):
        predictor(SIGNATURE.example())


@pytest.mark.parametrize("file", ["model.xml", "model.bin"])
def test_a_damaged_model_is_one_sentence(path: Path, tmp_path: Path, file: str) -> None:
    for each in path.iterdir():
        data = each.read_bytes()
        (tmp_path / each.name).write_bytes(data[: len(data) // 2] if each.name == file else data)
    with pytest.raises(BundleError, match=r"^OpenVINO cannot open the model: ") as caught:
        target.load(tmp_path, SIGNATURE)
    assert "\n" not in str(caught.value)


# --------------------------------------------------------------------------- compression


def compressed(make: Callable[[CompressRequest], Path], source: Path, folder: Path) -> Path:
    calibration = [SIGNATURE.example(seed=seed, batch=8) for seed in range(8)]
    return make(
        CompressRequest(source=source, signature=SIGNATURE, folder=folder, calibration=calibration)
    )


def test_int8_is_close_to_float_and_keeps_the_signature(
    path: Path, predictor: target.OpenVinoPredictor, tmp_path: Path
) -> None:
    pytest.importorskip("nncf", reason="needs pegboard[openvino]")
    made = compressed(target.quantize, path, tmp_path)
    small = target.load(made, SIGNATURE)
    inputs = SIGNATURE.example(seed=9, batch=20)
    outputs, full = small(inputs), predictor(inputs)
    assert list(outputs) == list(full)
    assert 0 < np.abs(outputs["map"] - full["map"]).max() < 0.05
    # A rare record beyond what NNCF takes for the range is cut off.
    assert np.mean(np.abs(outputs["score"] - full["score"]) < 0.03) >= 0.9
    assert 'element_type="i8"' in (made / "model.xml").read_text()
    assert (made / "model.bin").stat().st_size < (path / "model.bin").stat().st_size
    for file in made.iterdir():
        for trace in (str(tmp_path), str(path), str(Path.home()), "site-packages"):
            assert trace.encode() not in file.read_bytes()


def test_int8_without_nncf_names_what_to_install(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pegboard.targets.support.importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"nncf is not installed: run \"pip install"):
        compressed(target.quantize, path, tmp_path)


def test_bf16_is_refused_where_the_processor_lacks_it(
    path: Path, predictor: target.OpenVinoPredictor, tmp_path: Path
) -> None:
    from openvino import Core

    if "BF16" not in Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(PegboardError, match="this processor does not compute in bfloat16"):
            compressed(target.reduce_to_bf16, path, tmp_path)
        return
    made = compressed(target.reduce_to_bf16, path, tmp_path)
    inputs = SIGNATURE.example(seed=9, batch=20)
    outputs, full = target.load(made, SIGNATURE)(inputs), predictor(inputs)
    np.testing.assert_allclose(outputs["score"], full["score"], atol=0.03)


def test_only_a_reduced_model_may_be_computed_in_fewer_bits(path: Path, tmp_path: Path) -> None:
    from openvino import Core, save_model

    model = Core().read_model(path / "model.xml")
    assert target._options(model)["INFERENCE_PRECISION_HINT"] == "f32"
    model.set_rt_info(True, target.REDUCED)
    save_model(model, tmp_path / "model.xml", compress_to_fp16=True)
    marked = Core().read_model(tmp_path / "model.xml")
    assert "INFERENCE_PRECISION_HINT" not in target._options(marked)


# --------------------------------------------------------------------------- in a run


def test_a_bundle_of_folders_is_compressed_verified_and_sealed(
    run_copy: Callable[..., Run],
) -> None:
    pytest.importorskip("nncf", reason="needs pegboard[openvino]")
    run = run_copy("deploy.targets=['openvino']", "deploy.compress=['int8']")
    remove(run.bundle)
    export.run(run, SilentProgress())
    facts = compress.run(run, SilentProgress())
    verify.run(run, SilentProgress())
    assert facts["failed"] == {}
    bundle = read_bundle(run.bundle)
    assert [candidate.file for candidate in bundle.candidates] == [
        "models/openvino/fp32",
        "models/openvino/int8",
    ]
    for candidate in bundle.candidates:
        files = [bundle.folder / candidate.file / name for name in ("model.xml", "model.bin")]
        assert bundle.size_of(candidate) == sum(file.stat().st_size for file in files)
    assert bundle.candidates[0].measured["tensor_error"] < 1e-5
    assert bundle.chosen().status == "verified"


# --------------------------------------------------------------------------- a quiet guest


@pytest.mark.slow
def test_openvino_and_nncf_tell_nobody_print_nothing_and_leave_nothing_at_home(
    path: Path, tmp_path: Path
) -> None:
    script = (
        "import socket, sys\nfrom pathlib import Path\n"
        "def refuse(*a, **k): print('a connection'); raise OSError\n"
        "socket.socket.connect = refuse\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_targets_openvino import SIGNATURE, Reader, compressed, target\n"
        "from pegboard.records import ExportRequest\n"
        "folder = Path(sys.argv[1])\n"
        "request = ExportRequest(\n"
        "    deployable=Reader(), signature=SIGNATURE, folder=folder / 'fp32'\n"
        ")\n"
        "made = compressed(target.quantize, target.export(request), folder / 'int8')\n"
        "target.load(made, SIGNATURE)(SIGNATURE.example())\n"
        "import openvino_telemetry\n"
    )
    for name in ("home", "fp32", "int8"):
        (tmp_path / name).mkdir()
    environment = {
        name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD")
    }
    environment |= {"HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "home/cache")}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    # The last line of the script: what would report is not there.
    assert "ModuleNotFoundError: import of openvino_telemetry halted" in done.stderr
    assert done.stderr.count("Error") == 1
    assert done.stdout == ""
    assert list((tmp_path / "home").rglob("*")) == []


def test_a_bundle_is_answered_without_torch_onnx_or_nncf(path: Path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom pegboard.records import Signature\n"
        "from pegboard.targets import openvino\n"
        "openvino.load(Path(sys.argv[1]), Signature(inputs=(), outputs=()))\n"
        "print(sorted({'torch', 'onnx', 'nncf'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
