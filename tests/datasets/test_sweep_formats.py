"""Sweeps of all formats, against files that are written here byte by byte."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from voxelpool.datasets.sweeps import (
    SWEEP_SUFFIXES,
    find_sweeps,
    read_lone_sweep,
    read_points,
    write_points,
)
from voxelpool.errors import DataError

XYZ = np.array([[1.5, -2.25, 0.125], [70.0, 39.5, -3.0], [-8.0, 0.0, 1.0]], np.float32)
POINTS = np.column_stack([XYZ, [0.0, 0.5, 1.0]]).astype(np.float32)


def pcd(data: str, fields: str = "x y z intensity", count: int = 3, types: str = "F F F F") -> str:
    columns = len(fields.split())
    sizes = ["4", "4", "4", "1", "2"] if "U" in types else ["4"] * columns
    return (
        f"VERSION 0.7\nFIELDS {fields}\nSIZE {' '.join(sizes[:columns])}\nTYPE {types}\n"
        f"COUNT {' '.join('1' * columns)}\nWIDTH {count}\nHEIGHT 1\n"
        f"VIEWPOINT 0 0 0 1 0 0 0\nPOINTS {count}\nDATA {data}\n"
    )


def ply(kind: str, count: int = 3, intensity: str = "property float intensity\n") -> str:
    return (
        f"ply\nformat {kind} 1.0\ncomment by hand\nelement vertex {count}\nproperty float x\n"
        f"property float y\nproperty float z\n{intensity}end_header\n"
    )


def las(xyz: np.ndarray, intensity: np.ndarray, scale: float, offset: float) -> bytes:
    """A file as the LAS 1.2 specification lays it out, point format 0."""
    header = struct.pack(
        "<4sHHIHH8sBB32s32sHHHIIBHI5I12d",
        *(b"LASF", 0, 0, 0, 0, 0, b"", 1, 2, b"", b"", 1, 2026, 227, 227, 0, 0, 20, len(xyz)),
        *(len(xyz), 0, 0, 0, 0, scale, scale, scale, offset, offset, offset),
        *(value for axis in xyz.T for value in (axis.max(), axis.min())),
    )
    stored = np.rint((xyz.astype(np.float64) - offset) / scale).astype(np.int32)
    return header + b"".join(
        struct.pack("<3iHBBbBH", *row, value, 9, 0, 0, 0, 0)
        for row, value in zip(stored.tolist(), intensity.tolist(), strict=True)
    )


def lines(rows: np.ndarray) -> str:
    return "\n".join(" ".join(f"{value:.9g}" for value in row) for row in rows) + "\n"


@pytest.mark.parametrize("suffix", [".pcd", ".ply"])
@pytest.mark.parametrize("text", [True, False])
def test_files_written_by_hand(tmp_path: Path, suffix: str, text: bool) -> None:
    if suffix == ".pcd":
        head = pcd("ascii" if text else "binary")
    else:
        head = ply("ascii" if text else "binary_little_endian")
    path = tmp_path / f"sweep{suffix}"
    path.write_bytes(head.encode() + (lines(POINTS).encode() if text else POINTS.tobytes()))
    np.testing.assert_array_equal(read_points(path), POINTS)
    np.testing.assert_array_equal(read_points(path, dims=3), XYZ)
    with pytest.raises(DataError, match=r"sweep.*not 5 columns"):
        read_points(path, dims=5)


def test_las_written_by_hand(tmp_path: Path) -> None:
    pytest.importorskip("laspy")
    path = tmp_path / "sweep.las"
    path.write_bytes(las(XYZ, np.array([0, 13107, 65535]), scale=0.001, offset=5.0))
    points = read_points(path)
    np.testing.assert_allclose(points[:, :3], XYZ, atol=1e-6)
    np.testing.assert_allclose(points[:, 3], [0, 0.2, 1])
    np.testing.assert_allclose(read_points(path, intensity_max=13107)[:, 3], [0, 1, 5])


def test_integers_are_shares_of_their_type(tmp_path: Path) -> None:
    """As other programs write bytes; a further field (ring) and no field at all."""
    path = tmp_path / "sweep.pcd"
    rows = "1 2 3 255 7\n4 5 nan 51 9\n"
    path.write_text(pcd("ascii", "x y z intensity ring", 2, "F F F U U") + rows)
    points = read_points(path)
    np.testing.assert_allclose(points[:, 3], [1, 0.2])
    assert np.isnan(points[1, 2])
    np.testing.assert_allclose(read_points(path, intensity_max=51)[:, 3], [5, 1])
    path.write_text(pcd("ascii", "x y z", 2, "F F F") + "1 2 3\n4 5 6\n")
    np.testing.assert_array_equal(read_points(path), [[1, 2, 3, 0], [4, 5, 6, 0]])
    other = tmp_path / "sweep.ply"
    other.write_text(ply("ascii", 1, "property uchar reflectance\n") + "1 2 3 51\n")
    np.testing.assert_allclose(read_points(other), [[1, 2, 3, 0.2]])


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.int32])
def test_npy(tmp_path: Path, kind: type) -> None:
    path = tmp_path / "sweep.npy"
    np.save(path, np.asfortranarray(np.arange(12).reshape(4, 3).astype(kind)))
    points = read_points(path)
    assert points.dtype == np.float32 and points.flags.c_contiguous
    np.testing.assert_array_equal(
        points, [[0, 1, 2, 0], [3, 4, 5, 0], [6, 7, 8, 0], [9, 10, 11, 0]]
    )
    np.save(path, np.arange(10).reshape(2, 5).astype(np.float32))
    np.testing.assert_array_equal(read_points(path), [[0, 1, 2, 3], [5, 6, 7, 8]])
    np.testing.assert_array_equal(
        read_points(path, dims=5, intensity_max=4)[:, 3:], [[0.75, 4], [2, 9]]
    )
    named = np.zeros(2, [("z", "f4"), ("x", "f8"), ("i", "u1"), ("y", "f4"), ("t", "f8")])
    named["x"], named["y"], named["z"], named["i"] = 1, 2, 3, 51
    np.save(path, named)
    np.testing.assert_allclose(read_points(path), [[1, 2, 3, 0.2]] * 2)


def test_bin_of_five_columns(tmp_path: Path) -> None:
    """nuScenes names its files so."""
    path = tmp_path / "sweep.pcd.bin"
    rows = np.column_stack([POINTS * [1, 1, 1, 255], [0, 1, 2]]).astype("<f4")
    path.write_bytes(rows.tobytes())
    np.testing.assert_allclose(read_points(path, dims=5, intensity_max=255)[:, :4], POINTS)
    sweep = read_lone_sweep(path, dims=5, intensity_max=255)
    assert (sweep.num_read, sweep.points.shape, sweep.calibration) == (3, (3, 5), None)


@pytest.mark.parametrize("suffix", SWEEP_SUFFIXES)
@pytest.mark.parametrize("count", [0, 1, 1000])
def test_what_is_written_reads_back(tmp_path: Path, suffix: str, count: int) -> None:
    if suffix == ".las":
        pytest.importorskip("laspy")
    rng = np.random.default_rng(count)
    points = np.column_stack([rng.normal(0, 30, (count, 3)), rng.random(count)]).astype(np.float32)
    path = tmp_path / f"sweep{suffix}"
    write_points(path, points)
    found = read_points(path)
    assert found.shape == (count, 4) and found.dtype == np.float32
    if suffix == ".las":
        np.testing.assert_allclose(found[:, :3], points[:, :3], atol=0.51e-4)
        np.testing.assert_allclose(found[:, 3], points[:, 3], atol=0.51 / 65535)
    else:
        np.testing.assert_array_equal(found, points)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", SWEEP_SUFFIXES)
def test_a_damaged_file_is_named(tmp_path: Path, suffix: str) -> None:
    if suffix == ".las":
        pytest.importorskip("laspy")
    path = tmp_path / f"sweep{suffix}"
    write_points(path, POINTS)
    whole = path.read_bytes()
    for bad in (whole[:-6], b"nothing of the kind"):
        path.write_bytes(bad)
        with pytest.raises(DataError, match=f"sweep{suffix}: ") as caught:
            read_points(path)
        assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(OSError, match=f"sweep{suffix}"):
        read_points(path)


def test_what_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"sweep\.xyz: sweeps are \.bin, "):
        read_points(tmp_path / "sweep.xyz")
    path = tmp_path / "sweep.npy"
    for array in (np.zeros(3), np.zeros((2, 2)), np.zeros((2, 4), bool), np.array(["a"])):
        np.save(path, array)
        with pytest.raises(DataError, match=r"sweep\.npy: must hold numbers of shape"):
            read_points(path)
    np.save(path, np.array([{"a": 1}], object))
    with pytest.raises(DataError, match=r"sweep\.npy: is no \.npy file of numbers"):
        read_points(path)
    np.save(path, np.zeros((2, 4)))
    with pytest.raises(DataError, match="has 4 columns, not 5"):
        read_points(path, dims=5)
    with pytest.raises(DataError, match="intensity_max must be a positive number"):
        read_points(path, intensity_max=0)
    path = tmp_path / "sweep.pcd"
    path.write_text(pcd("ascii", "x y intensity", 1, "F F F") + "1 2 3\n")
    with pytest.raises(DataError, match=r"sweep\.pcd"):
        read_points(path)
    for module, name in (("open3d", "a.ply"), ("laspy", "a.las")):
        monkeypatch.setitem(sys.modules, module, None)
        path = tmp_path / name
        path.write_text(ply("ascii", 1) + "1 2 3 4\n")
        with pytest.raises(DataError, match=f"{name}: .*{module}"):
            read_points(path)


def test_what_cannot_be_written(tmp_path: Path) -> None:
    pytest.importorskip("laspy")
    for suffix, points, message in (
        (".npy", np.zeros(3), "points must be"),
        (".ply", np.zeros((1, 5)), "x, y, z and a reflectance"),
        (".las", [[1, 2, np.nan]], "finite"),
        (".las", [[1, 2, 3, 1.5]], "from 0 to 1"),
        (".las", [[1e9, 2, 3]], "farther"),
        (".laz", [[1, 2, 3]], "sweeps are"),
    ):
        with pytest.raises(DataError, match=message):
            write_points(tmp_path / f"sweep{suffix}", points)
    assert not list(tmp_path.iterdir())


def test_coordinates_of_maps_are_warned_of(tmp_path: Path) -> None:
    path = tmp_path / "sweep.npy"
    np.save(path, np.array([[4_512_345.6, 5_403_210.1, 100.0]]))
    with pytest.warns(UserWarning, match=r"sweep\.npy: points lie up to 5403210 m"):
        read_points(path)


def test_a_folder_gives_all_kinds(tmp_path: Path) -> None:
    for name in ("b.npy", "a.bin", "c.PLY", "notes.txt", "d.npz"):
        (tmp_path / name).touch()
    assert [path.name for path in find_sweeps([tmp_path])] == ["a.bin", "b.npy", "c.PLY"]
    (tmp_path / "sub").mkdir()
    with pytest.raises(DataError, match=r"sub: holds no sweep"):
        find_sweeps([tmp_path / "sub"])
