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
from PIL import Image, ImageDraw, ImageFont

from voxelpool.errors import DataError
from voxelpool.visualization.canvas import (
    BACKGROUND,
    FINE,
    HEADER,
    RING,
    above_and_below,
    check_size,
    clip_segment,
    draw_frame,
    line_widths,
    save_png,
    splat,
    thick_line,
    to_rgb,
    write_beside,
)
from voxelpool.visualization.scene import (
    CUBE_FACES,
    Scene,
    VoxelGroup,
    axis_segments,
    cube_mesh,
    ring_segments,
)

View = Literal["oblique", "driver"]
Renderer = Literal["auto", "open3d", "projection"]
Float = NDArray[np.float64]

_NEAR = 0.3  # metres
_POINT_METRES = 0.07
_THINNER = 0.7  # lines, than from above
_SECONDS_TO_RENDER = 120
EYES: dict[View, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
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
    save_png(draw_3d(scene, view=view, size=size, renderer=renderer), path)


def draw_3d(
    scene: Scene,
    *,
    view: View = "oblique",
    size: tuple[int, int] = (1600, 900),
    renderer: Renderer = "auto",
) -> Image.Image:
    """Draws a scene in perspective; arguments and errors as `render_3d`."""
    check_size(size)
    for value, known in ((view, get_args(View)), (renderer, get_args(Renderer))):
        if value not in known:
            raise DataError(f"unknown {value!r}; known: {', '.join(known)}")
    eye, target = EYES[view]
    camera = Camera(eye, target, 50.0, (size[0], size[1] - HEADER))
    picture = Image.new("RGB", size, BACKGROUND)
    drawn = _draw(scene, camera, renderer)
    _write(drawn, scene, camera)
    picture.paste(drawn, (0, HEADER))
    draw_frame(picture, scene)
    return picture


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
    """Draws points or voxels, nearer ones over farther ones, and boxes' edges over them."""
    xyz, colors, metres = _dots(scene)
    seen = camera.view(xyz)
    ahead = seen[:, 2] > _NEAR
    seen, colors, metres = seen[ahead], colors[ahead], metres[ahead]
    order = np.argsort(-seen[:, 2], kind="stable")
    seen, colors, metres = seen[order], colors[order], metres[order]
    diameters = np.clip(camera.focal_length * metres / seen[:, 2], 1.0, 57 * metres) * FINE
    spots = camera.pixels(seen) * FINE
    voxels, ground = scene.voxels, _rings(scene, camera)
    if voxels is not None and voxels.shape == "cubes":
        canvas = _paint(voxels, camera, ground, seen[:, 2], spots, colors, diameters)
    else:
        canvas = Image.fromarray(splat(spots, colors, diameters, camera.size, ground))
    draw = ImageDraw.Draw(canvas)
    for segments, tint, width in _lines(scene):
        for start, end in camera.view(segments):
            clipped = clip_segment(start, end, _NEAR)
            if clipped is not None:
                first, last = camera.pixels(clipped) * FINE
                thick_line(draw, first, last, to_rgb(tint), width * FINE)
    return canvas.reduce(FINE)


def _rings(scene: Scene, camera: Camera) -> NDArray[np.uint8]:
    """The fine picture of the rings alone."""
    canvas = Image.new("RGB", (camera.size[0] * FINE, camera.size[1] * FINE), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for start, end in camera.view(ring_segments(scene.reach())):
        clipped = clip_segment(start, end, _NEAR)
        if clipped is not None:
            first, last = camera.pixels(clipped) * FINE
            draw.line([tuple(first), tuple(last)], fill=RING, width=FINE)
    return np.array(canvas)


def _lines(scene: Scene) -> list[tuple[Float, tuple[float, float, float], float]]:
    """(n, 2, 3) segments, their colour and width in pixels: axes, then the groups of boxes."""
    widths = line_widths(scene)
    lines = [(segments, color, 2.0) for segments, color in axis_segments()]
    return lines + [
        (group.segments(), group.color, width * _THINNER)
        for group, width in zip(scene.boxes, widths, strict=True)
    ]


def _write(picture: Image.Image, scene: Scene, camera: Camera) -> None:
    """Writes what is known of each box above or below it, nearer ones first."""
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(15)
    taken: list[tuple[float, float, float, float]] = []
    room = (0, 0, picture.width, picture.height)
    for group in scene.boxes:
        seen, texts = camera.view(group.corners()), group.texts()
        for row in np.argsort(seen[..., 2].mean(axis=1), kind="stable").tolist():
            if texts[row] and (seen[row, :, 2] > _NEAR).all():
                choices = above_and_below(camera.pixels(seen[row]))
                write_beside(draw, choices, texts[row], font, to_rgb(group.color), taken, room)


def _dots(scene: Scene) -> tuple[Float, NDArray[np.uint8], Float]:
    """x, y, z, colour and diameter in metres of all that is drawn as dots."""
    if scene.voxels is None:
        parts = [(scene.points[:, :3], scene.colors(), _POINT_METRES)]
    elif scene.voxels.shape == "points":
        parts = [(scene.voxels.middles(), scene.voxels.colors(), 2 * _POINT_METRES)]
    else:
        parts = []
    for mark in scene.marks:
        tint = np.array(to_rgb(mark.color), np.uint8)
        parts.append((mark.points, np.tile(tint, (len(mark), 1)), 1.5 * _POINT_METRES))
    xyz = [np.zeros((0, 3)), *(part[0] for part in parts)]
    colors = [np.zeros((0, 3), np.uint8), *(part[1] for part in parts)]
    metres = [np.zeros(0), *(np.full(len(part[0]), part[2]) for part in parts)]
    return np.concatenate(xyz), np.concatenate(colors), np.concatenate(metres)


def _paint(
    voxels: VoxelGroup,
    camera: Camera,
    ground: NDArray[np.uint8],
    depths: Float,
    spots: Float,
    colors: NDArray[np.uint8],
    diameters: Float,
) -> Image.Image:
    """The ground with cubes and dots at (n, 2) spots over it, from the farthest to the nearest."""
    lows, eye = voxels.lows(), np.array(camera.eye)
    outlines, tints, distances = [np.zeros((0, 4, 2))], [np.zeros((0, 3), np.uint8)], [depths]
    for corners, normal, shade in CUBE_FACES:
        square = lows[:, None] + np.array(corners) * voxels.size
        seen = camera.view(square)
        shown = ((eye - square[:, 0]) @ normal > 0) & (seen[..., 2] > _NEAR).all(axis=1)
        outlines.append(camera.pixels(seen[shown]) * FINE)
        tints.append((voxels.colors()[shown] * shade).astype(np.uint8))
        distances.append(seen[shown, :, 2].mean(axis=1))
    faces = np.concatenate(outlines)
    reach = np.array(camera.size) * FINE
    visible = ((faces.max(axis=1) > 0) & (faces.min(axis=1) < reach)).all(axis=1)
    canvas = Image.fromarray(ground)
    draw = ImageDraw.Draw(canvas)
    face_colors = np.concatenate(tints).tolist()
    halves = (diameters - 1) / 2
    dots = np.concatenate([spots - halves[:, None], spots + halves[:, None]], axis=1).tolist()
    corners_of, dot_colors = faces.reshape(-1, 8).tolist(), colors.tolist()
    for row in np.argsort(-np.concatenate(distances), kind="stable").tolist():
        if row < len(dots):
            draw.rectangle(dots[row], fill=tuple(dot_colors[row]))
        elif visible[row - len(dots)]:
            face = row - len(dots)
            draw.polygon(corners_of[face], fill=tuple(face_colors[face]))
    return canvas


def _render_with_open3d(scene: Scene, camera: Camera) -> Image.Image:
    """Runs the renderer in a process of its own: without a working driver it ends the process."""
    xyz, colors, metres = _dots(scene)
    corners, triangles, tints = cube_mesh(scene.voxels)
    rings = (ring_segments(scene.reach()), (RING[0] / 255, RING[1] / 255, RING[2] / 255), 1.0)
    lines = [rings, *_lines(scene)]
    with tempfile.TemporaryDirectory() as folder:
        job, target = Path(folder) / "job.npz", Path(folder) / "picture.png"
        np.savez(
            job,
            points=xyz,
            colors=colors,
            point_sizes=np.rint(3 * metres / _POINT_METRES),
            corners=corners,
            triangles=triangles,
            triangle_colors=tints,
            eye=camera.eye,
            target=camera.target,
            vertical_fov=camera.vertical_fov,
            size=camera.size,
            background=np.array(BACKGROUND) / 255,
            line_colors=np.array([color for _, color, _ in lines]),
            widths=np.array([width for _, _, width in lines]),
            **{f"lines_{row}": segments for row, (segments, _, _) in enumerate(lines)},
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
