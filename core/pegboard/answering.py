"""Answering: `decode -> infer -> encode`, the one path from a request to its answers.

`predict`, `benchmark` and `serve` go down it with whatever predictor they hold; `verify` and
`compress` enter it at `infer`, with inputs that are decoded already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pegboard.board import Board
from pegboard.errors import RequestError
from pegboard.records import Array, Predictor, Signature, Thresholds
from pegboard.settings import Settings
from pegboard.signatures import validate


class Answerer:
    """A predictor that speaks the solution's own words.

    Args:
        board: The project's board.
        settings: The project's settings.
        predictor: Any backend.
        thresholds: The decision thresholds, as the bundle carries them.
        signature: The bundle's; the solution's own when it is left out.
    """

    def __init__(
        self,
        board: Board,
        settings: Settings,
        predictor: Predictor,
        thresholds: Thresholds,
        signature: Signature | None = None,
    ) -> None:
        self.board = board
        self.hook = board.hook
        self.settings = settings
        self.predictor = predictor
        self.thresholds = thresholds
        self.signature = signature or board.hook.signature(settings=settings)
        # Where nobody changes how it is run, a call of the hook would cost what a small model does.
        self.is_plain = len(board.hook.infer.get_hookimpls()) == 1

    def __call__(self, payload: Any) -> Sequence[Mapping[str, Any]]:
        """Answer a request, one answer per record.

        Raises:
            RequestError: The request does not fit; the sentence names the field.
        """
        return self.encode(self.infer(self.decode(payload)), payload)

    def with_predictor(self, predictor: Predictor) -> Answerer:
        """Return the same with another backend."""
        return Answerer(self.board, self.settings, predictor, self.thresholds, self.signature)

    def decode(self, payload: Any) -> dict[str, Array]:
        """Turn a request into inputs that fit the signature.

        A solution without `decode_request` takes arrays by the names of its inputs.
        """
        decoded = self.hook.decode_request(settings=self.settings, payload=payload)
        inputs = payload if decoded is None else decoded
        if not isinstance(inputs, Mapping):
            raise RequestError(
                "the request is not an object with fields",
                where="request",
                remedy="send " + ", ".join(f"'{spec.name}'" for spec in self.signature.inputs),
            )
        return validate(inputs, self.signature)

    def infer(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Run the predictor the way the solution runs it."""
        if self.is_plain:
            return self.predictor(inputs)
        outputs: Mapping[str, Array] = self.hook.infer(
            settings=self.settings, predictor=self.predictor, inputs=inputs
        )
        return outputs

    def encode(
        self, outputs: Mapping[str, Array], payload: Any = None
    ) -> Sequence[Mapping[str, Any]]:
        """Turn outputs into answers; `payload` is the request that they answer, if there is one."""
        answers: Sequence[Mapping[str, Any]] = self.hook.encode_answer(
            settings=self.settings, outputs=outputs, thresholds=self.thresholds, request=payload
        )
        return answers


def model_inputs(answerer: Answerer, inputs: Mapping[str, Array]) -> list[Mapping[str, Array]]:
    """Return what the solution's `infer` gives its predictor of some inputs, call by call."""
    given: list[Mapping[str, Array]] = []

    def note(inputs: Mapping[str, Array]) -> dict[str, Array]:
        given.append(inputs)
        return answerer.predictor(inputs)

    answerer.with_predictor(note).infer(inputs)
    return given


def answer(
    board: Board, settings: Settings, predictor: Predictor, payload: Any, thresholds: Thresholds
) -> Sequence[Mapping[str, Any]]:
    """Answer one request; keep an `Answerer` to answer many."""
    return Answerer(board, settings, predictor, thresholds)(payload)
