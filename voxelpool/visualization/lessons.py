"""Pictures that show what voxelization, pooling and a detector do with a sweep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from voxelpool.errors import DataError
from voxelpool.ops import segment_max, voxelize
from voxelpool.structures import VoxelGrid, Voxels
from voxelpool.visualization.bev import BevPlan, draw_over
from voxelpool.visualization.canvas import (
    BACKGROUND,
    FAINT_TEXT,
    FINE,
    HEADER,
    RING,
    TEXT,
    check_size,
)
from voxelpool.visualization.scene import PointGroup, Scene, colormap

Float = NDArray[np.float64]

KEPT = (0.35, 0.62, 0.85)
SAMPLED_OUT = (1.0, 0.35, 0.3)
LEFT_OUT = (1.0, 0.8, 0.2)
OUTSIDE = (0.33, 0.36, 0.43)
WON = (1.0, 0.85, 0.25)


def kept_marks(
    points: Any,
    grid: VoxelGrid,
    *,
    max_points: int | None = None,
    max_voxels: int | None = None,
    seed: int = 0,
) -> list[PointGroup]:
    """What voxelization keeps of a sweep and what it drops, and why.

    Args:
        points: (N, >=3) array or tensor, metres.
        grid: of the voxels.
        max_points: see `voxelpool.ops.voxelize`, as are the others.
        max_voxels: see there.
        seed: see there.

    Returns:
        Points outside of the grid, kept, in voxels that were left out, and sampled out of voxels
        that were full.
    """
    points = torch.as_tensor(points)
    whole = voxelize(points, grid)
    chosen = voxelize(points, grid, max_points=max_points, max_voxels=max_voxels, seed=seed)
    all_points = np.arange(len(points))
    inside, kept = whole.point_index.numpy(), chosen.point_index.numpy()
    # A voxel of the whole set whose coordinates the chosen ones lack was left out.
    there = _keys(whole)
    left_out = inside[~np.isin(there, _keys(chosen))[whole.voxel_of_point().numpy()]]
    outside = np.setdiff1d(all_points, inside)
    sampled_out = np.setdiff1d(inside, np.union1d(kept, left_out))
    xyz = points.numpy()[:, :3]
    rows = (
        (outside, "outside the range", OUTSIDE),
        (kept, "kept", KEPT),
        (left_out, "in voxels left out", LEFT_OUT),
        (sampled_out, "sampled out", SAMPLED_OUT),
    )
    return [PointGroup(xyz[which], label, color) for which, label, color in rows]


def _keys(voxels: Voxels) -> NDArray[np.int64]:
    """(K,) a number for each voxel of one sweep, by its place in the grid."""
    _, height, width = voxels.grid.shape
    z, y, x = voxels.coords[:, 1:].long().numpy().T
    return (z * height + y) * width + x


def winner_marks(points: Any, voxels: Voxels, values: Any, channel: str) -> list[PointGroup]:
    """The point of each voxel whose value the maximum takes, and the others.

    Args:
        points: (N, >=3) array or tensor, metres.
        voxels: made of them.
        values: (N,) array or tensor, the channel of which `voxelpool.ops.segment_max` takes each
            voxel's maximum; of equals the first point wins.
        channel: what it is called.
    """
    packed = torch.as_tensor(values)[voxels.point_index].float()
    _, winners = segment_max(packed[:, None], voxels.offsets)
    xyz = torch.as_tensor(points)[voxels.point_index, :3].numpy()
    won = np.zeros(len(xyz), bool)
    won[winners[:, 0].numpy()] = True
    return [
        PointGroup(xyz[~won], "not the maximum", OUTSIDE),
        PointGroup(xyz[won], f"largest {channel} of its voxel", WON),
    ]


def draw_point_counts(
    counts: Any,
    *,
    max_points: int | None = None,
    title: str = "",
    size: tuple[int, int] = (1200, 700),
) -> Image.Image:
    """Draws how many voxels hold how many points.

    Args:
        counts: (K,) points in each voxel before any are sampled out.
        max_points: how many a voxel keeps; drawn as a line.
        title: written above.
        size: width and height in pixels.

    Raises:
        DataError: the size is impossible.
    """
    check_size(size)
    counts = np.asarray(counts).reshape(-1).astype(np.int64)
    top = max(int(counts.max(initial=1)), 1)
    step = max(-(-top // 60), 1)
    edges = np.arange(1, top + step + 1, step)
    bars = np.histogram(counts, edges)[0]
    return _draw_point_counts(bars, edges, counts, max_points, title, size)


def _draw_point_counts(
    bars: NDArray[np.int64],
    edges: NDArray[np.int64],
    counts: NDArray[np.int64],
    max_points: int | None,
    title: str,
    size: tuple[int, int],
) -> Image.Image:
    picture = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(picture)
    font, small = ImageFont.load_default(22), ImageFont.load_default(15)
    left, right, top, bottom = 80, size[0] - 24, HEADER + 24, size[1] - 62
    draw.text((18, HEADER // 2 - 1), title, fill=TEXT, font=font, anchor="lm")
    told = f"{len(counts):,} voxels, {counts.sum():,} points"
    if max_points is not None:
        dropped = int(np.maximum(counts - max_points, 0).sum())
        told += f"; {int((counts > max_points).sum()):,} voxels drop {dropped:,}"
    draw.text((right, HEADER // 2 - 1), told, fill=TEXT, font=small, anchor="rm")
    draw.line((0, HEADER - 1, size[0] - 1, HEADER - 1), fill=RING)
    highest = max(int(bars.max(initial=0)), 1)
    powers = [10**power for power in range(len(str(highest)) + 1)]
    scale = np.log10(highest * 1.5) + 0.3

    def row(count: float) -> float:
        return bottom - (np.log10(count) + 0.3) / scale * (bottom - top)

    for power in powers:
        if row(power) >= top:
            draw.line((left, row(power), right, row(power)), fill=RING)
            draw.text(
                (left - 8, row(power)), f"{power:,}", fill=FAINT_TEXT, font=small, anchor="rm"
            )
    width = (right - left) / max(len(bars), 1)
    for index, count in enumerate(bars.tolist()):
        start = left + index * width
        over = max_points is not None and edges[index] > max_points
        color = tuple(round(255 * part) for part in (SAMPLED_OUT if over else KEPT))
        if count:
            draw.rectangle((start + 1, row(count), start + width - 1, bottom), fill=color)
        if index % max(len(bars) // 12, 1) == 0:
            middle = (start + width / 2, bottom + 8)
            draw.text(middle, str(edges[index]), fill=FAINT_TEXT, font=small, anchor="mt")
    draw.line((left, bottom, right, bottom), fill=FAINT_TEXT)
    if max_points is not None and max_points < edges[-1]:
        at = left + (max_points + 1 - edges[0]) / (edges[1] - edges[0]) * width
        draw.line((at, top, at, bottom), fill=TEXT, width=2)
        words = f"a voxel keeps {max_points}"
        draw.text((at + 8, top), words, fill=TEXT, font=small, anchor="lt")
    middle = ((left + right) / 2, size[1] - 10)
    draw.text(middle, "points in a voxel", fill=FAINT_TEXT, font=small, anchor="mb")
    return picture


@dataclass(frozen=True, eq=False)
class HeatMap:
    """A map of numbers that lies on the ground.

    Args:
        values: (H, W) array or tensor; rows along y, columns along x, from the lowest.
        range: x0, y0, x1, y1 in metres that it covers.
        label: what the numbers are.
        limits: the values of the first and the last colour; None: 0 and the highest, or the lowest
            if that is below 0.

    Raises:
        DataError: another shape, or an empty range.
    """

    values: Any
    range: tuple[float, float, float, float]
    label: str
    limits: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        values = torch.as_tensor(self.values).detach().cpu().double().numpy()
        x0, y0, x1, y1 = self.range
        if values.ndim != 2 or not values.size or x1 <= x0 or y1 <= y0:
            raise DataError(f"heat map: expected (H, W) over a range, got {values.shape}")
        object.__setattr__(self, "values", values)
        if self.limits is None:
            low, high = min(float(values.min()), 0.0), float(values.max())
            object.__setattr__(self, "limits", (low, high if high > low else low + 1))


def draw_heat(heat: HeatMap, scene: Scene, *, size: tuple[int, int] = (1200, 1200)) -> Image.Image:
    """Draws a map from above, as large as it is, with the scene's boxes over it.

    Args:
        heat: the map.
        scene: its boxes and its title are drawn.
        size: width and height in pixels.

    Raises:
        DataError: the size is impossible.
    """
    check_size(size)
    x0, y0, x1, y1 = heat.range
    plan = BevPlan.fit(np.array([x0, y0]), np.array([x1, y1]), size)
    assert heat.limits is not None
    low, high = heat.limits
    colors = colormap(np.clip((heat.values - low) / (high - low), 0, 1).reshape(-1))
    # Nothing is dark, whatever the first colour is.
    share = np.clip((heat.values.reshape(-1, 1) - low) / (high - low) * 8, 0, 1)
    colors = (colors * share + np.array(BACKGROUND) * (1 - share)).astype(np.uint8)
    grid = colors.reshape(*heat.values.shape, 3)
    # From (y, x) to rows that run backward along x and columns that run backward along y.
    cells = Image.fromarray(np.ascontiguousarray(grid.transpose(1, 0, 2)[::-1, ::-1]))
    corner, end = plan.pixels(np.array([[x1, y1], [x0, y0]])) * FINE
    left, top = np.rint(corner).astype(int).tolist()
    width, height = np.maximum(np.rint(end - corner), 1).astype(int).tolist()
    canvas = Image.new("RGB", (size[0] * FINE, size[1] * FINE), BACKGROUND)
    canvas.paste(cells.resize((width, height), Image.Resampling.NEAREST), (left, top))
    return draw_over(canvas, scene, plan, scale=(heat.label, low, high))
