"""Middle layers: from voxel features to a bird's-eye-view map.

Every middle network has one interface: ``(features (K, C), coords (K, 4), batch_size)`` to a map
``(B, out_channels, H, W)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from voxelpool.nn import reach
from voxelpool.nn.reach import Reach, Triple
from voxelpool.ops import conv_table, gather_conv
from voxelpool.ops.reference.cells import conv_shape, flat_cells


def scatter_to_dense(features: Tensor, coords: Tensor, batch_size: int, shape: Triple) -> Tensor:
    """Write voxel features into a dense grid of zeros; differentiable in the features.

    Args:
        features: (K, C).
        coords: (K, 4) integer (batch, z, y, x), each cell at most once.
        batch_size: B, number of frames.
        shape: (D, H, W), cells along z, y, x.

    Returns:
        (B, C, D, H, W), stored with the channels innermost (``torch.channels_last_3d``).
    """
    _check_voxels(features, coords)
    depth, height, width = shape
    dense = features.new_zeros(batch_size * depth * height * width, features.shape[1])
    dense[flat_cells(coords, shape)] = features
    return dense.view(batch_size, depth, height, width, -1).permute(0, 4, 1, 2, 3)


class VoxelConv3d(nn.Conv3d):
    """A 3D convolution that reads a set of voxels and writes the dense map.

    It equals ``Conv3d(scatter_to_dense(features))`` (same weights, same output up to rounding),
    but multiplies the occupied cells alone. In a KITTI sweep these are 0.4% of the grid, and the
    dense input (721 MB for the paper's car grid) is never made.

    The taps of an output cell are added in their order, so the result does not depend on threads.

    Args:
        in_channels: columns of the voxel features.
        out_channels: channels of the map.
        kernel_size: (z, y, x).
        in_shape: (D, H, W) of the voxel grid.
        stride: (z, y, x).
        padding: (z, y, x), zeros.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Triple,
        in_shape: Triple,
        *,
        stride: Triple = (1, 1, 1),
        padding: Triple = (0, 0, 0),
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, bias=False)
        self.in_shape = in_shape
        self.out_shape = conv_shape(in_shape, kernel_size, stride, padding)

    def forward(  # type: ignore[override]
        self, features: Tensor, coords: Tensor, batch_size: int
    ) -> Tensor:
        """Convolve.

        Args:
            features: (K, in_channels).
            coords: (K, 4) integer (batch, z, y, x), each cell at most once.
            batch_size: B, number of frames.

        Returns:
            (B, out_channels, D', H', W'), stored with the channels innermost.
        """
        _check_voxels(features, coords)
        shape, layer = self.out_shape, _geometry(self)
        voxels = Reach.of_voxels(coords, batch_size, self.in_shape)
        cells = reach.spread(voxels.reached, *layer).flatten().nonzero().squeeze(1)
        table = conv_table(voxels.index, cells, shape, *layer)
        weight = reach.conv_taps(self.weight)
        rows = gather_conv(features.to(weight.dtype), table, weight)
        dense = rows.new_zeros(batch_size * math.prod(shape), self.out_channels)
        dense[cells] = rows
        return dense.view(batch_size, *shape, -1).permute(0, 4, 1, 2, 3)

    def dense_forward(self, dense: Tensor) -> Tensor:
        """The same convolution of an already dense (B, in_channels, D, H, W) input."""
        return super().forward(dense)


