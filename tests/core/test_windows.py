"""A model that sees windows of requests of any size: signature, export, calibration, bundle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pegboard.bundle import read_bundle
from pegboard.lifecycle import open_run, run_stages
from pegboard.progress import SilentProgress
from pegboard.project import open_project
from pegboard.records import Signature, TensorSpec

SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", "length")),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", "length")),),
    window={"length": 4},
)

HOOKS = '''"""The toy with rows of any length, of which the model sees the first four columns."""

from dataclasses import replace

import numpy as np

import pegboard_toy
from pegboard import hookimpl


@hookimpl(wrapper=True)
def signature():
    own = yield
    x = replace(own.inputs[0], shape=("batch", "length"))
    return replace(own, inputs=(x,), window={"length": 4})


@hookimpl
def infer(predictor, inputs):
    x = inputs["x"]
    halves = [predictor({"x": x[:, :4]}), predictor({"x": x[:, -4:]})]
    return {name: (halves[0][name] + halves[1][name]) / 2 for name in halves[0]}
'''


def test_the_model_itself_takes_the_window_and_any_batch() -> None:
    windowed = SIGNATURE.windowed()
    assert windowed.inputs[0].shape == ("batch", 4)
    assert windowed.outputs[0].shape == ("batch", 4)
    assert windowed.dynamic_axes() == ("batch",)
    assert windowed.windowed() == windowed
    assert windowed.example(batch=3)["x"].shape == (3, 4)


def test_what_is_infers_alone_the_model_neither_takes_nor_returns() -> None:
    spacing = TensorSpec(name="spacing", dtype="float32", shape=("batch", 3), infer_only=True)
    total = TensorSpec(name="total", dtype="float32", shape=("batch",), infer_only=True)
    wide = Signature(
        inputs=(*SIGNATURE.inputs, spacing),
        outputs=(*SIGNATURE.outputs, total),
        window={"length": 4},
    )
    assert wide.windowed() == SIGNATURE.windowed()


def test_a_model_of_single_records_has_no_batch_axis() -> None:
    single = Signature(
        inputs=(TensorSpec(name="points", dtype="float32", shape=("batch", "points", 4)),),
        outputs=(TensorSpec(name="heat", dtype="float32", shape=("batch", 3)),),
        is_single=True,
    )
    assert single.windowed().inputs[0].shape == ("points", 4)
    assert single.windowed().outputs[0].shape == (3,)
    assert single.windowed().windowed() == single.windowed()


def test_without_a_window_nothing_changes() -> None:
    plain = Signature(inputs=SIGNATURE.inputs, outputs=SIGNATURE.outputs)
    assert plain.windowed() == plain


@pytest.mark.slow
def test_a_bundle_takes_any_size_and_its_models_windows(make_project: Callable[..., Path]) -> None:
    folder = make_project(
        'solution = "toy"\n[train]\nmax_steps = 2\nepochs = 1\n[deploy]\ngolden = 3\n'
        'targets = ["onnx", "torch"]\ncompress = ["int8-static"]\n',
        hooks=HOOKS,
    )
    run = open_run(open_project(folder), SilentProgress())
    facts = run_stages(run, "verify", SilentProgress())
    assert not facts["compress"]["failed"]
    bundle = read_bundle(run.bundle)
    assert bundle.signature.window == {"length": 4}
    predictor = bundle.load_predictor(run.project.board.collect("deploy_targets"))
    assert len(predictor({"x": np.zeros((5, 4), np.float32)})["probability"]) == 5
