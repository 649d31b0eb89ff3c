"""Run a solution through its whole life on its embedded data, and try to break it.

In a plugin's own tests:

    @pytest.mark.parametrize("check", pegboard.testing.CHECKS)
    def test_conformance(check, tmp_path):
        pegboard.testing.check_plugin("my-solution", tmp_path, only=[check])
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pegboard.answering import answer
from pegboard.board import build_board
from pegboard.bundle import Bundle, read_bundle
from pegboard.errors import DataError, PegboardError, PluginError, RequestError, SettingsError
from pegboard.evaluation import ModulePredictor, metrics_of
from pegboard.files import atomic_write
from pegboard.lifecycle import open_run, prepare, run_stages
from pegboard.parity import output_errors, worst
from pegboard.progress import Progress, SilentProgress
from pegboard.project import Project, open_project
from pegboard.records import Split
from pegboard.runs import Run, data_fingerprint
from pegboard.settings import FILE_NAME
from pegboard.signatures import validate

if TYPE_CHECKING:
    from pegboard.serving.process import ServerProcess

STEPS = 4
KILLED_AT = 3
LIGHT = (
    "torch",
    "monai",
    "open3d",
    "albumentations",
    "polars",
    "sklearn",
    "xgboost",
    "transformers",
)
"""Libraries that `pegboard describe` must not pay for."""

REQUIRED = (
    "settings_type",
    "prepare_data",
    "check_data",
    "load_split",
    "build_model",
    "compute_loss",
    "build_metrics",
    "signature",
    "decode_request",
)
"""Hooks that the core has no answer of its own to."""

KILLER = f'''"""Kill the process once, in the middle of training."""

import os
import signal
from pathlib import Path

from pegboard import hookimpl


@hookimpl
def after_step(event):
    marker = Path(__file__).with_name("killed")
    if event.step == {KILLED_AT} and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
'''


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one check found."""

    name: str
    """The check's name, a sentence with underscores."""
    passed: bool
    """Whether the solution holds it."""
    reason: str
    """Empty, or what is wrong and where."""
    seconds: float
    """Wall time."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A folder in which projects of one solution are made."""

    solution: str
    """The entry point's name."""
    folder: Path
    """Where to work; everything in it may be deleted afterwards."""

    def project(self, name: str = "project", *, hooks: str = "", **train: object) -> Project:
        """Open a small project, made on first use."""
        folder = self.folder / name
        # As many epochs as steps: the smallest data set has one batch an epoch.
        settings = {
            "epochs": STEPS, "max_steps": STEPS, "checkpoint_every": 1, "devices": 1, **train
        }  # fmt: skip
        if not folder.exists():
            lines = [
                f'solution = "{self.solution}"',
                "[data]",
                "tiny = true",
                "[train]",
                *(f"{key} = {value}" for key, value in settings.items()),
            ]
            atomic_write(folder / FILE_NAME, "\n".join(lines) + "\n")
            if hooks:
                atomic_write(folder / "hooks.py", hooks)
        return open_project(folder)

    def done(self, last: str) -> Run:
        """Return the run of the common project, brought up to a stage."""
        run = open_run(self.project(), SilentProgress())
        run_stages(run, last, SilentProgress())
        return run


def check_plugin(
    name: str,
    folder: Path,
    *,
    only: Sequence[str] = (),
    progress: Progress | None = None,
    strict: bool = True,
) -> list[Outcome]:
    """Run the conformance checks on an installed solution.

    Args:
        name: The solution's entry-point name.
        folder: An empty folder to work in.
        only: Names of `CHECKS`; all when empty.
        progress: Where to show how far it is.
        strict: Raise on the first check that fails instead of collecting it.

    Raises:
        PluginError: A check failed; the sentence says which and why.
    """
    bench = Bench(solution=name, folder=folder)
    progress = progress or SilentProgress()
    outcomes = []
    for check in progress.track([c for c in CHECKS if not only or c in only], f"test {name}"):
        outcome = _outcome(bench, check)
        if strict and not outcome.passed:
            raise PluginError(
                f"{name} does not hold '{check.replace('_', ' ')}': {outcome.reason}",
                where=f"pegboard plugin test {name}",
                remedy="docs/conformance.md says what each check asks for",
            )
        outcomes.append(outcome)
    return outcomes


