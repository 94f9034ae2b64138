"""A window on the screen to turn scenes in."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxelpool.errors import DataError, VoxelpoolError
from voxelpool.visualization.canvas import BACKGROUND, RING
from voxelpool.visualization.scene import Scene, axis_segments, cube_mesh, ring_segments

KEYS = {
    "N": "next frame (also right arrow)",
    "P": "previous frame (also left arrow)",
    "O": "points, on or off",
    "V": "voxels, on or off",
    "B": "boxes, on or off",
    "C": "next colours of the points",
    "H": "these keys",
    "Q": "close (also Esc)",
}
_RIGHT, _LEFT = 262, 263  # GLFW's numbers


def has_display() -> bool:
    """Whether a window could be opened: on Linux, whether a display is named."""
    displays = ("DISPLAY", "WAYLAND_DISPLAY")
    return sys.platform != "linux" or any(os.environ.get(name) for name in displays)


def show(scenes: Scene | Sequence[Scene], *, say: Callable[[str], None] | None = None) -> None:
    """Opens a window and returns once it is closed.

    Args:
        scenes: at least one; the keys in `KEYS` lead from one to the next.
        say: called with the keys at the start and when ``h`` is pressed, and with a frame's title
            when it is shown.

    Raises:
        DataError: there is no scene.
        VoxelpoolError: there is no display, or the window cannot be opened.
    """
    scenes = [scenes] if isinstance(scenes, Scene) else list(scenes)
    if not scenes:
        raise DataError("a window needs at least one scene")
    if not has_display():
        raise VoxelpoolError("there is no display for a window here; write a picture instead")
    import open3d as o3d

    window = o3d.visualization.VisualizerWithKeyCallback()
    if not window.create_window(window_name=scenes[0].title or "voxelpool"):
        raise VoxelpoolError("the window cannot be opened: no working OpenGL on this display")
    _Keys(window, Shown(scenes), say or (lambda text: None))
    window.get_render_option().background_color = np.array(BACKGROUND) / 255
    window.get_render_option().point_size = 2.0
    view = window.get_view_control()
    view.set_front([-1.0, 0.0, 0.6])
    view.set_lookat([15.0, 0.0, 0.0])
    view.set_up([0.0, 0.0, 1.0])
    view.set_zoom(0.2)
    window.run()
    window.destroy_window()


class Shown:
    """Which frame is shown, and what of it.

    Args:
        scenes: at least one.
    """

    def __init__(self, scenes: Sequence[Scene]) -> None:
        self.scenes = scenes
        self.row = 0
        self.hidden: set[str] = set()
        self.color = scenes[0].color

    @property
    def scene(self) -> Scene:
        """The frame, coloured as chosen."""
        scene = self.scenes[self.row]
        color = self.color if self.color in scene.colorings() else "height"
        return replace(scene, color=color)

    def step(self, by: int) -> None:
        """Goes to another frame; after the last comes the first."""
        self.row = (self.row + by) % len(self.scenes)

    def toggle(self, what: str) -> None:
        """Shows or hides points, voxels or boxes."""
        self.hidden ^= {what}

    def recolor(self) -> None:
        """Takes the next meaning of the points' colours."""
        known = self.scene.colorings()
        self.color = known[(known.index(self.scene.color) + 1) % len(known)]

    def title(self) -> str:
        """What is shown, in words."""
        parts = [self.scene.title, f"points by {self.scene.color}"]
        if len(self.scenes) > 1:
            parts.insert(0, f"{self.row + 1} of {len(self.scenes)}")
        parts += [group.legend() for group in (*self.scene.boxes, *self.scene.marks)]
        return ", ".join(filter(None, parts))

    def shapes(self) -> list[Any]:
        """What Open3D draws."""
        import open3d as o3d

        scene = self.scene
        shapes: list[Any] = [_lines(ring_segments(scene.reach()), np.array(RING) / 255)]
        shapes += [_lines(segments, color) for segments, color in axis_segments()]
        dots = []
        if "points" not in self.hidden:
            dots.append((scene.points[:, :3], scene.colors() / 255))
        dots += [(mark.points, np.tile(mark.color, (len(mark), 1))) for mark in scene.marks]
        if scene.voxels is not None and "voxels" not in self.hidden:
            if scene.voxels.shape == "points":
                dots.append((scene.voxels.middles(), scene.voxels.colors() / 255))
            else:
                corners, triangles, colors = cube_mesh(scene.voxels)
                mesh = o3d.geometry.TriangleMesh(
                    o3d.utility.Vector3dVector(corners), o3d.utility.Vector3iVector(triangles)
                )
                mesh.vertex_colors = o3d.utility.Vector3dVector(colors / 255.0)
                shapes.append(mesh)
        for xyz, colors in dots:
            cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(xyz))
            cloud.colors = o3d.utility.Vector3dVector(colors)
            shapes.append(cloud)
        if "boxes" not in self.hidden:
            shapes += [_lines(group.segments(), group.color) for group in scene.boxes if len(group)]
        return shapes


class _Keys:
    """Joins the keys of a window to what it shows."""

    def __init__(self, window: Any, shown: Shown, say: Callable[[str], None]) -> None:
        self.window, self.shown, self.say = window, shown, say
        actions = {
            "N": lambda: shown.step(1),
            "P": lambda: shown.step(-1),
            "O": lambda: shown.toggle("points"),
            "V": lambda: shown.toggle("voxels"),
            "B": lambda: shown.toggle("boxes"),
            "C": shown.recolor,
        }
        codes = {ord(key): action for key, action in actions.items()}
        codes |= {_RIGHT: actions["N"], _LEFT: actions["P"]}
        for code, action in codes.items():
            window.register_key_callback(code, lambda _, action=action: self._do(action))
        window.register_key_callback(ord("H"), lambda _: self._help())
        self._help()
        self._draw(first=True)

    def _do(self, action: Callable[[], None]) -> bool:
        action()
        self._draw(first=False)
        return True

    def _draw(self, first: bool) -> None:
        if not first:
            self.window.clear_geometries()
        for shape in self.shown.shapes():
            self.window.add_geometry(shape, reset_bounding_box=first)
        self.say(self.shown.title())

    def _help(self) -> bool:
        self.say("keys: " + "; ".join(f"{key.lower()} {text}" for key, text in KEYS.items()))
        return False


def _lines(segments: NDArray[np.float64], color: Any) -> Any:
    import open3d as o3d

    lines = o3d.geometry.LineSet(
        o3d.utility.Vector3dVector(segments.reshape(-1, 3)),
        o3d.utility.Vector2iVector(np.arange(2 * len(segments)).reshape(-1, 2)),
    )
    lines.paint_uniform_color(np.asarray(color, np.float64))
    return lines
