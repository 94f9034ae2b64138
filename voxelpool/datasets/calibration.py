"""KITTI calibration: from the LiDAR to the left colour camera and back.

Frames, in metres: LiDAR (x forward, y left, z up); rectified camera 0 (x right, y down,
z forward); pixels of image_2, 0-based, u to the right and v down. KITTI object devkit:
``x_rect = R0 @ Tr_velo_to_cam @ x_lidar`` and ``pixel = P2 @ x_rect``. Everything is float64.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from voxelpool.errors import DataError
from voxelpool.files import atomic_write

Float = NDArray[np.float64]

# The names a matrix goes by: the object benchmark's first, then the raw data's and tracking's.
_NAMES = {
    "P2": ("P2",),
    "R0_rect": ("R0_rect", "R_rect"),
    "Tr_velo_to_cam": ("Tr_velo_to_cam", "Tr_velo_cam"),
}
_SHAPES = {"P2": (3, 4), "R0_rect": (3, 3), "Tr_velo_to_cam": (3, 4)}
_FILE_ORDER = ("P0", "P1", "P2", "P3", "R0_rect", "Tr_velo_to_cam", "Tr_imu_to_velo")
_KNOWN = {*_FILE_ORDER, *(name for names in _NAMES.values() for name in names)}

# A box is cut at this depth (m) before it is projected, so that what lies behind the camera
# does not appear in the image upside down.
_NEAR = 0.01

# Corner k of a box has bit 0, 1 and 2 of k as its side along x, y and z; an edge joins two
# corners that differ in one bit.
_EDGES = np.array([(a, a | bit) for bit in (1, 2, 4) for a in range(8) if not a & bit])


def wrap_angle(angle: ArrayLike) -> Float:
    """Wraps angles in radians to [-pi, pi)."""
    wrapped = np.mod(np.asarray(angle, np.float64) + np.pi, 2 * np.pi) - np.pi
    # np.mod rounds a tiny negative number up to the modulus itself.
    return np.where(wrapped >= np.pi, -np.pi, wrapped)


def observation_angle(location: Float, rotation_y: Float) -> Float:
    """KITTI's alpha: (N,) headings as seen from the camera, radians in [-pi, pi).

    Args:
        location: (N, 3) rectified camera coordinates, metres.
        rotation_y: (N,) headings about the camera's y axis, radians.
    """
    return wrap_angle(rotation_y - np.arctan2(location[:, 0], location[:, 2]))


@dataclass(frozen=True, eq=False)
class Calibration:
    """The calibration of one frame.

    Attributes:
        P2: (3, 4) projection of rectified camera coordinates to pixels of image_2.
        R0: (3, 3) rectifying rotation of camera 0.
        Tr_velo_to_cam: (3, 4) rigid transform from the LiDAR to camera 0.
        others: further rows of the file, by key (P0, P1, P3, Tr_imu_to_velo), kept for saving.
    """

    P2: Float
    R0: Float
    Tr_velo_to_cam: Float
    others: Mapping[str, Float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, shape in (("P2", (3, 4)), ("R0", (3, 3)), ("Tr_velo_to_cam", (3, 4))):
            matrix = np.array(getattr(self, name), np.float64)
            if matrix.shape != shape:
                raise DataError(f"calibration {name} must be {shape}, got {matrix.shape}")
            if not np.isfinite(matrix).all():
                raise DataError(f"calibration {name} holds NaN or infinity")
            object.__setattr__(self, name, matrix)
        if abs(np.linalg.det(self.R0 @ self.Tr_velo_to_cam[:, :3])) < 1e-6:
            raise DataError("calibration R0 @ Tr_velo_to_cam cannot be inverted")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Calibration:
        """Reads a KITTI calibration file, by key and not by line number.

        Args:
            path: text file of lines ``key: numbers`` (the colon may be missing, as in the
                tracking benchmark). P2, R0_rect (or R_rect) and Tr_velo_to_cam (or
                Tr_velo_cam) are needed, the others are kept.

        Raises:
            DataError: a key is missing or given twice, a row has the wrong number of values, or a
                value is not a finite number; names the file and the key.
            OSError: the file cannot be read.
        """
        rows = _read_rows(Path(path))
        matrices = {}
        for key, names in _NAMES.items():
            found = [name for name in names if name in rows]
            if not found:
                have = ", ".join(rows) or "none"
                alternatives = " or ".join(names)
                raise DataError(f"{path}: no calibration key {alternatives} (keys found: {have})")
            values, shape = rows.pop(found[0]), _SHAPES[key]
            if values.size != math.prod(shape):
                expected = f"{math.prod(shape)} ({shape[0]}x{shape[1]})"
                raise DataError(f"{path}: {found[0]} has {values.size} values, expected {expected}")
            matrices[key] = values.reshape(shape)
        try:
            return cls(matrices["P2"], matrices["R0_rect"], matrices["Tr_velo_to_cam"], rows)
        except DataError as error:
            raise DataError(f"{path}: {error}") from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a KITTI calibration file that reads back as the same numbers.

        P0, P1, P3 and Tr_imu_to_velo are taken from ``others``. Where a projection is not there
        P2 stands in its place, and the identity for the IMU, because many readers count lines.

        Raises:
            OSError: the file cannot be written; an older one is left as it was.
        """
        rows: dict[str, Float] = {name: self.P2 for name in ("P0", "P1", "P2", "P3")}
        rows["Tr_imu_to_velo"] = np.eye(3, 4)
        rows.update({key: np.asarray(value, np.float64) for key, value in self.others.items()})
        rows |= {"P2": self.P2, "R0_rect": self.R0, "Tr_velo_to_cam": self.Tr_velo_to_cam}
        order = [*_FILE_ORDER, *(key for key in rows if key not in _FILE_ORDER)]
        with atomic_write(path) as file:
            for key in order:
                numbers = (
                    np.format_float_scientific(value, min_digits=12, exp_digits=2)
                    for value in rows[key].ravel()
                )
                file.write(f"{key}: {' '.join(numbers)}\n")

    @cached_property
    def _forward(self) -> Float:
        """(4, 4) LiDAR to rectified camera."""
        matrix = np.eye(4)
        matrix[:3] = self.R0 @ self.Tr_velo_to_cam
        return matrix

    @cached_property
    def _backward(self) -> Float:
        """(4, 4) rectified camera to LiDAR."""
        return np.asarray(np.linalg.inv(self._forward), np.float64)

    @cached_property
    def _to_image(self) -> Float:
        """(3, 4) LiDAR to homogeneous pixels."""
        return self.P2 @ self._forward

    def lidar_to_camera(self, xyz: ArrayLike) -> Float:
        """LiDAR coordinates (N, 3) in metres to rectified camera coordinates (N, 3)."""
        return _points(xyz) @ self._forward[:3, :3].T + self._forward[:3, 3]

    def camera_to_lidar(self, xyz: ArrayLike) -> Float:
        """Rectified camera coordinates (N, 3) in metres to LiDAR coordinates (N, 3)."""
        return _points(xyz) @ self._backward[:3, :3].T + self._backward[:3, 3]

    def project(self, xyz: ArrayLike) -> tuple[Float, Float]:
        """Projects LiDAR points to the image.

        Args:
            xyz: (N, 3) LiDAR coordinates in metres.

        Returns:
            ``(uv, depth)``: pixels (N, 2) and depth (N,), the third component of P2 @ x_rect, in
            metres. Where the depth is not positive the pixel means nothing (and may be NaN).
        """
        x, y, z = _points(xyz).T
        # Written out: a BLAS call on so thin a matrix starts threads and gains nothing.
        u, v, depth = (row[0] * x + row[1] * y + row[2] * z + row[3] for row in self._to_image)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return np.column_stack([u / depth, v / depth]), depth

    def _project_camera(self, xyz: Float) -> tuple[Float, Float]:
        image = xyz @ self.P2[:, :3].T + self.P2[:, 3]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return image[:, :2] / image[:, 2:], image[:, 2]

    def boxes_to_lidar(
        self, location: ArrayLike, dimensions_hwl: ArrayLike, rotation_y: ArrayLike
    ) -> Float:
        """KITTI camera boxes to LiDAR boxes.

        Args:
            location: (N, 3) centre of the bottom face, rectified camera coordinates, metres.
            dimensions_hwl: (N, 3) height, width, length in metres.
            rotation_y: (N,) heading about the camera's y axis in radians, 0 along camera +x.

        Returns:
            (N, 7) x, y, z of the box centre, dx (length), dy (width), dz (height), yaw in
            [-pi, pi). The tilt of about 1 degree between the two frames' vertical axes is not
            in the yaw, as everywhere in the KITTI literature.
        """
        h, w, length = _points(dimensions_hwl).T
        centre = self.camera_to_lidar(location)
        centre[:, 2] += h / 2
        yaw = wrap_angle(-(np.asarray(rotation_y, np.float64).reshape(-1) + np.pi / 2))
        return np.column_stack([centre, length, w, h, yaw])

    def boxes_to_camera(self, boxes: ArrayLike) -> tuple[Float, Float, Float]:
        """LiDAR boxes to KITTI camera boxes, the inverse of :meth:`boxes_to_lidar`.

        Args:
            boxes: (N, 7) LiDAR boxes, metres and radians.

        Returns:
            ``(location (N, 3), dimensions_hwl (N, 3), rotation_y (N,) in [-pi, pi))``.
        """
        boxes = _boxes(boxes)
        bottom = boxes[:, :3].copy()
        bottom[:, 2] -= boxes[:, 5] / 2
        rotation_y = wrap_angle(-boxes[:, 6] - np.pi / 2)
        return self.lidar_to_camera(bottom), boxes[:, [5, 4, 3]], rotation_y

    def boxes_to_image(self, boxes: ArrayLike, image_size: tuple[int, int]) -> Float:
        """The 2D boxes around the projections of LiDAR boxes, clipped to the image.

        As in KITTI's labels the box stands upright in the camera frame and is turned about its
        y axis. What lies behind the camera is cut off before projecting.

        Args:
            boxes: (N, 7) LiDAR boxes, metres and radians.
            image_size: (width, height) in pixels.

        Returns:
            (N, 4) left, top, right, bottom in pixels, within [0, width-1] x [0, height-1];
            all zero for a box that is not in the image.
        """
        location, hwl, rotation_y = self.boxes_to_camera(boxes)
        if not len(location):
            return np.zeros((0, 4))
        corners = _camera_corners(location, hwl, rotation_y)
        depth = corners @ self.P2[2, :3] + self.P2[2, 3]
        # The visible part's corners: box corners in front, and where edges cross the near plane.
        start, end = corners[:, _EDGES[:, 0]], corners[:, _EDGES[:, 1]]
        start_depth, end_depth = depth[:, _EDGES[:, 0]], depth[:, _EDGES[:, 1]]
        crosses = (start_depth >= _NEAR) != (end_depth >= _NEAR)
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.where(crosses, (_NEAR - start_depth) / (end_depth - start_depth), 0.0)
        vertices = np.concatenate([corners, start + t[..., None] * (end - start)], axis=1)
        valid = np.concatenate([depth >= _NEAR, crosses], axis=1)[..., None]
        uv = self._project_camera(vertices.reshape(-1, 3))[0].reshape(*vertices.shape[:2], 2)
        low = np.where(valid, uv, np.inf).min(axis=1)
        high = np.where(valid, uv, -np.inf).max(axis=1)
        limit = np.array(image_size, np.float64) - 1
        result = np.concatenate([np.clip(low, 0, limit), np.clip(high, 0, limit)], axis=1)
        outside = (low >= limit).any(axis=1) | (high <= 0).any(axis=1)
        result[outside | ~valid.any(axis=(1, 2))] = 0
        return result