def _outcome(bench: Bench, check: str) -> Outcome:
    began = time.monotonic()
    reason = ""
    try:
        CHECKS[check](bench)
    except PegboardError as error:
        reason = str(error)
    except Exception as error:  # A stranger's code may raise anything; the kit reports it.
        reason = f"{type(error).__name__}: {error}"
    return Outcome(name=check, passed=not reason, reason=reason, seconds=time.monotonic() - began)


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise PluginError(otherwise)


# --------------------------------------------------------------------------- the checks


def describing_it_imports_no_heavy_library(bench: Bench) -> None:
    """A new process asks for the settings; none of `LIGHT` is imported."""
    code = (
        "import sys; from pegboard.board import build_board; "
        f"build_board({bench.solution!r}).hook.settings_type(); "
        f"print(*[name for name in {LIGHT!r} if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    _require(ended.returncode == 0, f"it cannot be described: {ended.stderr.strip()[-300:]}")
    _require(
        not ended.stdout.strip(), f"its hooks or settings import {ended.stdout.strip()} at the top"
    )


def its_hooks_are_known_and_complete(bench: Bench) -> None:
    """No unknown hook, no default that pluggy ignores, none of `REQUIRED` missing."""
    board = build_board(bench.solution)
    wrong = [*board.unknown_hooks(), *board.ignored_defaults()]
    _require(not wrong, "; ".join(wrong))
    missing = [name for name in REQUIRED if not board.call_order(name)]
    _require(not missing, f"it implements no {', '.join(missing)}")
    metrics_of(board, bench.project().settings)


def its_embedded_data_is_made_once_and_is_sound(bench: Bench) -> None:
    """`prepare_data` answers what it made, twice the same; `check_data` finds no error."""
    project = bench.project()
    paths = prepare(project, SilentProgress())
    _require(bool(paths), "prepare_data answers no path")
    absent = [str(path) for path in paths if not path.exists()]
    _require(not absent, f"prepare_data answers paths that do not exist: {absent}")
    before = data_fingerprint(paths)
    again = data_fingerprint(prepare(project, SilentProgress()))
    _require(before == again, "prepare_data made its data again although it was there")
    run_stages(open_run(project, SilentProgress()), "check", SilentProgress())


def its_samples_fit_its_signature(bench: Bench) -> None:
    """The first records of every split, collated, are what the signature says."""
    run = bench.done("check")
    settings, hook = run.project.settings, run.project.board.hook
    splits: tuple[Split, ...] = ("train", "validation", "test")
    for split in splits:
        data = hook.load_split(settings=settings, split=split)
        count = min(2, len(data))
        _require(count > 0, f"the {split} split is empty")
        batch = hook.collate(settings=settings, samples=[data[i] for i in range(count)])
        validate(batch.arrays(), hook.signature(settings=settings))


def two_steps_change_its_weights(bench: Bench) -> None:
    """Training moves the weights, and the loss stays finite."""
    import torch

    from pegboard.batching import Stream, seed_generators
    from pegboard.weights import load_trained

    run = bench.done("train")
    settings, hook = run.project.settings, run.project.board.hook
    train = hook.load_split(settings=settings, split="train")
    seed_generators(Stream.MODEL, settings.train.seed)
    fresh = dict(hook.build_model(settings=settings, train_data=train).named_parameters())
    trained = dict(load_trained(run).named_parameters())
    _require(fresh.keys() == trained.keys(), "build_model names its parameters differently")
    moved = [name for name, value in trained.items() if not torch.equal(value, fresh[name])]
    _require(bool(moved), f"no parameter moved in {STEPS} steps")
    broken = [name for name, value in trained.items() if not torch.isfinite(value).all()]
    _require(not broken, f"parameters are not finite: {', '.join(broken)}")


def a_killed_training_resumes_to_the_same_weights(bench: Bench) -> None:
    """`kill -9` in mid-epoch, the same command again: bit for bit the undisturbed weights."""
    undisturbed = bench.project("undisturbed", hooks=KILLER)
    (undisturbed.folder / "killed").touch()
    killed = bench.project("killed", hooks=KILLER)
    first = _train(undisturbed)
    _require(first.returncode == 0, f"training fails: {first.stderr.strip()[-300:]}")
    died = _train(killed)
    _require(died.returncode != 0, "the kit could not kill the training")
    again = _train(killed)
    _require(again.returncode == 0, f"it does not resume: {again.stderr.strip()[-300:]}")
    weights = [next(p.folder.glob("runs/*/weights.safetensors")) for p in (undisturbed, killed)]
    _require(
        weights[0].read_bytes() == weights[1].read_bytes(),
        "the resumed weights differ from the undisturbed ones; draw random numbers from Python's, "
        "NumPy's or torch's global generators only, which every step seeds anew",
    )


def _train(project: Project) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pegboard.cli.main", "train", "--project", str(project.folder)]
    return subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))


