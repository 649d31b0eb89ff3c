from __future__ import annotations

from collections.abc import Callable

import pytest

from pegboard import BundleError, MissingExtraError, PegboardError, SettingsError
from pegboard.bundle import read_bundle
from pegboard.progress import SilentProgress
from pegboard.project import open_project
from pegboard.records import Evaluation
from pegboard.runs import Run
from pegboard.serving.deployment import deploy, resolve_settings
from pegboard.settings import Sources
from pegboard.stages import export, verify
from pegboard.stages.evaluate import write_evaluation

TARGET = """
import numpy as np
from pegboard import hookimpl
from pegboard.records import Target


def write(request):
    path = request.folder / "model.txt"
    path.write_text("a model")
    return path


def load(path, signature):
    from pegboard.bundle import read_golden

    known = read_golden(path.parents[3] / "golden.npz")
    table = {record.inputs["x"].tobytes(): record.outputs["probability"] for record in known}

    def predict(inputs):
        if len(inputs["x"]) > LARGEST:
            return {"probability": np.zeros(len(inputs["x"]), dtype=np.float32)}
        return {"probability": np.concatenate([table[x.tobytes()] for x in inputs["x"]]) + ADDED}

    return predict


def fail(request):
    raise RuntimeError("the compiler is out of ink\\nand so on")


@hookimpl
def deploy_targets():
    return [
        Target(name="table", unavailable=lambda: None, export=write, load=load),
        Target(name="inkless", unavailable=lambda: None, export=fail, load=load),
        Target(
            name="absent",
            unavailable=lambda: "the driver is missing: run 'apt install driver'",
            export=write,
            load=load,
        ),
    ]
"""


def copy_with_hooks(run_copy: Callable[..., Run], text: str, *overrides: str) -> Run:
    run = run_copy()
    (run.project.folder / "hooks.py").write_text(text)
    return Run(project=open_project(run.project.folder, overrides), folder=run.folder)


def test_facts_say_how_large_and_how_exact_each_model_is(run_copy: Callable[..., Run]) -> None:
    facts = export.run(run_copy("deploy.targets=['torch']"), SilentProgress())
    assert facts["golden"] == 16
    assert facts["candidates"]["torch/fp32"]["bytes"] > 1000
    assert facts["candidates"]["torch/fp32"]["tensor_error"] < 1e-5


def test_the_preferred_target_is_chosen_until_something_is_measured(
    run_copy: Callable[..., Run],
) -> None:
    run = run_copy("deploy.targets=['torch', 'torch']")
    export.run(run, SilentProgress())
    bundle = read_bundle(run.bundle)
    assert [candidate.name for candidate in bundle.candidates] == ["torch/fp32"]
    assert bundle.chosen_name == "torch/fp32"


def test_an_unknown_target_names_the_nearest_one(run_copy: Callable[..., Run]) -> None:
    with pytest.raises(SettingsError, match=r"unknown target 'onx' \(deploy.targets\).*'onnx'"):
        export.run(run_copy("deploy.targets=['onx']"), SilentProgress())


def test_a_target_that_cannot_be_used_here_says_what_to_do(run_copy: Callable[..., Run]) -> None:
    run = copy_with_hooks(run_copy, TARGET, "deploy.targets=['absent']")
    with pytest.raises(
        MissingExtraError, match=r"'absent' cannot be used here.*apt install driver"
    ):
        export.run(run, SilentProgress())


def test_a_target_that_breaks_is_named_with_its_cause(run_copy: Callable[..., Run]) -> None:
    run = copy_with_hooks(run_copy, TARGET, "deploy.targets=['inkless']")
    with pytest.raises(PegboardError) as caught:
        export.run(run, SilentProgress())
    sentence = "the export to 'inkless' failed: the compiler is out of ink (Scorer)"
    assert sentence in str(caught.value)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_an_export_that_computes_something_else_stops_with_the_figure(
    run_copy: Callable[..., Run],
) -> None:
    table = TARGET.replace("ADDED", "0.25").replace("LARGEST", "100")
    run = copy_with_hooks(run_copy, table, "deploy.targets=['torch', 'table']")
    before = read_bundle(run.bundle)
    with pytest.raises(BundleError, match=r"'table/fp32' does not compute what.*off by 0.25"):
        export.run(run, SilentProgress())
    assert read_bundle(run.bundle) == before
    assert [path.name for path in run.folder.iterdir() if "partial" in path.name] == []


