"""Pictures that teach say what is so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from voxelpool.errors import DataError
from voxelpool.ops import voxelize
from voxelpool.structures import VoxelGrid
from voxelpool.visualization import BoxGroup, Scene
from voxelpool.visualization.bev import BevPlan
from voxelpool.visualization.canvas import HEADER, save_png
from voxelpool.visualization.lessons import (
    KEPT,
    SAMPLED_OUT,
    HeatMap,
    draw_heat,
    draw_point_counts,
    kept_marks,
    winner_marks,
)
from voxelpool.visualization.scene import colormap

GRID = VoxelGrid((0, 0, 0, 8, 8, 2), (2.0, 2.0, 2.0))


def cloud(count: int = 300, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 9, (count, 4)).astype(np.float32)


def cells(points: np.ndarray) -> dict[tuple[int, ...], list[int]]:
    """Rows of the points by the cell that they lie in."""
    found: dict[tuple[int, ...], list[int]] = {}
    for row, (x, y, z) in enumerate(points[:, :3]):
        if 0 <= x < 8 and 0 <= y < 8 and 0 <= z < 2:
            found.setdefault((int(z // 2), int(y // 2), int(x // 2)), []).append(row)
    return found


def rows_of(mark, points: np.ndarray) -> list[int]:
    places = {tuple(place): row for row, place in enumerate(points[:, :3].astype(float).tolist())}
    return [places[tuple(place)] for place in mark.points.tolist()]


@pytest.mark.parametrize(("max_points", "max_voxels"), [(2, None), (2, 5), (None, 5), (None, None)])
def test_every_point_is_kept_or_dropped_for_a_reason(
    max_points: int | None, max_voxels: int | None
) -> None:
    points = cloud()
    marks = kept_marks(points, GRID, max_points=max_points, max_voxels=max_voxels, seed=3)
    outside, kept, left_out, sampled_out = (rows_of(mark, points) for mark in marks)
    assert sorted(outside + kept + left_out + sampled_out) == list(range(len(points)))
    by_cell = cells(points)
    held = {row for rows in by_cell.values() for row in rows}
    assert set(outside) == set(range(len(points))) - held
    shown = [rows for rows in by_cell.values() if set(rows) & set(kept)]
    assert len(shown) == min(len(by_cell), max_voxels or 99)
    for rows in by_cell.values():
        if rows in shown:
            assert len(set(rows) & set(kept)) == min(len(rows), max_points or 999)
            assert set(rows) <= set(kept) | set(sampled_out)
        else:
            assert set(rows) <= set(left_out)


def test_an_empty_sweep_has_nothing_to_drop() -> None:
    assert [len(mark) for mark in kept_marks(cloud(0), GRID, max_points=2)] == [0, 0, 0, 0]


def test_the_winner_is_the_largest_of_its_voxel() -> None:
    points = cloud()
    voxels = voxelize(torch.from_numpy(points), GRID)
    lost, won = winner_marks(points, voxels, points[:, 3], "reflectance")
    expected = {max(rows, key=lambda row: points[row, 3]) for rows in cells(points).values()}
    assert set(rows_of(won, points)) == expected
    assert len(won) + len(lost) == voxels.num_points
    assert "largest reflectance" in won.label


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def columns_near(picture: np.ndarray, color: tuple[float, float, float]) -> dict[int, int]:
    """How many pixels of a colour each column has below the header."""
    close = np.abs(picture[HEADER:] - np.array(color) * 255).max(axis=2) < 12
    return {column: int(count) for column, count in enumerate(close.sum(axis=0)) if count}


def test_the_histogram_has_bars_of_the_right_heights(tmp_path: Path) -> None:
    counts = np.repeat([1, 2, 3, 4], [1000, 100, 10, 100])
    save_png(draw_point_counts(counts, max_points=3, title="a"), tmp_path / "a.png")
    kept = columns_near(pixels(tmp_path / "a.png"), KEPT)
    over = columns_near(pixels(tmp_path / "a.png"), SAMPLED_OUT)
    # Four bars of one width, on a logarithmic scale; the last is over the limit.
    start = np.array([column for column in sorted(kept) if column - 1 not in kept])
    heights = [kept[column + 5] for column in start]
    assert len(heights) == 3
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=2)
    assert max(over.values()) == pytest.approx(heights[1], abs=1)
    assert min(over) > max(kept)


def test_a_heat_map_lies_where_its_range_is() -> None:
    values = np.zeros((4, 5))  # y, x
    values[3, 1] = 1.0
    box = BoxGroup([[1.0, -1.0, 0, 1, 1, 1, 0]], "a", (0.0, 1.0, 0.0))
    heat = HeatMap(values, (0.0, -2.0, 5.0, 2.0), "score")
    picture = np.asarray(draw_heat(heat, Scene(np.zeros((0, 3)), [box]))).astype(int)
    plan = BevPlan.fit(np.array([0.0, -2]), np.array([5.0, 2]), (1200, 1200))
    bright = np.abs(picture - colormap(np.ones(1))[0]).max(axis=2) < 10
    bright[:HEADER] = False
    rows, columns = np.nonzero(bright)
    # The cell of x 1 to 2 and y 1 to 2: left of the middle, low.
    corners = plan.pixels(np.array([[1.0, 1.0], [2.0, 2.0]]))
    assert columns.min() == pytest.approx(corners[:, 0].min(), abs=2)
    assert columns.max() == pytest.approx(corners[:, 0].max(), abs=2)
    assert rows.min() == pytest.approx(corners[:, 1].min(), abs=2)
    assert rows.max() == pytest.approx(corners[:, 1].max(), abs=2)
    column, row = plan.pixels(np.array([1.5, -1.0])).astype(int)
    green = np.abs(picture[row - 4 : row + 4, column - 4 : column + 4] - [0, 255, 0]).max(axis=2)
    assert green.min() < 10, "the box's front edge"
    with pytest.raises(DataError, match="expected"):
        HeatMap(np.zeros(3), (0, 0, 1, 1), "a")
