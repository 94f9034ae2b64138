"""The compiled kernels: the one place that imports ``voxelpool._C`` and hands out pointers."""

from __future__ import annotations

import functools
import os
import warnings
from types import ModuleType
from typing import TypeAlias

import torch
from torch import Tensor

try:
    from voxelpool import _C as _compiled
except ImportError as error:
    _compiled = None
    _import_error: ImportError | None = error
else:
    _import_error = None

#: Codes of ``DType`` in csrc/common.h.
DTYPE_CODES = {
    torch.float32: 0,
    torch.float64: 1,
    torch.float16: 2,
    torch.bfloat16: 3,
    torch.int8: 4,
    torch.uint8: 5,
    torch.int16: 6,
    torch.int32: 7,
    torch.int64: 8,
}

Argument: TypeAlias = "Tensor | float | tuple[float, ...] | None"


def module() -> ModuleType | None:
    """``voxelpool._C``, or None where it was not built.

    Raises:
        ImportError: it is missing and ``VOXELPOOL_REQUIRE_NATIVE=1`` asks for it.
    """
    if _compiled is None and os.environ.get("VOXELPOOL_REQUIRE_NATIVE", "0") not in ("", "0"):
        raise ImportError(
            "VOXELPOOL_REQUIRE_NATIVE is set, but voxelpool's compiled part (voxelpool._C) cannot "
            f"be imported: {_import_error}. Build it with `pip install -e .`"
        ) from _import_error
    return _compiled


def missing_because() -> str:
    """Why the compiled part cannot be imported; empty where it can."""
    return "" if _import_error is None else str(_import_error)


def usable(device: torch.device) -> bool:
    """Whether compiled kernels run on ``device``; the reference serves where they do not."""
    if module() is None:
        return False
    if device.type == "cuda":
        return _cuda_usable(torch.cuda.current_device() if device.index is None else device.index)
    return device.type == "cpu"


@functools.cache
def _cuda_usable(index: int) -> bool:
    native = module()
    if native is None or not hasattr(native, "cuda_probe"):
        return False
    status = native.cuda_probe(index)
    if status != 0:
        reason = {
            35: "the driver is older than the CUDA toolkit they were built with",
            209: f"they were built for the architectures {native.cuda_architectures} alone",
        }.get(status, "see the list of CUDA runtime errors")
        warnings.warn(
            f"voxelpool's CUDA kernels cannot run on cuda:{index} (CUDA error {status}: {reason}); "
            "the PyTorch reference, which is slower, runs instead",
            RuntimeWarning,
            stacklevel=2,
        )
    return status == 0


def call(name: str, device: torch.device, *arguments: Argument) -> None:
    """Runs the kernel ``name`` on ``device``.

    Tensors go over as addresses, None as 0: they must lie on ``device`` and be contiguous where the
    kernel takes no strides. The kernel's last arguments are filled in here: on CPU the number of
    threads, on CUDA the device and its current stream.
    """
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        kernel = getattr(module(), f"{name}_cuda")
        kernel(*_plain(arguments), index, _raw_stream(index))
    else:
        kernel = getattr(module(), f"{name}_cpu")
        kernel(*_plain(arguments), torch.get_num_threads())


class VoxelizePlan:
    """The voxels of a cloud on the CPU, found but not yet written.

    Arguments are those of the op ``voxelpool::voxelize``; ``points`` has rows of unit stride.
    """

    def __init__(self, points: Tensor, *arguments: Argument) -> None:
        self._plan = module().VoxelizeCpu(  # type: ignore[union-attr]
            points.data_ptr(),
            *points.shape[:1],
            points.stride(0),
            *_plain(arguments),
            torch.get_num_threads(),
        )
        self.num_voxels: int = self._plan.num_voxels
        self.num_points: int = self._plan.num_points

    def write(self, coords: Tensor, offsets: Tensor, point_index: Tensor) -> None:
        """Fills (num_voxels, 4) int32, (num_voxels + 1,) and (num_points,) int64."""
        self._plan.write(*_plain((coords, offsets, point_index)), torch.get_num_threads())


def _plain(arguments: tuple[Argument, ...]) -> list[float | tuple[float, ...]]:
    return [
        value.data_ptr() if isinstance(value, Tensor) else 0 if value is None else value
        for value in arguments
    ]


def _raw_stream(index: int) -> int:
    fast = getattr(torch._C, "_cuda_getCurrentRawStream", None)
    if fast is not None:
        return fast(index)
    return torch.cuda.current_stream(index).cuda_stream


module()  # so that VOXELPOOL_REQUIRE_NATIVE speaks at import
