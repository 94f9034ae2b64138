"""ModelNet: OFF meshes in ``ROOT/CLASS/{train,test}/NAME.off``, or an archive of 30^3 grids."""

from __future__ import annotations

import os
import re
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxelpool.errors import DataError

ARCHIVE = "modelnet10.npz"
SPLITS = ("train", "test")
# The largest edge of an object's box fills this share of the grid (VoxNet: 24 of 32 cells).
FILL = 0.75


@dataclass(frozen=True, eq=False)
class TriangleMesh:
    """The surface of an object.

    Attributes:
        vertices: (V, 3) float64.
        triangles: (T, 3) int64, rows of vertices; a polygon of the file is a fan of them.
    """

    vertices: NDArray[np.float64]
    triangles: NDArray[np.int64]


def read_off(path: str | os.PathLike[str]) -> TriangleMesh:
    """Reads an OFF mesh; ModelNet's headers without a line break ("OFF490 518 0") are known.

    Raises:
        DataError: no OFF file, cut short, or a number that makes no sense; names file and line.
        OSError: it cannot be read.
    """
    path = Path(path)
    text = path.read_bytes().decode("ascii", "replace")
    lines = [
        (number, line)
        for number, line in (
            (number, line.partition("#")[0].strip())
            for number, line in enumerate(text.splitlines(), 1)
        )
        if line
    ]
    if not lines or not lines[0][1].startswith("OFF"):
        raise DataError(f"{path}: is no OFF file: it does not begin with OFF")
    first, rest = lines[0][0], lines[0][1][3:].strip()
    lines = [(first, rest), *lines[1:]] if rest else lines[1:]
    if not lines:
        raise DataError(f"{path}: ends after its first line")
    number, header = lines[0]
    counts = header.split()
    if len(counts) not in (2, 3) or not all(word.isdigit() for word in counts):
        raise DataError(
            f"{path}:{number}: expected the numbers of vertices, faces and edges, got {header!r}"
        )
    num_vertices, num_faces = int(counts[0]), int(counts[1])
    body = lines[1:]
    if len(body) < num_vertices + num_faces:
        raise DataError(
            f"{path}: is cut short: {num_vertices} vertices and {num_faces} faces were announced, "
            f"{len(body)} lines follow"
        )
    vertices = _numbers(path, body[:num_vertices], 3)
    if not np.isfinite(vertices).all():
        row = int(np.flatnonzero(~np.isfinite(vertices).all(axis=1))[0])
        raise DataError(f"{path}:{body[row][0]}: a vertex that is not finite")
    triangles = _faces(path, body[num_vertices : num_vertices + num_faces], num_vertices)
    return TriangleMesh(vertices, triangles)


def _numbers(path: Path, lines: list[tuple[int, str]], columns: int) -> NDArray[np.float64]:
    rows = [line.split() for _, line in lines]
    for (number, line), row in zip(lines, rows, strict=True):
        if len(row) < columns:
            raise DataError(f"{path}:{number}: expected {columns} numbers, got {line!r}")
    try:
        return np.array([row[:columns] for row in rows], np.float64).reshape(-1, columns)
    except ValueError:
        for number, line in lines:
            if not all(_is_number(word) for word in line.split()[:columns]):
                raise DataError(f"{path}:{number}: no number in {line!r}") from None
        raise


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _faces(path: Path, lines: list[tuple[int, str]], num_vertices: int) -> NDArray[np.int64]:
    triangles: list[list[int]] = []
    for number, line in lines:
        words = line.split()
        if not words[0].isdigit() or int(words[0]) < 3 or len(words) <= int(words[0]):
            raise DataError(
                f"{path}:{number}: expected a face of three vertices or more, got {line!r}"
            )
        corners = words[1 : 1 + int(words[0])]
        if not all(word.isdigit() and int(word) < num_vertices for word in corners):
            raise DataError(
                f"{path}:{number}: a face has vertices from 0 to {num_vertices - 1}, got {line!r}"
            )
        fan = [int(word) for word in corners]
        triangles += [[fan[0], fan[k], fan[k + 1]] for k in range(1, len(fan) - 1)]
    return np.array(triangles, np.int64).reshape(-1, 3)


