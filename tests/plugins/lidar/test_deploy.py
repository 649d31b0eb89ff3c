"""Requests and answers: scans in, objects out, and no training library between."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from pegboard.errors import RequestError
from pegboard.records import Array
from pegboard.signatures import validate
from pegboard_lidar import deploy
from pegboard_lidar.decoding import AXIS, HEADING, HEIGHT, OFFSET, SIZE
from pegboard_lidar.settings import LidarSettings

Small = Callable[..., LidarSettings]

SCAN = np.array(
    [[1.0, 2.0, -1.5, 0.0], [4.25, -3.0, 0.5, 1.0], [10.5, 0.25, -0.75, 0.0]], dtype=np.float32
)


@pytest.fixture
def settings(small: Small) -> LidarSettings:
    return small()


# --- Requests -------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [3, 4])
def test_points_come_with_reflectance_or_without(settings: LidarSettings, columns: int) -> None:
    found = deploy.decode(settings, {"points": SCAN[:, :columns].tolist()})["points"]
    assert found.dtype == np.float32
    expected = SCAN if columns == 4 else SCAN * np.float32([1, 1, 1, 0])
    assert found.tolist() == [expected.tolist()]


def pcd() -> bytes:
    rows = "\n".join(" ".join(map(str, row)) for row in SCAN.tolist())
    header = "VERSION .7\nFIELDS x y z intensity\nSIZE 4 4 4 4\nTYPE F F F F\nCOUNT 1 1 1 1\n"
    return f"{header}WIDTH 3\nHEIGHT 1\nPOINTS 3\nDATA ascii\n{rows}\n".encode()


def ply() -> bytes:
    import plyfile

    kinds = [(name, "f4") for name in ("x", "y", "z", "intensity")]
    rows = np.array([tuple(row) for row in SCAN.tolist()], dtype=kinds)
    stream = io.BytesIO()
    plyfile.PlyData([plyfile.PlyElement.describe(rows, "vertex")]).write(stream)
    return stream.getvalue()


def las(*, is_packed: bool = False) -> bytes:
    import laspy

    cloud = laspy.create(point_format=0, file_version="1.2")
    cloud.header.scales = [0.001, 0.001, 0.001]
    cloud.x, cloud.y, cloud.z = SCAN[:, 0], SCAN[:, 1], SCAN[:, 2]
    cloud.intensity = (SCAN[:, 3] * 65535).astype(np.uint16)
    stream = io.BytesIO()
    cloud.write(stream, do_compress=is_packed)
    return stream.getvalue()


def numpy_file(*, is_archive: bool = False) -> bytes:
    stream = io.BytesIO()
    if is_archive:
        np.savez(stream, points=SCAN)
    else:
        np.save(stream, SCAN)
    return stream.getvalue()


FILES: Mapping[str, Callable[[], bytes]] = {
    "bin": SCAN.tobytes,
    "pcd.bin": lambda: np.c_[SCAN * np.float32([1, 1, 1, 255]), np.zeros(3, "<f4")].tobytes(),
    "pcd": pcd,
    "ply": ply,
    "las": las,
    "laz": lambda: las(is_packed=True),
    "npy": numpy_file,
    "npz": lambda: numpy_file(is_archive=True),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_every_format_is_read(settings: LidarSettings, name: str) -> None:
    request = {"scan": base64.b64encode(FILES[name]()).decode(), "format": name}
    found = deploy.decode(settings, request)["points"]
    assert found.shape == (1, 3, 4)
    np.testing.assert_allclose(found[0], SCAN, atol=1e-3)


def test_points_that_are_not_finite_are_left_out(settings: LidarSettings) -> None:
    holes = np.insert(SCAN, 1, [[np.nan] * 4, [np.inf, 0, 0, 0]], axis=0)
    as_file = {"scan": base64.b64encode(holes.tobytes()).decode(), "format": "bin"}
    as_list = {"points": [[None, 0, 0, 0], *SCAN.tolist()]}
    for request in (as_file, as_list):
        assert deploy.decode(settings, request)["points"].tolist() == [SCAN.tolist()]


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        ([], "the request is no object"),
        ({}, "neither 'points' nor 'scan' and 'format'"),
        ({"points": [[1, 2, 3]], "scan": "AAAA"}, "neither 'points' nor 'scan' and 'format'"),
        ({"scan": "AAAA"}, "neither 'points' nor 'scan' and 'format'"),
        ({"points": "AAAA"}, "'points' is no list of points"),
        ({"points": []}, "'points' is no list of points"),
        ({"points": [[1, 2]]}, "'points' is no list of points"),
        ({"points": [[1, 2, 3], [1, 2, 3, 4]]}, "'points' is no list of points"),
        ({"points": [["SECRET", 2, 3]]}, "'points' is no list of points"),
        ({"points": [["1", "2", "3"]]}, "'points' is no list of points"),
        ({"points": [{"x": 1}]}, "'points' is no list of points"),
        ({"points": [[10**400, 2, 3]]}, "'points' is no list of points"),
        ({"points": [[1e300, 2, 3]]}, "the scan has no point"),
        ({"points": [[None, None, None]]}, "the scan has no point"),
        ({"scan": 7, "format": "bin"}, "'scan' or 'format' is no text"),
        ({"scan": "AAAA", "format": None}, "'scan' or 'format' is no text"),
        ({"scan": "not base64!", "format": "bin"}, "'scan' is not base64"),
        ({"scan": "U0VDUkVU", "format": "bin"}, "6 bytes are no whole number of points"),
        ({"scan": "", "format": "bin"}, "the scan has no point"),
        ({"scan": "AAAA", "format": "xyz"}, "'xyz' is no format of scans"),
        *(
            ({"scan": "U0VDUkVU", "format": name}, "'scan'")
            for name in ("pcd", "ply", "las", "laz", "npy", "npz")
        ),
    ],
)
def test_a_bad_request_is_one_sentence_that_repeats_nothing(
    settings: LidarSettings, payload: Any, words: str
) -> None:
    with pytest.raises(RequestError) as caught:
        deploy.decode(settings, payload)
    said = str(caught.value)
    assert words in said
    assert "SECRET" not in said
    assert "\n" not in said
    assert caught.value.remedy


def test_the_example_request_fits_the_signature(settings: LidarSettings) -> None:
    signature = deploy.signature(settings)
    assert signature.is_single
    inputs = deploy.decode(settings, signature.request)
    validate(inputs, signature)
    assert inputs["points"].shape[1] > 20


# --- Inference ------------------------------------------------------------------------------------


def test_scans_are_run_one_by_one_and_come_back_in_their_order() -> None:
    shapes = []

    def count(inputs: Mapping[str, Array]) -> dict[str, Array]:
        (points,) = inputs.values()
        shapes.append(points.shape)
        known = np.isfinite(points).all(axis=1).sum()
        return {"heat": np.full((3, 2, 2), known), "boxes": np.full((10, 2, 2), -known)}

    batch = np.full((3, 5, 4), np.nan, dtype=np.float32)  # As `collate` pads it.
    for place, length in enumerate((2, 5, 1)):
        batch[place, :length] = 0.5
    outputs = deploy.infer(count, {"points": batch})
    assert shapes == [(5, 4)] * 3
    assert outputs["heat"][:, 0, 0, 0].tolist() == [2, 5, 1]
    assert outputs["boxes"].shape == (3, 10, 2, 2)


# --- Answers --------------------------------------------------------------------------------------


def maps(*objects: tuple[int, int, int, float], count: int = 1) -> dict[str, Array]:
    """Return maps with cars of 4 x 2 x 1.5 m that look to the left: class, row, column, score."""
    outputs = {
        "heat": np.zeros((count, 3, 16, 16), dtype=np.float32),
        "boxes": np.zeros((count, 10, 16, 16), dtype=np.float32),
    }
    for label, row, column, score in objects:
        outputs["heat"][0, label, row, column] = score
        told = outputs["boxes"][0, :, row, column]
        told[OFFSET], told[HEIGHT] = (0.25, -0.25), -0.8
        told[SIZE] = np.log([4.0, 2.0, 1.5])
        told[HEADING], told[AXIS] = (0.0, 1.0), (-1.0, 0.0)
    return outputs


def test_an_answer_says_what_was_found_and_where(settings: LidarSettings) -> None:
    outputs = maps((0, 4, 8, 0.9), (0, 12, 3, 0.6), (2, 8, 8, 0.75), count=2)
    first, second = deploy.encode(settings, outputs, {})
    assert first["decision"] == "2 Car, 1 Cyclist"
    assert [one["class"] for one in first["objects"]] == ["Car", "Cyclist", "Car"]
    assert first["objects"][0] == {
        "class": "Car",
        "score": 0.9,
        "box": {
            "x": 4.75,
            "y": 0.25,
            "z": -0.8,
            "length": 4.0,
            "width": 2.0,
            "height": 1.5,
            "yaw": 1.571,
        },
    }
    assert second == {"decision": "nothing found", "objects": []}


def test_each_class_has_a_score_from_which_on_it_is_answered(settings: LidarSettings) -> None:
    outputs = maps((0, 4, 8, 0.5), (1, 12, 3, 0.5))
    (answer,) = deploy.encode(settings, outputs, {"score_Car": 0.4, "score_Pedestrian": 0.6})
    assert answer["decision"] == "1 Car"


def test_velocity_is_answered_where_the_model_tells_it(small: Small) -> None:
    outputs = maps((0, 4, 8, 0.9))
    outputs["boxes"] = np.concatenate(
        [outputs["boxes"], np.full((1, 1, 16, 16), 7.5), np.full((1, 1, 16, 16), -1.0)], axis=1
    )
    settings = small(velocity=True)
    assert deploy.signature(settings).outputs[1].shape == ("batch", 12, 16, 16)
    (answer,) = deploy.encode(settings, outputs, {})
    assert answer["objects"][0]["velocity"] == [7.5, -1.0]


# --- What it runs on ------------------------------------------------------------------------------


def test_serving_imports_neither_torch_nor_open3d() -> None:
    code = """
import sys
from pegboard_lidar import decoding, deploy, hooks
from pegboard_lidar.settings import LidarSettings
import numpy as np
settings = hooks.settings_type()()
signature = hooks.signature(settings)
inputs = hooks.decode_request(settings, signature.request)
seen = signature.windowed()
outputs = {one.name: np.full(one.shape, 0.5 if one.name == "heat" else 0.0, dtype=np.float32)
           for one in seen.outputs}
outputs["heat"][:, 1:, 1:] = 0
found = hooks.infer(lambda inputs: outputs, inputs)
assert hooks.encode_answer(settings, found, {})[0]["objects"]
heavy = {"torch", "open3d", "matplotlib", "onnx"} & set(sys.modules)
assert not heavy, heavy
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
