"""Pictures, pages and windows of sweeps and boxes, of what was taken for what, and charts."""

from voxelpool.visualization.bars import Bar, Curve, Panel, draw_bars
from voxelpool.visualization.bev import draw_bev, render_bev
from voxelpool.visualization.camera import draw_camera, render_camera
from voxelpool.visualization.confusion import confusion_picture, draw_confusion
from voxelpool.visualization.curves import (
    Line,
    draw_groups,
    draw_histogram,
    draw_lines,
    smoothed,
)
from voxelpool.visualization.html import render_html
from voxelpool.visualization.page import Picture, Section, Table, page
from voxelpool.visualization.perspective import draw_3d, render_3d
from voxelpool.visualization.scene import (
    FALSE,
    FOUND,
    LABELLED,
    MISSED,
    BoxGroup,
    CameraImage,
    PointGroup,
    Scene,
    VoxelGroup,
    match_boxes,
)

__all__ = [
    "FALSE",
    "FOUND",
    "LABELLED",
    "MISSED",
    "Bar",
    "BoxGroup",
    "CameraImage",
    "Curve",
    "Line",
    "Panel",
    "Picture",
    "PointGroup",
    "Scene",
    "Section",
    "Table",
    "VoxelGroup",
    "confusion_picture",
    "draw_3d",
    "draw_bars",
    "draw_bev",
    "draw_camera",
    "draw_confusion",
    "draw_groups",
    "draw_histogram",
    "draw_lines",
    "match_boxes",
    "page",
    "render_3d",
    "render_bev",
    "render_camera",
    "render_html",
    "smoothed",
]
