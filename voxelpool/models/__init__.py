"""Detectors and classifiers, assembled from layers by a configuration."""

from voxelpool.models.checkpoint import (
    classifier_of,
    load_checkpoint,
    load_classifier,
    load_detector,
)
from voxelpool.models.classifier import (
    CLASSIFIERS,
    NiN,
    ResNet18,
    SmallCNN,
    SPPNet,
    VoxNet,
    build_classifier,
)
from voxelpool.models.detector import Precision, VoxelDetector, build_detector
from voxelpool.models.pointnet2 import PointNet2

__all__ = [
    "CLASSIFIERS",
    "NiN",
    "PointNet2",
    "Precision",
    "ResNet18",
    "SPPNet",
    "SmallCNN",
    "VoxNet",
    "VoxelDetector",
    "build_classifier",
    "build_detector",
    "classifier_of",
    "load_checkpoint",
    "load_classifier",
    "load_detector",
]
