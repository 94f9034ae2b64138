"""The camera's image with points and boxes drawn where the camera saw them."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from voxelpool.errors import DataError
from voxelpool.visualization.canvas import (
    above_and_below,
    clip_segment,
    save_png,
    thick_line,
    to_rgb,
    write_beside,
)
from voxelpool.visualization.scene import CameraImage, Scene

Float = NDArray[np.float64]

_NEAR = 0.3  # metres


def render_camera(scene: Scene, path: str | os.PathLike[str], *, width: int | None = None) -> None:
    """Draws `draw_camera` and writes the picture.

    Args:
        scene: what to draw; it must have an image.
        path: the PNG; written whole or not at all.
        width: see there.

    Raises:
        DataError: the scene has no image.
        OSError: the file cannot be written.
    """
    save_png(draw_camera(scene, width=width), path)


def draw_camera(scene: Scene, *, width: int | None = None, points: bool = True) -> Image.Image:
    """The image of the scene's camera with its boxes, and its points in their colours.

    Args:
        scene: what to draw; it must have an image.
        width: of the picture in pixels; None: as the image has it.
        points: whether points are drawn.

    Raises:
        DataError: the scene has no image.
    """
    camera = scene.camera
    if camera is None:
        raise DataError("the scene has no camera image")
    height, native = camera.pixels.shape[:2]
    scale = 1.0 if width is None else width / native
    picture = Image.fromarray(camera.pixels)
    if width is not None:
        picture = picture.resize((width, max(round(height * scale), 1)))
    draw = ImageDraw.Draw(picture)
    if points:
        _draw_points(draw, scene, camera, scale)
    _draw_boxes(draw, scene, camera, scale, picture.size)
    return picture


def _draw_points(
    draw: ImageDraw.ImageDraw, scene: Scene, camera: CameraImage, scale: float
) -> None:
    seen = camera.view(scene.points[:, :3])
    colors = scene.colors()
    layers = [(seen, colors, 1)]
    for mark in scene.marks:
        color = np.array(to_rgb(mark.color), np.uint8)
        layers.append((camera.view(mark.points), np.tile(color, (len(mark), 1)), 1))
    height, width = camera.pixels.shape[:2]
    for places, tints, size in layers:
        ahead = places[:, 2] > _NEAR
        places, tints = places[ahead], tints[ahead]
        spots = places[:, :2] / places[:, 2:]
        inside = ((spots >= 0) & (spots < [width, height])).all(axis=1)
        order = np.flatnonzero(inside)[np.argsort(-places[inside, 2], kind="stable")]
        corners = np.rint(spots[order] * scale).astype(int).tolist()
        for (column, row), tint in zip(corners, tints[order].tolist(), strict=True):
            draw.rectangle((column, row, column + size, row + size), fill=tuple(tint))


def _draw_boxes(
    draw: ImageDraw.ImageDraw,
    scene: Scene,
    camera: CameraImage,
    scale: float,
    size: tuple[int, int],
) -> None:
    for group in scene.boxes:
        for start, end in camera.view(group.segments()):
            clipped = clip_segment(start, end, _NEAR)
            if clipped is not None:
                first, last = clipped[:, :2] / clipped[:, 2:] * scale
                # What lies far outside is nothing to hand to the drawing library.
                if max(np.abs(first).max(), np.abs(last).max()) < 20 * max(size):
                    thick_line(draw, first, last, to_rgb(group.color), 2)
    font, taken = ImageFont.load_default(14), list[tuple[float, float, float, float]]()
    for group in scene.boxes:
        for text, corners in zip(group.texts(), camera.view(group.corners()), strict=True):
            if text and (corners[:, 2] > _NEAR).all():
                choices = above_and_below(corners[:, :2] / corners[:, 2:] * scale)
                write_beside(draw, choices, text, font, to_rgb(group.color), taken, (0, 0, *size))
