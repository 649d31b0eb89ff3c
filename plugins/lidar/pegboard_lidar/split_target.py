"""The target `onnx-split`: points to pillars and pillars to maps as two graphs.

TensorRT runs the second one, which has no dynamic axis, as one engine; the first stays with ONNX
Runtime or a kernel of one's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pegboard.errors import PluginError
from pegboard.records import (
    Array,
    ExportRequest,
    Predictor,
    Signature,
    Target,
    TensorSpec,
)
from pegboard.targets import onnx
from pegboard.targets.support import missing

if TYPE_CHECKING:
    from torch import Tensor, nn

FOLDER = "split"


def target() -> Target:
    """Return the target, for `deploy.targets`."""
    return Target(name="onnx-split", unavailable=missing("onnxruntime"), export=export, load=load)


def export(request: ExportRequest) -> Path:
    """Write `encoder/model.onnx` and `head/model.onnx`.

    Raises:
        PluginError: The deployable has no such halves.
    """
    import torch

    class Head(torch.nn.Module):
        def __init__(self, detector: nn.Module) -> None:
            super().__init__()
            self.detector = detector

        def forward(self, pillars: Tensor) -> Any:
            return self.detector.maps(pillars)  # type: ignore[operator]

    class Encoder(torch.nn.Module):
        def __init__(self, encoder: nn.Module) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, points: Tensor) -> dict[str, Tensor]:
            return {"pillars": self.encoder(points[None])}

    detector: Any = request.deployable
    if not hasattr(detector, "encoder") or not hasattr(detector, "maps"):
        raise PluginError(
            "the deployable has no 'encoder' and 'maps'",
            where=type(detector).__name__,
            remedy="take 'onnx-split' out of deploy.targets, or give it both",
        )
    grid, channels = detector.encoder.grid, detector.encoder.channels
    halves = halves_of(request.signature, (1, channels, grid.rows, grid.columns))
    for name, module in (("encoder", Encoder(detector.encoder)), ("head", Head(detector))):
        folder = request.folder / FOLDER / name
        folder.mkdir(parents=True)
        onnx.export(replace(request, deployable=module, signature=halves[name], folder=folder))
    return request.folder / FOLDER


def halves_of(signature: Signature, shape: tuple[int, ...]) -> dict[str, Signature]:
    """Return the signatures of both graphs; `shape` is that of the pillars between them."""
    pillars = TensorSpec(name="pillars", dtype="float32", shape=shape, low=0.0)
    return {
        "encoder": Signature(inputs=signature.inputs, outputs=(pillars,)),
        "head": Signature(inputs=(pillars,), outputs=signature.outputs),
    }


def load(path: Path, signature: Signature) -> Predictor:
    """Open both graphs as one predictor."""
    halves = halves_of(signature, ())
    encoder = onnx.load(path / "encoder" / onnx.FILE, halves["encoder"])
    head = onnx.load(path / "head" / onnx.FILE, halves["head"])

    def predict(inputs: Mapping[str, Array]) -> dict[str, Array]:
        return head(encoder(inputs))

    return predict
