from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pegboard import RequestError, hookimpl
from pegboard.answering import Answerer, answer
from pegboard.board import build_board
from pegboard.records import Signature, TensorSpec
from pegboard.settings import Settings

SETTINGS = Settings(solution="toy")


def certain(inputs: Any) -> dict[str, Any]:
    return {"probability": np.ones(len(inputs["x"]), dtype=np.float32)}


def test_a_request_is_decoded_inferred_and_encoded() -> None:
    payload = {"points": [[0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]}
    answers = answer(build_board("toy"), SETTINGS, certain, payload, {"positive": 0.5})
    assert answers == [{"score": 1.0, "decision": "yes"}] * 2


def test_the_solutions_own_infer_runs_the_predictor() -> None:
    class Twice:
        @hookimpl
        def infer(self, predictor: Any, inputs: Any) -> Any:
            return {"probability": (predictor(inputs)["probability"] + 0.0) / 4}

    board = build_board("toy")
    board.manager.register(Twice())
    answers = answer(board, SETTINGS, certain, {"points": [[0, 0, 0, 0]]}, {"positive": 0.5})
    assert answers == [{"score": 0.25, "decision": "no"}]


def test_an_answer_may_fit_its_request_which_is_absent_in_verification() -> None:
    class Fitting:
        @hookimpl
        def encode_answer(self, outputs: Any, request: Any) -> Any:
            return [{"of": request} for _ in outputs["probability"]]

    board = build_board("toy")
    board.manager.register(Fitting())
    payload = {"points": [[0.0, 0.0, 0.0, 0.0]]}
    answerer = Answerer(board, SETTINGS, certain, {"positive": 0.5})
    assert answerer(payload) == [{"of": payload}]
    assert answerer.encode(answerer.infer(answerer.decode(payload))) == [{"of": None}]


def test_what_a_solution_decodes_is_held_against_its_signature() -> None:
    class Careless:
        @hookimpl
        def decode_request(self, payload: Any) -> Any:
            return {"x": np.zeros((1, 3), dtype=np.float32)}

    board = build_board("toy")
    board.manager.register(Careless())
    with pytest.raises(RequestError, match=r"'x' has the shape \[1, 3\]"):
        answer(board, SETTINGS, certain, {}, {"positive": 0.5})


class Bare:
    """A solution without `decode_request` and `encode_answer`."""

    @hookimpl
    def signature(self) -> Signature:
        spec = TensorSpec(name="x", dtype="float32", shape=("batch", 2))
        return Signature(inputs=(spec,), outputs=(TensorSpec(name="y", dtype="f4", shape=()),))


def test_without_a_decoder_a_request_holds_the_inputs_by_name() -> None:
    board = build_board()
    board.manager.register(Bare())
    double = Answerer(board, SETTINGS, lambda inputs: {"y": inputs["x"].sum(axis=1)}, {})
    assert double({"x": [[1, 2], [3, 4]]}) == [{"y": 3.0}, {"y": 7.0}]


def test_a_request_that_is_no_object_is_refused() -> None:
    board = build_board()
    board.manager.register(Bare())
    with pytest.raises(RequestError, match=r"not an object with fields.*send 'x'"):
        Answerer(board, SETTINGS, certain, {})([1, 2])