def list_meshes(
    root: str | os.PathLike[str], split: str, classes: Sequence[str]
) -> list[tuple[str, Path]]:
    """The meshes of a split: (class, file), by class and then by the number in the file's name.

    Raises:
        DataError: a folder is missing or holds no mesh; names it.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; it should hold CLASS/{split}/NAME.off")
    found = []
    for name in classes:
        folder = root / name / split
        if not folder.is_dir():
            have = sorted(path.name for path in root.iterdir() if (path / split).is_dir())
            raise DataError(
                f"{folder}: no such folder (classes there: {', '.join(have) or 'none'})"
            )
        files = sorted(folder.glob("*.off"), key=_natural)
        if not files:
            raise DataError(f"{folder}: holds no .off file")
        found += [(name, path) for path in files]
    return found


def _natural(path: Path) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.stem)]


def _fitted(mesh: TriangleMesh, path: Path) -> Any:
    """An Open3D mesh, its box about the origin and FILL * 2 along the largest edge."""
    import open3d as o3d

    if not len(mesh.triangles):
        raise DataError(f"{path}: has no face, so there is no surface")
    used = mesh.vertices[np.unique(mesh.triangles)]
    low, high = used.min(axis=0), used.max(axis=0)
    edge = (high - low).max()
    if edge <= 0:
        raise DataError(f"{path}: all its faces are one point")
    vertices = (mesh.vertices - (low + high) / 2) * (2 * FILL / edge)
    return o3d.geometry.TriangleMesh(
        o3d.utility.Vector3dVector(vertices), o3d.utility.Vector3iVector(mesh.triangles)
    )


def voxelize_mesh(
    mesh: TriangleMesh, size: int, path: str | os.PathLike[str] = "mesh"
) -> NDArray[np.uint8]:
    """The cells that a surface passes through.

    Args:
        mesh: upright: z is the vertical.
        size: cells along each edge; the mesh fills FILL of them along its largest.
        path: what errors call it.

    Returns:
        (size, size, size) uint8, 0 or 1, axes z, y, x.
    """
    import open3d as o3d

    fitted = _fitted(mesh, Path(path))
    grid = o3d.geometry.VoxelGrid.create_from_triangle_mesh_within_bounds(
        fitted, 2.0 / size, np.full(3, -1.0), np.full(3, 1.0)
    )
    cells = np.array([voxel.grid_index for voxel in grid.get_voxels()]).reshape(-1, 3)
    out = np.zeros((size, size, size), np.uint8)
    x, y, z = np.clip(cells, 0, size - 1).T
    out[z, y, x] = 1
    return out


def sample_mesh(
    mesh: TriangleMesh, count: int, path: str | os.PathLike[str] = "mesh"
) -> NDArray[np.float32]:
    """Points spread evenly over a surface, the same ones for the same path.

    Args:
        mesh: the surface.
        count: how many.
        path: seeds the choice by its last three parts, and is what errors call it.

    Returns:
        (count, 3) float32 x, y, z inside a cube from -1 to 1, FILL of which the mesh spans.
    """
    import open3d as o3d

    path = Path(path)
    o3d.utility.random.seed(zlib.crc32("/".join(path.parts[-3:]).encode()) & 0x7FFFFFFF)
    points = _fitted(mesh, path).sample_points_uniformly(count)
    return np.asarray(points.points, np.float32)


def find_archive(root: str | os.PathLike[str]) -> Path:
    """The archive: ``root`` itself, or modelnet10.npz in it.

    Raises:
        DataError: it is not there.
    """
    path = Path(root)
    path = path / ARCHIVE if path.is_dir() else path
    if not path.is_file():
        raise DataError(f"{path}: no such archive; objects.root names it or its folder")
    return path


def read_archive(
    root: str | os.PathLike[str], split: str, num_classes: int = 10
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """One split of an archive of occupancy grids.

    The archive's third axis points up: seats lie below backs along it and table tops near its end.
    Each shape comes once, 24 cells large in the middle of 30; nothing is turned or shifted.

    Args:
        root: the archive, or its folder.
        split: "train" or "test".
        num_classes: labels lie below it.

    Returns:
        grids (S, D, H, W) uint8, 0 or 1, axes z (up), y, x; labels (S,) int64.

    Raises:
        DataError: no archive, another split, or arrays of another shape or content.
    """
    path = find_archive(root)
    if split not in SPLITS:
        raise DataError(f"{path}: has the splits {' and '.join(SPLITS)}, not {split!r}")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            missing = {f"X_{split}", f"y_{split}"} - set(arrays.files)
            if missing:
                raise DataError(f"{path}: holds no {min(missing)}")
            grids, labels = arrays[f"X_{split}"], arrays[f"y_{split}"]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: is damaged or no .npz archive") from error
    if grids.ndim != 4 or len(set(grids.shape[1:])) != 1 or labels.shape != grids.shape[:1]:
        raise DataError(
            f"{path}: X_{split} and y_{split} should have shapes (S, N, N, N) and (S,), got "
            f"{grids.shape} and {labels.shape}"
        )
    if not ((grids == 0) | (grids == 1)).all():
        raise DataError(f"{path}: X_{split} should hold 0 and 1 alone")
    if not np.issubdtype(labels.dtype, np.integer) or (
        len(labels) and not 0 <= labels.min() <= labels.max() < num_classes
    ):
        raise DataError(f"{path}: y_{split} should hold whole numbers from 0 to {num_classes - 1}")
    return np.ascontiguousarray(grids.astype(np.uint8).transpose(0, 3, 2, 1)), labels.astype(
        np.int64
    )
