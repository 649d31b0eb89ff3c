"""An encoder from a bundle: pictures and texts to embeddings, for the index, search and classes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pegboard.bundle import Bundle, Candidate, read_bundle
from pegboard.cli.predict import board_for, newest_bundle
from pegboard.errors import BundleError
from pegboard.files import digest_of
from pegboard.records import Array, Predictor
from pegboard.serving.deployment import resolve_settings
from pegboard.settings import Sources
from pegboard_clip.deploy import UNKNOWN_SCRIPT, infer
from pegboard_clip.settings import ClipSettings
from pegboard_clip.sizes import image_size, width
from pegboard_clip.tokenizer import tokenizer_of

if TYPE_CHECKING:
    from pegboard.records import Service

AT_ONCE = 64
"""Pictures or texts that are run together."""


class BundleEncoder:
    """The towers of a bundle, on whatever runtime its chosen model needs.

    Args:
        settings: Those the bundle was made with.
        predictor: Takes `image` or `tokens`.
        model: What tells its embeddings from another model's.
    """

    def __init__(self, settings: ClipSettings, predictor: Predictor, model: str) -> None:
        self.settings, self.predictor, self.model = settings, predictor, model
        self.dimension, self.size = width(settings), image_size(settings)
        self._tokenizer = tokenizer_of(settings)

    def images(self, images: Array) -> Array:
        """uint8 (N, S, S, 3) -> float32 (N, D), of unit length."""
        return self._run("image", images)

    def texts(self, texts: Sequence[str]) -> Array:
        """N texts -> float32 (N, D), of unit length."""
        return self._run("tokens", self._tokenizer(texts))

    def warning(self, text: str) -> str:
        """Return a sentence where the vocabulary does not know the script of a text, else ''."""
        return "" if self._tokenizer.knows(text) else UNKNOWN_SCRIPT

    def _run(self, name: str, inputs: Array) -> Array:
        output = {"image": "image_embedding", "tokens": "text_embedding"}[name]
        parts = [
            infer(self.predictor, {name: inputs[start : start + AT_ONCE]})[output]
            for start in range(0, len(inputs), AT_ONCE)
        ]
        return np.concatenate(parts) if parts else np.zeros((0, self.dimension), np.float32)


def open_encoder(folder: Path, bundle: Path | None = None) -> BundleEncoder:
    """Open the chosen model of a bundle.

    Args:
        folder: A project's.
        bundle: A bundle's folder; that of the project's newest run when it is left out.

    Raises:
        BundleError: There is none, or it is of another solution.
    """
    opened = read_bundle(bundle or newest_bundle(folder))
    board = board_for(opened, folder)
    settings = resolve_settings(board, opened, Sources(), folder)
    if not isinstance(settings, ClipSettings):
        raise BundleError(
            f"the bundle is of the solution '{opened.solution}', which has no towers",
            where=str(opened.folder),
            remedy="name a bundle of 'clip' with --bundle",
        )
    chosen = opened.chosen()
    predictor = opened.load_predictor(board.collect("deploy_targets"), chosen)
    return BundleEncoder(settings, predictor, model_of(opened, chosen))


def encoder_of(service: Service, loop: asyncio.AbstractEventLoop) -> BundleEncoder:
    """Return an encoder that asks the model which a server has open, in its batches.

    Args:
        service: The server; the encoder is of the bundle that answers now.
        loop: The server's. Embed in another thread: that one waits for it.
    """

    async def asked(inputs: Mapping[str, Array]) -> dict[str, Array]:
        return dict(await service.infer(inputs))

    def ask(inputs: Mapping[str, Array]) -> dict[str, Array]:
        return asyncio.run_coroutine_threadsafe(asked(inputs), loop).result()

    return BundleEncoder(service.settings, ask, model_of(service.bundle, service.candidate))


def model_of(bundle: Bundle, candidate: Candidate) -> str:
    """Return a digest of what makes a model's embeddings: its files and its vocabulary.

    Not the bundle's version, which changes when the same model is measured again.
    """
    carried = set(bundle.carried.values())
    files = {
        name: facts.sha256
        for name, facts in bundle.files.items()
        if name in carried or Path(name).is_relative_to(candidate.file)
    }
    return digest_of(files)[:16]
