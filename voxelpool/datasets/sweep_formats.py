"""Sweeps in the files that sensors and point cloud tools write: .bin, .npy, .pcd, .ply and .las.

Whatever the file, a sweep is (N, dims) float32: x, y, z in metres, then reflectance, for networks
of this package from 0 to 1.

===== ==================== ======================================================================
file  read and written by  columns
===== ==================== ======================================================================
.bin  numpy                little-endian float32, ``dims`` a point, as they come
.npy  numpy                an array (N, 3 or more), as they come; or one with named fields, as .pcd
.pcd  open3d               fields x, y, z and intensity
.ply  open3d               properties x, y, z and intensity of the vertices
.las  laspy                X, Y, Z by the header's scales and offsets, and Intensity
===== ==================== ======================================================================

For ``intensity`` a field may also be named reflectance, reflectivity, remission or i; without one
it is 0. Integers are divided by the largest of their type (255, 65535), floating-point numbers are
taken as they are, unless ``intensity_max`` says what full reflectance is in the file. Other fields
are left out. Written are intensities as float32, in .las as 16 bit.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from voxelpool.datasets.kitti_format import read_sweep, write_sweep
from voxelpool.errors import DataError
from voxelpool.files import atomic_write

Points = NDArray[np.float32]

SWEEP_SUFFIXES = (".bin", ".npy", ".pcd", ".ply", ".las")
REFLECTANCE_NAMES = ("intensity", "reflectance", "reflectivity", "remission", "i")

_LAS_SCALE = 1e-4
"""Metres that coordinates in written .las files are rounded to."""
_COARSE = 1e5
"""Metres from where on float32 tells points no nearer than about a centimetre apart."""


def read_points(
    path: str | os.PathLike[str], *, dims: int = 4, intensity_max: float | None = None
) -> Points:
    """Reads a sweep; the end of its name says what it is.

    Args:
        path: a file of one of `SWEEP_SUFFIXES`.
        dims: columns that are wanted; in a .bin file also those that there are (KITTI 4, nuScenes
            5). A fourth that the file does not have is 0.
        intensity_max: what stands for a reflectance of 1 in the file; by default 1, and of integers
            the largest of their type.

    Returns:
        (N, dims) float32, every point of the file, finite or not.

    Raises:
        DataError: the file is of another kind, cut off, has no x, y, z or too few columns, or the
            package that reads it is not installed; names the file.
        OSError: the file cannot be read.
    """
    path = Path(path)
    suffix = _suffix(path)
    if intensity_max is not None and not 0 < intensity_max < np.inf:
        raise DataError(f"{path}: intensity_max must be a positive number, got {intensity_max}")
    if suffix == ".bin":
        points = read_sweep(path, dims)
        if intensity_max is not None and dims > 3:
            points[:, 3] /= np.float32(intensity_max)
        return points
    if dims < 3:
        raise DataError(f"a point has at least 3 values, got dims={dims}")
    with path.open("rb"):  # so that a file that is not there is an OSError whoever reads it
        pass
    return _READERS[suffix](path, dims, intensity_max)


def write_points(path: str | os.PathLike[str], points: ArrayLike) -> None:
    """Writes a sweep, whole or not at all, so that `read_points` reads it back.

    Args:
        path: a file of one of `SWEEP_SUFFIXES`; its folder must exist.
        points: (N, 3 or more) in metres; .pcd, .ply and .las take x, y, z and a reflectance alone.
            Coordinates come back to the bit but from .las, which rounds them to 0.1 mm, and
            reflectances, of 0 to 1 there, to 1 / 65535.

    Raises:
        DataError: the points do not fit the format, or the package that writes it is not installed.
        OSError: the file cannot be written; an older one is left as it was.
    """
    path = Path(path)
    suffix = _suffix(path)
    array = np.asarray(points, np.float32)
    if array.ndim != 2 or array.shape[1] < 3:
        raise DataError(f"{path}: points must be (N, 3 or more), got {array.shape}")
    if suffix == ".bin":
        write_sweep(path, array)
        return
    if suffix == ".npy":
        with atomic_write(path, "wb") as file:
            np.save(file, array, allow_pickle=False)
        return
    if array.shape[1] > 4:
        raise DataError(
            f"{path}: {suffix} files take x, y, z and a reflectance, got {array.shape[1]} columns"
        )
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder, f"sweep{suffix}")
        (_write_las if suffix == ".las" else _write_open3d)(path, scratch, array)
        with atomic_write(path, "wb") as file:
            file.write(scratch.read_bytes())


def _suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in SWEEP_SUFFIXES:
        raise DataError(f"{path}: sweeps are {', '.join(SWEEP_SUFFIXES)} files")
    return suffix


def _assemble(
    path: Path, fields: Mapping[str, NDArray[Any]], dims: int, intensity_max: float | None
) -> Points:
    """Points from named columns."""
    missing = [name for name in "xyz" if name not in fields]
    if missing:
        have = ", ".join(fields) or "none"
        raise DataError(f"{path}: has no column {missing[0]} (columns found: {have})")
    if dims > 4:
        raise DataError(f"{path}: gives x, y, z and a reflectance, not {dims} columns")
    columns = [fields[name] for name in "xyz"]
    _warn_of_far_points(path, columns)
    if dims == 4:
        name = next((name for name in REFLECTANCE_NAMES if name in fields), None)
        columns.append(
            np.zeros(len(columns[0]), np.float32)
            if name is None
            else _as_reflectance(fields[name], intensity_max)
        )
    return np.column_stack([np.asarray(column, np.float32) for column in columns])


def _as_reflectance(column: NDArray[Any], intensity_max: float | None) -> NDArray[Any]:
    if intensity_max is None:
        if not np.issubdtype(column.dtype, np.integer):
            return column
        intensity_max = float(np.iinfo(column.dtype).max)
    return column / intensity_max


def _warn_of_far_points(path: Path, columns: list[NDArray[Any]]) -> None:
    """Of coordinates that float32 cannot hold, as those of maps are."""
    if all(column.dtype.itemsize <= 4 for column in columns) or not len(columns[0]):
        return
    farthest = max(float(np.abs(column).max()) for column in columns)
    if farthest > _COARSE:
        warnings.warn(
            f"{path}: points lie up to {farthest:.0f} m from the origin, where float32 is coarse; "
            f"subtract the sensor's position first",
            stacklevel=4,
        )


def _read_npy(path: Path, dims: int, intensity_max: float | None) -> Points:
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(f"{path}: is no .npy file of numbers, or is cut off: {error}") from None
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: is no .npy file")
    if array.dtype.names is not None:
        fields = {name: array[name].reshape(-1) for name in array.dtype.names}
        return _assemble(path, fields, dims, intensity_max)
    if array.ndim != 2 or array.shape[1] < 3 or array.dtype.kind not in "fiu":
        raise DataError(
            f"{path}: must hold numbers of shape (N, 3 or more), got {array.dtype} {array.shape}"
        )
    if dims > max(4, array.shape[1]):
        raise DataError(f"{path}: has {array.shape[1]} columns, not {dims}")
    _warn_of_far_points(path, list(array[:, :3].T))
    points = np.zeros((len(array), dims), np.float32)
    points[:, : array.shape[1]] = array[:, :dims]
    if dims > 3 and array.shape[1] > 3:
        points[:, 3] = _as_reflectance(array[:, 3], intensity_max)
    return points


def _open3d(path: Path) -> Any:
    try:
        import open3d
    except (ImportError, OSError) as error:
        raise DataError(
            f"{path}: {path.suffix} files need open3d, which does not load: {error}"
        ) from None
    return open3d


def _read_open3d(path: Path, dims: int, intensity_max: float | None) -> Points:
    count, fields, size, data = _header(path)
    if not count:
        return _assemble(path, dict.fromkeys(fields, np.zeros(0, np.float32)), dims, intensity_max)
    if path.stat().st_size - data < count * size:
        raise DataError(f"{path}: is cut off: its header tells of {count} points")
    o3d = _open3d(path)
    with o3d.utility.VerbosityContextManager(o3d.utility.VerbosityLevel.Error):
        try:
            found = o3d.t.io.read_point_cloud(str(path))
        except RuntimeError as error:
            raise DataError(f"{path}: {' '.join(str(error).split())}") from None
        attributes = {name: value.numpy() for name, value in found.point.items()}
    places = attributes.pop("positions", np.zeros((0, 3), np.float32))
    if len(places) != count:
        raise DataError(
            f"{path}: open3d cannot read it whole: its header tells of {count} points, "
            f"{len(places)} were read"
        )
    columns = {name: value[:, 0] for name, value in attributes.items() if value.shape[1] == 1}
    return _assemble(
        path, {**dict(zip("xyz", places.T, strict=True)), **columns}, dims, intensity_max
    )


def _write_open3d(path: Path, scratch: Path, points: Points) -> None:
    if not len(points):  # open3d refuses to
        scratch.write_text(_EMPTY[path.suffix.lower()], encoding="ascii")
        return
    o3d = _open3d(path)
    cloud = o3d.t.geometry.PointCloud()
    cloud.point.positions = o3d.core.Tensor(np.ascontiguousarray(points[:, :3]))
    if points.shape[1] > 3:
        cloud.point.intensity = o3d.core.Tensor(np.ascontiguousarray(points[:, 3:]))
    if not o3d.t.io.write_point_cloud(str(scratch), cloud):
        raise DataError(f"{path}: open3d could not write it")


_EMPTY = {
    ".pcd": "# .PCD v0.7 - Point Cloud Data file format\nVERSION 0.7\nFIELDS x y z intensity\n"
    "SIZE 4 4 4 4\nTYPE F F F F\nCOUNT 1 1 1 1\nWIDTH 0\nHEIGHT 1\n"
    "VIEWPOINT 0 0 0 1 0 0 0\nPOINTS 0\nDATA binary\n",
    ".ply": "ply\nformat binary_little_endian 1.0\nelement vertex 0\nproperty float x\n"
    "property float y\nproperty float z\nproperty float intensity\nend_header\n",
}
_PLY_SIZES = {
    **dict.fromkeys(("char", "uchar", "int8", "uint8"), 1),
    **dict.fromkeys(("short", "ushort", "int16", "uint16"), 2),
    **dict.fromkeys(("int", "uint", "float", "int32", "uint32", "float32"), 4),
    **dict.fromkeys(("double", "float64"), 8),
}


def _header(path: Path) -> tuple[int, list[str], int, int]:
    """Points, their fields, bytes that each takes at least, and where they begin in the file."""
    with path.open("rb") as file:
        start = file.read(1 << 16)
    end = b"end_header" if path.suffix.lower() == ".ply" else b"\nDATA"
    place = start.find(end)
    data = start.find(b"\n", place + 1) + 1
    if place < 0 or not data:
        raise DataError(f"{path}: has no {path.suffix[1:].upper()} header")
    lines = [line.split() for line in start[:data].decode("ascii", "replace").splitlines()]
    try:
        read = _ply_header if path.suffix.lower() == ".ply" else _pcd_header
        count, fields, size = read([line for line in lines if line])
    except (ValueError, LookupError):
        raise DataError(f"{path}: has a damaged {path.suffix[1:].upper()} header") from None
    return count, fields, size, data


def _pcd_header(lines: list[list[str]]) -> tuple[int, list[str], int]:
    values = {line[0]: line[1:] for line in lines}
    fields = values["FIELDS"]
    counts = values.get("COUNT", ["1"] * len(fields))
    size = sum(int(a) * int(b) for a, b in zip(values["SIZE"], counts, strict=True))
    kinds = {"binary": size, "ascii": 2 * len(fields), "binary_compressed": 0}
    return int(values["POINTS"][0]), fields, kinds[values["DATA"][0]]


def _ply_header(lines: list[list[str]]) -> tuple[int, list[str], int]:
    count, fields, size, element = 0, [], 0, ""
    for line in lines:
        if line[0] == "element":
            element = line[1]
            count = int(line[2]) if element == "vertex" else count
        elif line[0] == "property" and element == "vertex":
            fields.append(line[-1])
            size += 0 if line[1] == "list" else _PLY_SIZES[line[1]]
    ascii_text = next(line[1] for line in lines if line[0] == "format") == "ascii"
    return count, fields, 2 * len(fields) if ascii_text else size


def _laspy(path: Path) -> Any:
    try:
        import laspy
    except ImportError:
        raise DataError(
            f"{path}: .las files need laspy: pip install 'voxelpool[las]' brings it"
        ) from None
    return laspy


def _read_las(path: Path, dims: int, intensity_max: float | None) -> Points:
    laspy = _laspy(path)
    try:
        with laspy.open(path) as file:
            told = file.header.point_count
            las = file.read()
    except (laspy.errors.LaspyException, ValueError, EOFError) as error:
        raise DataError(f"{path}: laspy cannot read it: {' '.join(str(error).split())}") from None
    fields = {name: np.asarray(las[name]) for name in ("x", "y", "z", "intensity")}
    if len(fields["x"]) != told:
        raise DataError(f"{path}: is cut off: {len(fields['x'])} of {told} points are there")
    return _assemble(path, fields, dims, intensity_max)


def _write_las(path: Path, scratch: Path, points: Points) -> None:
    laspy = _laspy(path)
    if not np.isfinite(points).all():
        raise DataError(f"{path}: .las files hold finite numbers alone")
    if len(points) and np.abs(points[:, :3]).max() > _LAS_SCALE * np.iinfo(np.int32).max:
        raise DataError(f"{path}: points lie farther off than .las files of 0.1 mm can say")
    las = laspy.LasData(laspy.LasHeader(version="1.2", point_format=0))
    las.header.scales = np.full(3, _LAS_SCALE)
    las.x, las.y, las.z = points[:, :3].astype(np.float64).T
    if points.shape[1] > 3:
        reflectance = points[:, 3].astype(np.float64)
        if len(points) and not (reflectance.min() >= 0 and reflectance.max() <= 1):
            raise DataError(f"{path}: reflectances must be from 0 to 1 for .las files")
        las.intensity = np.rint(reflectance * 65535).astype(np.uint16)
    las.write(scratch)


_READERS = {".npy": _read_npy, ".pcd": _read_open3d, ".ply": _read_open3d, ".las": _read_las}
