"""Scenes made from what lies on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from voxelpool import scenes
from voxelpool.config import ConfigError
from voxelpool.datasets.calibration import Calibration
from voxelpool.datasets.kitti import FramePaths
from voxelpool.errors import DataError


def test_the_image_and_its_projection(tiny_kitti: Path) -> None:
    """The matrix projects as the calibration does."""
    paths = FramePaths.of(tiny_kitti / "training", "000003")
    paths.image.parent.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(pixels).save(paths.image)
    camera = scenes.sweep_scene(paths.sweep, crop=False).camera
    assert camera is not None
    np.testing.assert_array_equal(camera.pixels, pixels)
    xyz = np.random.default_rng(1).uniform([2, -5, -2], [40, 5, 2], (50, 3))
    uv, depth = Calibration.load(paths.calibration).project(xyz)
    seen = camera.view(xyz)
    np.testing.assert_allclose(seen[:, 2], depth, atol=1e-9)
    np.testing.assert_allclose(seen[:, :2] / seen[:, 2:], uv, atol=1e-6)
    paths.image.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"000003\.png"):
        scenes.sweep_scene(paths.sweep, crop=False)


def test_labelled_boxes_have_classes_and_difficulties(tiny_kitti: Path) -> None:
    scene = scenes.sweep_scene(scenes.frame_path(tiny_kitti, "000003"))
    (group,) = scene.boxes
    assert group.label == "labelled" and len(group) == 2
    assert group.names is not None and group.difficulty is not None
    assert scene.title == "000003" and scene.camera is None


def test_frames_are_a_slice_of_the_sorted_list(tiny_kitti: Path, tmp_path: Path) -> None:
    ids = scenes.frame_ids(tiny_kitti)
    assert ids == [f"{row:06d}" for row in range(6)]
    assert scenes.frames_between(ids, "2:4") == ids[2:4]
    assert scenes.frames_between(ids, "-2:") == ids[-2:]
    with pytest.raises(DataError, match="none of the 6"):
        scenes.frames_between(ids, "6:9")
    results = tmp_path / "results"
    results.mkdir()
    for name in ("000001", "000004"):
        (results / f"{name}.txt").write_text("")
    found = scenes.wanted_scenes(root=tiny_kitti, frames="0:6", results=results)
    assert [scene.title for scene in found] == ["000001", "000004"]
    with pytest.raises(DataError, match="no sweeps in"):
        scenes.frame_ids(tmp_path)


def test_frames_of_the_simulator(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(
        scenes, "simulated_scene", lambda seed, row, color: asked.append((seed, row))
    )
    scenes.wanted_scenes(simulate=3)
    scenes.wanted_scenes(simulate=3, frames="2:4")
    assert asked == [(3, 0), (3, 2), (3, 3)]
    for bad in ("2", "4:2", ":", "a:b"):
        with pytest.raises(ConfigError, match="two whole numbers"):
            scenes.wanted_scenes(simulate=3, frames=bad)


def test_real_frames_have_boxes_full_of_points(kitti_sample: Path) -> None:
    """Boxes are on cars: most labelled ones hold points of the sweep."""
    scene = scenes.sweep_scene(scenes.frame_path(kitti_sample, "000008"), color="class")
    assert scene.camera is not None and scene.camera.pixels.shape[2] == 3
    held = np.unique(scene.values())
    assert "Car" in scene.classes() and scene.classes().index("Car") in held
