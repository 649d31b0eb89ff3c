"""ONNX: exported by torch's dynamo exporter, run by ONNX Runtime on one thread."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pegboard.errors import PegboardError
from pegboard.hookspecs import hookimpl
from pegboard.records import Array, CompressRequest, ExportRequest, Signature, Target
from pegboard.targets.support import first_line, missing, multiplies_int8_exactly, quiet, require

if TYPE_CHECKING:
    import onnx
    from torch.export import ExportedProgram

OPSET = 20
FILE = "model.onnx"

QUANTIZED = ("Clip", "Conv", "ConvTranspose", "Gemm", "MatMul", "MaxPool", "Relu")
"""Where static int8 pays. Left out on purpose: the additions, logarithms and scalings that
normalise raw inputs inside the graph, whose range does not fit eight bits."""

# On Linux, too, ONNX Runtime notes a device's id and reports to its maker unless told not to; it
# looks when it is imported, which happens in the functions below.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_OPERATOR = re.compile(r"op='([\w:.]+)'")


@hookimpl
def deploy_targets() -> list[Target]:
    """Offer ONNX with ONNX Runtime."""
    return [
        Target(
            name="onnx",
            unavailable=missing("onnxruntime"),
            export=export,
            load=load,
            compressions={
                "int8-dynamic": quantize_dynamic,
                "int8-static": quantize_static,
            },
        )
    ]


# --------------------------------------------------------------------------- export


def export(request: ExportRequest) -> Path:
    """Write the deployable as one ONNX file that holds its weights and nothing of this machine.

    Raises:
        MissingExtraError: What the exporter needs is not installed.
        PegboardError: The deployable cannot be traced, or ONNX lacks one of its operations.
    """
    path = request.folder / FILE
    path.write_bytes(to_onnx(request).SerializeToString())
    return path


def to_onnx(request: ExportRequest) -> onnx.ModelProto:
    """Return the deployable as a checked ONNX model; other targets may start from it.

    Raises:
        MissingExtraError: What the exporter needs is not installed.
        PegboardError: The deployable cannot be traced, or ONNX lacks one of its operations.
    """
    require("torch", "onnx", "onnxscript", what="the export to ONNX")
    import onnx

    from pegboard.targets.tracing import trace

    model = _converted(trace(request), request.signature)
    onnx.checker.check_model(model, full_check=True)
    return model


def _converted(program: ExportedProgram, signature: Signature) -> onnx.ModelProto:
    import torch

    from pegboard.targets.tracing import dynamic_axes, example_of

    returned = list(program.call_spec.out_spec.context)
    try:
        with quiet():
            converted = torch.onnx.export(
                program,
                (),
                None,
                kwargs=example_of(signature),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes={spec.name: dynamic_axes(spec) for spec in signature.inputs},
                input_names=[spec.name for spec in signature.inputs],
                output_names=returned,
                verbose=False,
            )
    # The exporter has a dozen errors of its own and passes on those of its libraries.
    except Exception as error:
        raise _explained(error) from error
    assert converted is not None  # Only the retired exporter returns None.
    return _tidied(converted.model, signature)


def _tidied(model: Any, signature: Signature) -> onnx.ModelProto:
    """Order the outputs by the signature, speed scattering up, clear paths and stack traces."""
    import onnx_ir
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    from pegboard.targets.onnx_passes import scatter_rows

    by_name = {value.name: value for value in model.graph.outputs}
    model.graph.outputs[:] = [by_name[spec.name] for spec in signature.outputs]
    scatter_rows(model)
    ClearMetadataAndDocStringPass()(model)
    model.producer_name, model.producer_version = "pegboard", version("pegboard")
    proto: onnx.ModelProto = onnx_ir.serde.serialize_model(model)
    return proto


def _explained(error: BaseException) -> PegboardError:
    causes = list(_chain(error))
    operators = [found for cause in causes for found in _OPERATOR.findall(str(cause))]
    if operators and any(type(cause).__name__ == "DispatchError" for cause in causes):
        return PegboardError(
            f"the deployable cannot be exported: ONNX has no counterpart of '{operators[0]}'",
            where=f"opset {OPSET}",
            remedy="write that step with other operations, or take another target",
        )
    return PegboardError(
        f"the deployable cannot be exported to ONNX: {first_line(causes[-1])}",
        remedy="'pegboard --debug' shows the line",
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


# --------------------------------------------------------------------------- predictor


class OnnxPredictor:
    """A session of ONNX Runtime as a predictor; the fast path costs two microseconds of Python."""

    def __init__(self, session: Any, signature: Signature) -> None:
        # Here and not above: `pegboard describe` imports this module and must not wait for NumPy.
        import numpy as np

        from pegboard.signatures import cast, validate

        self.cast, self.validate = cast, validate
        # The inner session: its wrapper checks again what is checked here, for 4 microseconds.
        self.run = session._sess.run
        self.signature = signature
        self.inputs = [(spec.name, np.dtype(spec.dtype), spec) for spec in signature.inputs]
        self.outputs = [spec.name for spec in signature.outputs]

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run one batch."""
        try:
            feeds = {
                name: array if (array := inputs[name]).dtype == dtype else self.cast(array, spec)
                for name, dtype, spec in self.inputs
            }
            return dict(zip(self.outputs, self.run(self.outputs, feeds, None), strict=True))
        except PegboardError:
            raise
        # ONNX Runtime's exceptions have no public base class.
        except Exception as error:
            self.validate(inputs, self.signature)
            raise PegboardError(
                f"ONNX Runtime failed: {first_line(error)}", where="an input that fits"
            ) from error


