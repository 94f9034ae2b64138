"""A window on the screen to turn a scene in."""

from __future__ import annotations

import os
import sys

import numpy as np

from voxelpool.errors import VoxelpoolError
from voxelpool.visualization.canvas import BACKGROUND
from voxelpool.visualization.scene import Scene


def show(scene: Scene) -> None:
    """Opens a window and returns once it is closed.

    Raises:
        VoxelpoolError: there is no display, or the window cannot be opened.
    """
    displays = ("DISPLAY", "WAYLAND_DISPLAY")
    if sys.platform == "linux" and not any(os.environ.get(name) for name in displays):
        raise VoxelpoolError("there is no display for a window here; write a picture instead")
    import open3d as o3d

    points = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(scene.points[:, :3]))
    points.colors = o3d.utility.Vector3dVector(scene.colors() / 255.0)
    shapes = [points]
    for group in scene.boxes:
        segments = group.segments()
        lines = o3d.geometry.LineSet(
            o3d.utility.Vector3dVector(segments.reshape(-1, 3)),
            o3d.utility.Vector2iVector(np.arange(2 * len(segments)).reshape(-1, 2)),
        )
        lines.paint_uniform_color(group.color)
        shapes.append(lines)
    window = o3d.visualization.Visualizer()
    if not window.create_window(window_name=scene.title or "voxelpool"):
        raise VoxelpoolError("the window cannot be opened: no working OpenGL on this display")
    for shape in shapes:
        window.add_geometry(shape)
    window.get_render_option().background_color = np.array(BACKGROUND) / 255
    window.get_render_option().point_size = 2.0
    view = window.get_view_control()
    view.set_front([-1.0, 0.0, 0.6])
    view.set_lookat([15.0, 0.0, 0.0])
    view.set_up([0.0, 0.0, 1.0])
    view.set_zoom(0.15)
    window.run()
    window.destroy_window()
