"""Objects cut out of sweeps or read of ModelNet, and their cache."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from voxelpool.config import UNLABELLED_CLASSES, ObjectsConfig
from voxelpool.datasets import objects as module
from voxelpool.datasets.kitti import KittiDataset, read_sweep
from voxelpool.datasets.objects import cut_crops, load_objects, sample_rows, window
from voxelpool.datasets.simulate import (
    THINGS,
    Settings,
    prepare,
    read_scene,
    simulate_frame,
    write_frames,
)
from voxelpool.errors import DataError


def inside(points: np.ndarray, box: np.ndarray, margin: float) -> np.ndarray:
    """By the planes of the box's faces."""
    cos, sin = np.cos(box[6]), np.sin(box[6])
    axes = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
    local = (points[:, :3].astype(np.float64) - box[:3]) @ axes.T
    return (np.abs(local) <= box[3:6] / 2 + margin).all(axis=1)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two simulated frames, the second for validation."""
    root = tmp_path_factory.mktemp("objects") / "simulated"
    settings = Settings(2, 1, seed=3)
    assert len(list(write_frames(root, settings, prepare(root, settings)))) == 2
    return root


def crops(root: Path, **changes: object) -> ObjectsConfig:
    settings = {"source": "crops", "root": str(root), "num_workers": 0} | changes
    return ObjectsConfig.model_validate(settings)


def test_crops_hold_what_lies_in_the_boxes(tiny_kitti: Path) -> None:
    found = load_objects(crops(tiny_kitti, classes=("Car",), margin=0.2), "val")
    frames = KittiDataset(tiny_kitti, "val", crop_to_image=False)
    assert found.ids == ["000004/0", "000004/1", "000005/0", "000005/1"]
    for row, object_id in enumerate(found.ids):
        frame = frames[int(object_id[5]) - 4]
        box = frame.boxes[int(object_id[-1])].astype(np.float64)
        own = frame.points[inside(frame.points, box, 0.2)]
        sample = found[row]
        assert sample.name == "Car" and sample.label == 0 and sample.grid is None
        assert len(own) >= 150
        np.testing.assert_allclose(sample.points + box[:3], own[:, :3], atol=1e-5)
        np.testing.assert_allclose(sample.origin, -box[:3], atol=1e-6)


def test_few_points_and_other_classes_are_left_out(tiny_kitti: Path) -> None:
    assert len(load_objects(crops(tiny_kitti, min_points=150), "train")) == 8
    for changes in ({"min_points": 2000}, {"classes": ("Van",)}):
        with pytest.raises(DataError, match="split 'train' holds no object of the classes"):
            load_objects(crops(tiny_kitti, **changes), "train")


def test_cutting_leaves_no_box_out_and_no_point_in() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(-5, 5, (3000, 4)).astype(np.float32)
    boxes = np.column_stack(
        [rng.uniform(-4, 4, (20, 3)), rng.uniform(0.2, 5, (20, 3)), rng.uniform(-4, 4, 20)]
    )
    for box, crop in zip(boxes, cut_crops(points, boxes, 0.3), strict=True):
        own = points[inside(points, box, 0.3), :3]
        np.testing.assert_allclose(crop + box[:3], own, atol=1e-5)
    assert cut_crops(points, boxes[:0], 0.1) == []
    assert [len(crop) for crop in cut_crops(points[:0], boxes, 0.1)] == [0] * 20


def test_window_is_the_nearest_part() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        box = np.array(
            [*rng.uniform(-30, 30, 2), 1.0, *rng.uniform(0.2, 30, 2), rng.uniform(1, 9), 0]
        )
        box[6] = rng.uniform(-3, 3)
        part = window(box)
        assert (part[3:5] == np.minimum(box[3:5], 6.0)).all() and part[6] == box[6]
        assert part[5] == min(box[5], 4.0)
        assert part[2] - part[5] / 2 == pytest.approx(box[2] - box[5] / 2), "on the same foot"
        cos, sin = np.cos(box[6]), np.sin(box[6])
        along = np.linspace(-0.5, 0.5, 41)
        spots = np.array(
            [
                (box[0] + cos * a * box[3] - sin * b * box[4],
                 box[1] + sin * a * box[3] + cos * b * box[4])
                for a in along for b in along
            ]
        )  # fmt: skip
        nearest = np.array([*spots[np.linalg.norm(spots, axis=1).argmin()], part[2]])
        assert inside(nearest[None], part, 1e-6)[0]


def test_scenes_are_laid_out_anew(simulated: Path) -> None:
    scene = read_scene(simulated, "000001")
    frame = simulate_frame(3, 1)
    assert np.array_equal(scene.statics.vertices, frame.scene.statics.vertices)
    assert np.array_equal(scene.boxes, frame.scene.boxes)
    assert {thing.name for thing in scene.things} <= set(THINGS)
    assert set(THINGS) == set(UNLABELLED_CLASSES)
    points = read_sweep(simulated / "training" / "velodyne" / "000001.bin")
    hit = [thing for thing in scene.things if inside(points, thing.box, 0.05).sum() > 20]
    assert len(hit) > 10
    for thing in scene.things:
        x, y = thing.box[:2]
        foot = thing.box[2] - thing.box[5] / 2
        assert -6 < foot < 3 and np.hypot(x, y) < 130 and (thing.box[3:6] > 0).all()


def test_scene_of_another_data_set(tiny_kitti: Path, simulated: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"simulate\.json: .*only simulated scenes"):
        read_scene(tiny_kitti, "000001")
    other = tmp_path / "other"
    (other / "training" / "calib").mkdir(parents=True)
    calib = (simulated / "training" / "calib" / "000000.txt").read_text()
    (other / "training" / "calib" / "000001.txt").write_text(calib)
    settings = (simulated / "simulate.json").read_text()
    for text, message in (
        (settings.replace('"version": 4', '"version": 3'), "version 3, this is 4"),
        ("{", r"simulate\.json: "),
        ('{"a": 1}', r"simulate\.json: "),
    ):
        (other / "simulate.json").write_text(text)
        with pytest.raises(DataError, match=message):
            read_scene(other, "000001")


def test_simulated_sweeps_give_unlabelled_things(simulated: Path) -> None:
    found = load_objects(crops(simulated, things=2), "val")
    counts = found.counts()
    assert set(counts) == set(found.classes)
    for name in UNLABELLED_CLASSES:
        assert counts.get(name, 0) <= 2
    assert counts["wall"] + counts["bush"] + counts["tree"] + counts["pole"] >= 4
    assert np.diff(found.offsets).min() >= 10 and found.offsets[-1] == len(found.points)
    points = read_sweep(simulated / "training" / "velodyne" / "000001.bin")[:, :3]
    known = {tuple(row) for row in np.round(points, 2).tolist()}
    for row in range(len(found)):
        moved = np.round(found[row].points - found[row].origin, 2)
        assert np.mean([tuple(p) in known for p in moved.tolist()]) > 0.7, "points of the sweep"
    alone = load_objects(crops(simulated, things=0), "val")
    assert not set(UNLABELLED_CLASSES) & {found.classes[k] for k in np.unique(alone.labels)}
    assert len(alone) == sum(n for name, n in counts.items() if name not in UNLABELLED_CLASSES)


def test_real_frames(kitti_sample: Path) -> None:
    found = load_objects(crops(kitti_sample), "sample")
    counts = found.counts()
    assert len(found) > 100 and counts["Car"] > 80 and counts["Pedestrian"] > 10
    assert not any(counts[name] for name in ("pole", "wall", "bush", "tree"))
    half = np.array([12.0, 12.0, 3.0])
    assert (np.abs(found.points) < half).all()


def test_bad_data_sets(tiny_kitti: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="velodyne: no such folder"):
        load_objects(crops(tmp_path / "none"), "train")
    with pytest.raises(DataError, match=r"nowhere\.txt: no such split list"):
        load_objects(crops(tiny_kitti), "nowhere")
    sweep = tiny_kitti / "training" / "velodyne" / "000004.bin"
    sweep.write_bytes(sweep.read_bytes()[:-3])
    with pytest.raises(DataError, match=r"000004\.bin"):
        load_objects(crops(tiny_kitti), "val")
    (tiny_kitti / "training" / "label_2" / "000000.txt").write_text("Car 0 0\n")
    with pytest.raises(DataError, match=r"000000\.txt"):
        load_objects(crops(tiny_kitti), "train")


def same(a: module.ObjectSet, b: module.ObjectSet) -> bool:
    arrays = ("labels", "grids", "points", "offsets", "origins")
    return a.ids == b.ids and all(
        np.array_equal(getattr(a, name), getattr(b, name))
        if getattr(a, name) is not None
        else getattr(b, name) is None
        for name in arrays
    )


@pytest.mark.parametrize("source", ["crops", "archive"])
def test_cache(
    source: str, tiny_kitti: Path, tiny_archive: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    cache = tmp_path / "cache"
    if source == "crops":
        config, split = crops(tiny_kitti, cache=str(cache)), "val"
        changed = tiny_kitti / "training" / "label_2" / "000004.txt"
    else:
        config, split = (
            ObjectsConfig(source="modelnet_archive", root=str(tiny_archive), cache=str(cache)),
            "test",
        )
        changed = tiny_archive / "modelnet10.npz"
    plain = load_objects(config.model_copy(update={"cache": None}), split)
    first = load_objects(config, split)
    (stored,) = cache.iterdir()
    assert same(plain, first)

    def never(*_: object) -> None:
        raise AssertionError("the cache was not used")

    reader = "_read_crops" if source == "crops" else "_read_archive"
    with monkeypatch.context() as patch:
        patch.setattr(module, reader, never)
        assert same(load_objects(config, split), plain)

    whole = stored.read_bytes()
    stored.write_bytes(whole[: len(whole) // 2])
    with pytest.warns(UserWarning, match="is damaged"):
        assert same(load_objects(config, split), plain)
    assert stored.stat().st_size == len(whole)

    changed.write_bytes(changed.read_bytes())
    os.utime(changed, ns=(1, 1))
    with monkeypatch.context() as patch:
        patch.setattr(module, reader, never)
        with pytest.raises(AssertionError, match="not used"):
            load_objects(config, split)


def test_reading_with_processes_gives_the_same(tiny_kitti: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    one = load_objects(crops(tiny_kitti), "train", progress=lambda *call: calls.append(call))
    assert calls == [("reading train", done, 4) for done in range(5)]
    assert same(one, load_objects(crops(tiny_kitti, num_workers=2), "train"))


class Arrays:
    """Two items of arrays."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, row: int) -> list[np.ndarray]:
        return [np.full(3, row)] * 2