class DenseMiddle(nn.Module):
    """VoxelNet's convolutional middle layers: 3D convolutions, each with BatchNorm and ReLU.

    The defaults are the paper's: kernels of 3, strides along z of 2, 1, 2 and no padding along z
    in the second layer, which brings a depth of 10 to 5, 3 and 2. The last depth is folded into
    the channels: channel c at depth d becomes channel ``c * D' + d``.

    BatchNorm sees the whole dense map, empty cells included, as in the paper.

    Args:
        in_channels: columns of the voxel features.
        channels: output channels of each layer.
        grid_shape: (D, H, W) of the voxel grid; `VoxelGrid.shape`.
        strides: (z, y, x) for each layer.
        paddings: (z, y, x) for each layer.
        norm_eps: added to the variance.
        norm_momentum: weight of the newest batch in the running statistics.
        dense_input: make the dense input of the first layer instead of reading the voxels; the
            same result with far more work, for exporters that know no sparse operation.

    Attributes:
        use_reach: whether to compute only what voxels reach, where that pays; the same result.
        out_depth: depth after the layers, D'.
        out_channels: channels of the map, ``channels[-1] * D'``.
        out_size: (H', W') of the map.

    Raises:
        ValueError: if the lists differ in length or the grid is too flat for the layers.
    """

    def __init__(
        self,
        in_channels: int = 128,
        channels: Sequence[int] = (64, 64, 64),
        *,
        grid_shape: Triple = (10, 400, 352),
        strides: Sequence[Triple] = ((2, 1, 1), (1, 1, 1), (2, 1, 1)),
        paddings: Sequence[Triple] = ((1, 1, 1), (0, 1, 1), (1, 1, 1)),
        norm_eps: float = 1e-5,
        norm_momentum: float = 0.1,
        dense_input: bool = False,
    ) -> None:
        super().__init__()
        if not channels or not len(channels) == len(strides) == len(paddings):
            raise ValueError(
                "channels, strides and paddings must name the same number of layers, got "
                f"{len(channels)}, {len(strides)} and {len(paddings)}"
            )
        kernel = (3, 3, 3)
        shape: Triple = (int(grid_shape[0]), int(grid_shape[1]), int(grid_shape[2]))
        self.grid_shape = shape
        self.in_channels = in_channels
        self.dense_input = dense_input
        self.use_reach = True
        self.convs = nn.ModuleList()
        self.norms = nn.ModuleList()
        width = in_channels
        for index, (out, stride, padding) in enumerate(
            zip(channels, strides, paddings, strict=True)
        ):
            after = conv_shape(shape, kernel, stride, padding)
            if min(after) < 1:
                raise ValueError(
                    f"middle layer {index + 1} has no output: a grid of {tuple(grid_shape)} "
                    f"(z, y, x) is {shape} before it and {after} after it"
                )
            self.convs.append(
                VoxelConv3d(width, out, kernel, shape, stride=stride, padding=padding)
                if index == 0
                else nn.Conv3d(width, out, kernel, stride, padding, bias=False)
            )
            self.norms.append(nn.BatchNorm3d(out, eps=norm_eps, momentum=norm_momentum))
            shape, width = after, out
        self.out_depth = shape[0]
        self.out_channels = width * shape[0]
        self.out_size = (shape[1], shape[2])

    def forward(self, features: Tensor, coords: Tensor, batch_size: int) -> Tensor:
        """Make the map.

        Args:
            features: (K, in_channels); K = 0 is ordinary.
            coords: (K, 4) integer (batch, z, y, x), each cell at most once.
            batch_size: B, number of frames.

        Returns:
            (B, out_channels, H', W').

        Raises:
            ValueError: if the shapes of features and coords do not fit.
        """
        if self.runs_on_rows(features):
            rows, reached = self.forward_rows(features, coords, batch_size)
            return reached.expand(rows).permute(0, 4, 1, 2, 3).flatten(1, 2)
        self._check_features(features, coords)
        first = self.convs[0]
        assert isinstance(first, VoxelConv3d)
        if self.dense_input:
            x = first.dense_forward(scatter_to_dense(features, coords, batch_size, self.grid_shape))
        else:
            x = first(features, coords, batch_size)
        x = torch.relu_(self.norms[0](x))
        for conv, norm in zip(self.convs[1:], self.norms[1:], strict=True):
            x = torch.relu_(norm(_convolve(conv, x)))
        return x.flatten(1, 2)

    def runs_on_rows(self, features: Tensor) -> bool:
        """Whether `forward_rows` is the better way to compute."""
        return self.use_reach and not self.dense_input and reach.pays(features)

    def forward_rows(
        self, features: Tensor, coords: Tensor, batch_size: int
    ) -> tuple[Tensor, Reach]:
        """Make the map as the list of its distinct cells; arguments as `forward`.

        Returns:
            rows (R, channels[-1]), and where in the map (B, D', H', W') each of them stands.

        Raises:
            ValueError: as `forward`.
        """
        self._check_features(features, coords)
        rows = features.to(reach.row_dtype(features))
        reached = Reach.of_voxels(coords, batch_size, self.grid_shape)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            assert isinstance(conv, nn.Conv3d) and isinstance(norm, nn.BatchNorm3d)
            weight = reach.conv_taps(conv.weight)
            rows, reached = reach.conv_norm_relu(rows, reached, weight, *_geometry(conv), norm)
        return rows, reached

    def _check_features(self, features: Tensor, coords: Tensor) -> None:
        if features.ndim != 2 or features.shape[1] != self.in_channels:
            raise ValueError(
                f"features must be (K, {self.in_channels}), got {tuple(features.shape)}"
            )
        _check_voxels(features, coords)


