"""The file of objects that are pasted into training sweeps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from voxelpool.datasets.kitti import KittiDataset
from voxelpool.datasets.object_database import ObjectDatabase, build_object_database, database_path
from voxelpool.errors import DataError

FIELDS = ("points", "offsets", "boxes", "names", "difficulty", "frame_ids")


def small() -> ObjectDatabase:
    rng = np.random.default_rng(0)
    return ObjectDatabase(
        points=rng.normal(size=(7, 4)).astype(np.float32),
        offsets=np.array([0, 3, 3, 7], np.int64),
        boxes=rng.uniform(1, 2, (3, 7)).astype(np.float32),
        names=np.array(["Car", "Car", "Pedestrian"]),
        difficulty=np.array([0, 3, 1], np.int64),
        frame_ids=np.array(["000001", "000001", "000007"]),
    )


def test_it_comes_back_as_it_was_written(tmp_path: Path) -> None:
    database = small()
    database.save(tmp_path / "objects.npz")
    again = ObjectDatabase.load(tmp_path / "objects.npz")
    for name in FIELDS:
        assert np.array_equal(getattr(again, name), getattr(database, name))
        assert getattr(again, name).dtype == getattr(database, name).dtype
    assert [path.name for path in tmp_path.iterdir()] == ["objects.npz"]


def test_rows_and_points() -> None:
    database = small()
    assert database.counts.tolist() == [3, 0, 4]
    assert database.rows("Car", 0).tolist() == [0, 1]
    assert database.rows("Car").tolist() == [0]
    assert database.rows("Car", 0, 2).tolist() == [0]
    assert database.rows("Cyclist").tolist() == []
    assert np.array_equal(database.points_of(2), database.points[3:])


def test_objects_of_some_frames() -> None:
    database = small()
    later = database.of_frames(["000007", "000009"])
    assert later.names.tolist() == ["Pedestrian"]
    assert np.array_equal(later.points_of(0), database.points_of(2))
    earlier = database.of_frames(["000001"])
    assert earlier.counts.tolist() == [3, 0]
    assert np.array_equal(earlier.points_of(0), database.points_of(0))
    assert len(database.of_frames([])) == 0


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("points", np.zeros((7, 4)), "points is float64"),
        ("offsets", np.array([0, 3, 7]), "offsets is int64 of shape"),
        ("offsets", np.array([0, 3, 3, 8]), "offsets do not divide its 7 points"),
        ("offsets", np.array([0, 5, 3, 7]), "offsets do not divide its 7 points"),
        ("boxes", np.full((3, 7), np.nan, np.float32), "not finite"),
        ("difficulty", np.zeros(3), "difficulty is float64"),
    ],
)
def test_absurd_contents_are_refused(
    tmp_path: Path, name: str, value: np.ndarray, message: str
) -> None:
    path = tmp_path / "objects.npz"
    np.savez(path, **{**{field: getattr(small(), field) for field in FIELDS}, name: value})
    with pytest.raises(DataError, match=message) as caught:
        ObjectDatabase.load(path)
    assert str(path) in str(caught.value)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "objects.npz"
    with pytest.raises(DataError, match="No such file"):
        ObjectDatabase.load(path)
    path.write_bytes(b"no archive")
    with pytest.raises(DataError, match="is damaged or no database of objects"):
        ObjectDatabase.load(path)
    small().save(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match="is damaged or no database of objects"):
        ObjectDatabase.load(path)
    np.savez(path, points=np.zeros((0, 4)))
    with pytest.raises(DataError, match="has no offsets"):
        ObjectDatabase.load(path)
    np.savez(path, **{name: np.array([{}], object) for name in FIELDS})
    with pytest.raises(DataError, match="is damaged or no database of objects"):
        ObjectDatabase.load(path)


def test_objects_of_real_sweeps(kitti_sample: Path) -> None:
    """Every point of an object lies in its box, and all that do are there."""
    frames = KittiDataset(kitti_sample, "sample")
    database = build_object_database(frames)
    labelled = 0
    row = 0
    for index in range(len(frames)):
        frame = frames[index]
        for box, name, level in zip(frame.boxes, frame.names, frame.difficulty, strict=True):
            xyz = frame.points[:, :3].astype(float) - box[:3]
            turned = (xyz[:, 0] + 1j * xyz[:, 1]) * np.exp(-1j * float(box[6]))
            local = np.abs(np.column_stack([turned.real, turned.imag, xyz[:, 2]]))
            surely = (local < box[3:6] / 2 - 1e-4).all(1)
            perhaps = (local < box[3:6] / 2 + 1e-4).all(1)
            labelled += 1
            if not perhaps.any():
                continue
            if not surely.any() and not np.array_equal(database.boxes[row], box):
                continue
            assert np.array_equal(database.boxes[row], box)
            assert (database.names[row], database.difficulty[row]) == (name, level)
            assert database.frame_ids[row] == frame.frame_id
            found = set(map(tuple, database.points_of(row)))
            assert set(map(tuple, frame.points[surely])) <= found
            assert found <= set(map(tuple, frame.points[perhaps]))
            row += 1
    assert row == len(database) and 100 < row <= labelled


def test_a_split_has_its_own_file() -> None:
    assert database_path("data/kitti", "train") == Path("data/kitti/gt_database_train.npz")


def test_counts_are_those_of_a_database_made_elsewhere(kitti_sample: Path) -> None:
    """Points in the objects of four KITTI frames, as another package cut them out."""
    database = build_object_database(KittiDataset(kitti_sample, "sample", crop_to_image=False))
    expected = {
        "000000": {"Pedestrian": [377]},
        "000003": {"Car": [674]},
        "000007": {"Car": [182, 20, 5], "Cyclist": [25]},
        "000009": {"Car": [215, 4, 1]},
    }
    for frame_id, classes in expected.items():
        for name, counts in classes.items():
            own = (database.frame_ids == frame_id) & (database.names == name)
            assert database.counts[own].tolist() == counts, (frame_id, name)
