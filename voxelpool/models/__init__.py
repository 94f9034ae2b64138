"""Detectors, assembled from layers by a configuration."""

from voxelpool.models.checkpoint import load_checkpoint, load_detector
from voxelpool.models.voxelnet import Precision, VoxelNet, build_detector

__all__ = ["Precision", "VoxelNet", "build_detector", "load_checkpoint", "load_detector"]
