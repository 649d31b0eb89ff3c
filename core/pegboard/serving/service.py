"""The service behind all paths: champion, challenger, batches, drift, and plugins' own work."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pegboard.board import Board
from pegboard.bundle import Bundle, Candidate
from pegboard.errors import BundleError, PegboardError, SettingsError
from pegboard.logs import LOGGER
from pegboard.records import AnswerEvent, Array, Route
from pegboard.serving.batching import MicroBatcher
from pegboard.serving.deployment import Deployment, deploy
from pegboard.serving.drift import DriftMonitor
from pegboard.serving.metrics import ServerMetrics
from pegboard.serving.shadow import Challenger, Seen
from pegboard.settings import Settings, Sources

INLINE_SECONDS = 1e-3
"""A record that takes longer is computed in a thread, so that others are not kept waiting."""

TRIES = 9
"""Of which the fastest says what it takes: the others say what else the machine did."""

Call = Callable[[], Awaitable[None]]


class TimeoutExceededError(PegboardError):
    """A request took longer than it may."""


@dataclass(frozen=True, kw_only=True)
class Champion:
    """The bundle that answers now, with what belongs to it alone."""

    deployment: Deployment
    """The bundle, opened."""
    batcher: MicroBatcher
    """Runs it."""
    drift: DriftMonitor
    """Compares its traffic with its training."""
    inline: bool
    """Whether decoding, running and encoding happen in the event loop."""


class Service:
    """What answers; `records.Service` is the part of it that plugins know.

    Args:
        board: The solution's board.
        bundle: The folder of the champion.
        sources: Whoever serves: their `[serve]` counts.
        root: Paths in settings are relative to it.
        challenger: The folder of a bundle to run in its shadow.
        bundles: The folder that other bundles may be taken from while the server runs.

    Raises:
        BundleError: A bundle may not be served.
    """

    def __init__(
        self,
        board: Board,
        bundle: Path,
        *,
        sources: Sources,
        root: Path,
        challenger: Path | None = None,
        bundles: Path | None = None,
    ) -> None:
        self.board, self._sources, self._root = board, sources, root
        self.bundles = (bundles or bundle.parent).resolve()
        self.metrics = ServerMetrics()
        self.threads = os.cpu_count() or 1
        self.executor = ThreadPoolExecutor(self.threads, thread_name_prefix="infer")
        self._begin: list[Call] = []
        self._end: list[Call] = []
        self._repeated: list[tuple[float, Call]] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._tells = bool(board.call_order("after_answer"))
        deployment = deploy(board, bundle, sources=sources, root=root)
        self._serve = deployment.settings.serve  # No bundle changes it.
        self.champion = self._champion(deployment)
        self.challenger: Challenger | None = None
        if challenger is not None:
            self.challenger = Challenger(self._deployed(challenger), self.bundle.signature)
        self._name_models()
        self.metrics.watch_drift(lambda: self.champion.drift.summary())
        self.metrics.watch("pegboard_challenger", self._challenger_figures)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.routes: list[Route] = board.collect(
            "register_routes", settings=self.settings, service=self
        )
        self.is_ready = False
        self.is_alone: Callable[[], bool] = lambda: False
        """Whether the request that is asked for is the only one: it has nobody to wait for."""

    # ----------------------------------------------------------------- what plugins know

    @property
    def folder(self) -> Path:
        """Where the solution may keep what has to survive a restart; it exists."""
        return self._serve.folder

    @property
    def settings(self) -> Settings:
        """Those that the champion was made with, and the server's own `[serve]`."""
        return self.champion.deployment.settings

    @property
    def candidate(self) -> Candidate:
        """The one of the champion's models that answers."""
        return self.champion.deployment.candidate

    @property
    def bundle(self) -> Bundle:
        """The champion."""
        return self.champion.deployment.bundle

    @property
    def registry(self) -> Any:
        """The prometheus_client registry behind `/metrics`."""
        return self.metrics.registry

    def at_start(self, call: Call) -> None:
        """Have something done before the server says that it is ready."""
        self._begin.append(call)

    def at_close(self, call: Call) -> None:
        """Have something done when the last request is answered."""
        self._end.append(call)

    def every(self, seconds: float, call: Call) -> None:
        """Have something done again and again while the server lives."""
        self._repeated.append((seconds, call))

    async def infer(
        self, inputs: Mapping[str, Array], *, records: int | None = None
    ) -> Mapping[str, Array]:
        """Run the champion in a micro-batch with others; see `records.Service`."""
        began = time.perf_counter()
        champion = self.champion
        outputs = await self._run(champion, inputs)
        self._watch(champion, inputs, outputs, records)
        self._tell(champion, records or _records(inputs), time.perf_counter() - began)
        return outputs

    # ----------------------------------------------------------------- answering

    async def answer(self, payload: Any) -> tuple[str, list[Mapping[str, Any]]]:
        """Answer a request in the solution's own words; return the version and the answers.

        Raises:
            RequestError: It does not fit.
            OverloadedError: Too much waits already.
            TimeoutExceededError: It took too long.
        """
        began = time.perf_counter()
        champion = self.champion
        answerer = champion.deployment.answerer
        inputs = await self._compute(champion, answerer.decode, payload)
        outputs = await self._run(champion, inputs)
        answers = list(await self._compute(champion, answerer.encode, outputs, payload))
        self._watch(champion, inputs, outputs, None)
        self._tell(champion, len(answers), time.perf_counter() - began)
        return champion.deployment.version, answers

    async def _run(self, champion: Champion, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        infer = champion.deployment.answerer.infer
        # In the event loop nothing can run out: the model has answered before anybody looks.
        if champion.inline and not champion.batcher.wait:
            if self.is_alone():
                self.metrics.observe_batch(_records(inputs))
                return infer(inputs)
            return await champion.batcher.submit(inputs, infer)
        future = champion.batcher.submit(inputs, infer)
        try:
            return await asyncio.wait_for(future, self._serve.timeout_seconds)
        except TimeoutError:
            raise TimeoutExceededError(
                f"there is no answer after {self._serve.timeout_seconds:g} seconds",
                where="server",
                remedy="send fewer records at once, or raise serve.timeout_seconds",
            ) from None

    async def _compute(self, champion: Champion, call: Callable[..., Any], *values: Any) -> Any:
        if champion.inline:
            return call(*values)
        return await asyncio.get_running_loop().run_in_executor(self.executor, call, *values)

    def _watch(
        self,
        champion: Champion,
        inputs: Mapping[str, Array],
        outputs: Mapping[str, Array],
        records: int | None,
    ) -> None:
        count = _records(inputs)
        if records is not None and records < count:
            inputs = {name: array[:records] for name, array in inputs.items()}
            outputs = {name: array[:records] for name, array in outputs.items()}
            count = records
        champion.drift.add(inputs, outputs, count)
        if self.challenger is not None:
            answerer = champion.deployment.answerer
            self.challenger.offer(Seen(inputs=inputs, outputs=outputs, answerer=answerer))

    def _tell(self, champion: Champion, count: int, seconds: float) -> None:
        if not self._tells:
            return
        event = AnswerEvent(
            solution=champion.deployment.bundle.solution,
            count=count,
            seconds=seconds,
            target=champion.deployment.candidate.name,
        )
        try:
            self.board.hook.after_answer(settings=champion.deployment.settings, event=event)
        except Exception as error:  # The answer is right, whatever a listener makes of it.
            log_failure("after_answer", error)

    # ----------------------------------------------------------------- bundles

    async def swap_champion(self, folder: Path) -> Deployment:
        """Let another bundle answer from the next request on; those under way end with theirs.

        Raises:
            BundleError: The bundle may not be served; the one before goes on.
        """
        champion = await asyncio.to_thread(lambda: self._champion(self._opened(folder)))
        if self.challenger is not None:
            signature = champion.deployment.bundle.signature
            after = Challenger(self.challenger.deployment, signature)
            self.challenger.stop()
            self.challenger = after
        self.champion = champion
        self._name_models()
        LOGGER.info("serving bundle %s", champion.deployment.version)
        return champion.deployment

    async def set_challenger(self, folder: Path) -> Deployment:
        """Try a bundle in the champion's shadow.

        Raises:
            BundleError: The bundle may not be served, or takes other inputs.
        """
        deployment = await asyncio.to_thread(self._opened, folder)
        after = Challenger(deployment, self.bundle.signature)
        self.end_trial()
        self.challenger = after
        self._name_models()
        return deployment

    def end_trial(self) -> None:
        """Send the challenger away."""
        if self.challenger is not None:
            self.challenger.stop()
        self.challenger = None
        self._name_models()

    def _opened(self, folder: Path) -> Deployment:
        try:
            path = (self.bundles / folder).resolve()
        except ValueError:  # A file's name cannot hold a null character.
            raise BundleError(
                "this is no name of a folder",
                where=str(self.bundles),
                remedy="name a bundle's folder in it",
            ) from None
        if not path.is_relative_to(self.bundles):
            raise BundleError(
                "the bundle lies outside the folder that bundles are taken from",
                where=str(self.bundles),
                remedy="copy it there, or start the server with --bundles",
            )
        return self._deployed(path)

    def _deployed(self, folder: Path) -> Deployment:
        try:
            return deploy(
                self.board,
                folder,
                sources=self._sources,
                root=self._root,
                solution=self.bundle.solution,
            )
        except SettingsError as error:  # The server's own were in order when it began.
            raise BundleError(
                error.what,
                where=error.where,
                remedy="serve it with the versions of Pegboard and plugin that made it",
            ) from error

    def _champion(self, deployment: Deployment) -> Champion:
        bundle, serve = deployment.bundle, self._serve
        inline = self._cost(deployment) < INLINE_SECONDS
        batcher = MicroBatcher(
            bundle.signature,
            size=serve.batch_size,
            wait=serve.batch_wait_ms / 1e3,
            queue=serve.queue,
            executor=None if inline else self.executor,
            threads=self.threads,
        )
        batcher.observe = self.metrics.observe_batch
        drift = DriftMonitor(bundle.signature, bundle.reference(), serve.drift_window)
        return Champion(deployment=deployment, batcher=batcher, drift=drift, inline=inline)

    def _cost(self, deployment: Deployment) -> float:
        """Return the seconds of a request: decoding an image may cost more than its model."""
        request = deployment.bundle.signature.request
        if request is None:
            return deployment.seconds
        seconds = []
        for _ in range(TRIES):
            began = time.perf_counter()
            deployment.answerer(request)
            seconds.append(time.perf_counter() - began)
        return max(deployment.seconds, min(seconds))

    def _name_models(self) -> None:
        models = {"champion": self.champion.deployment}
        if self.challenger is not None:
            models["challenger"] = self.challenger.deployment
        self.metrics.name_models(
            {
                role: (one.bundle.solution, one.version, one.candidate.name)
                for role, one in models.items()
            }
        )

    def _challenger_figures(self) -> dict[str, float]:
        figures = self.challenger.figures() if self.challenger is not None else {}
        return {name: value for name, value in figures.items() if isinstance(value, int | float)}

    # ----------------------------------------------------------------- life

    async def start(self) -> None:
        """Do what plugins want done first, then be ready."""
        for call in self._begin:
            await call()
        self._tasks = [asyncio.create_task(_repeat(*repeated)) for repeated in self._repeated]
        # What lives until the end is not looked at again by every collection.
        gc.collect()
        gc.freeze()
        self.is_ready = True

    async def close(self) -> None:
        """End what runs; plugins' last work comes last."""
        self.is_ready = False
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for call in self._end:
            try:
                await call()
            except Exception as error:  # The others have to be closed all the same.
                log_failure("close", error)
        if self.challenger is not None:
            self.challenger.stop()
        self.executor.shutdown(wait=False, cancel_futures=True)


def _records(inputs: Mapping[str, Array]) -> int:
    first = next(iter(inputs.values()))
    return len(first) if first.ndim else 1


async def _repeat(seconds: float, call: Call) -> None:
    while True:
        await asyncio.sleep(seconds)
        try:
            await call()
        except Exception as error:  # The next time may go well.
            log_failure("a repeated task", error)


def log_failure(what: str, error: Exception) -> None:
    """Log what kind of error it was and where, and never its words: they may hold an input."""
    if isinstance(error, PegboardError):
        LOGGER.error("%s failed: %s", what, error)
        return
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    place = (
        ""
        if frame is None
        else (f" ({Path(frame.tb_frame.f_code.co_filename).name}, line {frame.tb_lineno})")
    )
    LOGGER.error("%s failed: %s%s", what, type(error).__name__, place)