def crop_to_image(
    points: ArrayLike, calibration: Calibration, image_size: tuple[int, int]
) -> NDArray[np.bool_]:
    """Which points the camera sees: depth > 0, 0 <= u < width and 0 <= v < height.

    KITTI labels only what is visible in image_2, so points outside it must not be trained on.

    Args:
        points: (N, >=3) LiDAR points, metres in the first three columns. Computed in float64.
        calibration: the frame's calibration.
        image_size: (width, height) in pixels.

    Returns:
        (N,) bool; False for a point that is not finite.
    """
    points = np.asarray(points)
    if points.ndim != 2 or points.shape[1] < 3:
        raise DataError(f"points must be (N, >=3), got {points.shape}")
    with np.errstate(invalid="ignore", over="ignore"):
        uv, depth = calibration.project(points[:, :3])
        width, height = image_size
        inside = (uv[:, 0] >= 0) & (uv[:, 0] < width) & (uv[:, 1] >= 0) & (uv[:, 1] < height)
        return np.asarray((depth > 0) & inside)


def _points(xyz: ArrayLike) -> Float:
    array = np.asarray(xyz, np.float64)
    if array.size == 0:
        return array.reshape(0, 3)
    if array.ndim != 2 or array.shape[1] != 3:
        raise DataError(f"coordinates must be (N, 3), got {array.shape}")
    return array


