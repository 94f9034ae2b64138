"""What pictures of every kind share: points as squares, lines, the title and the legend."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from voxelpool.errors import DataError
from voxelpool.files import atomic_write
from voxelpool.visualization.scene import Scene, class_color, colormap

Float = NDArray[np.float64]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

BACKGROUND = (16, 18, 24)
RING = (62, 68, 82)
TEXT = (226, 230, 238)
FAINT_TEXT = (150, 158, 174)
HEADER = 56  # pixels above the scene for title and legend
FINE = 2  # everything is drawn this much larger and then averaged, for smooth edges


def check_size(size: tuple[int, int]) -> None:
    """Raises DataError unless ``size`` is a width and a height, in pixels, of a fair picture."""
    if len(size) != 2 or not all(isinstance(edge, int) and edge >= 128 for edge in size):
        raise DataError(f"size must be width and height of at least 128 pixels, got {size}")


def splat(
    spots: Float,
    colors: NDArray[np.uint8],
    diameters: Float,
    size: tuple[int, int],
    canvas: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Squares at (n, 2) column, row of the fine picture, later ones over earlier ones.

    They are drawn over ``canvas``, (height, width, 3) of the fine picture, if there is one.
    """
    width, height = size[0] * FINE, size[1] * FINE
    if canvas is None:
        canvas = np.empty((height, width, 3), np.uint8)
        canvas[:] = BACKGROUND
    edges = np.maximum(np.rint(diameters), 1).astype(np.int64)
    seen = ((spots > -64) & (spots < [width + 64, height + 64])).all(axis=1)
    spots, colors, edges = spots[seen], colors[seen], edges[seen]
    if not len(spots):
        return canvas
    first = np.floor(spots - (edges[:, None] - 1) / 2).astype(np.int64)
    rank = np.full(height * width, -1, np.int64)
    for down in range(edges.max()):
        for right in range(edges.max()):
            column, row = first[:, 0] + right, first[:, 1] + down
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            rows = np.flatnonzero(inside & (edges > max(down, right)))
            np.maximum.at(rank, row[rows] * width + column[rows], rows)
    hit = rank >= 0
    canvas.reshape(-1, 3)[hit] = colors[rank[hit]]
    return canvas


def line_widths(scene: Scene) -> list[int]:
    """Line widths in pixels: what has no scores is wider, so that what was found leaves it visible.

    The last group is narrow in any case.
    """
    last = len(scene.boxes) - 1
    return [
        6 if group.scores is None and row < last else 3 for row, group in enumerate(scene.boxes)
    ]


def thick_line(
    draw: ImageDraw.ImageDraw, start: Float, end: Float, color: tuple[int, int, int], width: float
) -> None:
    """A line with round ends."""
    draw.line([tuple(start), tuple(end)], fill=color, width=round(width))
    for column, row in (start, end):
        half = (width - 1) / 2
        draw.ellipse((column - half, row - half, column + half, row + half), fill=color)


def clip_segment(start: Float, end: Float, near: float) -> Float | None:
    """The part of a segment of (3,) ends that lies ahead of depth ``near``, (2, 3), if any."""
    if max(start[2], end[2]) <= near:
        return None
    points = np.stack([start, end])
    for row in (0, 1):
        if points[row, 2] < near:
            share = (near - points[row, 2]) / (points[1 - row, 2] - points[row, 2])
            points[row] += share * (points[1 - row] - points[row])
    return points


def draw_text(
    draw: ImageDraw.ImageDraw,
    spot: tuple[float, float] | Float,
    text: str,
    font: Font,
    color: tuple[int, int, int],
    anchor: str,
) -> None:
    """Text with a dark rim, legible over points."""
    at = (round(float(spot[0])), round(float(spot[1])))
    draw.text(
        at, text, fill=color, font=font, anchor=anchor, stroke_width=3, stroke_fill=BACKGROUND
    )


def write_beside(
    draw: ImageDraw.ImageDraw,
    choices: Sequence[tuple[tuple[float, float], str]],
    text: str,
    font: Font,
    color: tuple[int, int, int],
    taken: list[tuple[float, float, float, float]],
    room: tuple[float, float, float, float],
) -> None:
    """Writes at the first spot, with its anchor, where nothing in ``taken`` is; nowhere else.

    ``room`` is what the text must lie in: left, top, right, bottom. Where it was written is added
    to ``taken``.
    """
    for spot, anchor in choices:
        left, top, right, bottom = draw.textbbox(spot, text, font=font, anchor=anchor)
        free = all(
            right < other[0] or left > other[2] or bottom < other[1] or top > other[3]
            for other in taken
        )
        if free and left >= room[0] and top >= room[1] and right <= room[2] and bottom <= room[3]:
            taken.append((left, top, right, bottom))
            draw_text(draw, spot, text, font, color, anchor)
            return


