"""How good a classifier is: accuracy over all objects and over classes, confusion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, eq=False)
class ClassificationScores:
    """What a classifier got right.

    Attributes:
        classes: K names.
        confusion: (K, K) int64, objects of class [row] that were taken for class [column].
    """

    classes: tuple[str, ...]
    confusion: NDArray[np.int64]

    @property
    def num_objects(self) -> int:
        """Objects in all."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """Share of all objects that were recognized; NaN without any."""
        return float(self.confusion.trace() / self.num_objects) if self.num_objects else np.nan

    @property
    def recall(self) -> NDArray[np.float64]:
        """(K,) share of the objects of each class that were recognized; NaN without any."""
        return _shares(self.confusion.diagonal(), self.confusion.sum(axis=1))

    @property
    def precision(self) -> NDArray[np.float64]:
        """(K,) share of what was taken for each class that is; NaN if nothing was."""
        return _shares(self.confusion.diagonal(), self.confusion.sum(axis=0))

    @property
    def class_mean(self) -> float:
        """Mean of the recall over the classes that have objects; NaN without any."""
        recall = self.recall[self.confusion.sum(axis=1) > 0]
        return float(recall.mean()) if len(recall) else np.nan

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; shares from 0 to 1, null where there is nothing to share."""
        return {
            "objects": self.num_objects,
            "accuracy": _plain(self.accuracy),
            "class_mean": _plain(self.class_mean),
            "recall": dict(zip(self.classes, map(_plain, self.recall.tolist()), strict=True)),
            "precision": dict(zip(self.classes, map(_plain, self.precision.tolist()), strict=True)),
            "classes": list(self.classes),
            "confusion": self.confusion.tolist(),
        }


def _shares(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else value


def classification_scores(
    labels: ArrayLike, predicted: ArrayLike, classes: Sequence[str]
) -> ClassificationScores:
    """Counts what was taken for what.

    Args:
        labels: (N,) integers, rows of ``classes``: what each object is.
        predicted: (N,) integers: what it was taken for.
        classes: K names.

    Raises:
        ValueError: lengths that differ, or a row that is no class.
    """
    truth, found = np.asarray(labels), np.asarray(predicted)
    if truth.shape != found.shape or truth.ndim != 1:
        raise ValueError(f"labels and predicted must be (N,), got {truth.shape}, {found.shape}")
    count = len(classes)
    for name, rows in (("labels", truth), ("predicted", found)):
        if len(rows) and not 0 <= rows.min() <= rows.max() < count:
            raise ValueError(f"{name} must lie from 0 to {count - 1}")
    pairs = truth.astype(np.int64) * count + found.astype(np.int64)
    table = np.bincount(pairs, minlength=count * count).reshape(count, count)
    return ClassificationScores(tuple(classes), table)
