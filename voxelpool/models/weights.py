"""Weights to hand on: what a trained detector needs and nothing else, small enough to ship."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from voxelpool.errors import CheckpointError
from voxelpool.files import shipped_folder
from voxelpool.models.checkpoint import load_detector, write_checkpoint
from voxelpool.models.detector import VoxelDetector

SUFFIX = ".pt"


def write_weights(path: str | os.PathLike[str], detector: VoxelDetector) -> None:
    """Writes a detector as a checkpoint of configuration and weights alone, half as large.

    Kernels and matrices are stored in float16, unless one does not survive that to a thousandth;
    biases and the statistics of norms, which are few, stay as they are. `load_detector` makes
    float32 of all again.

    Raises:
        OSError: it cannot be written; nothing is left of it then.
    """
    weights = {name: _stored(value) for name, value in detector.state_dict().items()}
    write_checkpoint(path, detector.config, weights)


def shipped_weights() -> dict[str, Path]:
    """The weights that come with this package, by name."""
    return {path.stem: path for path in sorted(shipped_folder("weights").glob(f"*{SUFFIX}"))}


def find_weights(path_or_name: str | os.PathLike[str]) -> Path:
    """The file of shipped weights, or the path itself.

    Args:
        path_or_name: a name among `shipped_weights`, or a file; ``./NAME`` is always a file.

    Raises:
        CheckpointError: neither; lists the names that there are.
    """
    path, given, shipped = Path(path_or_name), os.fspath(path_or_name), shipped_weights()
    if given in shipped:
        return shipped[given]
    if path.exists() or path.suffix or given != path.name:
        return path
    names = ", ".join(shipped) or "none"
    raise CheckpointError(f"{path}: no such file, and no such weights (shipped are: {names})")


@torch.no_grad()
def stored_difference(path: str | os.PathLike[str], detector: VoxelDetector) -> float:
    """How far scores, from 0 to 1, are from ``detector`` with the weights that were written of it.

    Raises:
        CheckpointError: ``path`` is no checkpoint.
    """
    stored = load_detector(path, detector.config).to(detector.anchors.device)
    worst = 0.0
    for count in (200, 20_000):
        points = random_points(detector, count)
        one, other = (network(points).scores.sigmoid() for network in (detector, stored))
        worst = max(worst, float((one - other).abs().max()))
    return worst


def random_points(detector: VoxelDetector, count: int, seed: int = 0) -> Tensor:
    """(count, columns) all over a detector's grid, on its device; features from 0 to 1."""
    generator = torch.Generator().manual_seed(seed)
    low, high = (torch.tensor(end) for end in (detector.grid.range[:3], detector.grid.range[3:]))
    points = torch.rand(count, detector.point_dims, generator=generator)
    points[:, :3] = low + (high - low) * points[:, :3]
    return points.to(detector.anchors.device)


def _stored(weight: Tensor) -> Tensor:
    weight = weight.detach().cpu()
    if weight.dim() < 2 or weight.dtype != torch.float32:
        return weight
    half = weight.half()
    survives = (half.float() - weight).norm() <= 1e-3 * weight.norm()
    return half if survives else weight