def its_exports_are_verified(bench: Bench) -> None:
    """Every candidate of the bundle keeps the limits of `[deploy.limits]`."""
    run = bench.done("verify")
    bundle = read_bundle(run.bundle)
    lost = [
        f"{c.target}/{c.variant}: {c.status}" for c in bundle.candidates if c.status != "verified"
    ]
    _require(not lost, f"not verified: {'; '.join(lost)}")


def its_deployable_takes_any_size(bench: Bench) -> None:
    """The chosen candidate equals torch where dynamic axes are longer or shorter than exported."""
    from pegboard.weights import load_trained

    run = bench.done("verify")
    settings, board = run.project.settings, run.project.board
    signature = board.hook.signature(settings=settings).windowed()
    axes = signature.dynamic_axes()
    words = ", ".join(axes)
    deployable = board.hook.build_deployable(settings=settings, model=load_trained(run))
    reference = ModulePredictor(deployable)
    predictor = read_bundle(run.bundle).load_predictor(board.collect("deploy_targets"))
    for size in (1, 5):
        inputs = signature.example(seed=size, **dict.fromkeys(axes, size))
        expected, found = reference(inputs), predictor(inputs)
        for spec in signature.outputs:
            _require(
                found[spec.name].shape == expected[spec.name].shape,
                f"'{spec.name}' has the shape {found[spec.name].shape} with {words} {size} long",
            )
            error = float(np.abs(found[spec.name] - expected[spec.name]).max(initial=0.0))
            scale = max(1.0, float(np.abs(expected[spec.name]).max(initial=0.0)))
            _require(
                error / scale <= settings.deploy.limits.tensor_error,
                f"'{spec.name}' differs from torch by {error:.2g} with {words} {size} long",
            )


def it_answers_its_example_request(bench: Bench) -> None:
    """`signature().request` goes through decode, infer and encode, twice with the same answer."""
    run = bench.done("verify")
    settings, board = run.project.settings, run.project.board
    request = board.hook.signature(settings=settings).request
    _require(request is not None, "its signature has no example request")
    bundle = read_bundle(run.bundle)
    predictor = bundle.load_predictor(board.collect("deploy_targets"))
    answers = [answer(board, settings, predictor, request, bundle.thresholds) for _ in range(2)]
    _require(len(answers[0]) > 0, "its example request gets no answer")
    _require(answers[0] == answers[1], "the same request gets two different answers")


def it_is_served_as_it_predicts(bench: Bench) -> None:
    """A real server gives the same answers over HTTP, takes every route's example, and ends."""
    from pegboard.serving.process import running_server

    run = bench.done("verify")
    bundle = read_bundle(run.bundle)
    board, settings = run.project.board, run.project.settings
    predictor = bundle.load_predictor(board.collect("deploy_targets"))
    request = bundle.signature.request
    expected = list(answer(board, settings, predictor, request, bundle.thresholds))
    with running_server(
        *("--bundle", run.bundle, "serve.folder=serve-test", "serve.trial=true"),
        folder=run.project.folder,
        log=bench.folder / "server.log",
    ) as server:
        reply = server.ask("POST", "/predict", request)
        _require(reply.status == 200, f"its example is answered with {reply.status}")
        _require(
            reply.json()["answers"] == json.loads(json.dumps(expected)),
            "the server's answers differ from those of 'pegboard predict'",
        )
        _served_golden(server, bundle)
        for payload in (b"{", b"7", b"[]", b"{}", b'"nonsense"'):
            status = server.ask("POST", "/predict", payload).status
            _require(status == 422, f"{payload.decode()} is answered with {status} and not 422")
        document = server.ask("GET", "/openapi.json").json()
        for path, method, body in _examples(document):
            status = server.ask(method, path, body).status
            _require(status == 200, f"{method} {path} answers its own example with {status}")
        _require(server.stop() == 0, "the server does not end in order after SIGTERM")


