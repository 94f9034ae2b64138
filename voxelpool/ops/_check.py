"""Checks of what callers hand to the ops; a message names what it is and what it should be."""

from __future__ import annotations

import torch
from torch import Tensor

from voxelpool.ops import _native

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def tensor(name: str, value: object) -> Tensor:
    """``value``, which must be a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    return value


def same_device(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Raises unless both lie on one device."""
    if value.device != other.device:
        raise ValueError(
            f"{name} is on {value.device} and {other_name} on {other.device}: "
            "move them to one device"
        )


def integers(name: str, value: Tensor) -> None:
    """Raises unless ``value`` is of an integer dtype."""
    if value.dtype not in _INTEGERS:
        raise TypeError(f"{name} must hold integers, got {value.dtype}")


def integer_vector(name: str, value: Tensor) -> None:
    """Raises unless ``value`` is 1-D and of an integer dtype."""
    integers(name, value)
    if value.dim() != 1:
        raise ValueError(f"{name} must be 1-D, got shape {tuple(value.shape)}")


def poolable(src: Tensor, name: str, groups: Tensor) -> None:
    """Raises unless ``src`` has a dtype to pool and ``groups`` holds integers beside it."""
    tensor("src", src)
    tensor(name, groups)
    if src.dtype not in _native.DTYPE_CODES:
        raise TypeError(f"src must be floating point or integer, got {src.dtype}")
    integers(name, groups)
    same_device("src", src, name, groups)


def positive(name: str, value: int | None) -> None:
    """Raises unless ``value`` is None or at least 1."""
    if value is not None and value < 1:
        raise ValueError(f"{name} must be at least 1, or None for no limit, got {value}")
