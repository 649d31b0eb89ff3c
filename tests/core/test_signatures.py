from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pegboard import RequestError
from pegboard.records import Signature, TensorSpec
from pegboard.signatures import describe, validate

SIGNATURE = Signature(
    inputs=(
        TensorSpec(name="points", dtype="float32", shape=("batch", "n", 3)),
        TensorSpec(name="colour", dtype="uint8", shape=("batch", "n")),
        TensorSpec(name="age", dtype="float32", shape=("batch",), finite=False),
    ),
    outputs=(),
)


def good() -> dict[str, Any]:
    return SIGNATURE.example(batch=2, n=5)


def refused(**changed: Any) -> str:
    with pytest.raises(RequestError) as caught:
        validate({**good(), **changed}, SIGNATURE)
    return str(caught.value)


def test_an_example_of_the_signature_passes_without_a_copy() -> None:
    inputs = good()
    valid = validate(inputs, SIGNATURE)
    assert all(valid[name] is inputs[name] for name in inputs)


def test_lists_are_cast_to_the_dtype_of_the_signature() -> None:
    inputs = {name: array.tolist() for name, array in good().items()}
    valid = validate(inputs, SIGNATURE)
    assert [array.dtype.name for array in valid.values()] == ["float32", "uint8", "float32"]


def test_whole_numbers_are_taken_for_a_float() -> None:
    assert validate({**good(), "age": [1, 2]}, SIGNATURE)["age"].dtype == np.float32


def test_inputs_come_back_in_the_order_of_the_signature() -> None:
    inputs = good()
    backwards = {name: inputs[name] for name in reversed(inputs)}
    assert list(validate(backwards, SIGNATURE)) == ["points", "colour", "age"]


def test_a_missing_input_is_named_with_what_it_should_be() -> None:
    inputs = good()
    del inputs["colour"]
    with pytest.raises(RequestError, match=r"'colour' is missing.*uint8 \[batch, n\]"):
        validate(inputs, SIGNATURE)


def test_an_unknown_input_names_the_nearest_known_one() -> None:
    assert "there is no input 'color'" in refused(color=1)
    assert "did you mean 'colour'" in refused(color=1)


def test_a_float_is_not_cut_to_a_whole_number() -> None:
    assert "'colour' is float64 and not uint8" in refused(colour=np.full((2, 5), 0.5))


@pytest.mark.parametrize("value", [256, -1])
def test_a_number_too_large_for_its_dtype_is_named(value: int) -> None:
    assert f"'colour' holds {value}, which does not fit uint8" in refused(
        colour=np.full((2, 5), value)
    )


def test_a_float_that_overflows_is_not_taken_for_infinity() -> None:
    points = np.zeros((2, 5, 3))
    points[1, 4, 2] = 1e300
    assert "'points' is inf at [1, 4, 2]" in refused(points=points)


def test_nan_is_named_with_its_place() -> None:
    points = np.zeros((2, 5, 3), dtype=np.float32)
    points[0, 3, 1] = np.nan
    assert "'points' is nan at [0, 3, 1]" in refused(points=points)


def test_nan_passes_where_the_signature_allows_it() -> None:
    assert np.isnan(validate({**good(), "age": [np.nan, 1.0]}, SIGNATURE)["age"][0])


@pytest.mark.parametrize(
    ("points", "sentence"),
    [
        ([[1, 2, 3], [1, 2]], "'points' is not an array"),
        ([["a", "b", "c"]], "'points' holds more than numbers"),
        (None, "'points' holds more than numbers"),
        (np.zeros((2, 5)), "'points' has 2 axes [2, 5] and not 3"),
        (np.zeros((2, 5, 4)), "'points' has the shape [2, 5, 4] with 4 in the place of 3"),
        (np.zeros((2, 0, 3)), "'points' is empty [2, 0, 3]"),
    ],
)
def test_what_is_no_array_of_the_right_shape_is_named(points: Any, sentence: str) -> None:
    assert sentence in refused(points=points)


def test_a_named_axis_has_one_length_in_all_inputs() -> None:
    colour = np.zeros((2, 6), dtype=np.uint8)
    assert "'colour' has the shape [2, 6] with 6 in the place of 5" in refused(colour=colour)


def test_a_tensor_is_described_as_the_signature_writes_it() -> None:
    assert describe(SIGNATURE.inputs[0]) == "float32 [batch, n, 3]"