def test_processes_send_arrays_not_tensors() -> None:
    """Each tensor would hold a file descriptor open, and a process has a thousand or so."""
    items = list(module._read_all(Arrays(), 2, "train", lambda *_: None))
    assert all(isinstance(array, np.ndarray) for item in items for array in item)
    assert [[array.tolist() for array in item] for item in items] == [[[0] * 3] * 2, [[1] * 3] * 2]


def test_grids_are_padded_in_the_middle(tiny_archive: Path) -> None:
    config = ObjectsConfig(source="modelnet_archive", root=str(tiny_archive))
    small = load_objects(config, "test", grid_size=8)
    large = load_objects(config, "test", grid_size=12)
    assert large.grids.shape == (20, 12, 12, 12)
    assert np.array_equal(large.grids[:, 2:10, 2:10, 2:10], small.grids)
    assert large.grids.sum() == small.grids.sum()
    with pytest.raises(DataError, match=r"8 cells along an edge, classifier\.grid_size has 7"):
        load_objects(config, "test", grid_size=7)


def test_grids_as_points(tiny_archive: Path) -> None:
    config = ObjectsConfig(source="modelnet_archive", root=str(tiny_archive))
    grids = load_objects(config, "test", grid_size=8).grids
    points = load_objects(config, "test", grid_size=None)
    for row in range(20):
        wanted = (np.argwhere(grids[row])[:, ::-1] + 0.5) / 4 - 1
        np.testing.assert_allclose(points[row].points, wanted, atol=1e-6)


