"""Pooling: sorted groups (segment_*) and groups in any order (scatter_*), forward and backward.

Example: python benchmarks/bench_pool.py --only segment_max --threads 2
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from _measure import OURS, Case, Contender, Setting, main, powers, thread_counts
from _peers import numba_scatter_max, numba_segment_max, torch_scatter
from torch import Tensor

from voxelpool import ops

ROWS, GROUPS = 120_000, 10_000
ROUNDING = 1e-5  # sums in another order
NO_ARG = "no argmax"

# Name, what it does with the rows (None: not installed), and a note.
Way = tuple[str, Callable[[Tensor], Any] | None, str]


class Data:
    """Rows to pool and the groups they belong to: sorted, or shuffled.

    Groups are of random size, and some are empty.
    """

    def __init__(self, rows: int, channels: int, groups: int, device: str, shuffled: bool) -> None:
        generator = torch.Generator().manual_seed(1)
        cuts = torch.randint(0, rows + 1, (groups - 1,), generator=generator).sort().values
        offsets = torch.cat([torch.tensor([0]), cuts, torch.tensor([rows])])
        index = torch.repeat_interleave(torch.arange(groups), offsets.diff())
        if shuffled:
            index = index[torch.randperm(rows, generator=generator)]
        self.shape = (groups, channels)
        self.shuffled = shuffled
        self.src = torch.randn(rows, channels, generator=generator).to(device)
        self.grad = torch.randn(groups, channels, generator=generator).to(device)
        self.offsets, self.index = offsets.to(device), index.to(device)
        self.wide_index = self.index[:, None].expand(-1, channels)
        self.counts = offsets.diff().to(device)[:, None]

    def moved(self, with_arg: bool) -> int:
        """Bytes of the input, of the output and of its argument."""
        return 4 * self.src.numel() + self.grad.numel() * (12 if with_arg else 4)

    def values(self, output: Any) -> list[Tensor]:
        """Output and argument, where there is one. Torch leaves empty groups -inf or NaN."""
        if isinstance(output, Tensor):
            return [output.masked_fill(self.counts == 0, 0)]
        return [torch.as_tensor(part) for part in output]


def ways_to_max(data: Data) -> list[Way]:
    """All who take a maximum."""
    index, offsets, groups = data.index, data.offsets, data.shape[0]

    def scatter_reduce(src: Tensor) -> Tensor:
        out = src.new_zeros(data.shape)
        return out.scatter_reduce(0, data.wide_index, src, "amax", include_self=False)

    def index_reduce(src: Tensor) -> Tensor:
        return src.new_zeros(data.shape).index_reduce(0, index, src, "amax", include_self=False)

    def segment_reduce(src: Tensor) -> Tensor:
        return torch.segment_reduce(src, "max", offsets=offsets, axis=0)

    of_torch: list[Way] = [
        ("torch.scatter_reduce", scatter_reduce, NO_ARG),
        ("torch.index_reduce", index_reduce, NO_ARG),
    ]
    if data.shuffled:
        scatter_max = torch_scatter and torch_scatter.scatter_max
        return [
            (OURS, lambda src: ops.scatter_max(src, index, dim=0, dim_size=groups), ""),
            (
                "torch-scatter",
                scatter_max and (lambda src: scatter_max(src, index, dim=0, dim_size=groups)),
                "scatter_max",
            ),
            *of_torch,
        ]
    segment_max = torch_scatter and torch_scatter.segment_max_csr
    return [
        (OURS, lambda src: ops.segment_max(src, offsets), ""),
        (
            "torch-scatter",
            segment_max and (lambda src: segment_max(src, offsets)),
            "segment_max_csr",
        ),
        ("torch.segment_reduce", segment_reduce, NO_ARG),
        *of_torch,
    ]


def ways_to_add(data: Data, kind: str) -> list[Way]:
    """All who take a sum or a mean."""
    index, offsets, groups = data.index, data.offsets, data.shape[0]
    theirs = torch_scatter and getattr(
        torch_scatter, f"scatter_{kind}" if data.shuffled else f"segment_{kind}_csr"
    )

    def ours(src: Tensor) -> Tensor:
        if data.shuffled:
            return getattr(ops, f"scatter_{kind}")(src, index, dim=0, dim_size=groups)
        return getattr(ops, f"segment_{kind}")(src, offsets)

    def torchs_scatter(src: Tensor) -> Tensor:
        if data.shuffled:
            return theirs(src, index, dim=0, dim_size=groups)
        return theirs(src, offsets)

    def index_add(src: Tensor) -> Tensor:
        out = src.new_zeros(data.shape).index_add(0, index, src)
        return out / data.counts.clamp(min=1) if kind == "mean" else out

    def scatter_reduce(src: Tensor) -> Tensor:
        out = src.new_zeros(data.shape)
        return out.scatter_reduce(0, data.wide_index, src, kind, include_self=False)

    def segment_reduce(src: Tensor) -> Tensor:
        return torch.segment_reduce(src, kind, offsets=offsets, axis=0)

    ways: list[Way] = [
        (OURS, ours, ""),
        ("torch-scatter", theirs and torchs_scatter, getattr(theirs, "__name__", "")),
        ("torch.index_add", index_add, "counts given" if kind == "mean" else ""),
        ("torch.scatter_reduce", scatter_reduce, ""),
    ]
    return ways if data.shuffled else [*ways, ("torch.segment_reduce", segment_reduce, "")]


def forward(data: Data, ways: list[Way], tolerance: float = 0.0) -> list[Contender]:
    """Contenders that pool."""

    def call(way: Callable[[Tensor], Any]) -> Callable[[], Any]:
        return lambda: way(data.src)

    return [
        Contender(name, way and call(way), data.values, tolerance, note) for name, way, note in ways
    ]


def forward_and_backward(data: Data, ways: list[Way], tolerance: float = 0.0) -> list[Contender]:
    """Contenders that pool and give the gradient of the rows."""
    rows = data.src.clone().requires_grad_()

    def call(way: Callable[[Tensor], Any]) -> Callable[[], Any]:
        def run() -> Tensor:
            output = way(rows)
            output = output if isinstance(output, Tensor) else output[0]
            return torch.autograd.grad(output, rows, data.grad)[0]

        return run

    return [
        Contender(name, way and call(way), lambda grad: [grad], tolerance, note)
        for name, way, note in ways
    ]


def numba_loop(data: Data) -> Contender:
    """A loop in numba; it makes its results anew as all others do."""
    name = "numba, one thread" if data.shuffled else "numba"
    kernel = numba_scatter_max if data.shuffled else numba_segment_max
    if kernel is None or data.src.device.type != "cpu":
        return Contender(name, None)
    src = data.src.numpy()
    groups = (data.index if data.shuffled else data.offsets).numpy()

    def run() -> tuple[np.ndarray, np.ndarray]:
        out, arg = np.empty(data.shape, src.dtype), np.empty(data.shape, np.int64)
        kernel(src, groups, out, arg)
        return out, arg

    return Contender(name, run, data.values)


def yardsticks(data: Data) -> list[Contender]:
    """What no kernel can be much faster than."""
    if data.src.device.type == "cpu":
        flat = data.src.view(-1)
        return [
            Contender("reading src (dot)", lambda: torch.dot(flat, flat)),
            Contender("reading src (sum)", lambda: flat.sum()),
        ]
    source = torch.empty(data.moved(True) // 8, device=data.src.device)
    target = torch.empty_like(source)
    return [Contender("copying as many bytes", lambda: target.copy_(source))]


def table(setting: Setting) -> Iterator[Case]:
    """120,000 rows into 10,000 groups."""
    rows, groups = setting.size(ROWS, 500), setting.size(GROUPS, 60)
    for channels in (64, 128):
        size = f"{rows:,} x {channels} into {groups:,}"
        ordered, mixed = (
            Data(rows, channels, groups, setting.device, shuffled) for shuffled in (False, True)
        )
        contenders = [*forward(ordered, ways_to_max(ordered)), numba_loop(ordered)]
        yield Case(
            f"segment_max, {size}, forward",
            [*contenders, *yardsticks(ordered)],
            goals={
                "torch-scatter": 12.0,
                "numba": 1.2,
                "reading src (dot)": 0.7,
                "reading src (sum)": 0.7,
                "copying as many bytes": 0.8,
            },
            bytes_moved=ordered.moved(True),
        )
        yield Case(
            f"segment_max, {size}, forward + backward",
            forward_and_backward(ordered, ways_to_max(ordered)),
            goals={"torch-scatter": 5.0, "torch.segment_reduce": 5.0},
        )
        contenders = [*forward(mixed, ways_to_max(mixed)), numba_loop(mixed)]
        cuda_goal = {"torch.scatter_reduce": 3.0} if setting.device == "cuda" else {}
        yield Case(
            f"scatter_max, {size}, forward",
            contenders,
            goals={"torch-scatter": 15.0, **cuda_goal},
            bytes_moved=mixed.moved(True),
        )
        yield Case(
            f"scatter_max, {size}, forward + backward",
            forward_and_backward(mixed, ways_to_max(mixed)),
            goals={"torch-scatter": 6.0},
        )
        for kind in ("sum", "mean"):
            for data in (ordered, mixed):
                name = f"{'scatter' if data.shuffled else 'segment'}_{kind}"
                goals = {"torch-scatter": 1.0, "torch.index_add": 1.0}
                ways = ways_to_add(data, kind)
                yield Case(
                    f"{name}, {size}, forward",
                    forward(data, ways, ROUNDING),
                    goals,
                    bytes_moved=data.moved(False),
                )
                yield Case(
                    f"{name}, {size}, forward + backward",
                    forward_and_backward(data, ways, ROUNDING),
                    goals,
                )


def curves(setting: Setting) -> Iterator[Case]:
    """How the maximum scales in rows, channels, groups and threads."""
    rows = setting.size(ROWS, 400)
    places = [
        *(("rows", n, (n, 64, max(1, n // 12))) for n in powers(1000, setting.size(10**6, 3000))),
        *(("channels", c, (rows, c, rows // 12)) for c in powers(1, setting.size(256, 4), 4)),
        *(("groups", k, (rows, 64, k)) for k in powers(10, setting.size(100_000, 100))),
        *(("threads", t, (rows, 64, rows // 12)) for t in thread_counts(setting)),
    ]
    shown = (OURS, "torch-scatter", "torch.scatter_reduce", "numba", "numba, one thread")
    for axis, place, (n, channels, groups) in places:
        for shuffled in (False, True):
            data = Data(n, channels, groups, setting.device, shuffled)
            name = "scatter_max" if shuffled else "segment_max"
            contenders = [*forward(data, ways_to_max(data)), numba_loop(data)]
            yield Case(
                f"{name} over {axis}: {n:,} x {channels} into {groups:,}",
                [contender for contender in contenders if contender.name in shown],
                bytes_moved=data.moved(True),
                curve=(name, axis, place),
                threads=place if axis == "threads" else None,
            )


def cases(setting: Setting) -> Iterator[Case]:
    """The table, then the curves."""
    yield from table(setting)
    yield from curves(setting)


if __name__ == "__main__":
    main("pool", cases, __doc__)
