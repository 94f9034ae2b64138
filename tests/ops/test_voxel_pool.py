"""Pooled features of voxels against a dictionary of lists, filled point by point here."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from voxelpool.ops import points_to_voxels, voxel_pool, voxelize
from voxelpool.structures import VoxelGrid

GRID = VoxelGrid(range=(0.0, 0.0, 0.0, 4.0, 4.0, 2.0), voxel_size=(1.0, 1.0, 1.0))
REDUCTIONS = {"max": np.max, "min": np.min, "mean": np.mean, "sum": np.sum}


def cloud(rows: int, seed: int, columns: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(rows, columns, generator=generator, dtype=torch.float32)
    return points * 5 - 0.5


def loop_pool(points, features, reduce, batch=None):
    """coords and pooled features of all cells, as a sorted list of pairs."""
    members: dict[tuple[int, ...], list[np.ndarray]] = {}
    for row, (x, y, z) in enumerate(points[:, :3].tolist()):
        if 0 <= x < 4 and 0 <= y < 4 and 0 <= z < 2:
            frame = 0 if batch is None else int(batch[row])
            members.setdefault((frame, int(z), int(y), int(x)), []).append(features[row].numpy())
    return [(list(key), REDUCTIONS[reduce](rows, axis=0)) for key, rows in sorted(members.items())]


def assert_same(actual, expected):
    coords, pooled = actual
    assert coords.tolist() == [key for key, _ in expected]
    for row, (_, values) in zip(pooled.detach().cpu().numpy(), expected, strict=True):
        np.testing.assert_allclose(row, values, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("rows", [0, 1, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_a_loop(dtype, rows, reduce, device):
    points = cloud(rows, 0)
    features = torch.randn(rows, 6, dtype=dtype, generator=torch.Generator().manual_seed(1))
    batch = torch.arange(rows) % 2
    actual = voxel_pool(
        points.to(device), features.to(device), GRID, reduce, batch=batch.to(device), batch_size=2
    )
    assert_same(actual, loop_pool(points, features, reduce, batch))
    assert actual[0].dtype == torch.int32
    assert actual[1].dtype == dtype
    assert actual[1].shape == (len(actual[0]), 6)


@settings(deadline=None, max_examples=40)
@given(rows=st.integers(0, 50), seed=st.integers(0, 10**6), reduce=st.sampled_from([*REDUCTIONS]))
def test_any_cloud(rows, seed, reduce):
    points = cloud(rows, seed)
    assert_same(voxel_pool(points, None, GRID, reduce), loop_pool(points, points, reduce))


def test_mean_of_points(device):
    points = cloud(300, 5, columns=5)
    actual = points_to_voxels(points.to(device), GRID)
    assert_same(actual, loop_pool(points, points, "mean"))


def test_limits_are_those_of_voxelize(device):
    points = cloud(400, 2).to(device)
    options = dict(max_points=3, max_voxels=11, seed=8)
    voxels = voxelize(points, GRID, **options)
    coords, mean = points_to_voxels(points, GRID, **options)
    assert torch.equal(coords, voxels.coords)
    for k in range(voxels.num_voxels):
        mine = voxels.point_index[voxels.offsets[k] : voxels.offsets[k + 1]]
        torch.testing.assert_close(mean[k], points[mine].mean(0))


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_gradients(reduce, device):
    points = cloud(60, 3).to(device)
    generator = torch.Generator().manual_seed(4)
    features = torch.randn(60, 3, dtype=torch.float64, generator=generator).to(device)
    features.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda f: voxel_pool(points, f, GRID, reduce, max_points=4)[1], features
    )


def test_points_get_gradients_where_they_are_the_features(device):
    points = cloud(50, 6).to(device).requires_grad_()
    points_to_voxels(points, GRID)[1].sum().backward()
    inside = voxelize(points, GRID).point_index
    expected = torch.zeros(50, dtype=torch.bool, device=device)
    expected[inside] = True
    assert torch.equal(points.grad.abs().sum(1) > 0, expected)


def test_compiles_without_a_graph_break(device):
    def pool(points, features):
        return voxel_pool(points, features * 2, GRID, "max", max_points=3)

    torch._dynamo.reset()
    compiled = torch.compile(pool, fullgraph=True, backend="aot_eager")
    for rows in (40, 70):
        points, features = cloud(rows, rows).to(device), torch.randn(rows, 2, device=device)
        for actual, expected in zip(
            compiled(points, features), pool(points, features), strict=True
        ):
            assert torch.equal(actual, expected)


def test_wrong_arguments_are_named():
    points = cloud(4, 0)
    with pytest.raises(ValueError, match=r"reduce must be one of max, min, mean, sum, got 'prod'"):
        voxel_pool(points, None, GRID, "prod")
    with pytest.raises(ValueError, match=r"row for each of 4 points, got \(3, 2\)"):
        voxel_pool(points, torch.zeros(3, 2), GRID)
    with pytest.raises(ValueError, match=r"features is on meta and points on cpu"):
        voxel_pool(points, torch.zeros(4, 2, device="meta"), GRID)
    with pytest.raises(TypeError, match=r"features must be a torch.Tensor, got list"):
        voxel_pool(points, [1.0], GRID)
    with pytest.raises(TypeError, match=r"points must be a torch.Tensor, got ndarray"):
        points_to_voxels(points.numpy(), GRID)
