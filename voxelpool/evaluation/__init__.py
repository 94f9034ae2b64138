"""How good detections are, as the benchmarks compute it, and how good classifications are."""

from __future__ import annotations

from voxelpool.evaluation.classification import ClassificationScores, classification_scores
from voxelpool.evaluation.kitti import (
    DIFFICULTIES,
    METRICS,
    MIN_IOU,
    KittiResult,
    TableRow,
    evaluate,
    table_rows,
)

__all__ = [
    "DIFFICULTIES",
    "METRICS",
    "MIN_IOU",
    "ClassificationScores",
    "KittiResult",
    "TableRow",
    "classification_scores",
    "evaluate",
    "table_rows",
]
