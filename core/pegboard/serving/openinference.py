"""Tensors on the wire: the Open Inference Protocol v2, with its binary extension.

https://github.com/open-inference/open-inference-protocol and, for tensors as raw bytes behind the
JSON, KServe's and Triton's "binary tensor data extension".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from pegboard.errors import RequestError
from pegboard.records import Array, Signature, TensorSpec

DTYPES = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}
"""NumPy's name of each of the protocol's data types; BYTES has no counterpart in a signature."""
_NAMES = {numpy: name for name, numpy in DTYPES.items()}
_NUMPY = {name: np.dtype(numpy).newbyteorder("<") for name, numpy in DTYPES.items()}
# By the dtype itself: to spell out its name takes NumPy longer than to answer a small model.
_NAMES_OF = {np.dtype(numpy): name for numpy, name in _NAMES.items()}

BINARY = b"application/octet-stream"
JSON = b"application/json"


@dataclass(kw_only=True, slots=True)
class Question:
    """A request, read."""

    inputs: Mapping[str, Array]
    """Arrays by name, as sent; not validated yet."""
    outputs: tuple[str, ...]
    """The outputs asked for, in order; all that there are where none is named."""
    binary: frozenset[str]
    """Those that are sent back as raw bytes."""
    id: str | None
    """What the client calls it; sent back."""


def metadata(name: str, version: str, signature: Signature) -> dict[str, Any]:
    """Describe a model."""
    return {
        "name": name,
        "versions": [version],
        "platform": "pegboard",
        "inputs": [_tensor_metadata(spec) for spec in signature.inputs],
        "outputs": [_tensor_metadata(spec) for spec in signature.outputs],
    }


def _tensor_metadata(spec: TensorSpec) -> dict[str, Any]:
    shape = [-1 if isinstance(axis, str) else axis for axis in spec.shape]
    return {"name": spec.name, "datatype": _NAMES[spec.dtype], "shape": shape}


# --------------------------------------------------------------------------- reading


def read(body: bytes, json_length: int | None, signature: Signature) -> Question:
    """Read a request.

    Args:
        body: JSON, and behind it the raw bytes of its binary tensors.
        json_length: Length of the JSON, from the header `Inference-Header-Content-Length`.
        signature: What the model takes and returns.

    Raises:
        RequestError: It does not keep to the protocol; the sentence names the tensor.
    """
    head, tail = (body, b"") if json_length is None else (body[:json_length], body[json_length:])
    payload = parse(head)
    if type(payload) is not dict or type(payload.get("inputs")) is not list:
        raise _error("'inputs' is no list of tensors", "request")
    inputs: dict[str, Array] = {}
    for index, tensor in enumerate(payload["inputs"]):
        name, array, tail = _read_tensor(tensor, f"inputs[{index}]", tail)
        if name in inputs:
            raise _error("this input is sent twice", f"inputs[{index}]")
        inputs[name] = array
    if tail:
        raise _error(f"{len(tail)} bytes belong to no tensor", "request")
    return _question(payload, inputs, signature)


def parse(body: bytes) -> Any:
    """Parse JSON.

    Raises:
        RequestError: It is none.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        raise RequestError(
            "the request is not JSON", where="request", remedy="send JSON in UTF-8"
        ) from None


def _question(
    payload: Mapping[str, Any], inputs: Mapping[str, Array], signature: Signature
) -> Question:
    known = [spec.name for spec in signature.answered(inputs)]
    everything_binary = _flag(payload.get("parameters"), "binary_data_output", False)
    asked = payload.get("outputs")
    identifier = payload.get("id")
    if identifier is not None and type(identifier) is not str:
        raise _error("'id' is no string", "request")
    if asked is None:
        binary = known if everything_binary else ()
        return Question(
            inputs=inputs, outputs=tuple(known), binary=frozenset(binary), id=identifier
        )
    if type(asked) is not list:
        raise _error("'outputs' is no list", "request")
    names, binary_names = [], set()
    for index, output in enumerate(asked):
        if type(output) is not dict or output.get("name") not in known:
            raise _error(f"the model returns {', '.join(known)}", f"outputs[{index}]")
        names.append(output["name"])
        if _flag(output.get("parameters"), "binary_data", everything_binary):
            binary_names.add(output["name"])
    return Question(
        inputs=inputs, outputs=tuple(names), binary=frozenset(binary_names), id=identifier
    )


def _flag(parameters: Any, name: str, otherwise: bool) -> bool:
    if parameters is None:
        return otherwise
    if type(parameters) is not dict:
        raise _error("'parameters' is no object", "request")
    return bool(parameters.get(name, otherwise))


