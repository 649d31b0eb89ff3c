"""A bundle on its way into a server: the doors it has to pass, and the answerer behind them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pegboard.answering import Answerer
from pegboard.board import Board
from pegboard.bundle import Bundle, Candidate, read_bundle
from pegboard.errors import BundleError
from pegboard.logs import LOGGER
from pegboard.parity import output_errors, worst
from pegboard.project import settings_type
from pegboard.settings import Settings, Sources, resolve

ERROR_MARGIN = 2.0
"""How many times the error that verification measured the outputs on this machine may have."""


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """A bundle that may answer, opened."""

    bundle: Bundle
    """What it was made of."""
    candidate: Candidate
    """The one of its models that answers."""
    answerer: Answerer
    """Decodes, infers and encodes."""
    seconds: float
    """Wall time of one golden record, the fastest of them."""

    @property
    def settings(self) -> Settings:
        """Those that the bundle was made with, and `[serve]` of whoever serves it."""
        return self.answerer.settings

    @property
    def version(self) -> str:
        """The bundle's version, as answers carry it."""
        return self.bundle.version


def resolve_settings(board: Board, bundle: Bundle, sources: Sources, root: Path) -> Settings:
    """Return the settings that a bundle was made with, and `[serve]` as given in `sources`.

    Args:
        board: The solution's board.
        bundle: Its settings decide everything but `[serve]`: they made the model.
        sources: File, environment and command line of whoever serves.
        root: Paths are relative to it.
    """
    merged = Sources()
    # How it is served is not the model's business: its paths may not even be here.
    made = {name: table for name, table in bundle.settings.items() if name != "serve"}
    merged.put((), made, str(bundle.folder / "bundle.json"))
    for key, origin in sources.origins.items():
        if key[0] == "serve":
            merged.put(key, _value_of(sources, key), origin)
    return bundle.with_files(resolve(settings_type(board, bundle.solution), merged, root))


def _value_of(sources: Sources, key: Sequence[str]) -> object:
    value: object = sources.tables
    for name in key:
        assert isinstance(value, dict)
        value = value[name]
    return value


def deploy(
    board: Board,
    folder: Path,
    *,
    sources: Sources,
    root: Path,
    solution: str | None = None,
) -> Deployment:
    """Open a bundle to answer with it, by the settings that it was made with.

    Args:
        board: The solution's board.
        folder: The bundle's.
        sources: Whoever serves: their `[serve]` counts.
        root: Paths in settings are relative to it.
        solution: Whose bundle it has to be; any that the board can open when left out.

    Raises:
        BundleError: It is damaged, of another solution, was not verified, or does not answer here
            as it did when it was verified.
    """
    bundle = read_bundle(folder)
    if solution not in (None, bundle.solution):
        raise BundleError(
            f"the bundle is of the solution '{bundle.solution}' and not '{solution}'",
            where=str(folder),
            remedy="serve it with a server of its own",
        )
    settings = resolve_settings(board, bundle, sources, root)
    chosen = bundle.chosen()
    try:
        return _open(board, settings, bundle, chosen)
    except BundleError as error:
        fallback = next((c for c in bundle.servable() if c.variant == "fp32" and c != chosen), None)
        if chosen.variant == "fp32" or fallback is None:
            raise
        LOGGER.warning("%s '%s' answers instead.", error, fallback.name)
        return _open(board, settings, bundle, fallback)


def _open(board: Board, settings: Settings, bundle: Bundle, candidate: Candidate) -> Deployment:
    _require_verified(bundle, candidate)
    predictor = bundle.load_predictor(board.collect("deploy_targets"), candidate)
    answerer = Answerer(board, settings, predictor, bundle.thresholds, bundle.signature)
    seconds = _require_golden(bundle, candidate, answerer)
    return Deployment(bundle=bundle, candidate=candidate, answerer=answerer, seconds=seconds)


def _require_verified(bundle: Bundle, candidate: Candidate) -> None:
    if candidate.status == "verified":
        return
    reason = f": {candidate.reason}" if candidate.reason else ""
    raise BundleError(
        f"'{candidate.name}' did not pass verification{reason}"
        if candidate.is_quarantined
        else f"'{candidate.name}' was never verified",
        where=str(bundle.folder),
        remedy="run 'pegboard verify' where it was trained, and copy the bundle again",
    )


def _require_golden(bundle: Bundle, candidate: Candidate, answerer: Answerer) -> float:
    """Answer the golden records once more, on this machine; return the least time of one.

    Compressed models can differ between kinds of processors, so what held where the bundle was
    verified has to be seen here.
    """
    golden = bundle.golden()
    answerer.infer(golden[0].inputs)  # The first call allocates.
    outputs, seconds = [], []
    for record in golden:
        began = time.perf_counter()
        outputs.append(answerer.infer(record.inputs))
        seconds.append(time.perf_counter() - began)
    error = worst(output_errors(bundle.signature, [record.outputs for record in golden], outputs))
    verified = candidate.measured.get("tensor_error") or 0.0
    limit = max(answerer.settings.deploy.limits.tensor_error, ERROR_MARGIN * verified)
    if error.share > limit:
        raise BundleError(
            f"'{candidate.name}' does not answer its golden records here: {error.what}, "
            f"limit {limit:.3g}",
            where=str(bundle.folder),
            remedy="verify it on a machine of this kind, or serve its fp32 model",
        )
    return min(seconds)
