from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import laspy
import numpy as np
import plyfile
import pytest

from pegboard.errors import DataError
from pegboard_lidar import scans

KITTI = Path("lidar/kitti_object_mini/training")


def points(count: int = 50) -> Any:
    generator = np.random.default_rng(0)
    return np.hstack([generator.normal(0, 20, (count, 3)), generator.random((count, 1))]).astype(
        np.float32
    )


def pcd(fields: str, kinds: str, sizes: str, count: int, data: str, body: bytes) -> bytes:
    names = fields.split()
    header = [
        "# .PCD v0.7 - Point Cloud Data file format",
        "VERSION 0.7",
        f"FIELDS {fields}",
        f"SIZE {sizes}",
        f"TYPE {kinds}",
        f"COUNT {' '.join('1' for _ in names)}",
        f"WIDTH {count}",
        "HEIGHT 1",
        "VIEWPOINT 0 0 0 1 0 0 0",
        f"POINTS {count}",
        f"DATA {data}",
    ]
    return "\n".join(header).encode() + b"\n" + body


def test_a_real_kitti_scan_is_read_as_it_is_stored(test_data: Path) -> None:
    path = test_data / KITTI / "velodyne" / "000000.bin"
    if not path.is_file():
        pytest.skip(f"no KITTI frames at {path}")
    read = scans.read_scan(path)
    assert read.shape == (115_384, 4)
    assert read.dtype == np.float32
    assert read.tobytes() == path.read_bytes()
    assert 0 <= read[:, 3].min() <= read[:, 3].max() <= 1


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    scans.write_bin(tmp_path / "000000.bin", points())
    assert np.array_equal(scans.read_scan(tmp_path / "000000.bin"), points())
    assert [path.name for path in tmp_path.iterdir()] == ["000000.bin"]


def test_a_nuscenes_sweep_loses_its_ring_and_has_its_intensity_scaled(tmp_path: Path) -> None:
    stored = np.array([[1, 2, 3, 255, 31], [4, 5, 6, 51, 7]], dtype=np.float32)
    (tmp_path / "sweep.pcd.bin").write_bytes(stored.tobytes())
    read = scans.read_scan(tmp_path / "sweep.pcd.bin")
    assert np.allclose(read, [[1, 2, 3, 1.0], [4, 5, 6, 0.2]])
    assert scans.name_of(tmp_path / "sweep.pcd.bin") == "sweep"


def test_pcd_fields_may_come_in_any_order_and_type() -> None:
    kind = np.dtype([("intensity", "u1"), ("z", "<f4"), ("_", "<u2"), ("x", "<f8"), ("y", "<f4")])
    table = np.zeros(2, dtype=kind)
    table["x"], table["y"], table["z"], table["intensity"] = [1, 4], [2, 5], [3, 6], [255, 51]
    content = pcd("intensity z _ x y", "U F U F F", "1 4 2 8 4", 2, "binary", table.tobytes())
    assert np.allclose(
        scans.scan_from_bytes(content, "pcd"), [[1, 2, 3, 1.0], [4, 5, 6, 0.2]], atol=1e-6
    )


def test_an_ascii_pcd_keeps_its_nan_points_until_they_are_dropped() -> None:
    body = b"1 2 3 128\nnan nan nan 0\n4 5 6 255\n"
    content = pcd("x y z reflectivity", "F F F U", "4 4 4 1", 3, "ascii", body)
    read = scans.scan_from_bytes(content, "pcd")
    assert read.shape == (3, 4)
    assert np.isnan(read[1, :3]).all()
    assert np.allclose(scans.finite(read), [[1, 2, 3, 128 / 255], [4, 5, 6, 1]])


def test_reflectance_of_floats_is_scaled_by_the_largest() -> None:
    def read(intensity: list[float]) -> Any:
        table = np.array([[0, 0, 0, value] for value in intensity], dtype="<f4")
        content = pcd(
            "x y z intensity", "F F F F", "4 4 4 4", len(table), "binary", table.tobytes()
        )
        return scans.scan_from_bytes(content, "pcd")[:, 3]

    assert np.allclose(read([0.5, 1.0]), [0.5, 1.0])
    assert np.allclose(read([51.0, 255.0]), [0.2, 1.0])
    assert np.allclose(read([6553.5, 65535.0]), [0.1, 1.0])


@pytest.mark.parametrize(("ascii_", "compressed"), [(True, False), (False, False), (False, True)])
def test_open3d_and_we_read_the_same_from_pcd(
    tmp_path: Path, ascii_: bool, compressed: bool
) -> None:
    open3d = pytest.importorskip("open3d")
    # Values that repeat, so that references of the compression overlap what they copy.
    made = np.repeat(points(200)[:, :3], 5, axis=0)
    made[300:400] = 0
    cloud = open3d.t.geometry.PointCloud(open3d.core.Tensor(made))
    cloud.point["intensity"] = open3d.core.Tensor(np.repeat(points(200)[:, 3:], 5, axis=0))
    path = tmp_path / "cloud.pcd"
    open3d.t.io.write_point_cloud(str(path), cloud, write_ascii=ascii_, compressed=compressed)
    theirs = open3d.t.io.read_point_cloud(str(path))
    ours = scans.read_scan(path)
    assert ours.shape == (1000, 4)
    assert np.array_equal(ours[:, :3], theirs.point.positions.numpy())
    assert np.array_equal(ours[:, 3:], theirs.point["intensity"].numpy())
    if not ascii_:
        assert np.array_equal(ours[:, :3], made)
    assert (b"binary_compressed" in path.read_bytes()) is compressed


