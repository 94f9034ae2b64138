"""Scenes as one HTML file that any browser opens from disk, without a network.

K3D draws it, whose script stands in the file; ``html_controls.js`` is what is pressed and chosen.
"""

from __future__ import annotations

import base64
import io
import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from voxelpool.errors import DataError, VoxelpoolError
from voxelpool.files import atomic_write
from voxelpool.visualization.camera import draw_camera
from voxelpool.visualization.canvas import BACKGROUND, RING, to_rgb
from voxelpool.visualization.perspective import EYES
from voxelpool.visualization.scene import (
    CUBE_FACES,
    GROUND,
    BoxGroup,
    ColorBy,
    PointGroup,
    Scene,
    VoxelGroup,
    axis_segments,
    class_color,
    colormap,
    ring_radii,
    ring_segments,
)

HEAVY = 15_000_000
"""Bytes above which a page is slow to open."""

_POINT_METRES = 0.05
_LINE_METRES = 0.06
_STEP = 1 / 128  # metres that coordinates are rounded to: zeros at their ends, which packs well
_COMPRESSION = 6
_IMAGE_WIDTH = 900
_IMAGE_QUALITY = 80
_CUBE_TRIANGLES = 12
_HALVINGS = 5  # of what is drawn while the view moves, at most

# Eye, target and the way up. From straight above the way up is no way to turn around.
VIEWS = {
    "bev": [19.9, 0.0, 75.0, 20.0, 0.0, 0.0, 0.0, 0.0, 1.0],
    **{name: [*eye, *target, 0.0, 0.0, 1.0] for name, (eye, target) in EYES.items()},
}


def render_html(
    scenes: Scene | Sequence[Scene],
    path: str | os.PathLike[str],
    *,
    view: Literal["bev", "driver", "oblique"] = "oblique",
) -> None:
    """Writes scenes as a page in which they can be turned, one at a time.

    The page has a button for everything that is drawn, which is also its legend, a choice of the
    points' colours, three places to look from, and, for several scenes, a slider that plays them.

    Args:
        scenes: at least one.
        path: the file; written whole or not at all.
        view: where it is looked from at first.

    Raises:
        DataError: there is no scene, or the view is unknown.
        VoxelpoolError: k3d is not installed.
        OSError: the file cannot be written.
    """
    scenes = [scenes] if isinstance(scenes, Scene) else list(scenes)
    if not scenes:
        raise DataError("a page needs at least one scene")
    if view not in VIEWS:
        raise DataError(f"unknown {view!r}; known: {', '.join(VIEWS)}")
    try:
        page = _Page(scenes, view)
    except ImportError as error:
        raise VoxelpoolError(
            f"HTML needs k3d ({error}); pip install 'voxelpool[html]' brings it"
        ) from error
    text = page.text()
    with atomic_write(path) as file:
        file.write(text)


