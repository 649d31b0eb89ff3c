"""OpenVINO: converted from the ONNX that is exported here, each call on one thread of the CPU.

It pays for convolutions, those in three dimensions most. A call costs a tenth of a millisecond
before the model computes anything, so small tables of numbers are better off with `onnx`.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pegboard.errors import BundleError, PegboardError
from pegboard.hookspecs import hookimpl
from pegboard.records import Array, CompressRequest, ExportRequest, Signature, Target
from pegboard.targets.support import first_line, missing, multiplies_int8_exactly, quiet, require

if TYPE_CHECKING:
    import openvino

FILE = "model.xml"
"""The graph; its weights lie beside it in `model.bin`."""

REDUCED = ["pegboard", "reduced"]
"""A mark in the model: it may be computed in fewer bits than float32, where the processor can."""

# It tells its maker of every import, and NNCF of every call, unless it is not there: then both go
# without. They look when they are imported, which happens in the functions below.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # Python's way.


@hookimpl
def deploy_targets() -> list[Target]:
    """Offer OpenVINO."""
    return [
        Target(
            name="openvino",
            unavailable=missing("openvino"),
            export=export,
            load=load,
            compressions={"bf16": reduce_to_bf16, "int8": quantize},
        )
    ]


# --------------------------------------------------------------------------- export


def export(request: ExportRequest) -> Path:
    """Write the deployable as OpenVINO's own format; returns the folder, which holds two files.

    Raises:
        MissingExtraError: What the exporter needs is not installed.
        PegboardError: The deployable cannot be traced, or ONNX or OpenVINO lacks one of its
            operations.
    """
    from pegboard.targets.onnx import to_onnx

    proto = to_onnx(request)
    from openvino import Core

    try:
        with quiet():
            model = Core().read_model(proto.SerializeToString(), b"")
    # OpenVINO raises whatever its front end does: RuntimeError, OpConversionFailure.
    except Exception as error:
        raise PegboardError(
            f"the deployable cannot be converted to OpenVINO: {sentence_of(error)}",
            where=type(request.deployable).__name__,
            remedy="write that step with other operations, or take another target",
        ) from error
    return _saved(model, request.folder)


def _saved(model: openvino.Model, folder: Path, *, halved: bool = False) -> Path:
    from openvino import save_model

    save_model(model, folder / FILE, compress_to_fp16=halved)
    return folder


_AROUND = ("Exception from ", "Check '", "FrontEnd API failed", "Model wasn't fully", "Summary:")
"""How lines begin that OpenVINO puts before what it has to say."""


def sentence_of(error: BaseException) -> str:
    """Return what an error of OpenVINO says, without the places in its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(_AROUND)]
    return told[0].removeprefix("-- ").rstrip(".!") if told else first_line(error)


# --------------------------------------------------------------------------- predictor


