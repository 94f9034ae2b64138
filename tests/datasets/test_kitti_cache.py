from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from voxelpool.datasets.calibration import Calibration, crop_to_image
from voxelpool.datasets.kitti import KittiDataset, read_sweep, write_sweep
from voxelpool.datasets.kitti_cache import CropCache
from voxelpool.errors import DataError

SIZE = (1242, 375)
PINHOLE = np.array([[700.0, 0, 600, 0], [0, 700, 180, 0], [0, 0, 1, 0]])
CALIBRATION = Calibration(
    PINHOLE,
    np.eye(3),
    np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0]]),
)


def make_sweep(path: Path, seed: int = 0, count: int = 500) -> np.ndarray:
    rng = np.random.default_rng(seed)
    points = np.column_stack([rng.uniform(-40, 40, (count, 3)), rng.random(count)])
    points = points.astype(np.float32)
    write_sweep(path, points)
    return points


@pytest.fixture
def cached(tmp_path: Path) -> tuple[CropCache, Path, np.ndarray]:
    sweep = tmp_path / "000000.bin"
    points = make_sweep(sweep)
    cache = CropCache(tmp_path / "cache")
    cache.write(sweep, points, CALIBRATION, SIZE)
    return cache, sweep, points


def test_what_is_read_is_what_cropping_gives(cached: tuple[CropCache, Path, np.ndarray]) -> None:
    cache, sweep, points = cached
    expected = points[crop_to_image(points, CALIBRATION, SIZE)]
    assert 0 < len(expected) < len(points)
    for reader in (cache, CropCache(cache.folder), pickle.loads(pickle.dumps(cache))):
        found = reader.read(sweep, CALIBRATION, SIZE)
        assert found is not None and np.array_equal(found, expected)


def test_nothing_is_used_that_no_longer_belongs(cached: tuple[CropCache, Path, np.ndarray]) -> None:
    cache, sweep, points = cached
    assert cache.read(sweep, CALIBRATION, (1224, 370)) is None
    shifted = PINHOLE * (1 + 1e-12)
    other = Calibration(shifted, CALIBRATION.R0, CALIBRATION.Tr_velo_to_cam)
    assert cache.read(sweep, other, SIZE) is None
    assert cache.read(sweep.with_name("000001.bin"), CALIBRATION, SIZE) is None

    stored = cache.folder / "000000.bin"
    whole = stored.read_bytes()
    stored.write_bytes(whole[:-16])
    assert cache.read(sweep, CALIBRATION, SIZE) is None
    stored.write_bytes(whole)
    assert cache.read(sweep, CALIBRATION, SIZE) is not None

    later = stored.stat().st_mtime_ns + 10**9
    os.utime(sweep, ns=(later, later))
    assert cache.read(sweep, CALIBRATION, SIZE) is None
    os.utime(stored, ns=(later, later))
    assert cache.read(sweep, CALIBRATION, SIZE) is not None
    write_sweep(sweep, points[:-1])
    os.utime(sweep, ns=(later, later))
    assert cache.read(sweep, CALIBRATION, SIZE) is None
    stored.unlink()
    assert cache.read(sweep, CALIBRATION, SIZE) is None


def test_a_cut_index_line_costs_one_frame_only(tmp_path: Path) -> None:
    cache = CropCache(tmp_path / "cache")
    sweeps = [tmp_path / f"{index:06d}.bin" for index in range(3)]
    for seed, sweep in enumerate(sweeps[:2]):
        cache.write(sweep, make_sweep(sweep, seed), CALIBRATION, SIZE)
    index = cache.folder / "index.jsonl"
    index.write_bytes(index.read_bytes()[:-20])
    again = CropCache(cache.folder)
    assert again.read(sweeps[0], CALIBRATION, SIZE) is not None
    assert again.read(sweeps[1], CALIBRATION, SIZE) is None
    again.write(sweeps[2], make_sweep(sweeps[2]), CALIBRATION, SIZE)
    third = CropCache(cache.folder)
    assert third.read(sweeps[0], CALIBRATION, SIZE) is not None
    assert third.read(sweeps[2], CALIBRATION, SIZE) is not None


def test_sweeps_with_nan_are_not_cached(tmp_path: Path) -> None:
    sweep = tmp_path / "000000.bin"
    points = make_sweep(sweep)
    points[3, 1] = np.nan
    with pytest.raises(DataError, match=r"000000\.bin: .* not cached"):
        CropCache(tmp_path / "cache").write(sweep, points, CALIBRATION, SIZE)
    assert not (tmp_path / "cache").exists()


def test_an_empty_sweep_is_cached(tmp_path: Path) -> None:
    sweep = tmp_path / "000000.bin"
    points = make_sweep(sweep, count=0)
    cache = CropCache(tmp_path / "cache")
    cache.write(sweep, points, CALIBRATION, SIZE)
    found = cache.read(sweep, CALIBRATION, SIZE)
    assert found is not None and found.shape == (0, 4)


def test_the_data_set_uses_it(kitti_sample: Path, tmp_path: Path) -> None:
    plain = KittiDataset(kitti_sample, "sample", cache=False)
    frame, paths = plain[0], plain.paths(0)
    cache = CropCache(tmp_path / "training" / "velodyne_cropped")
    points = read_sweep(paths.sweep)
    cache.write(paths.sweep, points, frame.calibration, frame.image_size)
    dataset = KittiDataset(kitti_sample, "sample", cache=tmp_path)
    assert np.array_equal(dataset[0].points, frame.points)
    # Mark the stored points, to see where a sweep comes from.
    marked = frame.points.copy()
    marked[:, 3] = 2
    write_sweep(cache.folder / f"{frame.frame_id}.bin", marked)
    assert (dataset[0].points[:, 3] == 2).all()
    assert np.array_equal(dataset[1].points, plain[1].points)
    whole = KittiDataset(kitti_sample, "sample", cache=tmp_path, crop_to_image=False)
    assert np.array_equal(whole[0].points, points)