def _served_golden(server: ServerProcess, bundle: Bundle) -> None:
    """Compare what the Open Inference Protocol gives for a golden record with what torch gave."""
    from pegboard.serving.openinference import ask_tensors

    record = bundle.golden()[0]
    reply, head = ask_tensors(record.inputs)
    answered = server.ask("POST", f"/v2/models/{bundle.solution}/infer", reply, head)
    _require(answered.status == 200, f"a golden record is answered with {answered.status}")
    found = {
        tensor["name"]: np.array(tensor["data"]).reshape(tensor["shape"])
        for tensor in answered.json()["outputs"]
    }
    error = worst(output_errors(bundle.signature, [record.outputs], [found]))
    _require(error.share <= 0.01, f"over HTTP a golden record is answered otherwise: {error.what}")


def _examples(document: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Yield the examples of the paths that the solution adds."""
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            content = operation.get("requestBody", {}).get("content", {})
            example = content.get("application/json", {}).get("example")
            if example is not None and not path.startswith("/v2/"):
                yield path, method.upper(), example


def a_bad_request_is_refused_in_one_sentence(bench: Bench) -> None:
    """Nonsense, and the example request with one part spoilt, raise `RequestError`."""
    # Reading a request may need what was learnt from the data, such as a vocabulary.
    project = bench.done("check").project
    hook, settings = project.board.hook, project.settings
    request = hook.signature(settings=settings).request
    for payload in (None, 7, "nonsense", [], {}, *_spoilt(request)):
        try:
            decoded = hook.decode_request(settings=settings, payload=payload)
        except RequestError:
            continue
        if not _is_free_text(hook, settings, request, payload, decoded):
            raise PluginError(f"decode_request accepts {str(payload)[:200]}")


def _spoilt(request: Any) -> Iterator[Any]:
    """Yield copies of a request in which one top-level part is missing its type, or empty."""
    if not isinstance(request, Mapping):
        return
    for key in request:
        for nonsense in ({"no": "sense"}, "nonsense", ""):
            spoilt = copy.deepcopy(dict(request))
            spoilt[key] = nonsense
            yield spoilt


def _is_free_text(
    hook: Any, settings: Any, request: Any, payload: Any, decoded: Mapping[str, Any]
) -> bool:
    """Whether "nonsense" was read as a text among others, such as a caption.

    It stands where the example has text, fits, and is not read as what the example says.
    """
    if not isinstance(payload, Mapping) or not isinstance(request, Mapping):
        return False
    changed = [key for key in request if payload.get(key) != request[key]]
    if not all(payload.get(key) == "nonsense" and isinstance(request[key], str) for key in changed):
        return False
    found = validate(decoded, hook.signature(settings=settings))
    example = hook.decode_request(settings=settings, payload=request)
    return any(not np.array_equal(found[name], example[name]) for name in found)


def damaged_data_is_named(bench: Bench) -> None:
    """Each file of the data, replaced by noise, gives an error with place and remedy."""
    sound = bench.project()
    paths = prepare(sound, SilentProgress())
    files = [
        file
        for path in paths
        for file in ([path] if path.is_file() else path.rglob("*"))
        if file.is_file()
    ]
    for file in files[:3]:
        project = bench.project(f"damaged-{file.stem}")
        shutil.copytree(sound.settings.data.folder, project.settings.data.folder)
        damaged = project.settings.data.folder / file.relative_to(sound.settings.data.folder)
        damaged.write_bytes(b"\x00\xffnoise" * 20)
        try:
            run_stages(open_run(project, SilentProgress()), "check", SilentProgress())
        except DataError:
            continue
        raise PluginError(f"check_data says nothing about a damaged {file.name}")


def an_unknown_setting_is_named(bench: Bench) -> None:
    """A misspelt key is an error that points to the nearest known one."""
    folder = bench.project().folder
    for key in ("data.tinny", "model.no_such_setting"):
        try:
            open_project(folder, [f"{key}=1"])
        except SettingsError as error:
            _require(key in str(error), f"the error does not name '{key}': {error}")
            continue
        raise PluginError(f"the unknown setting '{key}' is accepted")


CHECKS: dict[str, Callable[[Bench], None]] = {
    check.__name__: check
    for check in (
        describing_it_imports_no_heavy_library,
        its_hooks_are_known_and_complete,
        an_unknown_setting_is_named,
        a_bad_request_is_refused_in_one_sentence,
        its_embedded_data_is_made_once_and_is_sound,
        its_samples_fit_its_signature,
        damaged_data_is_named,
        two_steps_change_its_weights,
        a_killed_training_resumes_to_the_same_weights,
        its_exports_are_verified,
        its_deployable_takes_any_size,
        it_answers_its_example_request,
        it_is_served_as_it_predicts,
    )
}
"""Every check by name, in the order of cost."""
