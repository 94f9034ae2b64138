"""Frames that cannot be used: named, and fatal or skipped as the configuration says."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from voxelpool.config import Config
from voxelpool.datasets.kitti import read_label, read_sweep, write_label, write_sweep
from voxelpool.errors import DataError
from voxelpool.training import SweepData, fit, new_run


def cut(root: Path, frame: str) -> None:
    (root / "training" / "velodyne" / f"{frame}.bin").write_bytes(b"\0" * 7)


def make_nan(root: Path, frame: str) -> None:
    path = root / "training" / "velodyne" / f"{frame}.bin"
    points = read_sweep(path)
    points[3, 1] = np.nan
    write_sweep(path, points)


def label(change: Callable[[Any], None]) -> Callable[[Path, str], None]:
    def spoil(root: Path, frame: str) -> None:
        path = root / "training" / "label_2" / f"{frame}.txt"
        objects = read_label(path)
        change(objects)
        write_label(path, objects)

    return spoil


def no_width(objects: Any) -> None:
    objects.dimensions[1, 1] = 0.0


def long_car(objects: Any) -> None:
    objects.dimensions[0, 2] = 400.0


def far_car(objects: Any) -> None:
    objects.location[0, 2] = -9e5


SPOILED = {
    "cut": (cut, r"{frame}\.bin: 7 bytes"),
    "NaN": (make_nan, r"{frame}\.bin: 1 points are not finite"),
    "no width": (label(no_width), r"{frame}\.txt: Car with dimensions \[1.5, 0.0, 4.1\]"),
    "long": (label(long_car), r"{frame}\.txt: Car with dimensions .*400.0"),
    "far": (label(far_car), r"{frame}\.txt: Car with location .*-900000.0"),
}


def changed(config: Config, **data: object) -> Config:
    return config.model_copy(
        update={
            "data": config.data.model_copy(update=data),
            "train": config.train.model_copy(update={"epochs": 2, "val_every": 1}),
        }
    )


@pytest.mark.parametrize("frame", ["000001", "000004"], ids=["training", "validation"])
@pytest.mark.parametrize("what", SPOILED)
def test_fatal(
    what: str, frame: str, tiny_config: Config, tiny_kitti: Path, tmp_path: Path
) -> None:
    spoil, message = SPOILED[what]
    spoil(tiny_kitti, frame)
    config = changed(tiny_config)
    with pytest.raises(DataError, match=message.format(frame=frame)):
        fit(config, new_run(config, tmp_path / "run"), progress=False)


@pytest.mark.parametrize("workers", [0, 1])
def test_skipped(workers: int, tiny_config: Config, tiny_kitti: Path, tmp_path: Path) -> None:
    """Told of once each, counted each epoch; a batch stays as large as it was."""
    make_nan(tiny_kitti, "000001")
    cut(tiny_kitti, "000002")
    label(long_car)(tiny_kitti, "000005")
    config = changed(tiny_config, on_broken_frame="skip", num_workers=workers)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(config, new_run(config, tmp_path / "run"), progress=False)
    told = [str(w.message) for w in caught if "skipped" in str(w.message)]
    for frame in ("000001.bin", "000002.bin", "000005.txt"):
        assert sum(f"{frame}: " in text for text in told) == 1, frame
    assert [text for text in told if text.startswith("epoch")] == [
        "epoch 0: 3 broken frames skipped",
        "epoch 1: 3 broken frames skipped",
    ]
    data = SweepData(config)
    loader = data.train_dataloader()
    ids = [batch.ids for batch in loader]
    assert all(len(batch) == 2 for batch in ids)
    assert {name for batch in ids for name in batch} == {"000000", "000003"}
    assert [batch.ids for batch in data.val_dataloader()] == [["000004"], []]


def test_nothing_but_broken_frames(tiny_config: Config, tiny_kitti: Path, tmp_path: Path) -> None:
    for number in range(4):
        cut(tiny_kitti, f"{number:06d}")
    config = changed(tiny_config, on_broken_frame="skip")
    with pytest.raises(DataError, match=r"none of 4 frames can be used; the first: .*\.bin"):
        fit(config, new_run(config, tmp_path / "run"), progress=False)
