"""The compiled kernels: the one place that imports ``voxelpool._C`` and hands out pointers."""

from __future__ import annotations

import functools
import os
import warnings
from types import ModuleType
from typing import Any

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


def call(name: str, device: torch.device, *arguments: Any) -> None:
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


def voxelize_input(points: Tensor, *arguments: Any) -> Any:
    """The arguments of the voxelize ops as their kernels take them.

    ``points`` has rows of unit stride; it and ``batch`` must live until the kernels are done.
    """
    return module().VoxelizeInput(  # type: ignore[union-attr]
        points.data_ptr(), points.shape[0], points.stride(0), *_plain(arguments)
    )


def voxelize_workspace(given: Any, device: torch.device) -> Tensor:
    """Memory for what voxelizing ``given``, from `voxelize_input`, needs on a CUDA device."""
    index = torch.cuda.current_device() if device.index is None else device.index
    size = module().voxelize_workspace_cuda(given, index)  # type: ignore[union-attr]
    return torch.empty(size, dtype=torch.uint8, device=device)


class VoxelizePlan:
    """The voxels of a cloud on the CPU, found but not yet written; `given` as above."""

    def __init__(self, given: Any) -> None:
        self._plan = module().VoxelizeCpu(given, torch.get_num_threads())  # type: ignore[union-attr]
        self.num_voxels: int = self._plan.num_voxels
        self.num_points: int = self._plan.num_points

    def write(self, coords: Tensor, offsets: Tensor, point_index: Tensor) -> None:
        """Fills the first num_voxels rows, num_voxels + 1 and num_points entries."""
        self._plan.write(*_plain((coords, offsets, point_index)), torch.get_num_threads())


class SparseReach:
    """The cells that a convolution of sorted ``coords`` reaches on the CPU, not yet written."""

    def __init__(self, coords: Tensor, *geometry: Any) -> None:
        self._found = module().SparseReachCpu(  # type: ignore[union-attr]
            coords.data_ptr(), coords.shape[0], *geometry, torch.get_num_threads()
        )
        self.count: int = self._found.count

    def write(self, coords: Tensor) -> None:
        """Fills (count, 4)."""
        self._found.write(coords.data_ptr())


def _plain(arguments: tuple[Any, ...]) -> list[Any]:
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
