from __future__ import annotations

import pickle
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

from voxelpool.datasets.calibration import Calibration
from voxelpool.datasets.kitti import (
    DEFAULT_IMAGE_SIZE,
    Frame,
    KittiDataset,
    KittiObjects,
    difficulty,
    find_beside,
    read_label,
    read_result,
    read_sweep,
    results_from_boxes,
    split_ids,
    write_result,
    write_sweep,
)
from voxelpool.datasets.sweeps import read_lone_sweep
from voxelpool.errors import DataError

CALIBRATION = Calibration(
    [[700.0, 0, 600, 0], [0, 700, 180, 0], [0, 0, 1, 0]],  # type: ignore[arg-type]
    np.eye(3),
    [[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0]],  # type: ignore[arg-type]
)
CAR = "Car 0.00 0 0.00 580.00 150.00 640.00 200.00 1.50 1.60 3.90 0.00 1.70 20.00 -1.57\n"
VAN = CAR.replace("Car", "Van").replace("20.00 -1.57", "30.00 1.00")
DONT_CARE = "DontCare -1 -1 -10 503.89 169.71 590.61 190.13 -1 -1 -1 -1000 -1000 -1000 -10\n"
# Two points that the camera sees, one behind it, one beside its view.
POINTS = np.array(
    [[10, 0, 0, 0.1], [-10, 0, 0, 0.2], [20, 1, -1, 0.3], [5, 30, 0, 0.4]], np.float32
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Frames 0: car, van, DontCare; 1: DontCare only; 2: empty label; 3: no label file."""
    folder = tmp_path / "kitti" / "training"
    for name in ("velodyne", "calib", "label_2"):
        (folder / name).mkdir(parents=True)
    for index, label in enumerate([DONT_CARE + VAN + CAR, DONT_CARE, "", None]):
        write_sweep(folder / "velodyne" / f"{index:06d}.bin", POINTS)
        CALIBRATION.save(folder / "calib" / f"{index:06d}.txt")
        if label is not None:
            (folder / "label_2" / f"{index:06d}.txt").write_text(label)
    lists = tmp_path / "kitti" / "ImageSets"
    lists.mkdir()
    (lists / "train.txt").write_text("000000\n000001\n000002\n000003\n")
    (lists / "val.txt").write_text("000002\n000000\n")
    return tmp_path / "kitti"


def in_box(points: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Point by point, from the definition of a box; the oracle for the golden counts."""
    x, y, z = (points[:, :3].astype(np.float64) - box[:3]).T
    along = x * np.cos(box[6]) + y * np.sin(box[6])
    across = -x * np.sin(box[6]) + y * np.cos(box[6])
    return (
        (np.abs(along) <= box[3] / 2) & (np.abs(across) <= box[4] / 2) & (np.abs(z) <= box[5] / 2)
    )


@pytest.mark.parametrize(
    ("frame_id", "read", "kept", "inside"),
    [
        ("000000", 115_384, 20_285, {"Pedestrian": [377]}),
        ("000003", 113_110, 18_911, {"Car": [674]}),
        ("000007", 122_798, 19_423, {"Car": [182, 20, 5], "Cyclist": [25]}),
        ("000009", None, None, {"Car": [215, 4, 1]}),
    ],
)
def test_golden_values(
    kitti_sample: Path,
    frame_id: str,
    read: int | None,
    kept: int | None,
    inside: dict[str, list[int]],
) -> None:
    """Counts of a reference ground-truth database."""
    dataset = KittiDataset(kitti_sample, "sample")
    frame = dataset[dataset.frame_ids.index(frame_id)]
    full = read_sweep(kitti_sample / "training" / "velodyne" / f"{frame_id}.bin")
    if read is not None:
        assert (len(full), len(frame.points)) == (read, kept)
    counts = [
        (name, int(in_box(frame.points, box.astype(np.float64)).sum()))
        for name, box in zip(frame.names, frame.boxes, strict=True)
    ]
    for name, expected in inside.items():
        assert [count for kind, count in counts if kind == name][: len(expected)] == expected


def test_golden_counts_before_and_after_the_crop(kitti_sample: Path) -> None:
    for crop, expected in ((True, 304), (False, 1619)):
        dataset = KittiDataset(kitti_sample, "sample", classes=["Car"], crop_to_image=crop)
        frame = dataset[dataset.frame_ids.index("000010")]
        assert in_box(frame.points, frame.boxes[0].astype(np.float64)).sum() == expected


def test_every_real_frame_is_read(kitti_sample: Path) -> None:
    dataset = KittiDataset(kitti_sample, "sample", require_labels=True)
    assert len(dataset) == 34
    with_image = 0
    for frame in dataset:
        assert frame.points.dtype == np.float32 and 10_000 < len(frame.points) < 25_000
        assert len(frame.boxes) == len(frame.names) == len(frame.difficulty)
        assert frame.boxes.dtype == np.float32 and "DontCare" not in frame.names
        has_image = (kitti_sample / "training" / "image_2" / f"{frame.frame_id}.png").is_file()
        with_image += has_image
        assert has_image or frame.image_size == DEFAULT_IMAGE_SIZE
    assert with_image == 29


def test_testing_frames_have_no_labels(kitti_sample: Path, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("000000\n")
    dataset = KittiDataset(kitti_sample, tmp_path / "one.txt", folder="testing")
    frame = dataset[0]
    assert frame.objects is None and frame.boxes.shape == (0, 7) and len(frame.points) > 10_000
    with pytest.raises(DataError, match=r"testing/velodyne: 7517 of the 7518 frames"):
        KittiDataset(kitti_sample, "test")


def test_a_frame_holds_what_its_files_say(root: Path) -> None:
    frame = KittiDataset(root, "train")[0]
    assert frame.frame_id == "000000"
    assert frame.points.tolist() == POINTS[[0, 2]].tolist()
    assert frame.names == ["Van", "Car"] and frame.image_size == DEFAULT_IMAGE_SIZE
    np.testing.assert_allclose(frame.boxes[1, :6], [20, 0, -1.7 + 0.75, 3.9, 1.6, 1.5], atol=1e-5)
    np.testing.assert_allclose(frame.boxes[1, 6], 1.57 - np.pi / 2, atol=1e-6)
    assert frame.objects is not None and frame.objects.type == ["DontCare", "Van", "Car"]
    assert frame.difficulty.tolist() == [0, 0]
    assert len(KittiDataset(root, "train", crop_to_image=False)[0].points) == 4
    assert KittiDataset(root, "train", classes=["Car"])[0].names == ["Car"]
    assert KittiDataset(root, "train", classes=[])[0].boxes.shape == (0, 7)


def test_frames_without_objects_or_labels(root: Path) -> None:
    dataset = KittiDataset(root, "train")
    for index, rows in ((1, 1), (2, 0), (3, None)):
        frame = dataset[index]
        assert frame.boxes.shape == (0, 7) and frame.names == []
        assert frame.difficulty.shape == (0,) and len(frame.points) == 2
        assert (None if frame.objects is None else len(frame.objects)) == rows
    with pytest.raises(DataError, match=r"label_2: 1 of the 4 frames .* first is 000003\.txt"):
        KittiDataset(root, "train", require_labels=True)


def test_order_length_indices_and_paths(root: Path) -> None:
    dataset = KittiDataset(root, "val")
    assert dataset.frame_ids == ["000002", "000000"] and len(dataset) == 2
    assert [frame.frame_id for frame in dataset] == ["000002", "000000"]
    assert dataset[-1].frame_id == "000000"
    assert dataset.paths(0).label == root / "training" / "label_2" / "000002.txt"
    with pytest.raises(IndexError):
        dataset[2]


def first(frames: list[Frame]) -> tuple[str, int]:
    return frames[0].frame_id, len(frames[0].points)


def test_pickles_and_works_in_data_loader_workers(root: Path) -> None:
    dataset = pickle.loads(pickle.dumps(KittiDataset(root, "train")))
    loader = DataLoader(dataset, num_workers=1, collate_fn=first)
    assert list(loader) == [(f"{index:06d}", 2) for index in range(4)]


def test_splits_are_found_or_said_to_be_missing(root: Path, tmp_path: Path) -> None:
    assert split_ids(root, "val") == ["000002", "000000"]
    assert len(split_ids(tmp_path, "val")) == 3769
    own = tmp_path / "mine.txt"
    own.write_text("000001\n")
    assert KittiDataset(root, own)[0].frame_id == "000001"
    with pytest.raises(DataError, match=r"nope\.txt: no such split list \(found there: train, val"):
        KittiDataset(root, "nope")
    (root / "ImageSets" / "train.txt").unlink()
    with pytest.raises(DataError, match=r"velodyne: 3710 of the 3712 frames of split 'train'"):
        KittiDataset(root, "train")


def test_missing_folders_and_unknown_classes(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none/training/velodyne: no such folder; data/README\.md"):
        KittiDataset(tmp_path / "none", "train")
    with pytest.raises(DataError, match=r"testing/velodyne: no such folder"):
        KittiDataset(root, "test")
    shutil.rmtree(root / "training" / "calib")
    with pytest.raises(DataError, match=r"calib: no such folder"):
        KittiDataset(root, "train")
    with pytest.raises(DataError, match=r"unknown class \['car'\]; known: Car"):
        KittiDataset(root, "train", classes=["car"])


def test_bad_files_are_named(root: Path) -> None:
    training = root / "training"
    (training / "velodyne" / "000000.bin").write_bytes(bytes(50))
    (training / "label_2" / "000001.txt").write_text(CAR.replace(" -1.57", ""))
    (training / "calib" / "000002.txt").write_text("P2: 1\n")
    (training / "image_2").mkdir()
    (training / "image_2" / "000003.png").write_bytes(b"no image")
    dataset = KittiDataset(root, "train")
    for index, name in enumerate(["000000.bin", "000001.txt:1", "000002.txt", "000003.png"]):
        with pytest.raises(DataError, match=name):
            dataset[index]


def test_points_that_are_not_finite(root: Path) -> None:
    points = POINTS.copy()
    points[0, 1], points[2, 3] = np.nan, np.inf
    path = root / "training" / "velodyne" / "000000.bin"
    write_sweep(path, points)
    with pytest.warns(UserWarning, match=r"000000\.bin: 2 points are not finite; dropped"):
        frame = KittiDataset(root, "train", crop_to_image=False)[0]
    assert frame.points.tolist() == POINTS[[1, 3]].tolist()
    with pytest.raises(DataError, match="2 points are not finite"):
        KittiDataset(root, "train", nonfinite="raise")[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        KittiDataset(root, "train")[1]


def test_empty_sweep(root: Path) -> None:
    (root / "training" / "velodyne" / "000000.bin").write_bytes(b"")
    assert KittiDataset(root, "train")[0].points.shape == (0, 4)


def objects_of(rows: list[tuple[str, float, int, float]]) -> KittiObjects:
    """From (type, height, occluded, truncated)."""
    n = len(rows)
    return KittiObjects(
        [row[0] for row in rows],
        [row[3] for row in rows],
        [row[2] for row in rows],
        np.zeros(n),
        [[0, 10, 5, 10 + row[1]] for row in rows],
        np.ones((n, 3)),
        np.ones((n, 3)),
        np.zeros(n),
    )  # type: ignore[arg-type]


def test_difficulty_table() -> None:
    cases = [
        (("Car", 41, 0, 0.15), 0),
        (("Car", 40, 0, 0.0), 1),  # the height has to exceed the minimum
        (("Car", 41, 1, 0.0), 1),
        (("Car", 41, 0, 0.16), 1),
        (("Car", 26, 1, 0.30), 1),
        (("Car", 26, 2, 0.50), 2),
        (("Car", 26, 0, 0.31), 2),
        (("Car", 25, 0, 0.0), 3),
        (("Car", 90, 3, 0.0), 3),
        (("Car", 90, 0, 0.51), 3),
        (("DontCare", 90, -1, -1), 3),
    ]
    found = difficulty(objects_of([case[0] for case in cases]))
    assert found.tolist() == [case[1] for case in cases] and found.dtype == np.int64
    assert difficulty(KittiObjects.empty()).shape == (0,)


def test_results_from_boxes_by_hand(tmp_path: Path) -> None:
    boxes = [
        [20, 5, -1, 3.9, 1.6, 1.5, 0.3],
        [-20, 5, -1, 3.9, 1.6, 1.5, 0.3],  # behind
        [20, 200, -1, 3.9, 1.6, 1.5, 0.3],  # beside
    ]
    results = results_from_boxes(
        boxes, [0.9, 0.8, 0.7], ["Car", "Car", "Van"], CALIBRATION, (1242, 375)
    )
    assert results.type == ["Car"] and results.score is not None
    assert results.score.tolist() == [0.9]
    np.testing.assert_allclose(results.location, [[-5, 1.75, 20]])
    np.testing.assert_allclose(results.dimensions, [[1.5, 1.6, 3.9]])
    np.testing.assert_allclose(results.rotation_y, [-0.3 - np.pi / 2], atol=1e-4)
    np.testing.assert_allclose(results.alpha, results.rotation_y - np.arctan2(-5, 20), atol=1e-4)
    left, top, right, bottom = results.bbox[0]
    assert left < 600 - 700 * 5 / 20 < right and top < 180 + 35 < bottom
    write_result(tmp_path / "a.txt", results)
    again = read_result(tmp_path / "a.txt")
    assert np.array_equal(again.bbox, results.bbox) and again.occluded.tolist() == [-1]


def test_results_from_real_labels_are_the_labels(kitti_sample: Path) -> None:
    for frame in KittiDataset(kitti_sample, "sample"):
        found = results_from_boxes(
            frame.boxes, np.ones(len(frame.boxes)), frame.names, frame.calibration, frame.image_size
        )
        label = read_label(kitti_sample / "training" / "label_2" / f"{frame.frame_id}.txt")
        label = label[[row for row, name in enumerate(label.type) if name != "DontCare"]]
        assert found.type == label.type
        np.testing.assert_allclose(found.location, label.location, atol=2e-4)
        np.testing.assert_allclose(found.dimensions, label.dimensions, atol=1e-4)
        np.testing.assert_allclose(
            np.exp(1j * found.rotation_y), np.exp(1j * label.rotation_y), atol=1e-4
        )


def test_results_of_nothing_and_of_bad_input() -> None:
    results = results_from_boxes(np.zeros((0, 7)), [], [], CALIBRATION, (10, 10))
    assert len(results) == 0 and results.score is not None
    with pytest.raises(DataError, match="1 boxes, 2 scores, 1 names"):
        results_from_boxes(np.ones((1, 7)), [1, 2], ["Car"], CALIBRATION, (10, 10))
    with pytest.raises(DataError, match="NaN or infinite"):
        results_from_boxes(np.full((1, 7), np.nan), [1], ["Car"], CALIBRATION, (10, 10))


def test_lone_sweeps(root: Path, tmp_path: Path) -> None:
    path = root / "training" / "velodyne" / "000000.bin"
    points = POINTS.copy()
    points[0, 2] = np.nan
    write_sweep(path, points)
    sweep = read_lone_sweep(path)
    assert sweep.rows.tolist() == [2] and sweep.points.tolist() == POINTS[[2]].tolist()
    assert (sweep.num_read, sweep.num_nonfinite, sweep.num_outside_image) == (4, 1, 2)
    assert sweep.image_size == DEFAULT_IMAGE_SIZE and sweep.calibration is not None
    assert read_lone_sweep(path, crop=False).rows.tolist() == [1, 2, 3]
    other = tmp_path / "other.bin"
    write_sweep(other, POINTS[:, [0, 1, 2, 3, 3]])
    sweep = read_lone_sweep(other, dims=5)
    assert sweep.calibration is None and sweep.points.shape == (4, 5)
    given = read_lone_sweep(other, dims=5, calibration=root / "training" / "calib" / "000000.txt")
    assert given.rows.tolist() == [0, 2]
    assert find_beside(other) is None


def test_a_lone_sweep_is_cropped_as_in_the_data_set(kitti_sample: Path) -> None:
    dataset = KittiDataset(kitti_sample, "sample")
    sweep = read_lone_sweep(dataset.paths(0).sweep)
    assert np.array_equal(sweep.points, dataset[0].points)
    assert np.array_equal(read_sweep(dataset.paths(0).sweep)[sweep.rows], sweep.points)
