"""The detectors in plain PyTorch, as the papers draw them: what voxelpool is measured against.

Every voxel is padded to T points, the features are scattered into a dense grid, and all layers are
torch's own. It takes its weights from a voxelpool network and gives the same results.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from voxelpool.detection import Predictions, flatten_maps
from voxelpool.models.detector import VoxelDetector
from voxelpool.nn import (
    VFE,
    DenseMiddle,
    MeanVFE,
    PointLayer,
    SparseCells,
    SparseMiddle,
    point_features,
)
from voxelpool.ops.reference import sparse as reference
from voxelpool.ops.reference.cells import conv_shape
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


class PlainMiddle:
    """The same layers in PyTorch: tables by searching; then gather, multiply, add, tap by tap."""

    def __init__(self, middle: SparseMiddle) -> None:
        self.middle = middle

    def __call__(self, features: Tensor, coords: Tensor, batch_size: int) -> Tensor:
        shape, rows, table = self.middle.grid_shape, features, None
        for conv, norm in zip(self.middle.convs, self.middle.norms, strict=True):
            layer = (conv.kernel, conv.stride, conv.padding)
            if not conv.subm or table is None:
                after = conv_shape(shape, *layer)
                reached = coords
                if not conv.subm:
                    reached = reference.sparse_reach(coords, batch_size, shape, *layer)
                table = reference.sparse_table(coords, reached, batch_size, shape, after, *layer)
                coords, shape = reached, after
            weight = conv.weight.flatten(1, 3).permute(1, 2, 0)
            out = rows.new_zeros(len(coords), conv.out_channels)
            for entries, matrix in zip(table.long().unbind(1), weight, strict=True):
                cells = (entries >= 0).nonzero()[:, 0]
                out = out.index_add(0, cells, (rows[entries[cells]] @ matrix).to(out))
            rows = torch.relu(norm(out))
            table = table if conv.subm else None
        return SparseCells(coords, batch_size, shape).to_bev(rows)


class PlainDetector(nn.Module):
    """The whole network; `net` gives the layers and the voxels."""

    def __init__(self, net: VoxelDetector) -> None:
        super().__init__()
        self.net = net

    def forward(self, points: Tensor) -> Predictions:
        """One sweep (N, 4) to the predictions for its anchors."""
        net = self.net
        voxels = net.voxelize(points.float())
        top, maps = self._bev(self._encode(points, voxels), voxels), []
        for block, upsample in zip(net.rpn.blocks, net.rpn.upsamples, strict=True):
            top = block(top)
            maps.append(upsample(top))
        joined = torch.cat(maps, dim=1)
        heads = (net.rpn.score_head, net.rpn.residual_head, net.rpn.direction_head)
        return flatten_maps(*(head(joined) for head in heads if head is not None))

    def _encode(self, points: Tensor, voxels: Voxels) -> Tensor:
        encoder, most = self.net.vfe, self.net.config.vfe.max_points
        if isinstance(encoder, MeanVFE):
            padded, _ = voxels.pad(points, most)
            return padded.sum(dim=1) / voxels.counts()[:, None]
        code = point_features(points, voxels, center_offsets=encoder.center_offsets)
        return padded_vfe(encoder, *pad(code, voxels, most))

    def _bev(self, features: Tensor, voxels: Voxels) -> Tensor:
        net = self.net
        if isinstance(net.middle, SparseMiddle):
            return PlainMiddle(net.middle)(features, voxels.coords, 1)
        dense = features.new_zeros(1, features.shape[1], *net.grid.shape)
        batch, z, y, x = voxels.coords.long().unbind(1)
        dense[batch, :, z, y, x] = features
        if isinstance(net.middle, DenseMiddle):
            for conv, norm in zip(net.middle.convs, net.middle.norms, strict=True):
                dense = F.conv3d(dense, conv.weight, None, conv.stride, conv.padding)
                dense = F.relu(norm(dense))
        return dense.flatten(1, 2)
