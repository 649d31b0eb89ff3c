"""Parts: a deployable of several models that run one by one, for every target alike.

Each is exported, compressed and opened by itself; `parts.json` says where it lies.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from pegboard.files import write_json
from pegboard.records import Array, CompressRequest, ExportRequest, Predictor, Signature, Target

FILE = "parts.json"


def in_parts(target: Target) -> Target:
    """Return a target that also takes a deployable apart, where its signature names parts."""
    return replace(
        target,
        export=partial(_export, target),
        load=partial(_load, target),
        compressions={
            name: partial(_compress, compress) for name, compress in target.compressions.items()
        },
    )


def _export(target: Target, request: ExportRequest) -> Path:
    def export(name: str, folder: Path) -> Path:
        return target.export(
            replace(
                request,
                deployable=request.deployable.get_submodule(name),
                signature=request.signature.part(name),
                folder=folder,
            )
        )

    if not request.signature.parts:
        return target.export(request)
    return _write(request.signature, request.folder, export)


def _compress(compress: Callable[[CompressRequest], Path], request: CompressRequest) -> Path:
    def part(name: str, folder: Path) -> Path:
        signature = request.signature.part(name)
        taken = [spec.name for spec in signature.inputs]
        return compress(
            replace(
                request,
                source=files[name],
                signature=signature,
                folder=folder,
                calibration=[
                    {input_name: batch[input_name] for input_name in taken}
                    for batch in request.calibration
                ],
            )
        )

    if not request.signature.parts:
        return compress(request)
    files = _read(request.source)
    return _write(request.signature, request.folder, part)


def _write(signature: Signature, folder: Path, make: Callable[[str, Path], Path]) -> Path:
    """Have every part made in a folder of its own; return the folder of all."""
    files = {}
    for name in signature.parts:
        (folder / name).mkdir()
        files[name] = make(name, folder / name).relative_to(folder).as_posix()
    write_json(folder / FILE, files)
    return folder


def _read(folder: Path) -> dict[str, Path]:
    files: dict[str, str] = json.loads((folder / FILE).read_text(encoding="utf-8"))
    return {name: folder / file for name, file in files.items()}


def _load(target: Target, path: Path, signature: Signature) -> Predictor:
    if not signature.parts:
        return target.load(path, signature)
    return PartsPredictor(
        {name: target.load(file, signature.part(name)) for name, file in _read(path).items()},
        signature,
    )


class PartsPredictor:
    """Several models as one predictor: it runs those whose inputs are there.

    Args:
        predictors: By the names of the parts.
        signature: Says what each part takes.
    """

    def __init__(self, predictors: Mapping[str, Predictor], signature: Signature) -> None:
        self.predictors = [
            (signature.parts[name].inputs, predictor) for name, predictor in predictors.items()
        ]

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run one batch."""
        outputs: dict[str, Array] = {}
        for taken, predictor in self.predictors:
            if all(name in inputs for name in taken):
                outputs |= predictor({name: inputs[name] for name in taken})
        return outputs
