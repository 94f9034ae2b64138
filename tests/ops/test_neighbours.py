"""Farthest points and balls of neighbours against loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from voxelpool.ops import ball_query, farthest_points

NAN = math.nan


def cloud(seed, batch, rows, *, lattice=False, holes=False):
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(batch, rows, 3, generator=generator)
    if lattice:
        points = (points * 2).round() / 2  # ties and points on one place
    if holes:
        points[torch.rand(batch, rows, generator=generator) < 0.3] = NAN
    return points


def farthest_loop(points, count):
    """Rows of one object; its first must be given."""
    valid = [i for i, p in enumerate(points) if not np.isnan(p).any()]
    if not valid:
        return [-1] * count
    mean = points[valid].astype(np.float64).mean(0)
    chosen = [max(valid, key=lambda i: (((points[i].astype(np.float64) - mean) ** 2).sum(), -i))]
    while len(chosen) < count:
        away = {i: min(float(((points[i] - points[j]) ** 2).sum()) for j in chosen) for i in valid}
        best = max(valid, key=lambda i: (away[i], -i))
        if away[best] == 0:
            break
        chosen.append(best)
    return chosen + [-1] * (count - len(chosen))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(0, 12),
    count=st.integers(1, 14),
    lattice=st.booleans(),
    holes=st.booleans(),
)
def test_farthest_points_against_a_loop(seed, rows, count, lattice, holes):
    points = cloud(seed, 2, rows, lattice=lattice, holes=holes)
    out = farthest_points(points, count)
    assert out.dtype == torch.int64 and out.shape == (2, count)
    for rows_of, object_points in zip(out.tolist(), points.numpy(), strict=True):
        expected = farthest_loop(object_points, count)
        if not lattice:
            assert rows_of == expected
            continue
        # The mean decides ties of the first by its rounding: go on from the one that was taken.
        assert [row < 0 for row in rows_of] == [row < 0 for row in expected]
        chosen = [row for row in rows_of if row >= 0]
        valid = ~np.isnan(object_points).any(1)
        for step in range(1, len(chosen)):
            away = ((object_points[:, None] - object_points[chosen[:step]]) ** 2).sum(2).min(1)
            assert chosen[step] == int(np.where(valid, away, -1).argmax())


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(0, 12),
    centres=st.integers(0, 5),
    count=st.integers(1, 14),
    radius=st.sampled_from([0.5, 1.0, 3.0]),
    lattice=st.booleans(),
    holes=st.booleans(),
)
def test_ball_query_against_a_loop(seed, rows, centres, count, radius, lattice, holes):
    points = cloud(seed, 2, rows, lattice=lattice, holes=holes)
    middle = cloud(seed + 1, 2, centres, lattice=lattice, holes=holes)
    out = ball_query(points, middle, radius, count)
    assert out.dtype == torch.int64 and out.shape == (2, centres, count)
    for b in range(2):
        for m in range(centres):
            away = ((middle[b, m] - points[b]) ** 2).sum(1).tolist()
            near = sorted((d, i) for i, d in enumerate(away) if d <= radius * radius)[:count]
            assert out[b, m].tolist() == [i for _, i in near] + [-1] * (count - len(near))


def test_the_radius_belongs_to_the_ball(device):
    points = torch.tensor([[[0.0, 0, 0], [2, 0, 0], [0, 0, 2.0001]]], device=device)
    assert ball_query(points, points[:, :1], 2.0, 3).tolist() == [[[0, 1, -1]]]


def test_the_order_of_the_points_does_not_matter(device):
    points = cloud(0, 4, 200).to(device)
    shuffle = torch.randperm(200, device=device)
    one, other = farthest_points(points, 50), farthest_points(points[:, shuffle], 50)
    assert torch.equal(one, shuffle[other])
    centres = points[:, :7]
    near, near_shuffled = (ball_query(p, centres, 0.8, 9) for p in (points, points[:, shuffle]))
    assert torch.equal(near, torch.where(near_shuffled < 0, -1, shuffle[near_shuffled]))


def test_farthest_points_cover_the_object():
    """Gonzalez 1985: within twice the best radius, and no two closer than any point is to them."""
    points = cloud(5, 1, 300)
    chosen = points[0, farthest_points(points, 20)[0]]
    covered = torch.cdist(points[0], chosen).amin(1).max()
    apart = (torch.cdist(chosen, chosen) + 100 * torch.eye(20)).min()
    assert covered <= apart


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    points = cloud(0, 2, 30).to(dtype)
    assert torch.equal(farthest_points(points, 9), farthest_points(points.float(), 9))
    near = ball_query(points, points, 1.0, 5)
    assert torch.equal(near, ball_query(points.float(), points.float(), 1.0, 5))


def test_registered_as_ops():
    points = cloud(0, 2, 12)
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.voxelpool.farthest_points, (points, 5), test_utils=checks)
    torch.library.opcheck(
        torch.ops.voxelpool.ball_query, (points, points, 1.0, 5), test_utils=checks
    )


def test_bad_arguments():
    points = torch.zeros(2, 5, 3)
    for call, message in [
        (lambda: farthest_points(points[0], 3), r"\(B, N, 3\)"),
        (lambda: farthest_points(points, 0), "count"),
        (lambda: ball_query(points, points[:1], 1.0, 3), "objects"),
        (lambda: ball_query(points, points, 0.0, 3), "radius"),
        (lambda: ball_query(points, points, NAN, 3), "radius"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="floating point"):
        farthest_points(points.int(), 3)
