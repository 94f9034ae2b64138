"""SECOND's sparse middle layers at the paper's size: our kernels, spconv's, and the tables alone.

Example: KITTI_SAMPLE_DIR=path/to/frames python benchmarks/bench_sparse.py --threads 1
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from _data import sweep
from _measure import OURS, Case, Contender, Result, Setting, main
from _peers import spconv
from _plain import PlainMiddle
from torch import Tensor

from voxelpool.nn import SparseMiddle
from voxelpool.nn.sparse import Backend, spconv_fault
from voxelpool.ops import segment_mean, sparse_reach, sparse_table, voxelize
from voxelpool.ops.reference import sparse as reference
from voxelpool.ops.reference.cells import conv_shape
from voxelpool.structures import VoxelGrid, Voxels

GRID = VoxelGrid((0, -40, -3, 70.4, 40, 1), (0.05, 0.05, 0.1))
QUICK = VoxelGrid((0, -12.8, -3, 25.6, 12.8, 1), (0.2, 0.2, 0.1))
ROUNDING = 1e-4
# In float64 the gradients agree (tests/nn/test_sparse_middle.py). In float32 a rounding moves
# values across a ReLU's corner, and sums of gradients behind BatchNorm cancel.
GRADIENT_ROUNDING = 0.1
Network = Callable[[Tensor, Tensor, int], Tensor]
Work = Callable[[SparseMiddle, Network, Tensor, Voxels], Callable[[], Any]]
STRIDED = ((3, 3, 3), (2, 2, 2), (1, 1, 1))


def voxels_of(setting: Setting) -> tuple[Tensor, Voxels, str]:
    """Mean features of a sweep's voxels, and the voxels."""
    points, kind = sweep(True, setting.size(19_000, 800))
    points = points.to(setting.device)
    voxels = voxelize(points, QUICK if setting.quick else GRID, max_points=5)
    return segment_mean(points[voxels.point_index], voxels.offsets), voxels, kind


def forward(
    middle: SparseMiddle, network: Network, features: Tensor, voxels: Voxels
) -> Callable[[], Tensor]:
    """A call without gradients, BatchNorm by its running statistics."""

    def run() -> Tensor:
        middle.eval()
        with torch.no_grad():
            return network(features, voxels.coords, voxels.batch_size)

    return run


def step(
    middle: SparseMiddle, network: Network, features: Tensor, voxels: Voxels
) -> Callable[[], list[Tensor]]:
    """A call in training that ends with all gradients."""
    shape = (voxels.batch_size, middle.out_channels, *middle.out_size)
    grad = torch.linspace(-1, 1, middle.out_channels, device=features.device)
    grad = grad[:, None, None].expand(shape).contiguous(memory_format=torch.channels_last)

    def run() -> list[Tensor]:
        middle.train()
        out = network(features, voxels.coords, voxels.batch_size)
        return list(torch.autograd.grad(out, list(middle.parameters()), grad))

    return run


def middle_of(setting: Setting, grid: VoxelGrid, backend: Backend) -> SparseMiddle:
    """The network, with the same weights for each back end."""
    torch.manual_seed(0)
    return SparseMiddle(4, "second", grid_shape=grid.shape, backend=backend).to(setting.device)


def cases(setting: Setting) -> Iterator[Case]:
    """The network forward and in training, then the table of its first strided layer."""
    features, voxels, kind = voxels_of(setting)
    native, theirs = middle_of(setting, voxels.grid, "native"), None
    if spconv is not None and not spconv_fault(setting.device):
        theirs = middle_of(setting, voxels.grid, "spconv")
    size = " x ".join(map(str, voxels.grid.shape))
    what = f"{len(features):,} voxels of a {kind} sweep in {size} cells"

    def contenders(work: Work, result: Result, tolerance: float) -> list[Contender]:
        plain = work(native, PlainMiddle(native), features, voxels)
        peer = theirs and work(theirs, theirs, features, voxels)
        return [
            Contender(OURS, work(native, native, features, voxels), result),
            Contender("spconv", peer, result, tolerance),
            Contender("plain PyTorch", plain, result, tolerance),
        ]

    for title, compared in (
        ("forward", contenders(forward, _whole, ROUNDING)),
        ("forward + backward", contenders(step, list, GRADIENT_ROUNDING)),
    ):
        yield Case(f"SECOND's middle layers, {title}, {what}", compared, goals={"spconv": 1.0})
    yield tables(voxels, what)


def _whole(out: Tensor) -> list[Tensor]:
    return [out]


def tables(voxels: Voxels, what: str) -> Case:
    """Which row each tap reads: against sorting and searching, in PyTorch."""
    frames, shape = voxels.batch_size, voxels.grid.shape
    after = conv_shape(shape, *STRIDED)

    def ours() -> list[Tensor]:
        reached = sparse_reach(voxels.coords, frames, shape, *STRIDED)
        table = sparse_table(voxels.coords, reached, frames, shape, after, *STRIDED)
        return [reached, table]

    def searched() -> list[Tensor]:
        reached = reference.sparse_reach(voxels.coords, frames, shape, *STRIDED)
        table = reference.sparse_table(voxels.coords, reached, frames, shape, after, *STRIDED)
        return [reached, table]

    return Case(
        f"table of a convolution with stride 2, {what}",
        [Contender(OURS, ours, list), Contender("torch.searchsorted", searched, list)],
    )


if __name__ == "__main__":
    main("sparse", cases, __doc__)
