"""What a training wrote down as it went."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from voxelpool.errors import DataError


@dataclass(frozen=True, eq=False)
class Series:
    """What one figure was in the course of a training.

    Attributes:
        step: (n,) optimizer steps before it, ascending.
        epoch: (n,) the epoch of it, from 0; NaN where the file has none.
        value: (n,) the figure.
    """

    step: NDArray[np.float64]
    epoch: NDArray[np.float64]
    value: NDArray[np.float64]


def read_metrics(path: str | os.PathLike[str]) -> dict[str, Series]:
    """Reads the metrics.csv of a run: each of its figures by name, such as "train/loss".

    Raises:
        DataError: no such file, none of that kind, or a cell that is no number; names the line.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file; tools/train.py writes it to the folder of a run")
    found: dict[str, list[tuple[float, float, float]]] = {}
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        table = csv.DictReader(file)
        if "step" not in (table.fieldnames or ()):
            raise DataError(f"{path}: has no column 'step', so it is no metrics.csv of a run")
        for row in table:
            numbers = {
                name: _number(text, path, table.line_num, name)
                for name, text in row.items()
                if name and text
            }
            place = numbers.pop("step", np.nan), numbers.pop("epoch", np.nan)
            for name, value in numbers.items():
                found.setdefault(name, []).append((*place, value))
    return {name: Series(*np.array(rows, np.float64).T) for name, rows in found.items()}


def _number(text: str, path: Path, line: int, name: str) -> float:
    try:
        return float(text)
    except (TypeError, ValueError):
        raise DataError(f"{path}:{line}: {name} is {text!r}, which is no number") from None
