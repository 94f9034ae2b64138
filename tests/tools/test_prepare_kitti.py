from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from voxelpool.datasets.object_database import ObjectDatabase

Tool = Callable[..., tuple[int, str, str]]


@pytest.fixture
def prepare(run_tool: Tool) -> Tool:
    """Runs tools/prepare_kitti.py."""
    return partial(run_tool, "prepare_kitti")


def copy_frames(source: Path, target: Path, ids: tuple[str, ...] = ("000000", "000003")) -> Path:
    for name, suffix in (("velodyne", "bin"), ("calib", "txt"), ("label_2", "txt")):
        (target / "training" / name).mkdir(parents=True)
        for frame in ids:
            path = f"training/{name}/{frame}.{suffix}"
            shutil.copyfile(source / path, target / path)
    (target / "ImageSets").mkdir()
    (target / "ImageSets" / "train.txt").write_text("\n".join(ids))
    return target


def test_the_sample_is_usable_without_all_images(
    prepare: Tool, kitti_sample: Path, tmp_path: Path, terminal: None
) -> None:
    code, out, err = prepare(kitti_sample, "--split", "sample", "--cache-dir", tmp_path)
    lines = out.splitlines()
    assert code == 0 and "34/34" in err
    assert sum(line.startswith("warning: ") and "image_2" in line for line in lines) == 5
    assert "training cropped sweeps: 34 written, 0 were up to date" in lines
    assert lines[-1].endswith("usable: 34 frames, complete splits: sample; 5 warnings")
    cached = tmp_path / "training" / "velodyne_cropped"
    assert len(list(cached.glob("*.bin"))) == 34
    assert (cached / "000000.bin").stat().st_size == 16 * 20_285
    assert (
        "0 written, 34 were up to date"
        in prepare(kitti_sample, "--split", "sample", "--cache-dir", tmp_path)[1]
    )


def test_the_cache_goes_beside_the_sweeps(
    prepare: Tool, kitti_sample: Path, tmp_path: Path
) -> None:
    root = copy_frames(kitti_sample, tmp_path / "kitti")
    assert prepare(root, "--cache")[0] == 0
    assert (root / "training" / "velodyne_cropped" / "000003.bin").is_file()


def test_an_unusable_download_is_said_to_be_one(
    prepare: Tool, kitti_sample: Path, tmp_path: Path
) -> None:
    root = copy_frames(kitti_sample, tmp_path / "kitti")
    sweep = root / "training" / "velodyne" / "000003.bin"
    sweep.write_bytes(sweep.read_bytes()[:-5])
    (root / "training" / "calib" / "000000.txt").unlink()
    code, out, _ = prepare(root)
    assert code == 1
    assert f"error: {root}/training/calib/000000.txt: missing" in out
    assert f"error: {sweep}: " in out and "is not a multiple of 16" in out
    assert out.splitlines()[-1].startswith(f"{root}: NOT usable: 2 errors")


def test_a_missing_folder_and_a_missing_list_are_one_line(prepare: Tool, tmp_path: Path) -> None:
    code, out, err = prepare(tmp_path / "none")
    assert (code, out) == (1, "")
    assert err.startswith("error: ") and "none: no such folder" in err and err.count("\n") == 1
    code, _, err = prepare(tmp_path, "--split", "mine")
    assert code == 1 and "mine.txt: no such split list" in err


def test_nowhere_to_write_the_cache(prepare: Tool, kitti_sample: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, _, err = prepare(kitti_sample, "--split", "sample", "--cache-dir", tmp_path / "file")
    assert code == 1 and "error: " in err and "file" in err


def test_objects_are_cut_out_and_never_overwritten_unasked(
    prepare: Tool, kitti_sample: Path, tmp_path: Path, terminal: None
) -> None:
    root = copy_frames(kitti_sample, tmp_path / "kitti")
    code, out, err = prepare(root, "--split", "train", "--gt-database")
    path = root / "gt_database_train.npz"
    assert code == 0 and "cutting out objects" in err
    database = ObjectDatabase.load(path)
    assert out.splitlines()[-1] == f"{path}: {len(database)} objects of 2 frames"
    assert set(database.frame_ids) == {"000000", "000003"}
    assert sorted(database.names) == ["Car", "Pedestrian"]
    before = path.read_bytes()
    code, _, err = prepare(root, "--split", "train", "--gt-database")
    assert code == 1 and "gt_database_train.npz: is there already; --overwrite" in err
    assert prepare(root, "--split", "train", "--gt-database", "--overwrite")[0] == 0
    assert path.read_bytes() == before


def test_help_shows_an_example(prepare: Tool) -> None:
    code, out, _ = prepare("--help")
    assert code == 0 and "python tools/prepare_kitti.py data/kitti --cache" in " ".join(out.split())
