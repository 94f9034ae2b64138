"""Pictures of sweeps and boxes."""

from voxelpool.visualization.bev import render_bev
from voxelpool.visualization.perspective import render_3d
from voxelpool.visualization.scene import BoxGroup, Scene

__all__ = ["BoxGroup", "Scene", "render_3d", "render_bev"]
