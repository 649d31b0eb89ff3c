"""Torch: a `torch.export` archive that holds no pickle and no paths, run without gradients."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pegboard.errors import BundleError, PegboardError
from pegboard.hookspecs import hookimpl
from pegboard.records import Array, ExportRequest, Signature, Target
from pegboard.targets.support import first_line, missing, quiet

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram

FILE = "model.pt2"


@hookimpl
def deploy_targets() -> list[Target]:
    """Offer torch itself."""
    return [Target(name="torch", unavailable=missing("torch"), export=export, load=load)]


def export(request: ExportRequest) -> Path:
    """Write the deployable as a `torch.export` archive.

    Raises:
        PegboardError: The deployable cannot be traced.
    """
    import torch

    from pegboard.targets.tracing import trace

    program = trace(request)
    # torch would pickle the example inputs; nothing reads them.
    program.example_inputs = None
    # Its checks of an input's sizes are Python source; the signature is checked instead.
    program._guards_code = []
    path = request.folder / FILE
    with quiet():
        torch.export.save(program, path)
    return path


# --------------------------------------------------------------------------- predictor


class TorchPredictor:
    """An exported graph as a predictor, called on flat tensors.

    `program.module()` would check and unflatten each call's arguments in Python, which costs more
    than a small model; the caller has checked them against the signature.
    """

    def __init__(self, program: ExportedProgram, signature: Signature) -> None:
        # Here and not above: `pegboard describe` imports this module and must not wait for NumPy.
        import numpy as np

        from pegboard.signatures import cast, validate

        self.cast, self.validate = cast, validate
        self.signature = signature
        self.forward = program.graph_module.forward
        self.weights = list(_weights(program))
        taken = program.call_spec.in_spec.child(1).context
        specs = {spec.name: spec for spec in signature.inputs}
        self.inputs = [(name, np.dtype(specs[name].dtype), specs[name]) for name in taken]
        self.fixed = {
            spec.name: [(i, axis) for i, axis in enumerate(spec.shape) if isinstance(axis, int)]
            for spec in signature.inputs
        }
        returned = list(program.call_spec.out_spec.context)
        self.outputs = [(spec.name, returned.index(spec.name)) for spec in signature.outputs]

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run one batch on one thread."""
        import torch

        threads = torch.get_num_threads()
        if threads != 1:
            torch.set_num_threads(1)
        try:
            with torch.inference_mode():
                outputs = self.forward(*self.weights, *self._tensors(inputs))
            return {name: outputs[index].numpy() for name, index in self.outputs}
        except PegboardError:
            raise
        # Whatever an operator raises: KeyError, RuntimeError, IndexError.
        except Exception as error:
            self.validate(inputs, self.signature)
            raise PegboardError(
                f"torch failed: {first_line(error)}", where="an input that fits"
            ) from error
        finally:
            if threads != 1:
                torch.set_num_threads(threads)

    def _tensors(self, inputs: Mapping[str, Array]) -> Iterator[Tensor]:
        from torch import from_numpy

        for name, dtype, spec in self.inputs:
            array = inputs[name] if inputs[name].dtype == dtype else self.cast(inputs[name], spec)
            # Without its own checks a graph may take another shape and answer something.
            if any(array.shape[axis] != length for axis, length in self.fixed[name]):
                self.validate(inputs, self.signature)
            # torch warns of arrays that it could write to by mistake.
            usable = array.flags.c_contiguous and array.flags.writeable
            yield from_numpy(array if usable else array.copy())


def _weights(program: ExportedProgram) -> Iterator[Tensor]:
    """Yield what the graph takes before the inputs: parameters, buffers, constants."""
    for spec in program.graph_signature.input_specs:
        if spec.target is not None:
            held = program.state_dict if spec.target in program.state_dict else program.constants
            yield held[spec.target].detach()


def load(path: Path, signature: Signature) -> TorchPredictor:
    """Open an archive, after a look for anything that would run as code.

    Raises:
        BundleError: There is something.
    """
    import torch

    refuse_code(path)
    with quiet():
        return TorchPredictor(torch.export.load(path), signature)


# --------------------------------------------------------------------------- no code in it

_MEMBERS = re.compile(
    r"[^/]+/(archive_format|archive_version|byteorder|\.data/\w+|models/model\.json"
    r"|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)|data/sample_inputs/model\.pt)"
)
_OPERATORS = re.compile(
    r"torch\.ops\.(?!load_library|import_module)\w+\.\w+(\.\w+)?|math\.\w+"
    r"|_operator\.(add|and_|eq|floordiv|ge|getitem|gt|le|lt|mod|mul|ne|neg|not_|or_|pow|sub|truediv)"
)
_SIZES = re.compile(
    r"[suz]f?\d+|Symbol|Integer|Float|Rational|Add|Mul|Pow|Max|Min|Mod|Abs|FloorDiv|CeilDiv"
    r"|CleanDiv|ModularIndexing|PythonMod|Where|PowByNatural|FloatPow|FloatTrueDiv|IntTrueDiv"
    r"|TruncToFloat|TruncToInt|RoundToInt|CeilToInt|FloorToInt|ToFloat|Identity|Eq|Ne|Lt|Le|Gt|Ge"
    r"|And|Or|Not|Equality|Unequality|StrictLessThan|LessThan|StrictGreaterThan|GreaterThan"
    r"|positive|nonnegative|integer|precision|true|false|True|False"
)
"""What the size of an axis may be made of; torch evaluates it as Python."""


def refuse_code(path: Path) -> None:
    """Refuse an archive that could run code when it is opened or run.

    torch unpickles example inputs and odd weights, evaluates sizes, and resolves the target of a
    node to any function of its own. A checksum tells nothing about who made the file.

    Raises:
        BundleError: It holds a pickle, or more than operators on tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                _check_member(path, archive, member)
    except zipfile.BadZipFile as error:
        raise BundleError(
            "this is not a torch.export archive", where=str(path), remedy="export it again"
        ) from error


def _check_member(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    if not _MEMBERS.fullmatch(member.filename):
        raise _refused(path, f"an unknown part '{member.filename}'")
    if member.filename.endswith("model.pt") and member.file_size:
        raise _refused(path, "pickled example inputs")
    if member.filename.endswith(".json"):
        for key, value in _leaves(json.loads(archive.read(member))):
            _check_leaf(path, key, value)


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every plain value of a JSON document with the key above it."""
    if isinstance(value, dict):
        for name, below in value.items():
            yield from _leaves(below, name)
    elif isinstance(value, list):
        for below in value:
            yield from _leaves(below, key)
    else:
        yield key, value


def _check_leaf(path: Path, key: str, value: Any) -> None:
    if key == "use_pickle" and value:
        raise _refused(path, "a pickled tensor")
    if key == "guards_code":
        raise _refused(path, "checks written in Python")
    if key == "target" and not _OPERATORS.fullmatch(value):
        raise _refused(path, f"the function '{value}'")
    if key == "expr_str":
        for name in re.findall(r"[^\W\d]\w*", value):
            if not _SIZES.fullmatch(name):
                raise _refused(path, f"the expression '{name}'")


def _refused(path: Path, what: str) -> BundleError:
    return BundleError(
        f"the archive holds {what}, which torch would run as code",
        where=str(path),
        remedy="export it again; if it comes from a stranger, do not open it",
    )
