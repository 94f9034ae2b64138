"""The bird's-eye view as a PNG."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from voxelpool.errors import DataError
from voxelpool.visualization.canvas import (
    BACKGROUND,
    FAINT_TEXT,
    FINE,
    HEADER,
    RING,
    check_size,
    draw_frame,
    draw_text,
    line_widths,
    save_png,
    splat,
    thick_line,
    to_rgb,
    write_beside,
)
from voxelpool.visualization.scene import Scene

Float = NDArray[np.float64]

_SKIRT = 2.0  # metres around what must be seen


def render_bev(
    scene: Scene,
    path: str | os.PathLike[str],
    *,
    bounds: tuple[float, float, float, float] | None = None,
    size: tuple[int, int] = (1200, 1200),
) -> None:
    """Draws a scene as `draw_bev` and writes the picture.

    Args:
        scene: what to draw.
        path: the PNG; written whole or not at all.
        bounds: see there.
        size: see there.

    Raises:
        DataError: the bounds or the size are impossible.
        OSError: the file cannot be written.
    """
    save_png(draw_bev(scene, bounds=bounds, size=size), path)


def draw_bev(
    scene: Scene,
    *,
    bounds: tuple[float, float, float, float] | None = None,
    size: tuple[int, int] = (1200, 1200),
) -> Image.Image:
    """Draws a scene from above, forward up and left to the left.

    Args:
        scene: what to draw.
        bounds: x_min, y_min, x_max, y_max in metres that must be seen. What else the picture's
            shape leaves room for is drawn too. By default what the points (but a few far ones),
            the boxes and the sensor span.
        size: width and height in pixels.

    Raises:
        DataError: the bounds or the size are impossible.
    """
    check_size(size)
    low, high = _bounds(scene) if bounds is None else _given_bounds(bounds)
    plan = BevPlan.fit(low, high, size)
    return draw_over(Image.fromarray(_points_from_above(scene, plan)), scene, plan)


def draw_over(
    canvas: Image.Image,
    scene: Scene,
    plan: BevPlan,
    *,
    scale: tuple[str, float, float] | None = None,
) -> Image.Image:
    """Draws rings, the sensor, boxes and the legend over what else is seen from above.

    Args:
        canvas: the fine picture, which is drawn on.
        scene: its boxes and title.
        plan: where metres lie in it.
        scale: what the colours mean, from which value to which; None: what the scene's do.
    """
    draw = ImageDraw.Draw(canvas)
    _draw_rings(draw, plan)
    _draw_sensor(draw, plan)
    _draw_boxes_from_above(draw, scene, plan)
    picture = canvas.reduce(FINE)
    _draw_ring_labels(ImageDraw.Draw(picture), plan)
    _draw_box_texts(ImageDraw.Draw(picture), scene, plan)
    draw_frame(picture, scene, scale)
    return picture


@dataclass(frozen=True)
class BevPlan:
    """Where metres lie in the picture from above.

    Attributes:
        size: width and height in pixels.
        scale: pixels a metre.
        middle: x, y in metres of the middle of the part below the header.
    """

    size: tuple[int, int]
    scale: float
    middle: tuple[float, float]

    @classmethod
    def fit(cls, low: Float, high: Float, size: tuple[int, int]) -> BevPlan:
        """The largest scale at which x, y from ``low`` to ``high`` are seen."""
        span = np.maximum(high - low, 1e-3)
        scale = min(size[0] / span[1], (size[1] - HEADER) / span[0])
        middle = (low + high) / 2
        return cls(size, float(scale), (float(middle[0]), float(middle[1])))

    def pixels(self, xy: Float) -> Float:
        """(..., 2) x, y in metres to (..., 2) column, row; pixel centres at halves."""
        column = self.size[0] / 2 - (xy[..., 1] - self.middle[1]) * self.scale
        row = HEADER + (self.size[1] - HEADER) / 2 - (xy[..., 0] - self.middle[0]) * self.scale
        return np.stack([column, row], axis=-1)


def _bounds(scene: Scene) -> tuple[Float, Float]:
    """Lowest and highest x, y of what is worth seeing, sensor included."""
    parts = [np.zeros((1, 2))]
    spread = scene.spread()
    if len(spread):
        parts.append(np.percentile(spread, [0.5, 99.5], axis=0))
    parts += [group.corners()[..., :2].reshape(-1, 2) for group in scene.boxes]
    spots = np.concatenate(parts)
    low, high = spots.min(axis=0) - _SKIRT, spots.max(axis=0) + _SKIRT
    if len(spots) == 1:
        low, high = np.array([-_SKIRT, -20.0]), np.array([40.0, 20.0])
    return low, high


def _given_bounds(bounds: tuple[float, float, float, float]) -> tuple[Float, Float]:
    values = np.asarray(bounds, np.float64)
    if values.shape != (4,) or not np.isfinite(values).all() or (values[2:] <= values[:2]).any():
        raise DataError(
            f"bounds must be x_min, y_min, x_max, y_max with each maximum above its minimum, "
            f"got {bounds}"
        )
    return values[:2], values[2:]


def _points_from_above(scene: Scene, plan: BevPlan) -> NDArray[np.uint8]:
    """(H * FINE, W * FINE, 3) picture of points or voxels, higher ones over lower ones."""
    xyz, colors, shape = scene.points[:, :3], scene.colors(), "points"
    if scene.voxels is not None:
        xyz, colors, shape = scene.voxels.middles(), scene.voxels.colors(), scene.voxels.shape
    order = np.argsort(xyz[:, 2], kind="stable")
    xyz, colors = xyz[order], colors[order]
    dot = FINE * min(max(plan.scale * 0.11, 1.0), 4.0)
    diameter = np.full(len(xyz), dot)
    if shape == "cubes" and scene.voxels is not None:
        canvas = _cells_from_above(xyz, colors, scene.voxels.size, plan)
        xyz, colors, diameter = xyz[:0], colors[:0], diameter[:0]
    else:
        canvas = None
    for mark in scene.marks:
        xyz = np.concatenate([xyz, mark.points])
        tint = np.array(to_rgb(mark.color), np.uint8)
        colors = np.concatenate([colors, np.tile(tint, (len(mark), 1))])
        diameter = np.concatenate([diameter, np.full(len(mark), dot + FINE)])
    return splat(plan.pixels(xyz[:, :2]) * FINE, colors, diameter, plan.size, canvas)


def _cells_from_above(
    middles: Float, colors: NDArray[np.uint8], size: Float, plan: BevPlan
) -> NDArray[np.uint8]:
    """Voxels as the cells that they stand on, with a rim where there is room for one."""
    canvas = Image.new("RGB", (plan.size[0] * FINE, plan.size[1] * FINE), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    corners = np.stack([middles[:, :2] + size[:2] / 2, middles[:, :2] - size[:2] / 2], axis=1)
    spots = plan.pixels(corners) * FINE
    rim = BACKGROUND if size[:2].min() * plan.scale >= 4 else None
    for ((left, top), (right, bottom)), color in zip(spots.tolist(), colors.tolist(), strict=True):
        draw.rectangle((left, top, right, bottom), fill=tuple(color), outline=rim)
    return np.array(canvas)


def _ring_radii(plan: BevPlan) -> list[float]:
    """Radii in metres of the rings that cross the picture, about 90 pixels or more apart."""
    steps = [base * 10.0**power for power in range(-1, 4) for base in (1, 2, 5)]
    step = next((step for step in steps if step * plan.scale >= 90), steps[-1])
    corners = _view_corners(plan)
    farthest = float(np.linalg.norm(corners, axis=1).max())
    low, high = corners.min(axis=0), corners.max(axis=0)
    nearest = float(np.linalg.norm(np.clip(0.0, low, high)))
    first, last = math.ceil(max(nearest, step) / step), math.floor(farthest / step)
    return [count * step for count in range(first, min(last, first + 99) + 1)]


def _view_corners(plan: BevPlan) -> Float:
    half = np.array([(plan.size[1] - HEADER) / 2, plan.size[0] / 2]) / plan.scale
    return np.array(plan.middle) + np.array([[-1, -1], [-1, 1], [1, 1], [1, -1]]) * half


def _draw_rings(draw: ImageDraw.ImageDraw, plan: BevPlan) -> None:
    column, row = plan.pixels(np.zeros(2)) * FINE
    for radius in _ring_radii(plan):
        reach = radius * plan.scale * FINE
        box = (column - reach, row - reach, column + reach, row + reach)
        draw.ellipse(box, outline=RING, width=FINE)


def _draw_ring_labels(draw: ImageDraw.ImageDraw, plan: BevPlan) -> None:
    """Writes each radius where its ring is seen, away from straight ahead if that can be."""
    font = ImageFont.load_default(15)
    degrees = [-50, 50, -35, 35, -65, 65, -20, 20, 0, -90, 90, -135, 135, 180]
    angles = np.radians(degrees)
    for radius in _ring_radii(plan):
        spots = plan.pixels(radius * np.stack([np.cos(angles), np.sin(angles)], axis=1))
        room = np.minimum(spots - [30, HEADER + 12], np.array(plan.size) - [30, 12] - spots)
        seen = np.flatnonzero((room > 0).all(axis=1))
        if len(seen):
            draw_text(draw, spots[seen[0]], f"{radius:g} m", font, FAINT_TEXT, "mm")


def _draw_sensor(draw: ImageDraw.ImageDraw, plan: BevPlan) -> None:
    """A white arrowhead at the origin that points forward."""
    middle = plan.pixels(np.zeros(2))
    shape = (middle + np.array([[0, -11], [8, 9], [0, 4], [-8, 9]])) * FINE
    draw.polygon([tuple(spot) for spot in shape], fill=(255, 255, 255))


def _draw_boxes_from_above(draw: ImageDraw.ImageDraw, scene: Scene, plan: BevPlan) -> None:
    for group, width in zip(scene.boxes, line_widths(scene), strict=True):
        color = to_rgb(group.color)
        for corners, heading in zip(group.corners(), group.headings(), strict=True):
            outline = plan.pixels(corners[:4, :2]) * FINE
            tick = plan.pixels(heading[:, :2]) * FINE
            for start, end in zip(outline, np.roll(outline, -1, axis=0), strict=True):
                thick_line(draw, start, end, color, width * FINE)
            thick_line(draw, tick[0], tick[1], color, width * FINE)


def _draw_box_texts(draw: ImageDraw.ImageDraw, scene: Scene, plan: BevPlan) -> None:
    """Scores, and names where a group has several, beside their boxes and not over each other."""
    font = ImageFont.load_default(15)
    taken: list[tuple[float, float, float, float]] = []
    for group in scene.boxes:
        outlines = plan.pixels(group.corners()[:, :4, :2])
        for text, outline in zip(group.texts(), outlines, strict=True):
            if text:
                _text_beside(draw, outline, text, font, to_rgb(group.color), taken, plan.size)


def _text_beside(
    draw: ImageDraw.ImageDraw,
    outline: Float,
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    color: tuple[int, int, int],
    taken: list[tuple[float, float, float, float]],
    size: tuple[int, int],
) -> None:
    """Writes right of, left of, above or below an outline (k, 2), wherever there is room."""
    low, high = outline.min(axis=0), outline.max(axis=0)
    if (high < [0, HEADER]).any() or (low > np.array(size)).any():
        return
    middle = (low + high) / 2
    choices = [
        ((high[0] + 7, middle[1]), "lm"),
        ((low[0] - 7, middle[1]), "rm"),
        ((middle[0], low[1] - 7), "mb"),
        ((middle[0], high[1] + 7), "mt"),
    ]
    room = (0, HEADER, size[0], size[1])
    write_beside(draw, choices, text, font, color, taken, room)
