"""Training: batches, the Lightning module, runs and their folders, comparisons of runs."""

from voxelpool.training.classify import (
    ClassifierModule,
    ObjectBatch,
    ObjectData,
    class_probabilities,
)
from voxelpool.training.comparison import Cell, Roots, cells_of, run_cells, write_summary
from voxelpool.training.data import SweepBatch, SweepData, collate
from voxelpool.training.module import DetectorModule
from voxelpool.training.results import detect_frames, result_objects
from voxelpool.training.run import Run, find_run, fit, new_run

__all__ = [
    "Cell",
    "ClassifierModule",
    "DetectorModule",
    "ObjectBatch",
    "ObjectData",
    "Roots",
    "Run",
    "SweepBatch",
    "SweepData",
    "cells_of",
    "class_probabilities",
    "collate",
    "detect_frames",
    "find_run",
    "fit",
    "new_run",
    "result_objects",
    "run_cells",
    "write_summary",
]
