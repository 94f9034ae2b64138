"""OFF meshes and the archive of grids: what is read, and what is said of bad files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from voxelpool.datasets.modelnet import (
    FILL,
    list_meshes,
    read_archive,
    read_off,
    sample_mesh,
    voxelize_mesh,
)
from voxelpool.errors import DataError

CUBE = """OFF
8 6 0
0 0 0
2 0 0
2 1 0
0 1 0
0 0 4
2 0 4
2 1 4
0 1 4
4 0 1 2 3
4 4 5 6 7
4 0 1 5 4
4 1 2 6 5
4 2 3 7 6
4 3 0 4 7
"""


def off(folder: Path, text: str, name: str = "thing.off") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def area(vertices: np.ndarray, triangles: np.ndarray) -> float:
    a, b, c = (vertices[triangles[:, k]] for k in range(3))
    return float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2)


@pytest.mark.parametrize(
    "text",
    [
        CUBE,
        CUBE.replace("OFF\n8 6 0", "OFF8 6 0"),
        CUBE.replace("OFF\n8 6 0", "OFF 8 6 0"),
        CUBE.replace("OFF\n8 6 0", "OFF\n8 6"),
        CUBE.replace("OFF\n", "OFF\n# a comment\n\n").replace("4 0 1 2 3", "4 0 1 2 3 255 0 0"),
        CUBE.replace("\n", "\r\n"),
        CUBE.replace("2 0 4", "2.0e0 0 4 # corner"),
        CUBE + "left over\n",
    ],
    ids=["plain", "joined", "spaced", "two counts", "comments", "crlf", "exponent", "more lines"],
)
def test_headers_and_lines_that_are_around(text: str, tmp_path: Path) -> None:
    mesh = read_off(off(tmp_path, text))
    assert mesh.vertices.shape == (8, 3) and mesh.triangles.shape == (12, 3)
    assert mesh.vertices.max(axis=0).tolist() == [2, 1, 4]
    assert area(mesh.vertices, mesh.triangles) == pytest.approx(2 * (2 * 1 + 2 * 4 + 1 * 4))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "does not begin with OFF"),
        ("ply\n1 2", "does not begin with OFF"),
        ("OFF\n", "ends after its first line"),
        ("OFF\n8 six 0\n", r"thing\.off:2: expected the numbers .* got '8 six 0'"),
        ("OFF-8 6 0\n", r"thing\.off:1: expected the numbers"),
        ("OFF\n8\n", r"thing\.off:2: expected the numbers"),
        (CUBE[:-20], "cut short: 8 vertices and 6 faces were announced, 12 lines follow"),
        ("OFF\n8 6 0\n0 0 0\n", "cut short: .* 1 lines follow"),
        (CUBE.replace("0 0 4", "0 0"), r"thing\.off:7: expected 3 numbers, got '0 0'"),
        (CUBE.replace("0 0 4", "0 O 4"), r"thing\.off:7: no number in '0 O 4'"),
        (CUBE.replace("0 0 4", "0 nan 4"), r"thing\.off:7: a vertex that is not finite"),
        (CUBE.replace("4 0 1 5 4", "4 0 1 5 8"), r"thing\.off:13: .* from 0 to 7, got '4 0 1 5 8'"),
        (CUBE.replace("4 0 1 5 4", "4 0 1 5 -1"), r"thing\.off:13: .* from 0 to 7"),
        (CUBE.replace("4 0 1 5 4", "4 0 1 5"), r"thing\.off:13: expected a face"),
        (CUBE.replace("4 0 1 5 4", "2 0 1"), r"thing\.off:13: expected a face of three"),
    ],
)
def test_bad_files_name_file_and_line(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_off(off(tmp_path, text))
    assert str(tmp_path / "thing.off") in str(caught.value)


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "thing.off"
    path.write_bytes(bytes(range(256)))
    with pytest.raises(DataError, match="does not begin with OFF"):
        read_off(path)


def test_voxels_of_a_box_are_its_shell(tmp_path: Path) -> None:
    """A box of 2 x 1 x 4 fills 6 x 3 (x, y) of 12 cells (z) of 16: its shell, and that alone."""
    grid = voxelize_mesh(read_off(off(tmp_path, CUBE)), 16)
    assert grid.shape == (16, 16, 16) and grid.dtype == np.uint8
    extent = [np.flatnonzero(grid.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    lengths = [int(rows.max() - rows.min() + 1) for rows in extent]
    for length, wanted in zip(lengths, (4, 1, 2), strict=True):
        assert abs(length - wanted * 16 * FILL / 4) <= 2  # faces lie on the borders of cells
    for rows in extent:
        assert abs(rows.min() + rows.max() - 15) <= 1, "in the middle"
    inner = tuple(slice(rows.min() + 2, rows.max() - 1) for rows in extent)
    assert not grid[inner].any(), "hollow"
    assert grid.sum() > 100


def test_samples_lie_evenly_on_the_surface(tmp_path: Path) -> None:
    path = off(tmp_path, CUBE)
    points = sample_mesh(read_off(path), 5000, path)
    scale = 2 * FILL / 4
    half = np.array([1.0, 0.5, 2.0]) * scale
    gap = np.abs(np.abs(points) - half)
    assert gap.min(axis=1).max() < 1e-5, "each point lies on a face"
    assert (np.abs(points) <= half + 1e-5).all()
    on_z = np.mean(gap.argmin(axis=1) == 2)  # faces of 2 x 1 of a surface of 28
    assert on_z == pytest.approx(4 / 28, abs=0.02)
    assert np.array_equal(points, sample_mesh(read_off(path), 5000, path))


def test_surfaces_that_are_none(tmp_path: Path) -> None:
    bare = read_off(off(tmp_path, "OFF\n3 0 0\n0 0 0\n1 0 0\n0 1 0\n"))
    for make in (lambda: voxelize_mesh(bare, 8, "a.off"), lambda: sample_mesh(bare, 8, "a.off")):
        with pytest.raises(DataError, match=r"a\.off: has no face"):
            make()
    point = read_off(off(tmp_path, "OFF\n3 1 0\n0 0 0\n0 0 0\n0 0 0\n3 0 1 2\n"))
    with pytest.raises(DataError, match=r"a\.off: all its faces are one point"):
        voxelize_mesh(point, 8, "a.off")


def test_folders(tmp_path: Path) -> None:
    for name in ("chair", "table"):
        for number in (2, 10, 1):
            (tmp_path / name / "train").mkdir(parents=True, exist_ok=True)
            off(tmp_path / name / "train", CUBE, f"{name}_{number}.off")
    found = list_meshes(tmp_path, "train", ["table", "chair"])
    assert [path.stem for _, path in found] == [
        *("table_1", "table_2", "table_10"),
        *("chair_1", "chair_2", "chair_10"),
    ]
    with pytest.raises(DataError, match=r"lamp/train: no such folder .*chair, table"):
        list_meshes(tmp_path, "train", ["lamp"])
    with pytest.raises(DataError, match=r"chair/test: no such folder .*none"):
        list_meshes(tmp_path, "test", ["chair"])
    (tmp_path / "bed" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match=r"bed/train: holds no \.off file"):
        list_meshes(tmp_path, "train", ["bed"])
    with pytest.raises(DataError, match="nowhere: no such folder"):
        list_meshes(tmp_path / "nowhere", "train", ["bed"])


def archive(folder: Path, **changes: object) -> Path:
    rng = np.random.default_rng(0)
    arrays = {
        "X_train": rng.integers(0, 2, (5, 6, 6, 6)),
        "y_train": np.arange(5),
        "X_test": rng.integers(0, 2, (3, 6, 6, 6)),
        "y_test": np.arange(3),
    } | changes
    np.savez(folder / "modelnet10.npz", **{k: v for k, v in arrays.items() if v is not None})
    return folder


def test_archive_turns_its_third_axis_up(tmp_path: Path) -> None:
    cells = np.zeros((1, 6, 6, 6), np.int32)
    cells[0, 1, 2, 3] = 1
    root = archive(tmp_path, X_test=cells, y_test=np.array([7]))
    grids, labels = read_archive(root, "test")
    assert np.argwhere(grids).tolist() == [[0, 3, 2, 1]] and labels.tolist() == [7]
    assert grids.dtype == np.uint8
    again, _ = read_archive(root / "modelnet10.npz", "test")
    assert np.array_equal(again, grids)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"X_test": None}, "holds no X_test"),
        ({"X_test": np.zeros((3, 6, 6), int)}, r"\(S, N, N, N\) and \(S,\), got \(3, 6, 6\)"),
        ({"X_test": np.zeros((3, 6, 6, 5), int)}, r"got \(3, 6, 6, 5\)"),
        ({"y_test": np.zeros(4, int)}, r"and \(4,\)"),
        ({"X_test": np.full((3, 6, 6, 6), 2)}, "X_test should hold 0 and 1"),
        ({"X_test": np.full((3, 6, 6, 6), 0.5)}, "X_test should hold 0 and 1"),
        ({"y_test": np.array([0, 1, 10])}, "y_test should hold whole numbers from 0 to 9"),
        ({"y_test": np.array([0, 1, 1.5])}, "y_test should hold whole numbers"),
        ({"y_test": np.array(["a", "b", "c"])}, "y_test should hold whole numbers"),
    ],
)
def test_bad_archives(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"modelnet10\.npz: .*{message}"):
        read_archive(archive(tmp_path, **changes), "test")


def test_missing_and_damaged_archives(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"modelnet10\.npz: no such archive"):
        read_archive(tmp_path, "test")
    with pytest.raises(DataError, match="train and test, not 'val'"):
        read_archive(archive(tmp_path), "val")
    path = tmp_path / "modelnet10.npz"
    whole = path.read_bytes()
    for content in (b"", b"nothing of the kind", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"damaged or no \.npz archive"):
            read_archive(tmp_path, "test")


def test_the_real_archive(modelnet10: Path) -> None:
    """Beds and sofas are flat, and tables are mostly top, if the axes are what we take them for."""
    grids, labels = read_archive(modelnet10, "test")
    assert grids.shape == (908, 30, 30, 30)
    assert np.bincount(labels).tolist() == [50, 100, 100, 86, 86, 100, 86, 100, 100, 100]
    height = np.arange(30)
    centre = {}
    for name, label in (("bed", 1), ("monitor", 5), ("sofa", 7), ("table", 8), ("toilet", 9)):
        profile = grids[labels == label].sum(axis=(0, 2, 3))
        centre[name] = float((profile * height).sum() / profile.sum())
        extents = [
            np.mean([np.flatnonzero(g.any(axis=axes)).size for g in grids[labels == label]])
            for axes in ((1, 2), (0, 2), (0, 1))
        ]
        if name in ("bed", "sofa"):
            assert extents[0] < min(extents[1:]), "flat"
    assert centre["table"] > 17, "the top is what a table is made of"