class _Page:
    """The objects that K3D draws, and what the controls know of them."""

    def __init__(self, scenes: Sequence[Scene], view: str) -> None:
        import k3d

        self._k3d = k3d
        self._plot = k3d.plot(
            antialias=1,
            logarithmic_depth_buffer=False,
            background_color=_packed(BACKGROUND),
            camera_auto_fit=False,
            grid_auto_fit=True,
            grid_visible=False,
            menu_visibility=False,
            colorbar_object_id=0,
            camera_fov=50.0,
            camera_mode="orbit",
            camera_up_axis="z",
            axes_helper=0.0,
            camera=VIEWS[view],
        )
        self._count = 0
        self._ground = self._add_ground(max(scene.reach() for scene in scenes))
        self._frames = [
            self._add_frame(_spread(scene), row == 0) for row, scene in enumerate(scenes)
        ]
        self._color = scenes[0].color

    def text(self) -> str:
        """The page."""
        page = {
            "frames": self._frames,
            "ground": self._ground,
            "least_share": 0.5**_HALVINGS,
            "ring_texts": self._ring_texts,
            "color": self._color,
            "views": VIEWS,
            "colormap": _packed_rows(colormap(np.linspace(0, 1, 256))),
        }
        data = json.dumps(page, separators=(",", ":")).replace("<", "\\u003c")
        controls = Path(__file__).with_name("html_controls.js").read_text(encoding="utf-8")
        code = f"{controls}\nvoxelpoolControls(K3DInstance, {data});"
        return self._plot.get_snapshot(_COMPRESSION, additional_js_code=code)

    def _add(self, drawable: Any) -> int:
        self._count += 1
        drawable.id = self._count
        self._plot += drawable
        return self._count

    def _add_lines(
        self, segments: NDArray[np.float64], color: int, width: float, **more: Any
    ) -> int:
        return self._add(
            self._k3d.lines(
                _rounded(segments.reshape(-1, 3)),
                np.arange(2 * len(segments), dtype=np.uint32).reshape(-1, 2),
                indices_type="segment",
                color=color,
                width=width,
                **more,
            )
        )

    def _add_ground(self, reach: float) -> list[int]:
        """Rings at every ten metres with their distances, the sensor and its axes."""
        segments = ring_segments(reach)
        ids = [self._add_lines(segments, _packed(RING), 0.05, shader="simple")]
        self._ring_texts = [
            {
                "text": f"{radius:g} m",
                "at": [float(value) for value in (0.83 * radius, -0.56 * radius, GROUND)],
                "color": "#969eae",
                "key": "ground",
            }
            for radius in ring_radii(reach)
        ]
        for segment, color in axis_segments():
            ids.append(self._add_lines(segment, _packed(to_rgb(color)), 0.08))
        ids.append(
            self._add(
                self._k3d.points(np.zeros((1, 3), np.float32), point_size=0.5, color=0xFFFFFF)
            )
        )
        return ids

    def _add_frame(self, scene: Scene, shown: bool) -> dict[str, Any]:
        """Adds what is drawn of a scene; returns what the controls know of it."""
        layers: list[dict[str, Any]] = []

        def layer(key: str, text: str, color: str, ids: list[int], thinned: int = 0) -> None:
            # thinned: vertices of each point or voxel, if a share of them may be drawn.
            layers.append(
                {"key": key, "text": text, "color": color, "ids": ids, "thinned": thinned}
            )

        if len(scene.points):
            ids = [self._add_points(scene, shown)]
            layer("points", f"points: {len(scene.points):,}", "", ids, thinned=1)
        if scene.voxels is not None and len(scene.voxels):
            ids = [self._add_voxels(scene.voxels, shown)]
            corners = 3 * _CUBE_TRIANGLES if scene.voxels.shape == "cubes" else 1
            layer("voxels", f"voxels: {len(scene.voxels):,}", "", ids, thinned=corners)
        for mark in scene.marks:
            if len(mark):
                ids = [self._add_mark(mark, shown)]
                layer(f"mark {mark.label}", mark.legend(), _css(mark.color), ids)
        texts = []
        for group in scene.boxes:
            key = f"boxes {group.label}"
            layer(key, group.legend(), _css(group.color), [self._add_boxes(group, shown)])
            texts += _texts(group, key)
        if texts:
            layer("texts", "classes and scores", "", [])
        return {
            "title": scene.title,
            "layers": layers,
            "texts": texts,
            "colorings": {} if not len(scene.points) else _colorings(scene),
            "counts": None if scene.voxels is None else scene.voxels.limits(),
            "image": None if scene.camera is None else _image(scene),
        }

    def _add_points(self, scene: Scene, shown: bool) -> int:
        return self._add(
            self._k3d.points(
                _rounded(scene.points[:, :3]),
                _packed_array(scene.colors()),
                point_size=_POINT_METRES,
                shader="flat",
                visible=shown,
            )
        )

    def _add_mark(self, mark: PointGroup, shown: bool) -> int:
        return self._add(
            self._k3d.points(
                _rounded(mark.points),
                color=_packed(to_rgb(mark.color)),
                point_size=1.6 * _POINT_METRES,
                shader="flat",
                visible=shown,
            )
        )

    def _add_voxels(self, voxels: VoxelGroup, shown: bool) -> int:
        if voxels.shape == "points":
            drawable = self._k3d.points(
                _rounded(voxels.middles()),
                _packed_array(voxels.colors()),
                point_size=float(voxels.size.min()) / 2,
                shader="flat",
                visible=shown,
            )
        else:
            corners, triangles = _cubes(voxels)
            drawable = self._k3d.mesh(
                corners,
                triangles,
                colors=np.repeat(_packed_array(voxels.colors()), 8),
                flat_shading=True,
                visible=shown,
            )
        return self._add(drawable)

    def _add_boxes(self, group: BoxGroup, shown: bool) -> int:
        color = _packed(to_rgb(group.color))
        segments = group.segments() if len(group) else np.zeros((1, 2, 3))
        return self._add_lines(segments, color, _LINE_METRES, visible=shown)


