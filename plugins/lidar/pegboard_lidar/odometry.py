"""Where the scanner went: consecutive scans laid on one another (ICP), and how well that went.

A pose is (4, 4): it takes points of the scanner's frame into that of the first scan.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from pegboard.errors import DataError
from pegboard.files import atomic_write
from pegboard.plotting import PALETTE, drawing
from pegboard.records import Array
from pegboard_lidar.scans import finite
from pegboard_lidar.steps import cloud_of
from pegboard_lidar.system import require_extra, require_open3d

Method = Literal["icp", "kiss"]

NEAREST, FARTHEST = 3.0, 80.0
"""Metres between which points are taken: nearer ones are of the vehicle itself."""

VOXEL = 0.7
"""Metres of a voxel that keeps one point."""

NORMALS = 1.5
"""Metres around a point whose neighbours say how its surface is turned."""

KEPT = 10
"""Scans that a scan is laid on: of a single one the rings would be matched, not the surfaces."""

STAGES = ((2.0, 15), (0.6, 15))
"""Farthest points that are matched, in metres, and most iterations: first coarse, then fine."""

DIGITS = 9
"""Decimals of a pose that are kept."""

KISS_VOXEL = 0.4
"""Metres of KISS-ICP's voxels; its own of 1 m lose generated drives."""

KERNEL = 0.2
"""Metres off at which a point counts half as much, or less: others move on their own."""

LENGTHS = (100, 200, 300, 400, 500, 600, 700, 800)
"""Metres of KITTI's sub-sequences."""


def odometry(scans: Iterable[Array], method: Method = "icp") -> Array:
    """Find the pose of each scan.

    Args:
        scans: T scans (N, >=3) in order, points that are not finite among them; each may have its
            own number of points.
        method: `icp`, Open3D's registration on the last scans, or `kiss`, KISS-ICP (Vizzo et al.,
            RA-L 2023).

    Returns:
        float64 (T, 4, 4); the first is the identity.

    Raises:
        MissingExtraError: A library that it needs cannot be imported.
        DataError: A scan has too few points to be laid on another.
    """
    registration: _Registration = _Kiss() if method == "kiss" else _Icp()
    poses = []
    for number, scan in enumerate(scans):
        points = _near(scan)
        if len(points) < 100:
            raise DataError(
                f"{len(points)} points between {NEAREST:g} and {FARTHEST:g} m are too few to find "
                "out how it moved",
                where=f"scan {number + 1}",
                remedy="leave it out",
            )
        poses.append(registration.add(points))
    return np.stack(poses) if poses else np.zeros((0, 4, 4))


def _near(scan: Array) -> Array:
    points = finite(np.asarray(scan)[:, :3]).astype(np.float64)
    distance = np.linalg.norm(points, axis=1)
    near: Array = points[(distance > NEAREST) & (distance < FARTHEST)]
    return near


class _Registration(Protocol):
    """Lays scan after scan on those before."""

    def add(self, points: Array) -> Array:
        """Return the pose (4, 4) of the next scan (N, 3)."""


# --- Open3D ---------------------------------------------------------------------------------------


class _Icp:
    """Point to plane (Chen and Medioni, 1992) on the last scans, with a robust kernel.

    It begins where the scanner would be if it had gone on as before.
    """

    def __init__(self) -> None:
        require_open3d()
        self.poses: list[Array] = []
        self.kept: list[Any] = []

    def add(self, points: Array) -> Array:
        cloud = _described(points)
        pose = np.eye(4) if not self.poses else self._registered(cloud)
        self.poses.append(pose)
        self.kept = [*self.kept, cloud.transform(pose)][-KEPT:]
        return pose

    def _registered(self, cloud: Any) -> Array:
        pose, target = self._expected(), _joined(self.kept)
        for distance, iterations in STAGES:
            pose = _register(cloud, target, pose, distance, iterations)
        return pose

    def _expected(self) -> Array:
        if len(self.poses) < 2:
            return self.poses[-1]
        step = np.linalg.inv(self.poses[-2]) @ self.poses[-1]
        return np.asarray(self.poses[-1] @ step)


def _described(points: Array) -> Any:
    """Return few points with the normals of their surfaces, as Open3D's cloud."""
    import open3d

    cloud = cloud_of(points).voxel_down_sample(VOXEL)
    cloud.estimate_normals(open3d.geometry.KDTreeSearchParamHybrid(NORMALS, 20))
    cloud.orient_normals_towards_camera_location()
    return cloud


def _joined(clouds: Sequence[Any]) -> Any:
    import open3d

    joined = open3d.geometry.PointCloud()
    for cloud in clouds:
        joined += cloud
    return joined.voxel_down_sample(VOXEL / 2)


def _register(cloud: Any, target: Any, start: Array, distance: float, iterations: int) -> Array:
    import open3d

    registration = open3d.pipelines.registration
    kernel = registration.GMLoss(KERNEL)
    result = registration.registration_icp(
        cloud,
        target,
        distance,
        start,
        registration.TransformationEstimationPointToPlane(kernel),
        registration.ICPConvergenceCriteria(max_iteration=iterations),
    )
    return _rounded(np.array(result.transformation))


def _rounded(pose: Array) -> Array:
    """Drop what differs from run to run: Open3D's threads add up in another order every time."""
    pose = np.round(pose, DIGITS)
    # Made a rotation again: KISS-ICP ends the process where it is off by 1e-10.
    left, _, right = np.linalg.svd(pose[:3, :3])
    pose[:3, :3] = left @ right
    return pose


