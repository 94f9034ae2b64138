"""How good detections are: average precision as the benchmarks compute it."""

from __future__ import annotations

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
    "KittiResult",
    "TableRow",
    "evaluate",
    "table_rows",
]
