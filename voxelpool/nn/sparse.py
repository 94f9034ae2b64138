"""Sparse convolutions: layers that compute at the cells that voxels occupy or reach, alone.

Unlike in `voxelpool.nn.reach`, a cell that no voxel reaches is nothing: it holds zeros, takes no
part in the statistics of BatchNorm, and a layer's ReLU and offset do not touch it.

The weights are laid out as spconv 2.x has them, so either of two back ends can use them: this
project's own kernels (``native``), and spconv.
"""

from __future__ import annotations

import functools
import importlib
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from voxelpool.errors import VoxelpoolError
from voxelpool.nn import reach
from voxelpool.nn.reach import Reach, Triple
from voxelpool.nn.vfe import PackedBatchNorm
from voxelpool.ops import gather_conv, gather_conv_affine, sparse_reach, sparse_table
from voxelpool.ops.reference.cells import conv_shape

Backend: TypeAlias = Literal["auto", "spconv", "native"]


@dataclass(frozen=True)
class SparseCells:
    """The cells of a sparse map, and the tables of what is computed at them.

    Attributes:
        coords: (K, 4) int32 (batch, z, y, x), sorted lexicographically, none twice.
        batch_size: B.
        shape: (D, H, W).
        tables: by kernel, the table of submanifold convolutions, once one of them has asked.
    """

    coords: Tensor
    batch_size: int
    shape: Triple
    tables: dict[Triple, Tensor] = field(default_factory=dict, compare=False, repr=False)

    def submanifold(self, kernel: Triple) -> Tensor:
        """(K, T) int32: what a convolution at these very cells reads; see `ops.sparse_table`."""
        if kernel not in self.tables:
            padding = tuple(size // 2 for size in kernel)
            self.tables[kernel] = sparse_table(
                self.coords,
                self.coords,
                self.batch_size,
                self.shape,
                self.shape,
                kernel,
                (1, 1, 1),
                padding,
            )
        return self.tables[kernel]

    def through(
        self, kernel: Triple, stride: Triple, padding: Triple
    ) -> tuple[Tensor, SparseCells]:
        """The table of a convolution, and the cells that it reaches."""
        layer = (kernel, stride, padding)
        shape = conv_shape(self.shape, *layer)
        coords = sparse_reach(self.coords, self.batch_size, self.shape, *layer)
        table = sparse_table(self.coords, coords, self.batch_size, self.shape, shape, *layer)
        return table, SparseCells(coords, self.batch_size, shape)

    def to_bev(self, features: Tensor) -> Tensor:
        """The map seen from above, zeros where there is no cell.

        Args:
            features: (K, C).

        Returns:
            (B, C * D, H, W), channel c at depth d being ``c * D + d``, stored with the channels
            innermost.
        """
        batch, z, y, x = self.coords.long().unbind(1)
        depth, height, width = self.shape
        channels = features.shape[1]
        dense = features.new_zeros(self.batch_size * height * width, channels, depth)
        dense[(batch * height + y) * width + x, :, z] = features
        return dense.view(self.batch_size, height, width, channels * depth).permute(0, 3, 1, 2)


class SparseConv(nn.Module):
    """A sparse 3D convolution without bias.

    The weight is (out_channels, z, y, x, in_channels): that of spconv 2.x for the same layer as it
    is. (spconv 1.x stores (z, y, x, in_channels, out_channels).)

    Args:
        in_channels: columns of the input.
        out_channels: columns of the output.
        kernel: (z, y, x).
        stride: (z, y, x).
        padding: (z, y, x), empty cells.
        subm: submanifold: compute at the cells of the input; the stride is 1 and the padding half
            of the kernel, which is odd. Otherwise at every cell that one of them reaches.

    Raises:
        ValueError: a submanifold convolution with another stride or padding, or an even kernel.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Triple = (3, 3, 3),
        stride: Triple = (1, 1, 1),
        padding: Triple = (1, 1, 1),
        *,
        subm: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel, self.stride, self.padding = map(reach.triple, (kernel, stride, padding))
        self.subm = subm
        half = tuple(size // 2 for size in self.kernel)
        if subm and (
            self.stride != (1, 1, 1) or self.padding != half or not all(n % 2 for n in self.kernel)
        ):
            raise ValueError(
                "a submanifold convolution has an odd kernel, stride 1 and half the kernel as "
                f"padding, got {self.kernel}, {self.stride} and {self.padding}"
            )
        self.weight = nn.Parameter(torch.empty(out_channels, *self.kernel, in_channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights as ``nn.Conv3d`` draws them."""
        bound = 1 / math.sqrt(max(self.in_channels * math.prod(self.kernel), 1))
        nn.init.uniform_(self.weight, -bound, bound)

    def extra_repr(self) -> str:
        """What the layer is."""
        kind = "submanifold" if self.subm else f"stride={self.stride}, padding={self.padding}"
        return f"{self.in_channels}, {self.out_channels}, kernel={self.kernel}, {kind}"

    def forward(self, features: Tensor, cells: SparseCells) -> tuple[Tensor, SparseCells]:
        """Convolve (K, in_channels) at `cells`: (N, out_channels), and the cells of the output."""
        table, after = self._table(cells)
        return gather_conv(features, table, self._taps()), after

    def norm_relu(
        self, features: Tensor, cells: SparseCells, norm: nn.BatchNorm1d
    ) -> tuple[Tensor, SparseCells]:
        """`forward`, then BatchNorm over the rows and ReLU; one op where nothing is learned."""
        if not reach.is_fused(norm):
            features, cells = self(features, cells)
            return F.relu(norm(features)), cells
        table, after = self._table(cells)
        affine = reach.norm_affine(norm)
        return gather_conv_affine(features, table, self._taps(), *affine, relu=True), after

    def _table(self, cells: SparseCells) -> tuple[Tensor, SparseCells]:
        if self.subm:
            return cells.submanifold(self.kernel), cells
        return cells.through(self.kernel, self.stride, self.padding)

    def _taps(self) -> Tensor:
        """(T, in, out)."""
        return self.weight.flatten(1, 3).permute(1, 2, 0)

    # --- spconv ----------------------------------------------------------------------------------

    def spconv(self, x: Any, key: str) -> Any:
        """The same by spconv.

        Args:
            x: ``SparseConvTensor``, of at least one row.
            key: names the cells of ``x``, for submanifold convolutions to share their table.

        Returns:
            ``SparseConvTensor``, its rows in an order of spconv's own.
        """
        if math.prod(self.kernel) == math.prod(self.stride) == 1 and not any(self.padding):
            return x.replace_feature(x.features @ self.weight.flatten(1).T)
        layer = _spconv_layer(self, key, x.features.device.type)
        del layer.weight  # which lies on no device
        layer.weight = self.weight
        return layer(x)


def _import_spconv() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch, about what spconv uses of it
        return importlib.import_module("spconv.pytorch")


def _spconv_layer(conv: SparseConv, key: str, kind: str) -> nn.Module:
    """Spconv's layer, without weights."""
    spconv = _import_spconv()
    from spconv.core import ConvAlgo

    make = spconv.SubMConv3d if conv.subm else spconv.SparseConv3d
    with torch.device("meta"):
        return make(
            conv.in_channels,
            conv.out_channels,
            conv.kernel,
            conv.stride,
            conv.padding,
            bias=False,
            indice_key=f"{key} {conv.kernel}" if conv.subm else None,
            algo=ConvAlgo.Native if kind == "cpu" else None,
        )


def resolve_backend(backend: Backend, device: torch.device) -> Literal["spconv", "native"]:
    """The back end that computes on a device.

    ``auto`` is spconv on CUDA where it is installed and right, else native: on the CPU that is the
    faster one (see `benchmarks/bench_sparse.py`), and graphs of torch.compile cannot hold spconv.

    Raises:
        VoxelpoolError: spconv is asked for, and cannot be used.
    """
    if backend == "native":
        return "native"
    if backend == "auto" and (device.type != "cuda" or torch.compiler.is_compiling()):
        return "native"
    fault = spconv_fault(device.type)
    if not fault:
        return "spconv"
    if backend == "auto":
        return "native"
    raise VoxelpoolError(
        f"backend: spconv cannot be used on {device.type}: {fault}. Install spconv-cu120 2.3.6 "
        "(pip install 'voxelpool[sparse]', Python 3.11 or older), or take backend: native"
    )


@functools.cache
def spconv_fault(kind: str) -> str:
    """Why spconv cannot be used on devices of a kind; empty where it can.

    Found once a process, by layers so small that their result is known: there are builds of spconv
    that import and give wrong numbers.
    """
    try:
        spconv = _import_spconv()
    except Exception as error:  # whatever a broken installation does
        return f"it cannot be imported ({type(error).__name__}: {error})"
    try:
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            differences = [_spconv_difference(spconv, subm, kind) for subm in (True, False)]
    except Exception as error:
        return f"a small convolution fails ({type(error).__name__}: {error})"
    worst = max(differences)
    if not worst < 2e-2:  # TensorFloat-32 on CUDA
        return f"it is broken: a small convolution is wrong by {worst:.2g}"
    return ""


def _spconv_difference(spconv: Any, subm: bool, kind: str) -> float:
    """How far spconv's output and gradients are from those of a dense convolution."""
    shape, channels = (3, 5, 4), 8
    occupied = torch.rand(2, *shape) < 0.4
    coords = occupied.nonzero().int().contiguous()
    stride = (1, 1, 1) if subm else (2, 2, 2)
    conv = SparseConv(channels, channels, stride=stride, subm=subm)
    features = torch.randn(len(coords), channels)
    dense = torch.zeros(2, *shape, channels).masked_scatter(occupied[..., None], features)
    dense, weight = dense.permute(0, 4, 1, 2, 3), conv.weight.detach()
    dense, weight = dense.requires_grad_(), weight.permute(0, 4, 1, 2, 3).requires_grad_()
    expected = F.conv3d(dense, weight, None, stride, 1)
    if subm:
        expected = expected * occupied[:, None]
    exact = [expected, *torch.autograd.grad(expected.square().sum(), [dense, weight])]
    exact[1] = exact[1].permute(0, 2, 3, 4, 1)[occupied]
    exact[2] = exact[2].permute(0, 2, 3, 4, 1)

    conv = conv.to(kind)
    features = features.to(kind).requires_grad_()
    x = spconv.SparseConvTensor(features, coords.to(kind), list(shape), 2)
    x = conv.spconv(x, "check")
    cells = SparseCells(x.indices, 2, reach.triple(x.spatial_shape))
    out = cells.to_bev(x.features).reshape(expected.shape)
    found = [out, *torch.autograd.grad(out.square().sum(), [features, conv.weight])]
    differences = [
        (ours.detach().cpu() - theirs.detach()).abs().max() / theirs.detach().abs().max()
        for ours, theirs in zip(found, exact, strict=True)
    ]
    return max(map(float, differences))


@dataclass(frozen=True)
class SparseStage:
    """A stage of `SparseMiddle`.

    Attributes:
        channels: of each of its layers.
        layers: submanifold convolutions with a kernel of 3.
        stride: (z, y, x) of the convolution that goes before them; None: there is none.
        kernel: (z, y, x) of that convolution.
        padding: (z, y, x) of that convolution.
    """

    channels: int
    layers: int
    stride: Triple | None = None
    kernel: Triple = (3, 3, 3)
    padding: Triple = (1, 1, 1)


_FLATTEN = {"stride": (2, 1, 1), "kernel": (3, 1, 1), "padding": (0, 0, 0)}

#: The networks that have a name: SECOND's backbone of 8 x as OpenPCDet has it, and the paper's for
#: voxels of 0.4 x 0.2 x 0.2 m, as second.pytorch v1.0 has it.
STAGES: dict[str, tuple[SparseStage, ...]] = {
    "second": (
        SparseStage(16, 2),
        SparseStage(32, 2, (2, 2, 2)),
        SparseStage(64, 2, (2, 2, 2)),
        SparseStage(64, 2, (2, 2, 2), padding=(0, 1, 1)),
        SparseStage(128, 0, **_FLATTEN),
    ),
    "two_stage": (
        SparseStage(64, 1),
        SparseStage(64, 2, **_FLATTEN),
        SparseStage(64, 0, **_FLATTEN),
    ),
}


class SparseMiddle(nn.Module):
    """SECOND's middle layers: sparse convolutions, each with BatchNorm over its rows and ReLU.

    ``convs[i].weight`` is laid out as spconv 2.x has it, (out, z, y, x, in), and ``norms[i]`` is
    the BatchNorm behind it. For ``second``, these are in order OpenPCDet's ``conv_input.0``,
    ``conv1.0.0``, ``conv2.{0,1,2}.0``, ``conv3.{0,1,2}.0``, ``conv4.{0,1,2}.0`` and
    ``conv_out.0``. They are the same for both back ends.

    Args:
        in_channels: columns of the voxel features.
        stages: the stages, or a name: ``"second"``, the 8x backbone (16, 32, 64, 64 and 128
            channels) for 40 x 1600 x 1408 cells, or ``"two_stage"``, for the paper's 10 x 400 x
            352.
        grid_shape: (D, H, W) of the voxel grid; `VoxelGrid.shape`.
        extra_depth: empty cells above the grid, as SECOND has: 41 cells become 21, 11, 5 and 2.
        norm_eps: added to the variance.
        norm_momentum: weight of the newest batch in the running statistics.
        backend: ``native``, ``spconv`` or ``auto``, see `resolve_backend`.

    Attributes:
        out_depth: depth after the layers, D'.
        out_channels: channels of the map: those of the last stage times D'.
        out_size: (H', W') of the map.
        stride: (y, x), cells of the grid along a side of a cell of the map.
        use_reach: whether a network that goes on may do so with `forward_rows`, where that pays;
            the same result.

    Raises:
        ValueError: an unknown name or back end, or a grid that is too small for the stages.
        VoxelpoolError: ``spconv`` is asked for, and is not installed or gives wrong numbers.
    """

    def __init__(
        self,
        in_channels: int = 4,
        stages: str | Sequence[SparseStage] = "second",
        *,
        grid_shape: Triple = (40, 1600, 1408),
        extra_depth: int = 1,
        norm_eps: float = 1e-5,
        norm_momentum: float = 0.1,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        if backend not in get_args(Backend):
            raise ValueError(
                f"backend must be one of {', '.join(get_args(Backend))}, got {backend!r}"
            )
        self._wanted_backend: Backend = backend
        if backend == "spconv":
            resolve_backend(backend, torch.device("cpu"))
        depth, height, width = reach.triple(grid_shape)
        self.grid_shape: Triple = (depth + extra_depth, height, width)
        self.in_channels = in_channels
        self.use_reach = True
        self.convs = nn.ModuleList()
        self.norms = nn.ModuleList()
        self.stride = (1, 1)
        shape, channels = self.grid_shape, in_channels
        for number, stage in enumerate(_stages(stages), 1):
            convs = []
            if stage.stride is not None:
                layer = (stage.kernel, stage.stride, stage.padding)
                after = conv_shape(shape, *layer)
                if min(after) < 1:
                    raise ValueError(
                        f"stage {number} has no output: its convolution gets {shape} cells "
                        f"(z, y, x) of a grid of {self.grid_shape}"
                    )
                convs.append(SparseConv(channels, stage.channels, *layer))
                channels, shape = stage.channels, after
                self.stride = (self.stride[0] * stage.stride[1], self.stride[1] * stage.stride[2])
            for _ in range(stage.layers):
                convs.append(SparseConv(channels, stage.channels, subm=True))
                channels = stage.channels
            self.convs.extend(convs)
            self.norms.extend(
                PackedBatchNorm(stage.channels, eps=norm_eps, momentum=norm_momentum) for _ in convs
            )
        self.out_depth = shape[0]
        self.out_channels = channels * shape[0]
        self.out_size = (shape[1], shape[2])

    @property
    def backend(self) -> Literal["spconv", "native"]:
        """The back end that computes where the weights are."""
        return resolve_backend(self._wanted_backend, next(self.parameters()).device)

    def forward(self, features: Tensor, coords: Tensor, batch_size: int) -> Tensor:
        """Make the map.

        Args:
            features: (K, in_channels); K = 0 is ordinary.
            coords: (K, 4) int32 (batch, z, y, x), sorted lexicographically, none twice (as
                ``Voxels.coords``).
            batch_size: B, number of frames.

        Returns:
            (B, out_channels, H', W'), channel c at depth d being ``c * D' + d``, zero where no
            voxel reaches; stored with the channels innermost.

        Raises:
            TypeError: coords of another dtype.
            ValueError: shapes that do not fit, or coords that are not sorted.
            IndexError: coords outside of the grid.
        """
        rows, cells = self._convolve(features, coords, batch_size)
        return cells.to_bev(rows)

    def runs_on_rows(self, features: Tensor) -> bool:
        """Whether `forward_rows` is the better way to compute."""
        return self.use_reach and reach.pays(features)

    def forward_rows(
        self, features: Tensor, coords: Tensor, batch_size: int
    ) -> tuple[Tensor, Reach]:
        """Make the map as the list of the cells that voxels reach; arguments as `forward`.

        Returns:
            rows (R, channels of the last stage), and where in the map (B, D', H', W') each of them
            stands.

        Raises:
            TypeError: as `forward`.
            ValueError: as `forward`.
            IndexError: as `forward`.
        """
        rows, cells = self._convolve(features, coords, batch_size)
        return rows, Reach.of_voxels(cells.coords, batch_size, cells.shape)

    def _convolve(
        self, features: Tensor, coords: Tensor, batch_size: int
    ) -> tuple[Tensor, SparseCells]:
        if features.ndim != 2 or features.shape[1] != self.in_channels:
            raise ValueError(
                f"features must be (K, {self.in_channels}), got {tuple(features.shape)}"
            )
        if coords.shape != (features.shape[0], 4):
            raise ValueError(
                f"coords must be ({features.shape[0]}, 4) for as many features, got "
                f"{tuple(coords.shape)}"
            )
        cells = SparseCells(coords, batch_size, self.grid_shape)
        if self.backend == "spconv" and len(features):
            return self._convolve_by_spconv(features, cells)
        rows = features.to(reach.row_dtype(features))
        for conv, norm in zip(self.convs, self.norms, strict=True):
            rows, cells = conv.norm_relu(rows, cells, norm)
        return rows, cells

    def _convolve_by_spconv(
        self, features: Tensor, cells: SparseCells
    ) -> tuple[Tensor, SparseCells]:
        if features.dtype == torch.float64:
            raise TypeError("spconv has no float64: take backend: native")
        if features.device.type == "cpu":
            features = features.float()
        x = _import_spconv().SparseConvTensor(
            features, cells.coords.contiguous(), list(cells.shape), cells.batch_size
        )
        key = 0
        for conv, norm in zip(self.convs, self.norms, strict=True):
            key += not conv.subm
            x = conv.spconv(x, str(key))
            x = x.replace_feature(F.relu(norm(x.features)))
        after = SparseCells(x.indices, cells.batch_size, reach.triple(x.spatial_shape))
        return x.features, after


def _stages(stages: str | Sequence[SparseStage]) -> Sequence[SparseStage]:
    if isinstance(stages, str):
        if stages not in STAGES:
            raise ValueError(f"stages must be one of {', '.join(STAGES)}, got {stages!r}")
        return STAGES[stages]
    if not sum(stage.layers + (stage.stride is not None) for stage in stages):
        raise ValueError("stages must have at least one layer")
    return stages
