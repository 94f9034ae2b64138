"""Detectors, assembled from layers by a configuration."""

from voxelpool.models.checkpoint import load_checkpoint, load_detector
from voxelpool.models.voxelnet import VoxelNet, build_detector

__all__ = ["VoxelNet", "build_detector", "load_checkpoint", "load_detector"]
