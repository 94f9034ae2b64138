"""Max pooling by windows of 5, 9 and 13: in a chain of fives (SPPF) and side by side (SPP).

Example: python benchmarks/bench_pyramid.py --threads 2
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from _measure import OURS, Case, Contender, Setting, main
from torch import Tensor, nn

from voxelpool.nn import SPPF, ParallelSPP

#: What the last block of the paper's RPN makes of the car grid, its first block, and a 3D map.
MAPS = (
    ("RPN block 3", (1, 128, 50, 44)),
    ("RPN block 1", (1, 128, 200, 176)),
    ("a 3D map", (1, 16, 16, 32, 32)),
)


def forward(pool: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """A call without gradients."""

    def call() -> Tensor:
        with torch.no_grad():
            return pool(x)

    return call


def backward(pool: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """A call that ends with the map's gradient."""
    x = x.clone().requires_grad_()

    def call() -> Tensor:
        out = pool(x)
        return torch.autograd.grad(out, x, torch.ones_like(out))[0]

    return call


def cases(setting: Setting) -> Iterator[Case]:
    """Both forms at inference, and forward + backward on the smallest map."""
    for name, shape in MAPS:
        batch, channels, *size = shape
        size = [setting.size(n, 8) for n in size]
        x = torch.randn(batch, setting.size(channels, 2), *size, device=setting.device)
        chain, side = SPPF(dim=len(size)), ParallelSPP(dim=len(size))
        kinds = [("inference", forward)]
        if name == MAPS[0][0]:
            kinds.append(("forward + backward", backward))
        for kind, call in kinds:
            title = f"SPPF and SPP(5, 9, 13), {kind}, {name}: {' x '.join(map(str, x.shape))}"
            if kind == "inference":  # equal to the bit
                result, tolerance = _whole, 0.0
            else:  # a tie may go to another cell
                result, tolerance = _sums, 1e-4
            contenders = [
                Contender(OURS, call(chain, x), result, note="SPPF"),
                Contender("SPP side by side", call(side, x), result, tolerance),
            ]
            yield Case(title, contenders)


def _whole(out: Tensor) -> list[Tensor]:
    return [out]


def _sums(gradient: Tensor) -> list[Tensor]:
    return [gradient.flatten(2).sum(2)]


if __name__ == "__main__":
    main("pyramid", cases, __doc__)
