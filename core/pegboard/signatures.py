"""Inputs against a signature: names, numbers, shapes and finiteness, before any model sees them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import numpy as np

from pegboard.errors import RequestError
from pegboard.records import Array, Signature, TensorSpec


def validate(inputs: Mapping[str, Any], signature: Signature) -> dict[str, Array]:
    """Check inputs and cast them to the signature's dtypes.

    Args:
        inputs: Arrays, or nested lists of numbers, by name.
        signature: What the model takes; of one with parts the inputs of some of them suffice.

    Returns:
        Arrays of the signature's dtypes, in its order; one that fits already is not copied.

    Raises:
        RequestError: An input is missing, unknown, not numeric, too large for its dtype, of the
            wrong shape, empty or not finite; the sentence names it.
    """
    _refuse_unknown(inputs, signature)
    lengths: dict[str, int] = {}
    return {spec.name: _validated(inputs, spec, lengths) for spec in signature.asked(inputs)}


def _refuse_unknown(inputs: Mapping[str, Any], signature: Signature) -> None:
    known = [spec.name for spec in signature.inputs]
    for name in inputs:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            raise _error(
                f"there is no input '{name}'",
                f"did you mean '{close[0]}'" if close else f"send {_listed(known)}",
            )


def _validated(inputs: Mapping[str, Any], spec: TensorSpec, lengths: dict[str, int]) -> Array:
    if spec.name not in inputs:
        raise _error(f"the input '{spec.name}' is missing", f"send it as {describe(spec)}")
    array = cast(_as_array(inputs[spec.name], spec), spec)
    _check_shape(array, spec, lengths)
    if spec.finite and array.dtype.kind == "f" and not np.isfinite(array).all():
        place = tuple(int(index) for index in np.argwhere(~np.isfinite(array))[0])
        raise _error(
            f"'{spec.name}' is {array[place]} at {list(place)}", "send finite numbers only"
        )
    return array


def _as_array(value: Any, spec: TensorSpec) -> Array:
    try:
        array = np.asarray(value)
    except (ValueError, TypeError):
        # NumPy's way to say that rows differ in length.
        raise _error(f"'{spec.name}' is not an array", f"send it as {describe(spec)}") from None
    if array.dtype.kind not in "biuf":
        raise _error(f"'{spec.name}' holds more than numbers", f"send it as {describe(spec)}")
    return array


def cast(array: Array, spec: TensorSpec) -> Array:
    """Cast an array to a spec's dtype where that loses nothing but digits.

    Raises:
        RequestError: It would change the numbers: a float to an integer, or one too large.
    """
    wanted = np.dtype(spec.dtype)
    if array.dtype == wanted:
        return array
    if array.dtype.kind in "iu" and wanted.kind in "iu":
        _refuse_overflow(array, wanted, spec)
    elif array.size and not np.can_cast(array.dtype, wanted, casting="same_kind"):
        raise _error(
            f"'{spec.name}' is {array.dtype} and not {wanted}", f"send it as {describe(spec)}"
        )
    # A float too large becomes infinite, and the check for finite values names its place.
    with np.errstate(over="ignore"):
        return array.astype(wanted)


def _refuse_overflow(array: Array, wanted: np.dtype[Any], spec: TensorSpec) -> None:
    bounds = np.iinfo(wanted)
    # As Python's integers, because NumPy would compare int64 with uint64 as floats.
    extremes = (int(array.min()), int(array.max())) if array.size else ()
    for value in extremes:
        if not int(bounds.min) <= value <= int(bounds.max):
            raise _error(
                f"'{spec.name}' holds {value}, which does not fit {wanted}",
                f"send numbers from {bounds.min} to {bounds.max}",
            )


def _check_shape(array: Array, spec: TensorSpec, lengths: dict[str, int]) -> None:
    shape = list(array.shape)
    if array.ndim != len(spec.shape):
        raise _error(
            f"'{spec.name}' has {array.ndim} axes {shape} and not {len(spec.shape)}",
            f"send it as {describe(spec)}",
        )
    for axis, length in zip(spec.shape, shape, strict=True):
        if length == 0:
            raise _error(f"'{spec.name}' is empty {shape}", "send at least one record")
        wanted = lengths.setdefault(axis, length) if isinstance(axis, str) else axis
        if length != wanted:
            raise _error(
                f"'{spec.name}' has the shape {shape} with {length} in the place of {wanted}",
                f"send it as {describe(spec)}, each named axis as long as in the other inputs",
            )


def describe(spec: TensorSpec) -> str:
    """Say what a tensor looks like: `float32 [batch, 30]`."""
    return f"{spec.dtype} [{', '.join(str(axis) for axis in spec.shape)}]"


def _listed(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _error(what: str, remedy: str) -> RequestError:
    return RequestError(what, where="request", remedy=remedy)
