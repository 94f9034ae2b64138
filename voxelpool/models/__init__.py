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
from voxelpool.models.pointnet2 import PointNet2
from voxelpool.models.voxelnet import Precision, VoxelNet, build_detector

__all__ = [
    "CLASSIFIERS",
    "NiN",
    "PointNet2",
    "Precision",
    "ResNet18",
    "SPPNet",
    "SmallCNN",
    "VoxNet",
    "VoxelNet",
    "build_classifier",
    "build_detector",
    "classifier_of",
    "load_checkpoint",
    "load_classifier",
    "load_detector",
]
