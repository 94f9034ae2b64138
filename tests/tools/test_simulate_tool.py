from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from voxelpool.datasets.kitti import KittiDataset
from voxelpool.datasets.kitti_format import DEFAULT_IMAGE_SIZE

pytest.importorskip("open3d")

RunTool = Callable[..., tuple[int, str, str]]


def content(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_the_data_set_is_kittis_and_the_number_of_workers_leaves_no_trace(
    run_tool: RunTool, tmp_path: Path
) -> None:
    options = ("--frames", 3, "--val-frames", 1, "--seed", 5, "--label-scale", 0.96, 1, 1.04)
    code, out, err = run_tool("simulate", tmp_path / "one", *options)
    assert code == 0
    assert "error" not in err
    assert "3 frames, 2 for training, 1 for validation" in out
    train, val = (KittiDataset(tmp_path / "one", split) for split in ("train", "val"))
    assert train.frame_ids == ["000000", "000001"]
    assert val.frame_ids == ["000002"]
    for frame in (train[0], train[1], val[0]):
        assert frame.image_size == DEFAULT_IMAGE_SIZE
        assert len(frame.points) > 10_000
        assert len(frame.boxes)

    code, _, _ = run_tool("simulate", tmp_path / "two", *options, "--workers", 2)
    assert code == 0
    assert content(tmp_path / "one") == content(tmp_path / "two")
    code, _, _ = run_tool("simulate", tmp_path / "other", "--frames", 1, "--seed", 6)
    assert code == 0
    first = Path("training", "velodyne", "000000.bin")
    assert (tmp_path / "one" / first).read_bytes() != (tmp_path / "other" / first).read_bytes()


def test_resume_completes_with_the_same_bytes(run_tool: RunTool, tmp_path: Path) -> None:
    out = tmp_path / "set"
    assert run_tool("simulate", out, "--frames", 3)[0] == 0
    whole = content(out)
    missing = (Path("velodyne", "000001.bin"), Path("label_2", "000002.txt"))
    for name in missing:
        (out / "training" / name).unlink()
    times = {name: (out / name).stat().st_mtime_ns for name in whole if "000000" in name}
    code, told, err = run_tool("simulate", out, "--frames", 3, "--resume", "--json", "-")
    assert code == 0
    told = json.loads(told)
    assert told["written"] == 2 and told["frames"] == 3 and told["root"] == str(out)
    assert "error" not in err
    assert content(out) == whole
    assert {name: (out / name).stat().st_mtime_ns for name in times} == times

    code, text, _ = run_tool("simulate", out, "--frames", 3, "--resume")
    assert code == 0
    assert "all 3 frames are there" in text
    assert content(out) == whole

    code, _, err = run_tool("simulate", out, "--frames", 4, "--resume")
    assert code == 1
    assert err.startswith("error: ")
    assert "simulate.json" in err
    assert "frames=3, not 4" in err
    assert content(out) == whole


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--frames", 0), "frames must be at least 1"),
        (("--frames", 2, "--val-frames", 3), "val_frames must be between 0 and frames=2"),
        (("--frames", 2, "--seed", -1), "seed must not be negative"),
        (("--frames", 2, "--workers", 0), "workers must be at least 1"),
    ],
)
def test_impossible_options_are_one_line(
    run_tool: RunTool, tmp_path: Path, options: tuple[object, ...], message: str
) -> None:
    code, _, err = run_tool("simulate", tmp_path / "set", *options)
    assert code == 1
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "set").exists()


def test_a_folder_in_use_is_left_alone(run_tool: RunTool, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    code, _, err = run_tool("simulate", tmp_path, "--frames", 1)
    assert code == 1
    assert err.startswith("error: ")
    assert str(tmp_path) in err
    assert err.count("\n") == 1
    assert content(tmp_path) == {"notes.txt": b"mine"}


@pytest.mark.parametrize("place", ["/proc/voxelpool", "file/set"])
def test_an_unwritable_folder_is_one_line(run_tool: RunTool, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = run_tool("simulate", tmp_path / place, "--frames", 1)
    assert code == 1
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_help_shows_an_example(run_tool: RunTool) -> None:
    code, out, _ = run_tool("simulate", "--help")
    assert code == 0
    assert "python tools/simulate.py data/simulated" in out
