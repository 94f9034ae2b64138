from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from voxelpool.datasets.calibration import Calibration
from voxelpool.datasets.kitti import KittiDataset, read_sweep, write_sweep

CONFIGS = Path(__file__).parents[2] / "configs"
Tool = Callable[..., tuple[int, str, str]]
CONFIG = """\
name: small
seed: 3
grid: {range: [0, -8, -2, 16, 8, 3], voxel_size: [1, 1, 1]}
rpn: {strides: [2, 2, 2]}
vfe: {max_points: 4}
anchors:
  - {class_name: Car, size: [3.9, 1.6, 1.5], z_center: -1, matched_threshold: 0.6, unmatched_threshold: 0.45}
"""  # noqa: E501


@pytest.fixture
def tool(run_tool: Tool) -> Tool:
    """Runs tools/voxelize.py."""
    return partial(run_tool, "voxelize")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(CONFIG)
    return path


def make_sweep(path: Path, dims: int = 4, count: int = 4000) -> np.ndarray:
    rng = np.random.default_rng(0)
    points = np.column_stack(
        [
            *(rng.uniform(-2, 18, count), rng.uniform(-9, 9, count), rng.uniform(-3, 4, count)),
            *rng.random((dims - 3, count)),
        ]
    ).astype(np.float32)
    points[::50, 1] = np.nan
    write_sweep(path, points)
    return points


def rows_by_cell(points: np.ndarray) -> dict[tuple[int, ...], list[int]]:
    """(z, y, x) to file rows, one by one: the oracle (cells of 1 m divide exactly)."""
    cells: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for row, (x, y, z) in enumerate(points[:, :3]):
        if 0 <= x < 16 and -8 <= y < 8 and -2 <= z < 3:
            cells[int(np.floor(z + 2)), int(np.floor(y + 8)), int(np.floor(x))].append(row)
    return cells


@pytest.mark.parametrize("dims", [3, 4, 5])
def test_voxels_are_the_points_by_cell(tool: Tool, config: Path, tmp_path: Path, dims: int) -> None:
    sweep, out = tmp_path / "a.bin", tmp_path / "a.npz"
    points = make_sweep(sweep, dims)
    code, text, _ = tool(sweep, "--config", config, "-o", out, "--dims", dims, "--padded")
    assert code == 0 and str(out) in text
    stored = np.load(out)
    cells = rows_by_cell(points)
    assert [tuple(row) for row in stored["coords"]] == [(0, *cell) for cell in sorted(cells)]
    assert stored["coords"].dtype == np.int32 and stored["offsets"].dtype == np.int64
    for index, cell in enumerate(sorted(cells)):
        rows = stored["point_index"][stored["offsets"][index] : stored["offsets"][index + 1]]
        assert len(rows) == min(len(cells[cell]), 4) == stored["num_points"][index]
        assert set(rows) <= set(cells[cell])
        assert np.array_equal(stored["voxels"][index, : len(rows)], points[rows])
        assert not stored["voxels"][index, len(rows) :].any()
    assert stored["voxels"].shape == (len(cells), 4, dims)
    assert stored["range"].tolist() == [0, -8, -2, 16, 8, 3]
    assert stored["voxel_size"].tolist() == [1, 1, 1]


def summary(text: str) -> dict[str, str]:
    rows = [line.split("│") for line in text.splitlines() if line.count("│") == 3]
    return {row[1].strip(): row[2].strip() for row in rows}


def test_it_says_what_became_of_the_points(tool: Tool, config: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "a.bin"
    points = make_sweep(sweep)
    code, text, _ = tool(sweep, "--config", config)
    said, cells = summary(text), rows_by_cell(points)
    sizes = [len(rows) for rows in cells.values()]
    kept = sum(min(size, 4) for size in sizes)
    expected = {
        "points read": 4000,
        "dropped, not finite": 80,
        "dropped, outside the image (no calibration)": 0,
        "dropped, outside the range": 4000 - 80 - sum(sizes),
        "dropped, sampled away": sum(sizes) - kept,
        "points kept": kept,
        "voxels, of 1,280 cells": len(cells),
        "points in the fullest voxel": max(sizes),
        "voxels over 4 points": sum(size > 4 for size in sizes),
    }
    assert code == 0
    assert {name: said.get(name) for name in expected} == {
        name: f"{value:,}" for name, value in expected.items()
    }
    assert "nothing is written without -o OUT.npz" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "small.yaml"]


