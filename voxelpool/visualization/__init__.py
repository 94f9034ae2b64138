"""Pictures of sweeps and boxes, of what was taken for what, and of variants compared."""

from voxelpool.visualization.bars import Bar, Curve, Panel, draw_bars
from voxelpool.visualization.bev import draw_bev, render_bev
from voxelpool.visualization.confusion import draw_confusion
from voxelpool.visualization.perspective import render_3d
from voxelpool.visualization.scene import FOUND, LABELLED, BoxGroup, Scene

__all__ = [
    "FOUND",
    "LABELLED",
    "Bar",
    "BoxGroup",
    "Curve",
    "Panel",
    "Scene",
    "draw_bars",
    "draw_bev",
    "draw_confusion",
    "render_3d",
    "render_bev",
]