def _read_tensor(tensor: Any, where: str, tail: bytes) -> tuple[str, Array, bytes]:
    if type(tensor) is not dict or type(tensor.get("name")) is not str:
        raise _error("an input has no 'name'", where)
    datatype = tensor.get("datatype")
    dtype = _NUMPY.get(datatype) if type(datatype) is str else None
    if dtype is None:
        raise _error(f"'datatype' is none of {', '.join(DTYPES)}", where)
    shape = tensor.get("shape")
    if type(shape) is not list or not all(type(axis) is int and axis >= 0 for axis in shape):
        raise _error("'shape' is no list of whole numbers", where)
    parameters = tensor.get("parameters")
    size = parameters.get("binary_data_size") if type(parameters) is dict else None
    if size is not None:
        array, tail = _from_bytes(size, dtype, shape, where, tail)
    else:
        array = _from_json(tensor.get("data"), dtype, shape, where)
    return tensor["name"], array, tail


def _from_bytes(
    size: Any, dtype: np.dtype[Any], shape: Sequence[int], where: str, tail: bytes
) -> tuple[Array, bytes]:
    wanted = math.prod(shape) * dtype.itemsize
    if type(size) is not int or size != wanted:
        raise _error(f"'binary_data_size' is not {wanted}, which the shape takes", where)
    if size > len(tail):
        raise _error(f"{size} bytes were announced and {len(tail)} came", where)
    return np.frombuffer(tail[:size], dtype).reshape(shape), tail[size:]


def _from_json(data: Any, dtype: np.dtype[Any], shape: Sequence[int], where: str) -> Array:
    if type(data) is not list:
        raise _error("'data' is no list", where)
    try:
        array = np.asarray(data)
    except ValueError:  # NumPy's way to say that rows differ in length.
        raise _error("'data' has rows of different lengths", where) from None
    if array.dtype.kind not in "biuf":
        if array.size:
            raise _error("'data' holds more than numbers", where)
        array = array.astype(dtype)
    if array.dtype.kind == "f" and dtype.kind in "iub":
        raise _error(f"'data' holds fractions and 'datatype' is {_NAMES[dtype.name]}", where)
    if array.size != math.prod(shape):
        raise _error(f"'data' has {array.size} values, which do not fit 'shape'", where)
    if array.dtype.kind in "iu" and dtype.kind in "iu" and array.size:
        bounds = np.iinfo(dtype)
        if int(array.min()) < bounds.min or int(array.max()) > bounds.max:
            raise _error(f"'data' does not fit {_NAMES[dtype.name]}", where)
    with np.errstate(over="ignore"):  # Infinity is refused by the signature.
        return array.astype(dtype, copy=False).reshape(shape)


def _error(what: str, where: str) -> RequestError:
    return RequestError(what, where=where, remedy="see 'GET /v2/models/NAME'")


# --------------------------------------------------------------------------- writing


def write(
    question: Question, outputs: Mapping[str, Array], name: str, version: str
) -> tuple[bytes, int | None]:
    """Write an answer; return its bytes, and the length of the JSON where raw bytes follow it."""
    tensors, tails = [], []
    for output in question.outputs:
        array = outputs[output]
        tensor: dict[str, Any] = {
            "name": output,
            "datatype": _NAMES_OF[array.dtype],
            "shape": array.shape,
        }
        if output in question.binary:
            raw = array.astype(_NUMPY[tensor["datatype"]], copy=False).tobytes()
            tensor["parameters"] = {"binary_data_size": len(raw)}
            tails.append(raw)
        else:
            tensor["data"] = array.ravel() if array.dtype != np.float16 else array.ravel().tolist()
        tensors.append(tensor)
    answer: dict[str, Any] = {"model_name": name, "model_version": version, "outputs": tensors}
    if question.id is not None:
        answer["id"] = question.id
    head = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    return (head + b"".join(tails), len(head)) if tails else (head, None)


# --------------------------------------------------------------------------- asking


def ask_tensors(inputs: Mapping[str, Array]) -> tuple[bytes, dict[str, str]]:
    """Return body and headers of a request that carries arrays as raw bytes."""
    raws = {
        name: array.astype(_NUMPY[_NAMES_OF[array.dtype]], copy=False).tobytes()
        for name, array in inputs.items()
    }
    tensors = [
        {
            "name": name,
            "datatype": _NAMES_OF[array.dtype],
            "shape": array.shape,
            "parameters": {"binary_data_size": len(raws[name])},
        }
        for name, array in inputs.items()
    ]
    head = orjson.dumps({"inputs": tensors})
    headers = {"Inference-Header-Content-Length": str(len(head))}
    return head + b"".join(raws.values()), headers
