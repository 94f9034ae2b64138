"""Voxel pooling and VoxelNet 3D detection for LiDAR sweeps, in PyTorch.

Importing this package imports nothing else: its parts (``voxelpool.ops``, ``voxelpool.structures``
and the others) load when they are first used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PARTS = (
    "config",
    "datasets",
    "detection",
    "errors",
    "evaluation",
    "files",
    "models",
    "nn",
    "ops",
    "structures",
    "training",
    "visualization",
)

__all__ = ["__version__", "show_config", *_PARTS]


def __getattr__(name: str) -> Any:
    if name == "show_config":
        from voxelpool._config_report import show_config

        return show_config
    if name in _PARTS:
        return importlib.import_module(f"voxelpool.{name}")
    raise AttributeError(f"module 'voxelpool' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
