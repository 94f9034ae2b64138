"""Pictures of sweeps and boxes, of what was taken for what, charts, and pages of them."""

from voxelpool.visualization.bars import Bar, Curve, Panel, draw_bars
from voxelpool.visualization.bev import draw_bev, render_bev
from voxelpool.visualization.confusion import confusion_picture, draw_confusion
from voxelpool.visualization.curves import (
    Line,
    draw_groups,
    draw_histogram,
    draw_lines,
    smoothed,
)
from voxelpool.visualization.page import Picture, Section, Table, page
from voxelpool.visualization.perspective import render_3d
from voxelpool.visualization.scene import FOUND, LABELLED, BoxGroup, Scene

__all__ = [
    "FOUND",
    "LABELLED",
    "Bar",
    "BoxGroup",
    "Curve",
    "Line",
    "Panel",
    "Picture",
    "Scene",
    "Section",
    "Table",
    "confusion_picture",
    "draw_bars",
    "draw_bev",
    "draw_confusion",
    "draw_groups",
    "draw_histogram",
    "draw_lines",
    "page",
    "render_3d",
    "render_bev",
    "smoothed",
]
