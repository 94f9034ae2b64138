"""VoxelNet in plain dense PyTorch, the way the paper draws it: what voxelpool is measured against.

Every voxel is padded to T points, the features are scattered into a dense grid, and all layers are
torch's own. It takes its weights from a voxelpool network and gives the same results.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from voxelpool.detection import Predictions, flatten_maps
from voxelpool.models.detector import VoxelDetector
from voxelpool.nn import VFE, PointLayer, point_features
from voxelpool.structures import Voxels


def pad(code: Tensor, voxels: Voxels, max_points: int) -> tuple[Tensor, Tensor]:
    """The paper's buffer (K, T, C) of packed rows, and where it holds points (K, T, 1)."""
    slot = torch.arange(max_points, device=code.device)
    mask = slot < voxels.counts()[:, None]
    padded = code.new_zeros(*mask.shape, code.shape[1])
    padded[mask] = code
    return padded, mask[:, :, None]


def point_layer(layer: PointLayer, x: Tensor, mask: Tensor) -> Tensor:
    """Linear, BatchNorm and ReLU of (K, T, C); padding stays 0 and out of the statistics."""
    x = layer.linear(x)
    if layer.training:
        flat = mask[:, :, 0]
        out = torch.zeros_like(x)
        out[flat] = F.relu(layer.norm(x[flat]))
        return out
    return F.relu(layer.norm(x.flatten(0, 1))).view(x.shape) * mask


def padded_vfe(vfe: VFE, x: Tensor, mask: Tensor) -> Tensor:
    """(K, T, C) to (K, out_channels)."""
    for layer in vfe.layers:
        own = point_layer(layer.points, x, mask)
        pooled = own.amax(dim=1, keepdim=True).expand_as(own)
        x = torch.cat([own, pooled], dim=2) * mask
    return point_layer(vfe.points, x, mask).amax(dim=1)


class PlainVoxelNet(nn.Module):
    """The whole network; `net` gives the layers and the voxels."""

    def __init__(self, net: VoxelDetector) -> None:
        super().__init__()
        self.net = net

    def forward(self, points: Tensor) -> Predictions:
        """One sweep (N, 4) to scores (1, N) and residuals (1, N, 7)."""
        net = self.net
        voxels = net.voxelize(points.float())
        code = point_features(points, voxels)
        features = padded_vfe(net.vfe, *pad(code, voxels, net.config.vfe.max_points))
        depth, height, width = net.grid.shape
        dense = features.new_zeros(1, features.shape[1], depth, height, width)
        batch, z, y, x = voxels.coords.long().unbind(1)
        dense[batch, :, z, y, x] = features
        for conv, norm in zip(net.middle.convs, net.middle.norms, strict=True):
            dense = F.conv3d(dense, conv.weight, None, conv.stride, conv.padding)
            dense = F.relu(norm(dense))
        maps, top = [], dense.flatten(1, 2)
        for block, upsample in zip(net.rpn.blocks, net.rpn.upsamples, strict=True):
            top = block(top)
            maps.append(upsample(top))
        joined = torch.cat(maps, dim=1)
        return flatten_maps(net.rpn.score_head(joined), net.rpn.residual_head(joined))
