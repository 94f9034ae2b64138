"""Foreign sweeps and boxes in KITTI's layout, against what was put into them."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest

from voxelpool.datasets.import_sweeps import (
    ImportSettings,
    check_frames,
    read_boxes,
    write_frames,
)
from voxelpool.datasets.kitti import KittiDataset
from voxelpool.errors import DataError

ROW = {"frame": "a", "class": "Car", "x": 10, "y": 2, "z": -1, "dx": 4, "dy": 2, "dz": 1.5}
ROW["yaw"] = 0.3


def as_csv(path: Path, rows: list[dict]) -> Path:
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return path


def test_every_form_of_boxes_says_the_same(tmp_path: Path) -> None:
    rows = [ROW, {**ROW, "x": 20, "class": "Van"}, {**ROW, "frame": "b.pcd", "yaw": -0.5}]
    whole_csv = as_csv(tmp_path / "boxes.csv", rows)
    whole_json = tmp_path / "list.json"
    whole_json.write_text(json.dumps(rows))
    named = tmp_path / "named.json"
    bare = [{key: value for key, value in row.items() if key != "frame"} for row in rows]
    named.write_text(json.dumps({"a": bare[:2], "b": bare[2:]}))
    folder = tmp_path / "folder"
    folder.mkdir()
    as_csv(folder / "a.csv", bare[:2])
    other = {"name": "Car", "X": 10, "y": 2, "z": -1, "l": 4, "w": 2, "h": 1.5, "heading": -0.5}
    (folder / "b.json").write_text(json.dumps([other]))
    found = read_boxes(whole_csv)
    assert [(box.name, box.box) for box in found["a"]] == [
        ("Car", (10, 2, -1, 4, 2, 1.5, 0.3)),
        ("Van", (20, 2, -1, 4, 2, 1.5, 0.3)),
    ]
    assert found == read_boxes(whole_json) == read_boxes(named) == read_boxes(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": "ten"}, r"boxes\.csv:2: x is no number: 'ten'"),
        ({"x": ""}, r"boxes\.csv:2: has no x \(there are: frame, class, x"),
        ({"yaw": "nan"}, r"boxes\.csv:2: yaw is nan"),
        ({"dz": 0}, r"boxes\.csv:2: dx, dy and dz must be positive"),
        ({"class": ""}, r"boxes\.csv:2: has no class or name or"),
    ],
)
def test_bad_boxes_are_named(tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_boxes(as_csv(tmp_path / "boxes.csv", [{**ROW, **change}]))


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "boxes.json"
    for text, message in (
        ("{", "is no JSON"),
        ("3", "must be a list of boxes"),
        ('{"a": 1}', "must map each frame"),
        ("[1]", r"\[0\]: must be a mapping"),
        ('{"a": [1]}', r"a\[0\]: must be a mapping"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            read_boxes(path)
    with pytest.raises(DataError, match=r"\.csv or \.json"):
        read_boxes(tmp_path / "boxes.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no"):
        read_boxes(tmp_path / "empty")


def frame_of(
    tmp_path: Path, points: np.ndarray, rows: list[dict], settings: ImportSettings
) -> tuple:
    sweep = tmp_path / "a.npy"
    np.save(sweep, points)
    boxes = read_boxes(as_csv(tmp_path / "boxes.csv", rows))
    check_frames([sweep], boxes, settings)
    root = tmp_path / "out"
    root.mkdir()
    counts = write_frames(root, [sweep], boxes, settings)
    return KittiDataset(root, "train", crop_to_image=False, require_labels=True)[0], counts


def test_a_frame_comes_back_as_it_was(tmp_path: Path) -> None:
    """Behind the camera too."""
    points = np.array([[10, 2, -1, 0.25], [-30, 4, 0.5, 1]], np.float32)
    rows = [ROW, {**ROW, "x": -20, "class": "Cyclist", "yaw": 3}]
    frame, counts = frame_of(tmp_path, points, rows, ImportSettings())
    assert counts == {"Car": 1, "Cyclist": 1} and frame.names == ["Car", "Cyclist"]
    np.testing.assert_array_equal(frame.points, points)
    wanted = [[10, 2, -1, 4, 2, 1.5, 0.3], [-20, 2, -1, 4, 2, 1.5, 3]]
    np.testing.assert_allclose(frame.boxes, wanted, atol=1e-5)
    # What KITTI's evaluation counts is what a camera of 720 px would see: 1.5 m at 10 m ahead.
    assert frame.difficulty.tolist() == [0, 3]
    assert frame.objects.bbox[1].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(("ahead", "turn"), [("x", 0), ("y", -0.5), ("-x", 1), ("-y", 0.5)])
def test_axes_and_height(tmp_path: Path, ahead: str, turn: float) -> None:
    """A point on the sensor's own forward axis comes to lie on x, and boxes turn with it."""
    angle = math.pi * turn
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    forward = rotation.T @ [10.0, 2.0]
    yaw = 0.3 - angle
    row = {**ROW, "x": forward[0], "y": forward[1], "yaw": yaw, "class": "car"}
    settings = ImportSettings(ahead=ahead, sensor_height=2.0, classes={"car": "Car"})
    frame, _ = frame_of(
        tmp_path, np.array([[*forward, -1.0]]), [row, {**row, "class": "dog"}], settings
    )
    np.testing.assert_allclose(frame.points, [[10, 2, -1 + 0.27, 0]], atol=1e-5)
    np.testing.assert_allclose(frame.boxes, [[10, 2, -0.73, 4, 2, 1.5, 0.3]], atol=1e-5)


def test_frames_that_do_not_fit(tmp_path: Path) -> None:
    boxes = {"a": []}
    for paths, settings, message in (
        (["a.bin", "a.pcd"], ImportSettings(), "another sweep is named a too"),
        (["a b.bin"], ImportSettings(), "must have no space"),
        (["b.bin"], ImportSettings(), "1 of 1 frames with boxes have no sweep, the first is a"),
        (["a.bin"], ImportSettings(val_frames=1), "1 frames for validation, of 1 in all"),
    ):
        with pytest.raises(DataError, match=message):
            check_frames([Path(path) for path in paths], boxes, settings)
    with pytest.raises(DataError, match="ahead must be one of"):
        ImportSettings(ahead="up")
    with pytest.raises(DataError, match="'Dog' is no class of KITTI's"):
        ImportSettings(classes={"dog": "Dog"})
    with pytest.raises(DataError, match="class 'dog' is none of KITTI's"):
        frame_of(tmp_path, np.zeros((1, 4)), [{**ROW, "class": "dog"}], ImportSettings())
