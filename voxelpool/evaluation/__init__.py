"""How good detections are, as the benchmarks compute it, and how good classifications are."""

from __future__ import annotations

from voxelpool.evaluation.breakdown import (
    Band,
    FrameScore,
    Matches,
    bands,
    frame_scores,
    match_objects,
    score_histogram,
)
from voxelpool.evaluation.classification import ClassificationScores, classification_scores
from voxelpool.evaluation.kitti import (
    DIFFICULTIES,
    LOOSE_IOU,
    METRICS,
    MIN_IOU,
    KittiResult,
    TableRow,
    evaluate,
    table_rows,
)

__all__ = [
    "DIFFICULTIES",
    "LOOSE_IOU",
    "METRICS",
    "MIN_IOU",
    "Band",
    "ClassificationScores",
    "FrameScore",
    "KittiResult",
    "Matches",
    "TableRow",
    "bands",
    "classification_scores",
    "evaluate",
    "frame_scores",
    "match_objects",
    "score_histogram",
    "table_rows",
]
