"""A cache of sweeps already cropped to the image: a sixth of the bytes, and nothing to project."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxelpool.datasets.calibration import Calibration, crop_to_image
from voxelpool.datasets.kitti_format import read_sweep, write_sweep
from voxelpool.errors import DataError

_INDEX = "index.jsonl"
_KEYS = ("points", "sweep_bytes", "calibration", "image_size")


class CropCache:
    """A folder of cropped sweeps, ``ID.bin``, and ``index.jsonl`` that says what each was made of.

    A cropped sweep is used only if its record shows that nothing it depends on has changed: the
    size of the sweep in bytes, the calibration's numbers and the image size are as recorded, the
    cached file has the recorded number of points, and the sweep is not newer than it. Otherwise
    the frame counts as not cached.

    A frame's file is written whole or not at all and its record after it, so a run that was
    stopped goes on where it left off. One process at a time may write.

    Args:
        folder: such as ``ROOT/training/velodyne_cropped``; need not exist for reading.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._records: dict[str, dict[str, Any]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "_records": None}

    def read(
        self, sweep: Path, calibration: Calibration, image_size: tuple[int, int]
    ) -> NDArray[np.float32] | None:
        """The cropped points (M, 4) of a sweep, or None if they are not cached or out of date."""
        record = self._index().get(sweep.stem)
        if record is None:
            return None
        path = self.folder / f"{sweep.stem}.bin"
        try:
            source, cached = sweep.stat(), path.stat()
        except OSError:
            return None
        if cached.st_mtime_ns < source.st_mtime_ns or cached.st_size != 16 * record["points"]:
            return None
        expected = _describe(source.st_size, calibration, image_size)
        if any(record[key] != value for key, value in expected.items()):
            return None
        return read_sweep(path)

    def write(
        self,
        sweep: Path,
        points: NDArray[np.float32],
        calibration: Calibration,
        image_size: tuple[int, int],
    ) -> NDArray[np.float32]:
        """Crops a sweep and stores it.

        Args:
            sweep: its file.
            points: (N, 4), all that the file holds.
            calibration: of the frame.
            image_size: (width, height) in pixels.

        Returns:
            (M, 4) float32, the points stored.

        Raises:
            DataError: a point is not finite. Such a sweep is not cached, so that every reader
                hears of it.
            OSError: nothing can be written here.
        """
        if not np.isfinite(points).all():
            raise DataError(f"{sweep}: a sweep with points that are not finite is not cached")
        self.folder.mkdir(parents=True, exist_ok=True)
        index = self._index()
        source_size = points.nbytes
        points = points[crop_to_image(points, calibration, image_size)]
        write_sweep(self.folder / f"{sweep.stem}.bin", points)
        record = {
            "frame": sweep.stem,
            "points": len(points),
            **_describe(source_size, calibration, image_size),
        }
        path = self.folder / _INDEX
        # A line that a kill cut short must not swallow the next one.
        start = "" if not path.exists() or path.read_bytes()[-1:] in (b"", b"\n") else "\n"
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{start}{json.dumps(record)}\n")
        index[sweep.stem] = record
        return points

    def _index(self) -> dict[str, dict[str, Any]]:
        if self._records is None:
            self._records = {}
            try:
                text = (self.folder / _INDEX).read_text(encoding="utf-8")
            except OSError:
                text = ""
            for line in text.splitlines():
                try:
                    record = json.loads(line)
                    self._records[record["frame"]] = {key: record[key] for key in _KEYS}
                except (ValueError, KeyError, TypeError):
                    continue  # a line cut short by a kill
        return self._records


def _describe(
    sweep_bytes: int, calibration: Calibration, image_size: tuple[int, int]
) -> dict[str, Any]:
    numbers = [calibration.P2, calibration.R0, calibration.Tr_velo_to_cam]
    data = b"".join(np.ascontiguousarray(matrix, "<f8").tobytes() for matrix in numbers)
    return {
        "sweep_bytes": sweep_bytes,
        "calibration": zlib.crc32(data),
        "image_size": list(image_size),
    }