def test_the_seed_decides_the_sample(tool: Tool, config: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "a.bin"
    make_sweep(sweep)
    kept = {}
    for name, options in {
        "default": [],
        "three": ["--seed", 3],
        "four": ["--seed", 4],
        "override": ["seed=4"],
    }.items():
        out = tmp_path / f"{name}.npz"
        assert tool(sweep, "--config", config, "-o", out, *options)[0] == 0
        kept[name] = np.load(out)["point_index"].tolist()
    assert kept["default"] == kept["three"] != kept["four"] == kept["override"]


def test_cropping_to_the_image(tool: Tool, config: Path, tmp_path: Path) -> None:
    for name in ("velodyne", "calib"):
        (tmp_path / "training" / name).mkdir(parents=True)
    sweep = tmp_path / "training" / "velodyne" / "000007.bin"
    Calibration(
        np.array([[700.0, 0, 600, 0], [0, 700, 180, 0], [0, 0, 1, 0]]),
        np.eye(3),
        np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0]]),
    ).save(tmp_path / "training" / "calib" / "000007.txt")
    # u = 600 - 700 y / x: the second lies far to the left of the image.
    write_sweep(sweep, [[10.5, 0.5, 0.5, 0], [8.5, 7.9, 0.5, 0], [10.5, -1.5, 0.5, 0]])
    for options, rows in (([], [2, 0]), (["--no-crop"], [2, 0, 1])):
        out = tmp_path / "a.npz"
        code, *_ = tool(sweep, "--config", config, "-o", out, "--overwrite", *options)
        assert code == 0 and np.load(out)["point_index"].tolist() == rows
    assert (
        tool(sweep, "--config", config, "data.crop_to_image=false", "-o", out, "--overwrite")[0]
        == 0
    )
    assert len(np.load(out)["point_index"]) == 3


@pytest.mark.parametrize(
    "points", [np.zeros((0, 4)), np.full((5, 4), 500.0), np.full((5, 4), np.nan)]
)
def test_sweeps_that_fill_no_voxel(
    tool: Tool, config: Path, tmp_path: Path, points: np.ndarray
) -> None:
    sweep, out = tmp_path / "a.bin", tmp_path / "a.npz"
    write_sweep(sweep, points)
    assert tool(sweep, "--config", config, "-o", out, "--padded")[0] == 0
    stored = np.load(out)
    assert stored["coords"].shape == (0, 4) and stored["offsets"].tolist() == [0]
    assert stored["point_index"].shape == (0,) and stored["voxels"].shape == (0, 4, 4)


def test_nothing_is_overwritten_unasked(tool: Tool, config: Path, tmp_path: Path) -> None:
    sweep, out = tmp_path / "a.bin", tmp_path / "a.npz"
    make_sweep(sweep)
    out.write_text("precious")
    code, _, err = tool(sweep, "--config", config, "-o", out)
    assert code == 1 and err.startswith("error: ") and str(out) in err
    assert out.read_text() == "precious"
    assert tool(sweep, "--config", config, "-o", out, "--overwrite")[0] == 0


def test_bad_input_is_one_line(tool: Tool, config: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "a.bin"
    sweep.write_bytes(bytes(33))
    typo = tmp_path / "typo.yaml"
    typo.write_text(CONFIG.replace("max_points", "max_point"))
    cases = [
        ([sweep, "--config", config], "a.bin: 33 bytes is not a multiple of 16"),
        ([tmp_path / "none.bin", "--config", config], "none.bin: No such file"),
        ([sweep, "--config", typo], "typo.yaml: vfe.max_point: unknown key"),
    ]
    for arguments, message in cases:
        code, _, err = tool(*arguments)
        assert code == 1 and message in err and err.count("\n") == 1
    make_sweep(sweep)
    code, _, err = tool(sweep, "--config", config, "-o", tmp_path / "nowhere" / "a.npz")
    assert code == 1 and "nowhere" in err


def test_a_real_sweep_on_the_papers_grid(tool: Tool, kitti_sample: Path, tmp_path: Path) -> None:
    dataset, out = KittiDataset(kitti_sample, "sample"), tmp_path / "a.npz"
    path = dataset.paths(0).sweep
    assert tool(path, "--config", CONFIGS / "voxelnet_car.yaml", "-o", out)[0] == 0
    stored, points = np.load(out), read_sweep(path)[:, :3]
    cells = np.floor((points - np.float32([0, -40, -3])) / np.float32([0.2, 0.2, 0.4]))
    kept = np.repeat(stored["coords"][:, :0:-1], np.diff(stored["offsets"]), axis=0)
    assert np.abs(cells[stored["point_index"]] - kept).max() <= 1e-3
    assert 3_800 <= len(stored["coords"]) <= 8_400
    assert set(map(tuple, points[stored["point_index"]])) <= set(
        map(tuple, dataset[0].points[:, :3])
    )


def test_help_shows_an_example(tool: Tool) -> None:
    code, out, _ = tool("--help")
    assert code == 0 and "Example: python tools/voxelize.py" in out
