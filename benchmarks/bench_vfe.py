"""The stack of voxel feature encoding layers at inference and in training.

Example: KITTI_SAMPLE_DIR=path/to/frames python benchmarks/bench_vfe.py --threads 2
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from _data import CAR_GRID, simulated_sweep, sweep
from _measure import (
    OURS,
    Case,
    Contender,
    Setting,
    main,
    powers,
    require_agreement,
    thread_counts,
)
from _plain import pad, padded_vfe
from torch import Tensor

from voxelpool.nn import VFE, point_features
from voxelpool.ops import voxelize
from voxelpool.structures import Voxels

MAX_POINTS = 35
PADDED = "padded PyTorch"
ROUNDING = 1e-4
# A rounded last bit gives a maximum of near equals, and so its gradient, to another point. In
# float64, where that does not happen, gradients must agree.
GRADIENT_ROUNDING = 0.03
GRADIENT_ROUNDING_FLOAT64 = 1e-10


class Work:
    """A sweep's voxels and a network that has seen some data."""

    def __init__(self, points: Tensor, device: str) -> None:
        torch.manual_seed(0)
        self.points = points.to(device)
        self.voxels: Voxels = voxelize(self.points, CAR_GRID, max_points=MAX_POINTS)
        self.code = point_features(self.points, self.voxels)
        self.padded, self.mask = pad(self.code, self.voxels, MAX_POINTS)
        self.vfe = VFE().to(device).train()
        self.vfe.scale_inputs((18, 20, 1, 0.3, 0.05, 0.05, 0.1))
        for _ in range(20):
            with torch.no_grad():
                self.vfe(self.code, self.voxels)
        self.grad = torch.randn(self.voxels.num_voxels, self.vfe.out_channels).to(device)

    @property
    def size(self) -> str:
        """What the tables say of it."""
        return f"{len(self.code):,} points in {self.voxels.num_voxels:,} voxels"


def inference(work: Work) -> list[Contender]:
    """The stack in evaluation, without gradients, from the points' code."""
    vfe = work.vfe.eval()

    def quiet(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def call() -> Tensor:
            with torch.no_grad():
                return run()

        return call

    def packed() -> Tensor:
        """The layers one by one, on packed points, with torch's own maximum."""
        rows, features = work.voxels.voxel_of_point(), work.code

        def pooled(own: Tensor) -> Tensor:
            index = rows[:, None].expand_as(own)
            out = own.new_zeros(work.voxels.num_voxels, own.shape[1])
            return out.scatter_reduce(0, index, own, "amax", include_self=False)

        for layer in vfe.layers:
            own = layer.points(features)
            features = torch.cat([own, pooled(own)[rows]], dim=1)
        return pooled(vfe.points(features))

    return [
        Contender(OURS, quiet(lambda: vfe(work.code, work.voxels)), lambda out: [out]),
        Contender(
            PADDED,
            quiet(lambda: padded_vfe(vfe, work.padded, work.mask)),
            lambda out: [out],
            ROUNDING,
            f"(K, {MAX_POINTS}, C)",
        ),
        Contender("packed PyTorch", quiet(packed), lambda out: [out], ROUNDING),
    ]


def training(work: Work) -> Case:
    """Forward and backward, to the weights."""
    title = f"VFE stack, forward + backward: {work.size}"
    names = (OURS, PADDED)
    exact = gradients(work, torch.float64)
    differs = require_agreement(
        title,
        *((name, run()) for name, run in zip(names, exact, strict=True)),
        GRADIENT_ROUNDING_FLOAT64,
    )
    ours, padded = gradients(work, torch.float32)
    return Case(
        title,
        [
            Contender(OURS, ours, list),
            Contender(PADDED, padded, list, GRADIENT_ROUNDING, f"(K, {MAX_POINTS}, C)"),
        ],
        facts={"in float64 gradients differ by, relative": differs},
    )


def gradients(work: Work, dtype: torch.dtype) -> list[Callable[[], list[Tensor]]]:
    """The gradients of the weights: voxelpool's, and those of the padded formulation."""
    vfe = copy.deepcopy(work.vfe).to(dtype).train()
    weights = list(vfe.parameters())
    code, padded, grad = (tensor.to(dtype) for tensor in (work.code, work.padded, work.grad))
    return [
        lambda: list(torch.autograd.grad(vfe(code, work.voxels), weights, grad)),
        lambda: list(torch.autograd.grad(padded_vfe(vfe, padded, work.mask), weights, grad)),
    ]


def cases(setting: Setting) -> Iterator[Case]:
    """A cropped sweep and a whole one, and how it scales."""
    for cropped, count in ((True, 19_000), (False, 120_000)):
        points, kind = sweep(cropped, setting.size(count, 800))
        work = Work(points, setting.device)
        yield Case(
            f"VFE stack at inference, {kind} sweep: {work.size}",
            inference(work),
            goals={PADDED: 5.0},
        )
        if cropped:
            yield training(work)
    places = [("points", n) for n in powers(1000, setting.size(10**5, 1000))]
    places += [("threads", t) for t in thread_counts(setting)]
    for axis, place in places:
        count = place if axis == "points" else setting.size(19_000, 500)
        work = Work(simulated_sweep(count, 1.4), setting.device)
        yield Case(
            f"VFE stack over {axis}: {work.size}, {place:,} {axis}",
            inference(work),
            curve=("VFE stack", axis, place),
            threads=place if axis == "threads" else None,
        )


if __name__ == "__main__":
    main("vfe", cases, __doc__)
