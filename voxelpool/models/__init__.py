"""Detectors and classifiers, assembled from layers by a configuration."""

from voxelpool.models.checkpoint import (
    classifier_of,
    load_checkpoint,
    load_classifier,
    load_detector,
)
from voxelpool.models.voxelnet import Precision, VoxelNet, build_detector

__all__ = [
    "Precision",
    "VoxelNet",
    "build_detector",
    "classifier_of",
    "load_checkpoint",
    "load_classifier",
    "load_detector",
]