@pytest.mark.parametrize(("text", "order"), [(True, "="), (False, "<"), (False, ">")])
def test_every_kind_of_ply_is_read(tmp_path: Path, text: bool, order: Any) -> None:
    kinds = [("intensity", "f4"), ("y", "f8"), ("x", "f4"), ("z", "f4")]
    table = np.zeros(50, dtype=kinds)
    for place, name in enumerate(["x", "y", "z", "intensity"]):
        table[name] = points()[:, place]
    element = plyfile.PlyElement.describe(table, "vertex")
    plyfile.PlyData([element], text=text, byte_order=order).write(tmp_path / "cloud.ply")
    assert np.allclose(scans.read_scan(tmp_path / "cloud.ply"), points(), atol=1e-5)


@pytest.mark.parametrize("ending", ["las", "laz"])
def test_las_is_read_with_its_scale_and_offset(tmp_path: Path, ending: str) -> None:
    header = laspy.LasHeader(point_format=1, version="1.2")
    header.scales, header.offsets = np.array([0.001] * 3), np.array([10.0, 0.0, -5.0])
    las = laspy.LasData(header)
    las.x, las.y, las.z = points()[:, :3].T.astype(np.float64)
    las.intensity = (points()[:, 3] * 65535).astype(np.uint16)
    path = tmp_path / f"cloud.{ending}"
    las.write(str(path))
    assert np.allclose(scans.read_scan(path), points(), atol=6e-4)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"LAS content is damaged|cut off"):
        scans.read_scan(path)


def test_numpy_arrays_have_three_or_four_columns(tmp_path: Path) -> None:
    np.save(tmp_path / "three.npy", points()[:, :3].astype(np.float64))
    np.savez(tmp_path / "four.npz", points=points(), time=np.zeros(3))
    assert np.array_equal(scans.read_scan(tmp_path / "three.npy")[:, :3], points()[:, :3])
    assert not scans.read_scan(tmp_path / "three.npy")[:, 3].any()
    assert np.array_equal(scans.read_scan(tmp_path / "four.npz"), points())
    np.save(tmp_path / "two.npy", points()[:, :2])
    with pytest.raises(DataError, match=r"its array is float32 \(50, 2\) .*two.npy"):
        scans.read_scan(tmp_path / "two.npy")


def test_a_pickle_in_a_numpy_file_is_not_opened() -> None:
    stream = io.BytesIO()
    np.save(stream, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="NumPy content is damaged"):
        scans.scan_from_bytes(stream.getvalue(), "npy")


COMPRESSED = struct.pack("<II", 8, 24)
DAMAGED = {
    "no whole number of points": ("bin", b"\0" * 30),
    "let its name end in .pcd.bin": ("bin", b"\0" * 20),
    "of 5 float32": ("pcd.bin", b"\0" * 21),
    "no PCD header": ("pcd", b"hello"),
    "header is damaged": ("pcd", pcd("x y z", "F F", "4 4 4", 1, "binary", b"")),
    "no x, y but z": ("pcd", pcd("z", "F", "4", 1, "binary", b"\0" * 4)),
    "0 bytes of points, not 24": ("pcd", pcd("x y z", "F F F", "4 4 4", 2, "binary", b"")),
    "not 2 lines": ("pcd", pcd("x y z", "F F F", "4 4 4", 2, "ascii", b"1 2 3\n")),
    "are not numbers": ("pcd", pcd("x y z", "F F F", "4 4 4", 1, "ascii", b"1 2 a\n")),
    "compressed points are damaged": (
        "pcd",
        pcd("x y z", "F F F", "4 4 4", 2, "binary_compressed", COMPRESSED + b"\xff" * 8),
    ),
    "24 bytes of points in 12": (
        "pcd",
        pcd("x y z", "F F F", "4 4 4", 2, "binary_compressed", COMPRESSED + b"\0" * 4),
    ),
    "PLY content is damaged": ("ply", b"ply\nformat binary_little_endian 1.0\n"),
    "LAS content is damaged": ("las", b"LASF"),
    "NumPy content is damaged": ("npz", b"PK\3\4"),
    "no format of scans": ("txt", b""),
}


@pytest.mark.parametrize("words", DAMAGED)
def test_a_damaged_scan_is_one_sentence(words: str) -> None:
    scan_format, content = DAMAGED[words]
    with pytest.raises(DataError, match=words) as caught:
        scans.scan_from_bytes(content, scan_format, where="frame 7")
    assert "frame 7" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize("ending", ["pcd", "ply", "bin"])
def test_a_scan_that_was_cut_off_anywhere_is_refused_or_shorter(ending: str) -> None:
    whole = {
        "pcd": pcd("x y z", "F F F", "4 4 4", 50, "binary", points()[:, :3].tobytes()),
        "ply": _ply(points()),
        "bin": points().tobytes(),
    }[ending]
    for length in range(0, len(whole), 7):
        try:
            read = scans.scan_from_bytes(whole[:length], ending)
        except DataError:
            continue
        assert ending == "bin"  # Which has no header to tell.
        assert len(read) == length // 16


def _ply(made: Any) -> bytes:
    table = np.array(
        [tuple(row) for row in made], dtype=[(name, "f4") for name in "xyz"] + [("i", "f4")]
    )
    stream = io.BytesIO()
    plyfile.PlyData([plyfile.PlyElement.describe(table, "vertex")]).write(stream)
    return stream.getvalue()


def test_an_empty_scan_has_no_points() -> None:
    assert scans.scan_from_bytes(b"", "bin").shape == (0, 4)
    content = pcd("x y z", "F F F", "4 4 4", 0, "ascii", b"")
    assert scans.scan_from_bytes(content, "pcd").shape == (0, 4)


def test_a_scan_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be read: No such file.*none.bin"):
        scans.read_scan(tmp_path / "none.bin")