class ScatterMiddle(nn.Module):
    """PointPillars' middle: each pillar's features go to its place, the rest of the map is zeros.

    Args:
        in_channels: columns of the pillar features.
        grid_shape: (1, H, W) of the voxel grid.

    Attributes:
        use_reach: whether the layers that follow may compute only what pillars reach, where that
            pays; the same result.
        out_channels: channels of the map, ``in_channels``.
        out_size: (H, W).

    Raises:
        ValueError: if the grid is not one voxel high.
    """

    def __init__(self, in_channels: int, *, grid_shape: Triple) -> None:
        super().__init__()
        if grid_shape[0] != 1:
            raise ValueError(f"pillars are one voxel high, the grid is {grid_shape[0]}")
        self.grid_shape = reach.triple(grid_shape)
        self.in_channels = self.out_channels = in_channels
        self.out_size = self.grid_shape[1:]
        self.use_reach = True

    def forward(self, features: Tensor, coords: Tensor, batch_size: int) -> Tensor:
        """Make the map.

        Args:
            features: (K, in_channels); K = 0 is ordinary.
            coords: (K, 4) integer (batch, 0, y, x), each cell at most once.
            batch_size: B, number of frames.

        Returns:
            (B, in_channels, H, W).
        """
        return scatter_to_dense(features, coords, batch_size, self.grid_shape).flatten(1, 2)

    def runs_on_rows(self, features: Tensor) -> bool:
        """As `DenseMiddle.runs_on_rows`."""
        return self.use_reach and reach.pays(features)

    def forward_rows(
        self, features: Tensor, coords: Tensor, batch_size: int
    ) -> tuple[Tensor, Reach]:
        """As `DenseMiddle.forward_rows`."""
        rows = features.to(reach.row_dtype(features))
        return rows, Reach.of_voxels(coords, batch_size, self.grid_shape)


def _geometry(conv: nn.Conv3d) -> tuple[Triple, Triple, Triple]:
    """Kernel, stride and padding."""
    assert not isinstance(conv.padding, str)
    return (
        reach.triple(conv.kernel_size),
        reach.triple(conv.stride),
        reach.triple(conv.padding),
    )


def _convolve(conv: nn.Module, x: Tensor) -> Tensor:
    """``conv(x)``, also where torch's own choice of a CPU kernel is a bad one.

    For one frame with C * D * H up to 20,480 torch 2.13 takes a plain loop instead of oneDNN,
    some ten times slower. There the depth taps go into the channels of a 2D convolution.
    """
    assert isinstance(conv, nn.Conv3d)
    if x.device.type != "cpu" or x.shape[0] != 1 or math.prod(x.shape[:4]) > 20_480:
        out: Tensor = conv(x)
        return out
    taps, stride, padding = conv.kernel_size[0], conv.stride, conv.padding
    planes = x.permute(0, 2, 3, 4, 1)
    planes = F.pad(planes, [0, 0, 0, 0, 0, 0, int(padding[0]), int(padding[0])])
    depth = (planes.shape[1] - taps) // stride[0] + 1
    span = (depth - 1) * stride[0] + 1
    windows = torch.cat([planes[:, k : k + span : stride[0]] for k in range(taps)], dim=-1)
    weight = conv.weight.transpose(1, 2).flatten(1, 2)
    out = F.conv2d(windows[0].permute(0, 3, 1, 2), weight, None, stride[1:], padding[1:])
    return out.transpose(0, 1)[None]


def _check_voxels(features: Tensor, coords: Tensor) -> None:
    if features.ndim != 2 or coords.shape != (features.shape[0], 4):
        raise ValueError(
            "features must be (K, C) and coords (K, 4), got "
            f"{tuple(features.shape)} and {tuple(coords.shape)}"
        )