def test_meshes(tmp_path: Path) -> None:
    """Upright and lying boxes: the grids stand and lie."""
    for name, size in (("post", (1, 1, 4)), ("beam", (4, 1, 1))):
        for split in ("train", "test"):
            folder = tmp_path / name / split
            folder.mkdir(parents=True)
            corners = [(x * size[0], y * size[1], z * size[2])
                       for z in (0, 1) for y in (0, 1) for x in (0, 1)]  # fmt: skip
            faces = ["4 0 1 3 2", "4 4 5 7 6", "4 0 1 5 4", "4 2 3 7 6", "4 0 2 6 4", "4 1 3 7 5"]
            lines = ["OFF8 6 0", *(" ".join(map(str, c)) for c in corners), *faces]
            (folder / f"{name}_0001.off").write_text("\n".join(lines) + "\n")
    config = ObjectsConfig(
        source="modelnet_off", root=str(tmp_path), classes=("beam", "post"), num_workers=0,
        cache=str(tmp_path / "cache"),
    )  # fmt: skip
    found = load_objects(config, "test", grid_size=16)
    assert found.ids == ["beam/test/beam_0001", "post/test/post_0001"]
    for grid, longest in zip(found.grids, (2, 0), strict=True):
        extents = [np.flatnonzero(grid.any(axis=axes)).size for axes in ((1, 2), (0, 2), (0, 1))]
        assert int(np.argmax(extents)) == longest and 12 <= max(extents) <= 14
    points = load_objects(config, "test", grid_size=None)
    assert np.abs(points[1].points).max(axis=0).argmax() == 2
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert same(load_objects(config, "test", grid_size=16), found)
    (tmp_path / "post" / "train" / "post_0001.off").write_text("OFF\n8 6 0\n")
    with pytest.raises(DataError, match=r"post_0001\.off: is cut short"):
        load_objects(config, "train", grid_size=16)


def test_rows_of_a_sample() -> None:
    rng = np.random.default_rng(0)
    assert sorted(sample_rows(5, 5, rng).tolist()) == [0, 1, 2, 3, 4]
    assert len(set(sample_rows(50, 20, rng).tolist())) == 20
    few = sample_rows(3, 10, rng)
    assert set(few.tolist()) == {0, 1, 2} and len(few) == 10
    assert sample_rows(0, 4, rng).tolist() == [0] * 4