def above_and_below(outline: Float) -> list[tuple[tuple[float, float], str]]:
    """Spots and anchors for a text above or below what spans (k, 2) column, row."""
    low, high = outline.min(axis=0), outline.max(axis=0)
    middle = float(low[0] + high[0]) / 2
    return [((middle, float(low[1]) - 5), "mb"), ((middle, float(high[1]) + 5), "mt")]


def draw_frame(
    picture: Image.Image, scene: Scene, scale: tuple[str, float, float] | None = None
) -> None:
    """Title, legend and the colours' meaning, above the scene.

    ``scale``, a name and the values of the first and the last colour, replaces what the colours
    of the scene mean.
    """
    draw = ImageDraw.Draw(picture)
    width = picture.width
    draw.rectangle((0, 0, width - 1, HEADER - 1), fill=BACKGROUND)
    draw.line((0, HEADER - 1, width - 1, HEADER - 1), fill=RING)
    middle = HEADER // 2 - 1
    font, small = ImageFont.load_default(22), ImageFont.load_default(15)
    groups = [(group.color, group.legend(), True) for group in scene.boxes]
    groups += [(mark.color, mark.legend(), False) for mark in scene.marks if len(mark)]
    taken = sum(draw.textlength(text, font=small) + 50 for _, text, _ in groups)
    right = width - 18.0
    # What the colours mean gives way to the title.
    if taken + 330 + min(draw.textlength(scene.title, font=font), width / 3) < width:
        right = _draw_color_scale(picture, scene, scale, right, middle, small)
    for color, text, hollow in reversed(groups):
        right = _draw_swatch(draw, to_rgb(color), text, hollow, right, middle, small)
    title = scene.title
    while title and 18 + draw.textlength(title, font=font) > right:
        title = title[:-2] + "…" if len(title) > 2 else ""
    draw.text((18, middle), title, fill=TEXT, font=font, anchor="lm")


def _draw_swatch(
    draw: ImageDraw.ImageDraw,
    color: tuple[int, int, int],
    text: str,
    hollow: bool,
    right: float,
    middle: int,
    font: Font,
) -> float:
    """Draws a line of the legend, ending at ``right``; returns where the next may end."""
    draw.text((right, middle), text, fill=TEXT, font=font, anchor="rm")
    right -= draw.textlength(text, font=font) + 26
    swatch = (right, middle - 8, right + 18, middle + 8)
    draw.rectangle(swatch, outline=color, width=3, fill=None if hollow else color)
    return right - 24


def _draw_color_scale(
    picture: Image.Image,
    scene: Scene,
    scale: tuple[str, float, float] | None,
    right: float,
    middle: int,
    font: Font,
) -> float:
    """Draws what the colours mean, ending at ``right``; returns where it begins."""
    draw = ImageDraw.Draw(picture)
    if scale is not None:
        name, low, high = scale
        ends, backward = [f"{name} {low:.2g}", f"{high:.2g}"], False
    elif scene.voxels is not None:
        low, high = scene.voxels.limits()
        ends, backward = [f"points per voxel {low:g}", f"{high:g}"], False
    elif not len(scene.points):
        return right
    elif scene.color == "class":
        classes = scene.classes()
        for name in reversed(classes):
            color = class_color(name, classes)
            right = _draw_swatch(draw, color, name, False, right, middle, font)
        return right
    else:
        low, high = scene.limits()
        unit = "" if scene.color == "reflectance" else " m"
        name = "to a box" if scene.color == "distance" else scene.color
        ends, backward = [f"{name} {low:.1f}", f"{high:.1f}{unit}"], scene.color == "distance"
    draw.text((right, middle), ends[1], fill=FAINT_TEXT, font=font, anchor="rm")
    right -= draw.textlength(ends[1], font=font) + 8
    shares = np.linspace(1, 0, 90) if backward else np.linspace(0, 1, 90)
    bar = np.broadcast_to(colormap(shares), (12, 90, 3))
    picture.paste(Image.fromarray(np.ascontiguousarray(bar)), (round(right) - 90, middle - 6))
    right -= 98
    draw.text((right, middle), ends[0], fill=FAINT_TEXT, font=font, anchor="rm")
    return right - draw.textlength(ends[0], font=font) - 28


def to_rgb(color: tuple[float, float, float]) -> tuple[int, int, int]:
    """A colour of values from 0 to 1 as one of values from 0 to 255."""
    red, green, blue = (round(255 * value) for value in color)
    return red, green, blue


def save_png(picture: Image.Image, path: str | os.PathLike[str]) -> None:
    """Writes the picture whole or not at all."""
    with atomic_write(path, "wb") as file:
        picture.save(file, format="PNG")
