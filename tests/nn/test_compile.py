from __future__ import annotations

import pytest
import torch

from voxelpool.nn import RPN, VFE, DenseMiddle, point_features
from voxelpool.ops import voxelize
from voxelpool.structures import VoxelGrid


@pytest.mark.slow
def test_from_points_in_voxels_to_maps_in_one_graph(device):
    """No graph break, and none when the number of voxels changes."""
    grid = VoxelGrid((0.0, -4.0, -3.0, 8.0, 4.0, 1.0), (0.5, 0.5, 0.5))
    torch.manual_seed(0)
    vfe = VFE(7, (8, 16), 8).to(device)
    middle = DenseMiddle(8, (4, 4, 4), grid_shape=grid.shape).to(device)
    rpn = RPN(
        middle.out_channels, layers=(1, 0, 0), channels=(4, 4, 4), upsample_channels=(4, 4, 4)
    ).to(device)
    for module in (vfe, middle, rpn):
        module.eval()

    def network(points, voxels):
        features = vfe(point_features(points, voxels), voxels)
        return rpn(middle(features, voxels.coords, voxels.batch_size))

    torch._dynamo.reset()
    compiled = torch.compile(network, fullgraph=True, dynamic=True, backend="aot_eager")
    low, extent = torch.tensor([0.0, -4, -3, 0]), torch.tensor([8.0, 8, 4, 1])
    with torch.no_grad():
        for count in (300, 200):
            points = (low + extent * torch.rand(count, 4)).to(device)
            voxels = voxelize(points, grid)
            for out, expected in zip(
                compiled(points, voxels), network(points, voxels), strict=True
            ):
                torch.testing.assert_close(out, expected)
