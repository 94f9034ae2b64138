"""Voxel pooling and VoxelNet 3D detection for LiDAR sweeps, in PyTorch.

Importing this package imports nothing else: its parts (``voxelpool.ops``, ``voxelpool.structures``
and the others) load when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from voxelpool._config_report import show_config
    from voxelpool.inference import Detector

__version__ = "0.1.0"

_PARTS = (
    "config",
    "datasets",
    "detection",
    "errors",
    "evaluation",
    "files",
    "inference",
    "models",
    "nn",
    "ops",
    "scenes",
    "structures",
    "training",
    "visualization",
)
_SHORTCUTS = {"Detector": "inference", "show_config": "_config_report"}

__all__ = ["Detector", "__version__", "show_config", *_PARTS]


def __getattr__(name: str) -> Any:
    if name in _SHORTCUTS:
        return getattr(importlib.import_module(f"voxelpool.{_SHORTCUTS[name]}"), name)
    if name in _PARTS:
        return importlib.import_module(f"voxelpool.{name}")
    raise AttributeError(f"module 'voxelpool' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
