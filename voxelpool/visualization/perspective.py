"""Pictures in perspective: by Open3D's renderer where it starts, else by a plain projection."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from voxelpool.errors import DataError
from voxelpool.visualization.canvas import (
    BACKGROUND,
    FINE,
    HEADER,
    check_size,
    draw_frame,
    line_widths,
    save_png,
    splat,
    thick_line,
    to_rgb,
)
from voxelpool.visualization.scene import Scene

View = Literal["oblique", "driver"]
Renderer = Literal["auto", "open3d", "projection"]
Float = NDArray[np.float64]

_NEAR = 0.3  # metres
_POINT_METRES = 0.07
_THINNER = 0.7  # lines, than from above
_SECONDS_TO_RENDER = 120
_EYES: dict[View, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "driver": ((-7.0, 0.0, 4.0), (22.0, 0.0, -1.5)),
    "oblique": ((-8.0, -15.0, 13.0), (15.0, 1.0, -1.5)),
}

_open3d_failed = False


@dataclass(frozen=True)
class Camera:
    """A pinhole camera.

    Attributes:
        eye: where it stands, metres, LiDAR frame.
        target: what it looks at.
        vertical_fov: degrees.
        size: width and height of its picture in pixels.
    """

    eye: tuple[float, float, float]
    target: tuple[float, float, float]
    vertical_fov: float
    size: tuple[int, int]

    @property
    def focal_length(self) -> float:
        """Pixels."""
        return self.size[1] / 2 / float(np.tan(np.radians(self.vertical_fov) / 2))

    def axes(self) -> Float:
        """(3, 3) rows: right, down and forward in the LiDAR frame."""
        forward = np.subtract(self.target, self.eye)
        forward = forward / np.linalg.norm(forward)
        right = np.cross(forward, [0.0, 0.0, 1.0])
        right = right / np.linalg.norm(right)
        return np.stack([right, np.cross(forward, right), forward])

    def view(self, xyz: Float) -> Float:
        """(..., 3) LiDAR coordinates to metres right, down and ahead of the eye."""
        return (xyz - np.array(self.eye)) @ self.axes().T

    def pixels(self, seen: Float) -> Float:
        """(..., 3) of `view`, ahead of the eye, to (..., 2) column, row."""
        return seen[..., :2] / seen[..., 2:] * self.focal_length + np.array(self.size) / 2


def render_3d(
    scene: Scene,
    path: str | os.PathLike[str],
    *,
    view: View = "oblique",
    size: tuple[int, int] = (1600, 900),
    renderer: Renderer = "auto",
) -> None:
    """Draws a scene in perspective.

    Args:
        scene: what to draw.
        path: the PNG; written whole or not at all.
        view: "oblique" from behind, the right and above; "driver" from above and behind the sensor.
        size: width and height in pixels.
        renderer: "open3d", which needs no display but graphics libraries of the system;
            "projection", which needs nothing; "auto" tries them in this order.

    Raises:
        DataError: an unknown view or renderer, or an impossible size.
        OSError: the file cannot be written.
        RuntimeError: Open3D was insisted on and its renderer does not start here.
    """
    check_size(size)
    for value, known in ((view, get_args(View)), (renderer, get_args(Renderer))):
        if value not in known:
            raise DataError(f"unknown {value!r}; known: {', '.join(known)}")
    eye, target = _EYES[view]
    camera = Camera(eye, target, 50.0, (size[0], size[1] - HEADER))
    picture = Image.new("RGB", size, BACKGROUND)
    picture.paste(_draw(scene, camera, renderer), (0, HEADER))
    draw_frame(picture, scene)
    save_png(picture, path)


def _draw(scene: Scene, camera: Camera, renderer: Renderer) -> Image.Image:
    global _open3d_failed
    if renderer == "projection" or (renderer == "auto" and _open3d_failed):
        return project(scene, camera)
    try:
        return _render_with_open3d(scene, camera)
    except RuntimeError as error:
        if renderer == "open3d":
            raise
        _open3d_failed = True
        warnings.warn(
            f"Open3D's renderer does not start here ({error}); 3D pictures are drawn by a plain "
            "projection",
            stacklevel=3,
        )
        return project(scene, camera)


def project(scene: Scene, camera: Camera) -> Image.Image:
    """Draws points, nearer ones over farther ones, and the edges of boxes over them."""
    seen = camera.view(scene.points[:, :3])
    ahead = seen[:, 2] > _NEAR
    seen, colors = seen[ahead], scene.colors()[ahead]
    order = np.argsort(-seen[:, 2], kind="stable")
    seen, colors = seen[order], colors[order]
    diameters = np.clip(camera.focal_length * _POINT_METRES / seen[:, 2], 1.0, 4.0) * FINE
    canvas = Image.fromarray(splat(camera.pixels(seen) * FINE, colors, diameters, camera.size))
    draw = ImageDraw.Draw(canvas)
    for group, width in zip(scene.boxes, line_widths(scene), strict=True):
        color = to_rgb(group.color)
        for start, end in camera.view(group.segments()):
            clipped = _clip(start, end)
            if clipped is not None:
                first, last = camera.pixels(clipped) * FINE
                thick_line(draw, first, last, color, width * FINE * _THINNER)
    return canvas.reduce(FINE)


def _clip(start: Float, end: Float) -> Float | None:
    """The part of a segment that lies ahead of the eye, (2, 3), if any."""
    if max(start[2], end[2]) <= _NEAR:
        return None
    points = np.stack([start, end])
    for row in (0, 1):
        if points[row, 2] < _NEAR:
            share = (_NEAR - points[row, 2]) / (points[1 - row, 2] - points[row, 2])
            points[row] += share * (points[1 - row] - points[row])
    return points


def _render_with_open3d(scene: Scene, camera: Camera) -> Image.Image:
    """Runs the renderer in a process of its own: without a working driver it ends the process."""
    with tempfile.TemporaryDirectory() as folder:
        job, target = Path(folder) / "job.npz", Path(folder) / "picture.png"
        np.savez(
            job,
            points=scene.points[:, :3],
            colors=scene.colors(),
            eye=camera.eye,
            target=camera.target,
            vertical_fov=camera.vertical_fov,
            size=camera.size,
            background=np.array(BACKGROUND) / 255,
            line_colors=np.array([group.color for group in scene.boxes]).reshape(-1, 3),
            widths=np.array(line_widths(scene)) * _THINNER,
            **{f"lines_{row}": group.segments() for row, group in enumerate(scene.boxes)},
        )
        environment = dict(os.environ)
        if not (environment.get("DISPLAY") or environment.get("WAYLAND_DISPLAY")):
            environment.setdefault("EGL_PLATFORM", "surfaceless")
        command = [
            sys.executable,
            "-m",
            "voxelpool.visualization._offscreen",
            str(job),
            str(target),
        ]
        try:
            done = subprocess.run(
                command,
                env=environment,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_SECONDS_TO_RENDER,
            )
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"no picture after {_SECONDS_TO_RENDER} s") from error
        if not target.is_file():
            said = (done.stderr.strip() or done.stdout.strip()).splitlines()
            raise RuntimeError(said[-1] if said else f"it ended with code {done.returncode}")
        with Image.open(target) as picture:
            return picture.convert("RGB")
