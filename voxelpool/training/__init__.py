"""Training: batches, the Lightning module, runs and their folders, comparisons of runs."""

from voxelpool.training.classify import (
    ClassifierModule,
    ObjectBatch,
    ObjectData,
    class_probabilities,
    classify_split,
)
from voxelpool.training.comparison import Cell, Roots, cells_of, run_cells, write_summary
from voxelpool.training.data import SweepBatch, SweepData, collate
from voxelpool.training.module import DetectorModule
from voxelpool.training.results import (
    FoundInFrames,
    detect_frames,
    detect_split,
    labelled_frames,
    read_split_results,
    result_objects,
)
from voxelpool.training.run import Run, find_run, fit, new_run

__all__ = [
    "Cell",
    "ClassifierModule",
    "DetectorModule",
    "FoundInFrames",
    "ObjectBatch",
    "ObjectData",
    "Roots",
    "Run",
    "SweepBatch",
    "SweepData",
    "cells_of",
    "class_probabilities",
    "classify_split",
    "collate",
    "detect_frames",
    "detect_split",
    "find_run",
    "fit",
    "labelled_frames",
    "new_run",
    "read_split_results",
    "result_objects",
    "run_cells",
    "write_summary",
]
