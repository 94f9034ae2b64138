"""Pictures of sweeps and boxes, and of what was taken for what."""

from voxelpool.visualization.bev import render_bev
from voxelpool.visualization.confusion import draw_confusion
from voxelpool.visualization.perspective import render_3d
from voxelpool.visualization.scene import BoxGroup, Scene

__all__ = ["BoxGroup", "Scene", "draw_confusion", "render_3d", "render_bev"]