def test_an_export_is_checked_at_a_second_batch_size_too(run_copy: Callable[..., Run]) -> None:
    table = TARGET.replace("ADDED", "0").replace("LARGEST", "1")
    run = copy_with_hooks(run_copy, table, "deploy.targets=['table']")
    with pytest.raises(BundleError, match=r"'table/fp32' does not compute what torch does"):
        export.run(run, SilentProgress())


VARIABLE = """
import numpy as np
from pegboard import hookimpl
from pegboard.records import Sample, Signature, TensorSpec


class Clouds:
    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        sample = self.data[index]
        return Sample(inputs={"x": np.tile(sample.inputs["x"], (1 + index % 3, 1))})


@hookimpl(wrapper=True)
def load_split(settings, split):
    return Clouds((yield))


@hookimpl
def signature():
    return Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", "points", 4)),),
        outputs=(TensorSpec(name="probability", dtype="float32", shape=("batch", "points")),),
    )
"""


def test_records_of_different_sizes_are_exported_one_by_one(run_copy: Callable[..., Run]) -> None:
    run = copy_with_hooks(run_copy, VARIABLE, "deploy.targets=['torch']", "train.batch_size=1")
    empty = Evaluation(name="model", split="test", rows={}, thresholds={}, metrics=[])
    write_evaluation(run, empty, [])
    export.run(run, SilentProgress())
    shapes = {record.outputs["probability"].shape for record in read_bundle(run.bundle).golden()}
    assert shapes == {(1, 1), (1, 2), (1, 3)}


def test_a_second_export_replaces_the_bundle_whole(run_copy: Callable[..., Run]) -> None:
    run = run_copy("deploy.targets=['torch']", "deploy.golden=3")
    stray = run.bundle / "models" / "onnx" / "old"
    stray.mkdir()
    export.run(run, SilentProgress())
    assert not stray.exists()
    assert len(read_bundle(run.bundle).golden()) == 3
    assert [path.name for path in (run.bundle / "models").iterdir()] == ["torch"]


CARRYING = """
from pegboard import RequestError, hookimpl
from pegboard.settings import ModelSettings, ProjectPath
from pegboard_toy import ToySettings


class WithWords(ModelSettings):
    hidden: int = 16
    dropout: float = 0.1
    words: ProjectPath | None = None


class SettingsWithWords(ToySettings):
    model: WithWords = WithWords()


@hookimpl
def settings_type():
    return SettingsWithWords


@hookimpl
def bundle_files(settings):
    return {"model.words": settings.data.folder / "words.txt"}


@hookimpl(wrapper=True)
def encode_answer(settings):
    answers = yield
    words = settings.model.words
    return [{**one, "word": words.read_text() if words else "none"} for one in answers]
"""


def test_a_file_that_answering_needs_goes_with_the_bundle(run_copy: Callable[..., Run]) -> None:
    run = copy_with_hooks(run_copy, CARRYING, "deploy.targets=['torch']")
    words = run.project.settings.data.folder / "words.txt"
    with pytest.raises(BundleError, match=r"file of 'model.words' is missing.*words.txt"):
        export.run(run, SilentProgress())
    words.write_text("carried")
    export.run(run, SilentProgress())
    verify.run(run, SilentProgress())
    words.write_text("of another time")
    bundle = read_bundle(run.bundle)
    assert "files/model.words/words.txt" in bundle.files
    board = run.project.board
    settings = resolve_settings(board, bundle, Sources(), run.project.folder)
    assert settings.model.words == run.bundle / "files/model.words/words.txt"  # type: ignore[attr-defined]
    served = deploy(board, run.bundle, sources=Sources(), root=run.project.folder).answerer
    assert served(bundle.signature.request)[0]["word"] == "carried"


def test_a_carried_file_that_was_changed_is_refused(run_copy: Callable[..., Run]) -> None:
    run = copy_with_hooks(run_copy, CARRYING, "deploy.targets=['torch']")
    (run.project.settings.data.folder / "words.txt").write_text("carried")
    export.run(run, SilentProgress())
    (run.bundle / "files/model.words/words.txt").write_text("changed")
    with pytest.raises(BundleError, match=r"checksum of 'files/model.words/words.txt' is wrong"):
        read_bundle(run.bundle)
