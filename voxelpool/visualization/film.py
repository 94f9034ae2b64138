"""Pictures put together: one with the camera's image below, or many as a film strip."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal

from PIL import Image

from voxelpool.errors import DataError
from voxelpool.visualization.bev import draw_bev
from voxelpool.visualization.camera import draw_camera
from voxelpool.visualization.canvas import BACKGROUND, save_png
from voxelpool.visualization.perspective import draw_3d
from voxelpool.visualization.scene import Scene

PictureView = Literal["bev", "driver", "oblique"]

_GAP = 8  # pixels
_TILES = {"bev": (800, 800), "driver": (960, 540), "oblique": (960, 540)}


def draw_scene(
    scene: Scene, *, view: PictureView = "bev", size: tuple[int, int] | None = None
) -> Image.Image:
    """Draws a scene from a place, with its camera's image below if it has one.

    Args:
        scene: what to draw.
        view: "bev" from above, or see `render_3d`.
        size: of the scene's part, width and height in pixels; None: as each view has it.

    Raises:
        DataError: an impossible size, or an unknown view.
    """
    if view == "bev":
        picture = draw_bev(scene) if size is None else draw_bev(scene, size=size)
    else:
        picture = (
            draw_3d(scene, view=view) if size is None else draw_3d(scene, view=view, size=size)
        )
    if scene.camera is None:
        return picture
    seen = draw_camera(scene, width=picture.width)
    whole = Image.new("RGB", (picture.width, picture.height + seen.height), BACKGROUND)
    whole.paste(picture, (0, 0))
    whole.paste(seen, (0, picture.height))
    return whole


def render_scene(scene: Scene, path: str | os.PathLike[str], *, view: PictureView = "bev") -> None:
    """Draws `draw_scene` and writes the picture, whole or not at all.

    Raises:
        DataError: see there.
        OSError: the file cannot be written.
    """
    save_png(draw_scene(scene, view=view), path)


def render_strip(
    scenes: Sequence[Scene], path: str | os.PathLike[str], *, view: PictureView = "bev"
) -> None:
    """Draws scenes side by side in rows, in their order, and writes the picture.

    Raises:
        DataError: there is no scene.
        OSError: the file cannot be written.
    """
    if not scenes:
        raise DataError("a film strip needs at least one scene")
    tiles = [draw_scene(scene, view=view, size=_TILES[view]) for scene in scenes]
    columns = min(len(tiles), max(round(len(tiles) ** 0.5), 2))
    rows = -(-len(tiles) // columns)
    width, height = tiles[0].width + _GAP, max(tile.height for tile in tiles) + _GAP
    strip = Image.new("RGB", (columns * width - _GAP, rows * height - _GAP), BACKGROUND)
    for place, tile in enumerate(tiles):
        row, column = divmod(place, columns)
        strip.paste(tile, (column * width, row * height))
    save_png(strip, path)
