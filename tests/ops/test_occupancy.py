"""Occupancy grids against rays cut cell by cell in rational arithmetic."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from voxelpool.ops import occupancy_grid
from voxelpool.structures import VoxelGrid

# Sizes are powers of two, so that a rational is what the float is.
GRID = VoxelGrid((-1.0, -0.5, 0.0, 1.0, 1.0, 1.0), (0.5, 0.25, 0.5))


def cell_of(point, grid):
    """(z, y, x), or None outside."""
    cell = []
    for value, low, high, size in zip(
        point, grid.range[:3], grid.range[3:], grid.voxel_size, strict=True
    ):
        if not low <= value < high:
            return None
        cell.append(math.floor((Fraction(value) - Fraction(low)) / Fraction(size)))
    return tuple(reversed(cell))


def stretch(start, end, cell, grid):
    """Length, as a share of the ray, of the part inside a half-open cell."""
    enter, leave = Fraction(0), Fraction(1)
    for axis, index in enumerate(reversed(cell)):
        low = Fraction(grid.range[axis]) + index * Fraction(grid.voxel_size[axis])
        high = low + Fraction(grid.voxel_size[axis])
        a, b = Fraction(start[axis]), Fraction(end[axis])
        if a == b:
            if not low <= a < high:
                return Fraction(0)
            continue
        near, far = sorted([(low - a) / (b - a), (high - a) / (b - a)])
        enter, leave = max(enter, near), min(leave, far)
    return max(leave - enter, Fraction(0))


def march(points, origin, grid):
    """hits and misses, (D, H, W), by asking every cell about every ray."""
    hits, misses = torch.zeros(grid.shape), torch.zeros(grid.shape)
    for point in points:
        if not all(map(math.isfinite, point)):
            continue
        last = cell_of(point, grid)
        if last is not None:
            hits[last] += 1
        for cell in itertools.product(*map(range, grid.shape)):
            if cell != last and stretch(origin, point, cell, grid) > 0:
                misses[cell] += 1
    return hits, misses


def models(hits, misses):
    return {
        "hit": (hits > 0).float(),
        "density": (1 + hits) / (2 + hits + misses),
        "log_odds": (1.38 * (hits - misses)).clamp(-4, 4),
    }


def check(points, origin, grid=GRID, device="cpu"):
    expected = models(*march(points, origin, grid))
    tensor = torch.tensor(points, dtype=torch.float32, device=device).view(-1, 3)
    for model, oracle in expected.items():
        out = occupancy_grid(tensor, grid, model, origin=torch.tensor(origin, device=device))
        assert out.shape == (1, *grid.shape) and out.dtype == torch.float32
        torch.testing.assert_close(out[0].cpu(), oracle, msg=lambda text, m=model: f"{m}: {text}")


# Eighths: many rays along axes, in faces and through edges and corners, in the grid and outside.
eighth = st.integers(-16, 16).map(lambda value: value / 8)
place = st.tuples(eighth, eighth, eighth)


@settings(max_examples=60, deadline=None)
@given(points=st.lists(place, max_size=6), origin=place)
def test_rays_on_a_lattice(points, origin):
    check(points, origin)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), spread=st.sampled_from([0.5, 2.0, 20.0]))
def test_rays_anywhere(seed, spread):
    generator = torch.Generator().manual_seed(seed)
    points = (torch.randn(8, 3, generator=generator)).tolist()
    check(points, (spread * torch.randn(3, generator=generator)).tolist())


@pytest.mark.parametrize(
    ("origin", "point", "passed"),
    [
        ((-3.0, 0.125, 0.25), (0.75, 0.125, 0.25), [(0, 2, 0), (0, 2, 1), (0, 2, 2)]),
        ((0.75, 0.125, 0.25), (-3.0, 0.125, 0.25), [(0, 2, 0), (0, 2, 1), (0, 2, 2), (0, 2, 3)]),
        # In the face between y cells 1 and 2, which belongs to 2.
        ((-0.75, 0.0, 0.25), (0.25, 0.0, 0.25), [(0, 2, 0), (0, 2, 1)]),
        # Through an edge: the cells that it only touches are not passed.
        ((-0.75, -0.375, 0.25), (-0.25, -0.125, 0.25), [(0, 0, 0)]),
        # Downwards from a face, which the ray leaves at once.
        ((0.0, 0.125, 0.25), (-0.75, 0.125, 0.25), [(0, 2, 1)]),
        ((0.1, 0.1, 0.1), (0.1, 0.1, 0.1), []),
        ((5.0, 5.0, 5.0), (4.0, 5.0, 5.0), []),
        ((-3.0, 0.125, 0.25), (3.0, 0.125, 0.25), [(0, 2, x) for x in range(4)]),
    ],
    ids=["along", "backwards", "face", "edge", "from-face", "point", "beside", "through"],
)
def test_cells_on_the_way(device, origin, point, passed):
    misses = march([point], origin, GRID)[1]
    assert [tuple(cell) for cell in misses.nonzero().tolist()] == passed
    check([point], origin, device=device)


def test_a_grid_whose_planes_are_no_floats(device):
    """Tenths: a ray still goes from its first cell to its last by steps of one cell."""
    grid = VoxelGrid((-1.6, -1.6, -1.6, 1.6, 1.6, 1.6), (0.1, 0.1, 0.1))
    generator = torch.Generator().manual_seed(3)
    ticks = torch.randint(-15, 15, (200, 3), generator=generator)
    points = (ticks * 0.1).float()  # on the corners of cells, up to rounding
    origin = torch.tensor([-9.0, 2.5, 1.55])
    for point in points:
        odds = occupancy_grid(point[None].to(device), grid, "log_odds", origin=origin.to(device))
        hit, missed = (odds > 0).nonzero(), (odds < 0).nonzero()
        assert len(hit) == 1 and (odds.abs().unique() - 1.38).amax() < 1e-6
        if len(missed):  # x grows along the ray: so do the cells
            way = torch.cat([missed, hit])[:, 1:]
            way = way[(way * torch.tensor([-1, -1, 1], device=device)).sum(1).argsort()]
            assert way[-1].tolist() == hit[0, 1:].tolist()
            steps = way.diff(dim=0)
            assert (steps[:, 2] >= 0).all() and (steps[:, :2] <= 0).all()
            assert (steps.abs().sum(1) <= 3).all() and (steps.abs().amax(1) == 1).all()


def test_frames_of_a_batch_each_with_its_origin(device):
    torch.manual_seed(0)
    points = torch.randn(50, 3, device=device)
    batch = torch.randint(0, 3, (50,), device=device)
    batch[batch == 1] = 2  # frame 1 is empty
    origins = 3 * torch.randn(3, 3, device=device)
    for model in ("hit", "density", "log_odds"):
        out = occupancy_grid(points, GRID, model, origin=origins, batch=batch, batch_size=3)
        for frame in range(3):
            alone = occupancy_grid(points[batch == frame], GRID, model, origin=origins[frame])
            assert torch.equal(out[frame], alone[0])
    shared = occupancy_grid(points, GRID, "density", origin=origins[0], batch=batch)
    assert torch.equal(
        shared[0], occupancy_grid(points[batch == 0], GRID, "density", origin=origins[0])[0]
    )


def test_many_rays_in_parts(monkeypatch):
    torch.manual_seed(0)
    points, origin = torch.randn(40, 3), torch.tensor([-4.0, 0.3, 0.2])
    whole = occupancy_grid(points, GRID, "density", origin=origin)
    monkeypatch.setattr("voxelpool.ops.occupancy._MOST_CROSSINGS", 50)
    assert torch.equal(occupancy_grid(points, GRID, "density", origin=origin), whole)


def test_no_points_and_points_that_are_none(device):
    nothing = torch.zeros(0, 3, device=device)
    bad = torch.tensor([[math.nan, 0, 0], [0, math.inf, 0.2], [0, 0, -math.inf]], device=device)
    for points in (nothing, bad):
        for model, value in (("hit", 0.0), ("density", 0.5), ("log_odds", 0.0)):
            out = occupancy_grid(points, GRID, model, origin=(0.0, 0.0, 0.25), batch_size=2)
            assert out.shape == (2, *GRID.shape) and (out == value).all()


def test_log_odds_are_limited():
    """Three hits are over the limit; what counts is the sum, not the order."""
    point = torch.tensor([[0.1, 0.1, 0.1]])
    odds = occupancy_grid(point.repeat(3, 1), GRID, "log_odds", origin=(-3.0, 0.1, 0.1))
    assert sorted(odds.unique().tolist()) == [-4, 0, 4]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "binary"}, "hit, density or log_odds"),
        ({"model": "density", "origin": None}, "needs the origin"),
        ({"model": "log_odds", "origin": (0.0, 0.0)}, r"\(3,\) or \(1, 3\)"),
        ({"model": "log_odds", "origin": (0.0, 0.0, math.nan)}, "finite"),
        ({"points": torch.zeros(2, 2)}, "N, 3 or more"),
        ({"batch": torch.tensor([0, 5]), "batch_size": 2}, r"batch\[1\] is 5"),
    ],
)
def test_bad_arguments(changes, message):
    arguments = {"points": torch.zeros(2, 3), "grid": GRID, "origin": (0.0, 0.0, 0.0)} | changes
    with pytest.raises(ValueError, match=message):
        occupancy_grid(**arguments)