def _spread(scene: Scene) -> Scene:
    """The scene with its points and voxels in an order of which every beginning is spread out.

    The first half of them is every second one, the first half of those every fourth, and so on: up
    to there they can be drawn while the view moves.
    """
    voxels = scene.voxels
    if voxels is not None:
        order = _halving_order(len(voxels))
        voxels = replace(voxels, coords=voxels.coords[order], counts=voxels.counts[order])
    return replace(scene, points=scene.points[_halving_order(len(scene.points))], voxels=voxels)


def _halving_order(count: int) -> NDArray[np.int64]:
    """(count,) rows by how often their number can be halved, most often first."""
    rows = np.arange(count)
    halvings = sum((rows % 2**times == 0).astype(np.int64) for times in range(1, _HALVINGS + 1))
    return np.argsort(-halvings, kind="stable")


def _cubes(voxels: VoxelGroup) -> tuple[NDArray[np.float32], NDArray[np.uint32]]:
    """Corners (8 K, 3) and triangles (12 K, 3); K3D tells faces apart by its light."""
    unit = np.array([[corner >> axis & 1 for axis in range(3)] for corner in range(8)])
    corners = voxels.lows()[:, None] + unit * voxels.size
    squares = np.array([face for face, _, _ in CUBE_FACES]) @ [1, 2, 4]
    triangles = squares[:, [[0, 1, 2], [0, 2, 3]]].reshape(1, _CUBE_TRIANGLES, 3)
    rows = np.arange(len(voxels))[:, None, None] * 8 + triangles
    return corners.reshape(-1, 3).astype(np.float32), rows.reshape(-1, 3).astype(np.uint32)


def _texts(group: BoxGroup, key: str) -> list[dict[str, Any]]:
    """What stands above the boxes, and where."""
    spots = group.boxes[:, :3].copy()
    spots[:, 2] += group.boxes[:, 5] / 2 + 0.2
    return [
        {
            "text": text,
            "at": spot,
            "color": _css(group.color),
            "key": key,
            "raised": group.scores is not None,  # a line above what is written of the label
        }
        for text, spot in zip(group.texts(every_name=True), spots.round(3).tolist(), strict=True)
        if text
    ]


def _colorings(scene: Scene) -> dict[str, Any]:
    """For each way to colour the points: a byte a point, packed, and what the bytes mean."""
    told: dict[str, Any] = {}
    names: list[ColorBy] = scene.colorings()
    for name in names:
        colored = replace(scene, color=name)
        low, high = colored.limits()
        if name == "class":
            classes = scene.classes()
            shades = colored.values() % 256  # -1, no class, is the last
            scale: dict[str, Any] = {
                "classes": [
                    [
                        kind,
                        _css_of_bytes(class_color(kind, classes)),
                        _packed(class_color(kind, classes)),
                    ]
                    for kind in classes
                ]
            }
        else:
            shares = np.clip((colored.values() - low) / (high - low), 0, 1)
            shades = np.rint(255 * (1 - shares if name == "distance" else shares))
            scale = {"low": f"{low:.1f}", "high": f"{high:.1f}"}
        packed = zlib.compress(shades.astype(np.uint8).tobytes(), _COMPRESSION)
        told[name] = {"values": base64.b64encode(packed).decode(), **scale}
    return told


def _image(scene: Scene) -> str:
    """The camera's image as a data URL."""
    file = io.BytesIO()
    picture: Image.Image = draw_camera(scene, width=_IMAGE_WIDTH)
    picture.save(file, format="JPEG", quality=_IMAGE_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _rounded(xyz: NDArray[np.float64]) -> NDArray[np.float32]:
    return (np.rint(xyz / _STEP) * _STEP).astype(np.float32)


def _packed(color: Sequence[int]) -> int:
    red, green, blue = color
    return (red << 16) | (green << 8) | blue


def _packed_array(colors: NDArray[np.uint8]) -> NDArray[np.uint32]:
    wide = colors.astype(np.uint32)
    return (wide[:, 0] << 16) | (wide[:, 1] << 8) | wide[:, 2]


def _packed_rows(colors: NDArray[np.uint8]) -> list[int]:
    return _packed_array(colors).tolist()


def _css(color: tuple[float, float, float]) -> str:
    return _css_of_bytes(to_rgb(color))


def _css_of_bytes(color: Sequence[int]) -> str:
    return f"#{_packed(color):06x}"
