"""Perturbed input against what was worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from voxelpool.datasets.kitti import KittiDataset
from voxelpool.datasets.objects import ObjectSet
from voxelpool.datasets.perturb import (
    ON_GRIDS,
    ON_POINTS,
    Perturbation,
    PerturbedFrames,
    perturb_grid,
    perturb_objects,
    perturb_points,
)


def grid_of(*cells: tuple[int, int, int], size: int = 8) -> np.ndarray:
    grid = np.zeros((size,) * 3, np.uint8)
    for cell in cells:
        grid[cell] = 1
    return grid


def random_grid(share: float = 0.1, size: int = 16, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random((size,) * 3) < share).astype(np.uint8)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_dropping_takes_an_exact_share_of_what_is_there(share: float) -> None:
    grid = random_grid()
    found = perturb_grid(grid, Perturbation("drop", share), "a")
    assert ((grid == 1) | (found == 0)).all(), "nothing is added"
    assert found.sum() == grid.sum() - round(share * int(grid.sum()))
    points = np.arange(400, dtype=np.float32).reshape(100, 4)
    left = perturb_points(points, Perturbation("drop", share), "a", 0.2)
    assert len(left) == 100 - round(100 * share)
    assert (np.diff(left[:, 0]) > 0).all(), "in their order"
    assert set(left[:, 0]) <= set(points[:, 0])


def test_dropping_leaves_one() -> None:
    one = grid_of((1, 2, 3))
    assert (perturb_grid(one, Perturbation("drop", 0.75), "a") == one).all()
    assert (
        len(perturb_points(np.zeros((1, 3), np.float32), Perturbation("drop", 0.75), "a", 1)) == 1
    )
    assert not perturb_grid(np.zeros_like(one), Perturbation("drop", 0.5), "a").any()
    assert not len(perturb_points(np.zeros((0, 3), np.float32), Perturbation("drop", 0.5), "a", 1))


def test_flipping_turns_an_exact_share_over() -> None:
    grid = random_grid()
    found = perturb_grid(grid, Perturbation("flip", 0.01), "a")
    assert (found != grid).sum() == round(0.01 * 16**3)
    assert set(np.unique(found)) == {0, 1}


def test_shifts_move_by_whole_cells_and_lose_what_leaves() -> None:
    grid = grid_of((4, 4, 4), (0, 4, 4))
    places = set()
    for k in range(40):
        cells = np.argwhere(perturb_grid(grid, Perturbation("shift", 2), f"object {k}"))
        near = cells[np.abs(cells[:, 0] - 4) == 2]
        assert len(near) >= 1 and (np.abs(near[:, 1:] - 4) == 2).all()
        assert len(cells) == (2 if near[-1][0] == 6 else 1)
        places.add(tuple(near[-1].tolist()))
    assert len(places) >= 6, "up and down along each axis"
    points = np.array([[0.1, 0.2, 0.3, 9.0]], np.float32)
    moved = perturb_points(points, Perturbation("shift", 2), "a", cell=0.25) - points
    np.testing.assert_allclose(np.abs(moved), [[0.5, 0.5, 0.5, 0.0]], atol=1e-6)


def test_scaling_is_about_the_middle() -> None:
    # Of 8 cells the middle lies at 3.5: 3.5 ± 3.5 becomes 3.5 ± 3.15, rounded 0.35 and 6.65.
    small = perturb_grid(grid_of((0, 0, 0), (7, 7, 7)), Perturbation("scale", 0.5), "a")
    assert np.argwhere(small).tolist() == [[2, 2, 2], [5, 5, 5]]
    large = perturb_grid(grid_of((3, 3, 3), (6, 4, 4)), Perturbation("scale", 2.0), "a")
    # Cell i comes from round((i - 3.5) / 2 + 3.5), halves to even: 2 2 2 3 4 4 5 5 for 0 .. 7
    sources = [round((i - 3.5) / 2 + 3.5) for i in range(8)]
    wanted = [i for i in range(8) if sources[i] == 3]
    assert sorted({int(i) for i in np.argwhere(large)[:, 0]}) == wanted
    points = np.array([[1.0, -2.0, 3.0, 0.5]], np.float32)
    np.testing.assert_allclose(
        perturb_points(points, Perturbation("scale", 1.1), "a", 1), [[1.1, -2.2, 3.3, 0.5]], 1e-6
    )


def test_shrinking_keeps_a_wall_whole() -> None:
    wall = np.zeros((32, 32, 32), np.uint8)
    wall[:, 2:30, 5] = 1
    found = perturb_grid(wall, Perturbation("scale", 0.9), "a")
    (column,) = np.unique(np.argwhere(found)[:, 2])
    levels = np.unique(np.argwhere(found)[:, 0])
    assert column == round((5 - 15.5) * 0.9 + 15.5)
    assert (np.diff(levels) == 1).all() and (found[levels][:, :, column].sum(axis=1) >= 25).all()


def test_bending_shifts_each_level_to_the_side_as_a_whole() -> None:
    grid = random_grid(0.3, 32)
    grid[:, :3] = grid[:, -3:] = 0
    grid[:, :, :3] = grid[:, :, -3:] = 0
    found = perturb_grid(grid, Perturbation("bend", 1.5), "a")
    shifts = set()
    for before, after in zip(grid, found, strict=True):
        same = [
            (dy, dx)
            for dy in range(-2, 3)
            for dx in range(-2, 3)
            if (np.roll(before, (dy, dx), (0, 1)) == after).all()
        ]
        assert len(same) == 1
        shifts.add(same[0])
    assert {dy for dy, _ in shifts} == {dx for _, dx in shifts} == {-2, -1, 0, 1, 2} or len(
        shifts
    ) > 6
    points = np.zeros((64, 3), np.float32)
    points[:, 2] = np.linspace(-3.2, 3.2, 64, endpoint=False)
    moved = perturb_points(points, Perturbation("bend", 1.5), "a", cell=0.2)
    np.testing.assert_array_equal(moved[:, 2], points[:, 2])
    # One whole period of a sine of amplitude 30 cm: mean 0, mean square half of its square.
    np.testing.assert_allclose(moved[:, :2].mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose((moved[:, :2] ** 2).mean(axis=0), 0.3**2 / 2, rtol=1e-5)


def test_noise_has_its_deviation_and_leaves_reflectance() -> None:
    points = np.random.default_rng(0).random((20000, 4)).astype(np.float32)
    moved = perturb_points(points, Perturbation("noise", 5), "a", cell=0.2) - points
    np.testing.assert_allclose(moved[:, :3].std(axis=0), 0.05, rtol=0.03)
    np.testing.assert_allclose(moved[:, :3].mean(axis=0), 0, atol=0.002)
    assert not moved[:, 3].any()
    half = perturb_points(points, Perturbation("noise", 5), "a", cell=0.1) - points
    np.testing.assert_allclose(half, moved / 2, atol=1e-6)


def test_an_object_is_changed_alike_alone_and_among_others() -> None:
    grids = np.stack([random_grid(seed=seed) for seed in range(3)])
    every = _objects(["a", "b", "c"], grids)
    for change in ON_GRIDS:
        together = perturb_objects(every, change, 1.0)
        alone = perturb_objects(every.take([1]), change, 1.0)
        assert (together.grids[1] == alone.grids[0]).all(), change.name
        assert (every.grids == grids).all(), "the set itself stays"
    points = every.as_points()
    for change in ON_POINTS:
        together = perturb_objects(points, change, 2 / 16)
        alone = perturb_objects(points.take([1]), change, 2 / 16)
        part = slice(together.offsets[1], together.offsets[2])
        np.testing.assert_array_equal(together.points[part], alone.points)
        assert alone.offsets.tolist() == [0, len(alone.points)]
    shifted = perturb_objects(points, Perturbation("shift", 2), 2 / 16)
    np.testing.assert_allclose(
        shifted.origins - points.origins,
        (shifted.points - points.points)[shifted.offsets[:-1]],
        atol=1e-6,
    )


def _objects(ids: list[str], grids: np.ndarray) -> ObjectSet:
    none = np.zeros(len(ids) + 1, np.int64)
    labels, origins = np.zeros(len(ids), np.int64), np.zeros((len(ids), 3), np.float32)
    return ObjectSet(("thing",), ids, labels, grids, None, none, origins)


def test_frames_lose_points_and_keep_the_rest(tiny_kitti: Path) -> None:
    frames = KittiDataset(tiny_kitti, "train", require_labels=True)
    half = PerturbedFrames(frames, Perturbation("drop", 0.5), rows=[2, 0])
    assert len(half) == 2 and half[0].frame_id == frames[2].frame_id
    before, after = frames[2], half[0]
    assert len(after.points) == len(before.points) - round(0.5 * len(before.points))
    np.testing.assert_array_equal(after.boxes, before.boxes)
    np.testing.assert_array_equal(after.points, half[0].points)
    np.testing.assert_array_equal(PerturbedFrames(frames, None)[1].points, frames[1].points)


def test_kinds_that_do_not_fit(tiny_kitti: Path) -> None:
    with pytest.raises(ValueError, match="points have no flip"):
        perturb_points(np.zeros((1, 3), np.float32), Perturbation("flip", 0.1), "a", 1)
    with pytest.raises(ValueError, match="grids have no noise"):
        perturb_grid(grid_of(), Perturbation("noise", 2), "a")
    with pytest.raises(ValueError, match="sweeps have no shift"):
        PerturbedFrames(KittiDataset(tiny_kitti, "train"), Perturbation("shift", 2))