# --- KISS-ICP -------------------------------------------------------------------------------------


class _Kiss:
    """KISS-ICP; scans are taken as already made straight.

    It expects a drive to begin at rest. Here it may begin anywhere: Open3D finds the first step.
    """

    def __init__(self) -> None:
        require_extra("kiss_icp", "odometry")
        from kiss_icp.config import load_config
        from kiss_icp.kiss_icp import KissICP

        config = load_config(None)
        config.data.min_range, config.data.max_range = NEAREST, FARTHEST
        config.data.deskew = False
        config.mapping.voxel_size = KISS_VOXEL
        # Threads would add up in another order every time.
        config.registration.max_num_threads = 1
        self.pipeline: Any = KissICP(config)
        self.first: _Icp | None = _Icp()

    def add(self, points: Array) -> Array:
        if self.first is not None:
            pose = self.first.add(points)
            if len(self.first.poses) == 2:
                self.pipeline.last_delta, self.first = pose, None
        self.pipeline.register_frame(points, np.zeros(0))
        return np.array(self.pipeline.last_pose)


# --- Files ----------------------------------------------------------------------------------------


def write_poses(path: Path, poses: Array) -> None:
    """Write poses (T, 4, 4) as KITTI does: a line each, the first three rows; the scanner's frame.

    KITTI's own ground truth is in the frame of the camera.
    """
    lines = [" ".join(f"{value:.9e}" for value in pose[:3].ravel()) for pose in poses]
    atomic_write(path, "".join(f"{line}\n" for line in lines))


def read_poses(path: Path) -> Array:
    """Read poses float64 (T, 4, 4) from a file of 12 numbers a line.

    Raises:
        DataError: It is no such file.
    """
    try:
        lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
        table = np.array([[float(word) for word in line] for line in lines])
        table = table.reshape(len(lines), 3, 4)
    except (OSError, ValueError) as error:
        raise DataError(
            f"the poses cannot be read: {error}", where=str(path), remedy="write 12 numbers a line"
        ) from error
    poses = np.tile(np.eye(4), (len(table), 1, 1))
    poses[:, :3] = table
    wrong = [number for number, pose in enumerate(poses, 1) if not _is_pose(pose)]
    if wrong:
        raise DataError(
            f"pose {wrong[0]} is no rotation with a shift",
            where=str(path),
            remedy="write the first three rows of each matrix, one after another",
        )
    return poses


def _is_pose(matrix: Array) -> bool:
    turn = matrix[:3, :3]
    return bool(np.isfinite(matrix).all() and np.abs(turn @ turn.T - np.eye(3)).max() < 0.01)


# --- How well -------------------------------------------------------------------------------------


def length_of(poses: Array) -> float:
    """Return how many metres a way (T, 4, 4) is long."""
    return float(_way(poses)[-1]) if len(poses) else 0.0


def _way(poses: Array) -> Array:
    """Return the metres gone by each pose (T,)."""
    steps = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1)
    return np.concatenate([[0.0], np.cumsum(steps)])


def drift(found: Array, true: Array) -> float:
    """Return how far off the end of a stretch is for its length, on average; a share.

    KITTI's measure (Geiger et al., CVPR 2012): stretches of 100 to 800 m from every tenth pose on;
    of a way that is shorter, the whole.

    Raises:
        DataError: There are not as many true poses as found ones, or the way has no length.
    """
    if len(found) != len(true):
        raise DataError(
            f"there are {len(true)} true poses and {len(found)} scans",
            where="the true poses",
            remedy="give one line for each scan",
        )
    way = _way(true)
    if way[-1] <= 0:
        raise DataError(
            "the true poses do not move", where="the true poses", remedy="give those of a drive"
        )
    lengths: list[float] = [metres for metres in LENGTHS if metres <= way[-1]] or [float(way[-1])]
    errors = [
        error
        for metres in lengths
        for start in range(0, len(true), 10)
        if (error := _error_after(found, true, way, start, metres)) is not None
    ]
    return float(np.mean(errors))


def _error_after(found: Array, true: Array, way: Array, start: int, metres: float) -> float | None:
    end = int(np.searchsorted(way, way[start] + metres - 1e-9))
    if end >= len(way):
        return None
    theirs = np.linalg.inv(true[start]) @ true[end]
    ours = np.linalg.inv(found[start]) @ found[end]
    return float(np.linalg.norm((np.linalg.inv(ours) @ theirs)[:3, 3]) / metres)


def draw_trajectory(poses: Array, true: Array | None = None) -> str:
    """Draw a way from above as an `<svg>` element; beside it the true one, where it is known."""
    with drawing(width=6.4, height=4.8) as drawn:
        if true is not None:
            # The found one begins at the origin, turned as the first scan.
            placed = np.linalg.inv(true[0]) @ true
            drawn.axes.plot(
                placed[:, 0, 3], placed[:, 1, 3], color=PALETTE[5], linestyle=":", label="true"
            )
        drawn.axes.plot(poses[:, 0, 3], poses[:, 1, 3], color=PALETTE[0], label="found")
        drawn.axes.plot(*poses[0, :2, 3], "o", color=PALETTE[2], label="start")
        drawn.axes.plot(*poses[-1, :2, 3], "s", color=PALETTE[1], label="end")
        drawn.axes.set_aspect("equal", adjustable="datalim")
        drawn.axes.set(xlabel="ahead of the start (m)", ylabel="to its left (m)")
        drawn.axes.legend(loc="best")
    return drawn.svg