class OpenVinoPredictor:
    """A compiled model as a predictor; calls at the same time have a request and a thread each."""

    def __init__(self, compiled: openvino.CompiledModel, signature: Signature) -> None:
        # Here and not above: `pegboard describe` imports this module and must not wait for NumPy.
        import numpy as np

        from pegboard.signatures import cast, validate

        self.cast, self.validate = cast, validate
        self.signature = signature
        self.new_request = compiled.create_infer_request
        self.idle = deque([compiled.create_infer_request()])
        places = _places(compiled.inputs)
        self.inputs = [
            (places[spec.name], spec.name, np.dtype(spec.dtype), spec) for spec in signature.inputs
        ]
        # OpenVINO computes 64 bits in 32 and would cut off the rest without a word.
        self.narrow = [
            replace(spec, dtype="int32")
            for spec in signature.inputs
            if spec.dtype in ("int64", "uint32", "uint64")
        ]
        places = _places(compiled.outputs)
        self.outputs = [(spec.name, places[spec.name]) for spec in signature.outputs]

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run one batch on one thread."""
        try:
            feeds = {
                index: array if (array := inputs[name]).dtype == dtype else self.cast(array, spec)
                for index, name, dtype, spec in self.inputs
            }
            for spec in self.narrow:
                self.cast(inputs[spec.name], spec)
            outputs = self._run(feeds)
            return {name: outputs[index] for name, index in self.outputs}
        except PegboardError:
            raise
        # Whatever OpenVINO raises: RuntimeError, TypeError.
        except Exception as error:
            self.validate(inputs, self.signature)
            raise PegboardError(
                f"OpenVINO failed: {sentence_of(error)}", where="an input that fits"
            ) from error

    def _run(self, feeds: dict[int, Array]) -> Any:
        # A request computes one batch at a time; taking and giving back is atomic.
        try:
            request = self.idle.pop()
        except IndexError:
            request = self.new_request()
        try:
            return request.infer(feeds, share_inputs=True)
        finally:
            self.idle.append(request)


def _places(ports: Sequence[openvino.ConstOutput]) -> dict[str, int]:
    # A port's own `index` is its place at its node, which is 0 for all.
    return {name: place for place, port in enumerate(ports) for name in port.names}


def load(path: Path, signature: Signature) -> OpenVinoPredictor:
    """Open a model on the CPU: a thread for each call, as many calls at a time as there are cores.

    Raises:
        BundleError: OpenVINO cannot read it.
    """
    from openvino import Core

    core = Core()
    try:
        model = core.read_model(path / FILE)
        compiled = core.compile_model(model, "CPU", _options(model))
    # RuntimeError, and its parts' own.
    except Exception as error:
        raise BundleError(
            f"OpenVINO cannot open the model: {sentence_of(error)}",
            where=str(path),
            remedy="install the version the bundle was made with, or export it again",
        ) from error
    return OpenVinoPredictor(compiled, signature)


def _options(model: openvino.Model) -> dict[str, Any]:
    cores = os.cpu_count() or 1
    options: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        # A stream is what one call runs on; a thread for each.
        "NUM_STREAMS": cores,
        "INFERENCE_NUM_THREADS": cores,
        # Pinned, the single threads of several processes would all sit on the same core.
        "ENABLE_CPU_PINNING": False,
        "CACHE_DIR": "",
    }
    if not model.has_rt_info(REDUCED):
        # On processors with AMX it would otherwise compute float32 in bfloat16.
        options["INFERENCE_PRECISION_HINT"] = "f32"
    return options


# --------------------------------------------------------------------------- compression


def reduce_to_bf16(request: CompressRequest) -> Path:
    """Weights of half the size, computed in bfloat16.

    Raises:
        PegboardError: This processor cannot, so there is nothing to be gained.
    """
    from openvino import Core

    core = Core()
    if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise PegboardError(
            "this processor does not compute in bfloat16",
            remedy="compress on one with AMX or AVX512-BF16, as the server has",
        )
    model = core.read_model(request.source / FILE)
    model.set_rt_info(True, REDUCED)
    return _saved(model, request.folder, halved=True)


def quantize(request: CompressRequest) -> Path:
    """Int8 weights and activations, ranges from calibration batches (NNCF).

    Activations have a zero point of their own: with PReLU or attention gates a range around zero
    lost four times as much, and was no faster.

    Raises:
        MissingExtraError: NNCF is not installed.
    """
    require("nncf", what="the compression of an OpenVINO model")
    from openvino import Core

    from pegboard.signatures import validate

    # It would wait for a compiler of extensions for torch, which are not used.
    os.environ.setdefault("NNCF_EXTENSION_LOAD_TIMEOUT", "0")
    batches = [validate(batch, request.signature) for batch in request.calibration]
    with quiet():
        import nncf

        model = nncf.quantize(
            Core().read_model(request.source / FILE),
            nncf.Dataset(batches),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(batches),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                # With half the range no sum of two products overflows 16 bits.
                overflow_fix=nncf.OverflowFix.DISABLE
                if multiplies_int8_exactly()
                else nncf.OverflowFix.ENABLE
            ),
        )
    model.set_rt_info(True, REDUCED)
    return _saved(model, request.folder)