def _boxes(boxes: ArrayLike) -> Float:
    array = np.asarray(boxes, np.float64)
    if array.size == 0:
        return array.reshape(0, 7)
    if array.ndim != 2 or array.shape[1] != 7:
        raise DataError(f"boxes must be (N, 7), got {array.shape}")
    return array


def _camera_corners(location: Float, hwl: Float, rotation_y: Float) -> Float:
    """(N, 8, 3) corners in the camera frame, ordered as _EDGES expects."""
    bits = (np.arange(8)[:, None] >> np.arange(3)) & 1
    h, w, length = hwl.T[:, :, None]
    x = (bits[:, 0] - 0.5) * length
    y = -bits[:, 1] * h
    z = (bits[:, 2] - 0.5) * w
    cos, sin = np.cos(rotation_y)[:, None], np.sin(rotation_y)[:, None]
    return np.stack([cos * x + sin * z, y, -sin * x + cos * z], axis=-1) + location[:, None]


def _read_rows(path: Path) -> dict[str, Float]:
    """Every row of a calibration file by its key, as flat float64 arrays."""
    rows: dict[str, Float] = {}
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise DataError(f"{path}: not a text file") from None
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.replace(":", " ", 1).split()
        if not words:
            continue
        key = words[0]
        if key in rows:
            raise DataError(f"{path}:{number}: calibration key {key} is given twice")
        try:
            values = np.array([float(word) for word in words[1:]])
        except ValueError as error:
            if key not in _KNOWN:  # such as the raw data's calib_time
                continue
            raise DataError(f"{path}:{number}: {key}: {error}") from None
        if not np.isfinite(values).all():
            raise DataError(f"{path}:{number}: {key} holds NaN or infinity")
        rows[key] = values
    return rows