def load(path: Path, signature: Signature, *, threads: int = 1) -> OnnxPredictor:
    """Open a model on the CPU, on one thread, or more, that do not spin."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # Errors; they come as exceptions too.
    session = onnxruntime.InferenceSession(
        str(path), sess_options=options, providers=["CPUExecutionProvider"]
    )
    return OnnxPredictor(session, signature)


# --------------------------------------------------------------------------- compression


def quantize_dynamic(request: CompressRequest) -> Path:
    """Int8 weights, activations quantised as they come: for large matrix products."""
    from onnxruntime import quantization

    path = request.folder / FILE
    with quiet():
        quantization.quantize_dynamic(
            _without_shapes(request.source),
            path,
            per_channel=True,
            weight_type=_weight_type(),
        )
    return path


def quantize_static(request: CompressRequest) -> Path:
    """Int8 weights and activations, ranges from calibration batches: for convolutions.

    Activations are unsigned: with signed ones ONNX Runtime is three times slower on x86.
    """
    from onnxruntime import quantization

    from pegboard.signatures import validate

    class Calibration(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter(request.calibration)

        def get_next(self) -> dict[str, Array] | None:
            batch = next(self.batches, None)
            return None if batch is None else validate(batch, request.signature)

    path = request.folder / FILE
    with quiet():
        quantization.quantize_static(
            _without_shapes(request.source),
            path,
            Calibration(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTIZED),
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=_weight_type(),
        )
    return path


def _weight_type() -> Any:
    """Return the type of int8 weights that this processor multiplies exactly; signed is faster.

    So an int8 model belongs to a kind of processor.
    """
    from onnxruntime.quantization import QuantType

    return QuantType.QInt8 if multiplies_int8_exactly() else QuantType.QUInt8


def _without_shapes(source: Path) -> onnx.ModelProto:
    """Read a model without the shapes of its inner tensors.

    The dynamo exporter notes them under names that the quantiser reuses (ONNX Runtime issue
    25890); it infers them afresh.
    """
    require("onnx", what="the compression of an ONNX model")
    import onnx

    model = onnx.load(source)
    del model.graph.value_info[:]
    return model
