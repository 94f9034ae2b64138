"""Labelled objects in memory: grids or points, of ModelNet or cut out of sweeps."""

from __future__ import annotations

import hashlib
import json
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from voxelpool.config import UNLABELLED_CLASSES, ObjectsConfig
from voxelpool.datasets import modelnet
from voxelpool.datasets.kitti import KittiDataset
from voxelpool.datasets.simulate import SETTINGS_FILE, read_scene
from voxelpool.errors import DataError
from voxelpool.files import atomic_write
from voxelpool.ops import points_in_boxes

Progress = Callable[[str, int, int], None]
"""Called with what is being read, how much of it is done, and how much there is."""

# Points sampled of a mesh, of which a network is given some.
_SAMPLED = 4096
# Longer things are cut to this (m) about the spot nearest to the sensor, taller ones from below.
_REACH, _TALLEST = 6.0, 4.0
_CACHE_VERSION = 2


@dataclass(frozen=True, eq=False)
class ObjectSample:
    """One object.

    Attributes:
        object_id: such as "000042/3" or "chair/test/chair_0890".
        name: its class.
        label: row of the class.
        grid: (D, H, W) uint8, 0 or 1, or None.
        points: (N, 3) float32 about the middle of its box, not turned by its yaw, or None.
        origin: (3,) float32, where the sensor is relative to that middle; zero for a mesh.
    """

    object_id: str
    name: str
    label: int
    grid: NDArray[np.uint8] | None
    points: NDArray[np.float32] | None
    origin: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class ObjectSet:
    """Objects of one kind, all of them grids or all of them points.

    Attributes:
        classes: names.
        ids: S names of the objects.
        labels: (S,) int64, rows of classes.
        grids: (S, D, H, W) uint8, axes z (up), y, x; or None.
        points: (P, 3) float32 of all objects, one after the other; or None.
        offsets: (S + 1,) int64, where the points of each object begin and the last ones end.
        origins: (S, 3) float32, see `ObjectSample`.
    """

    classes: tuple[str, ...]
    ids: list[str]
    labels: NDArray[np.int64]
    grids: NDArray[np.uint8] | None
    points: NDArray[np.float32] | None
    offsets: NDArray[np.int64]
    origins: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> ObjectSample:
        points = self.points
        return ObjectSample(
            self.ids[row],
            self.classes[self.labels[row]],
            int(self.labels[row]),
            None if self.grids is None else self.grids[row],
            None if points is None else points[self.offsets[row] : self.offsets[row + 1]],
            self.origins[row],
        )

    def counts(self) -> dict[str, int]:
        """How many objects each class has."""
        numbers = np.bincount(self.labels, minlength=len(self.classes))
        return dict(zip(self.classes, numbers.tolist(), strict=True))

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> ObjectSet:
        """Some of the objects, in the order of ``rows``."""
        rows = np.asarray(rows, np.int64)
        ids = [self.ids[row] for row in rows]
        labels, origins = self.labels[rows], self.origins[rows]
        if self.points is None:
            assert self.grids is not None
            return _of_grids(self.classes, ids, labels, self.grids[rows])
        parts = [self.points[self.offsets[row] : self.offsets[row + 1]] for row in rows]
        points = np.concatenate([self.points[:0], *parts])
        offsets = np.cumsum([0, *map(len, parts)], dtype=np.int64)
        return _of_points(self.classes, ids, labels, points, offsets, origins)

    def padded(self, size: int) -> ObjectSet:
        """Grids in the middle of larger ones of ``size`` cells along each edge.

        Raises:
            DataError: the grids are larger than that.
        """
        assert self.grids is not None
        edge = self.grids.shape[1]
        if edge > size:
            raise DataError(
                f"the objects have {edge} cells along an edge, classifier.grid_size has {size}"
            )
        before = (size - edge) // 2
        after = size - edge - before
        grids = np.pad(self.grids, [(0, 0), *[(before, after)] * 3])
        return _of_grids(self.classes, self.ids, self.labels, grids)

    def as_points(self) -> ObjectSet:
        """The middles of occupied cells, in a cube from -1 to 1 that the grid fills."""
        assert self.grids is not None
        row, z, y, x = np.nonzero(self.grids)
        middles = (2 * np.stack([x, y, z], axis=1) + 1) / self.grids.shape[1] - 1
        offsets = np.searchsorted(row, np.arange(len(self) + 1))
        return _of_points(
            self.classes, self.ids, self.labels, middles.astype(np.float32), offsets, self.origins
        )


def _of_grids(
    classes: tuple[str, ...],
    ids: list[str],
    labels: NDArray[np.int64],
    grids: NDArray[np.uint8],
) -> ObjectSet:
    count = len(ids)
    none = np.zeros(count + 1, np.int64)
    return ObjectSet(classes, ids, labels, grids, None, none, np.zeros((count, 3), np.float32))


def _of_points(
    classes: tuple[str, ...],
    ids: list[str],
    labels: NDArray[np.int64],
    points: NDArray[np.float32],
    offsets: NDArray[np.int64],
    origins: NDArray[np.float32],
) -> ObjectSet:
    return ObjectSet(classes, ids, labels, None, points, offsets, origins)


def load_objects(
    config: ObjectsConfig,
    split: str,
    *,
    grid_size: int | None = 32,
    progress: Progress | None = None,
) -> ObjectSet:
    """Reads the objects of a split into memory.

    Args:
        config: where they come from.
        split: its name.
        grid_size: ModelNet comes as grids of so many cells; None gives points of every source.
            Crops are always points.
        progress: called while something is read that takes long.

    Raises:
        DataError: something is missing or damaged; names it.
    """
    if config.source == "crops":
        description, read = _describe_crops(config, split), _read_crops
    elif config.source == "modelnet_off":
        description, read = _describe_meshes(config, split, grid_size), _read_meshes
    else:
        description, read = _describe_archive(config, split), _read_archive
    cache = None
    if config.cache is not None:
        key = hashlib.sha256(json.dumps(description).encode()).hexdigest()
        cache = Path(config.cache) / f"{config.source}_{Path(split).stem}_{key[:12]}.npz"
        cached = _read_cache(cache, config.class_names, key)
        if cached is not None:
            return _fitted(cached, grid_size)
    objects = read(config, split, grid_size, progress or (lambda *_: None))
    if not len(objects):
        raise DataError(f"{config.root}: split {split!r} holds no object of the classes")
    if cache is not None:
        _write_cache(cache, objects, key)
    return _fitted(objects, grid_size)


def _fitted(objects: ObjectSet, grid_size: int | None) -> ObjectSet:
    if objects.grids is None:
        return objects
    return objects.as_points() if grid_size is None else objects.padded(grid_size)


def _stat(path: Path) -> tuple[str, int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    return path.name, status.st_size, status.st_mtime_ns


def _describe_archive(config: ObjectsConfig, split: str) -> list[Any]:
    path = modelnet.find_archive(config.root)
    return [_CACHE_VERSION, "archive", str(path.resolve()), split, config.class_names, _stat(path)]


def _read_archive(
    config: ObjectsConfig, split: str, grid_size: int | None, progress: Progress
) -> ObjectSet:
    progress(f"reading {split}", 0, 1)
    grids, labels = modelnet.read_archive(config.root, split, len(config.class_names))
    progress(f"reading {split}", 1, 1)
    ids = [f"{split}/{row:04d}" for row in range(len(labels))]
    return _of_grids(config.class_names, ids, labels, grids)


def _describe_meshes(config: ObjectsConfig, split: str, grid_size: int | None) -> list[Any]:
    files = modelnet.list_meshes(config.root, split, config.class_names)
    root = str(Path(config.root).resolve())
    states = [(name, *_stat(path)) for name, path in files]
    return [_CACHE_VERSION, "off", root, split, grid_size, states]


class _Meshes:
    def __init__(self, files: list[tuple[str, Path]], grid_size: int | None) -> None:
        self.files, self.grid_size = files, grid_size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> NDArray[Any]:
        path = self.files[row][1]
        mesh = modelnet.read_off(path)
        if self.grid_size is None:
            return modelnet.sample_mesh(mesh, _SAMPLED, path)
        return modelnet.voxelize_mesh(mesh, self.grid_size, path)


def _read_meshes(
    config: ObjectsConfig, split: str, grid_size: int | None, progress: Progress
) -> ObjectSet:
    classes = config.class_names
    files = modelnet.list_meshes(config.root, split, classes)
    parts = list(_read_all(_Meshes(files, grid_size), config.num_workers, split, progress))
    ids = ["/".join(path.with_suffix("").parts[-3:]) for _, path in files]
    labels = np.array([classes.index(name) for name, _ in files], np.int64)
    if grid_size is not None:
        return _of_grids(classes, ids, labels, np.stack(parts))
    offsets = np.arange(len(parts) + 1, dtype=np.int64) * _SAMPLED
    origins = np.zeros((len(ids), 3), np.float32)
    return _of_points(classes, ids, labels, np.concatenate(parts), offsets, origins)


def _read_all(items: Any, workers: int, split: str, progress: Progress) -> Iterable[Any]:
    """The items in their order, read by ``workers`` processes."""
    # Left as they are: a tensor from a worker holds a file descriptor open, and thousands come.
    loader = DataLoader(
        items,
        batch_size=None,
        num_workers=workers if len(items) > 1 else 0,
        collate_fn=_unchanged,
    )
    progress(f"reading {split}", 0, len(items))
    for done, item in enumerate(loader, 1):
        yield item
        progress(f"reading {split}", done, len(items))


def _unchanged(item: Any) -> Any:
    return item


def _dataset(config: ObjectsConfig, split: str) -> KittiDataset:
    return KittiDataset(
        config.root, split, crop_to_image=False, folder="training", require_labels=True
    )


def _describe_crops(config: ObjectsConfig, split: str) -> list[Any]:
    frames = _dataset(config, split)
    states = []
    for row in range(len(frames)):
        paths = frames.paths(row)
        states += [_stat(paths.sweep), _stat(paths.label), _stat(paths.calibration)]
    digest = hashlib.sha256(json.dumps(states).encode()).hexdigest()
    root = str(Path(config.root).resolve())
    settings = [config.class_names, config.margin, config.min_points, config.things]
    scenes = Path(config.root, SETTINGS_FILE).is_file()
    return [_CACHE_VERSION, "crops", root, frames.frame_ids, digest, settings, scenes]


class _Crops:
    """Frame by frame: the points, origin, class and name of every object in it."""

    def __init__(self, config: ObjectsConfig, split: str) -> None:
        self.config = config
        self.frames = _dataset(config, split)
        wanted = set(config.class_names) & set(UNLABELLED_CLASSES)
        simulated = Path(config.root, SETTINGS_FILE).is_file()
        self.things = wanted if simulated and config.things else set()

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, row: int) -> list[tuple[str, str, Any, Any]]:
        config, frame = self.config, self.frames[row]
        chosen = [k for k, name in enumerate(frame.names) if name in config.class_names]
        names = [frame.names[k] for k in chosen]
        boxes = frame.boxes[chosen].astype(np.float64)
        found = cut_crops(frame.points, boxes, config.margin)
        parts = [
            (f"{frame.frame_id}/{k}", name, crop, -box[:3])
            for k, name, crop, box in zip(chosen, names, found, boxes, strict=True)
            if len(crop) >= config.min_points
        ]
        return parts + (self._cut_things(frame.frame_id, frame.points) if self.things else [])

    def _cut_things(
        self, frame_id: str, points: NDArray[np.float32]
    ) -> list[tuple[str, str, Any, Any]]:
        config = self.config
        scene = read_scene(config.root, frame_id)
        things = [thing for thing in scene.things if thing.name in self.things]
        boxes = np.array([window(thing.box) for thing in things]).reshape(-1, 7)
        found = cut_crops(points, boxes, config.margin)
        rng = np.random.default_rng(zlib.crc32(frame_id.encode()))
        taken = dict.fromkeys(self.things, 0)
        parts = []
        for k in rng.permutation(len(things)).tolist():
            name = things[k].name
            if len(found[k]) >= config.min_points and taken[name] < config.things:
                taken[name] += 1
                parts.append((f"{frame_id}/{name}{k}", name, found[k], -boxes[k, :3]))
        return parts


def cut_crops(
    points: NDArray[np.float32], boxes: NDArray[np.float64], margin: float
) -> list[NDArray[np.float32]]:
    """The points in boxes, each about the middle of its box and not turned.

    Args:
        points: (N, >= 3), LiDAR frame, metres.
        boxes: (n, 7).
        margin: how far a box is grown on all sides, metres.

    Returns:
        n arrays (k, 3) float32; k may be 0.
    """
    grown = boxes.copy()
    grown[:, 3:6] += 2 * margin
    crops = []
    for box, wide in zip(boxes, grown, strict=True):
        near = np.flatnonzero(
            (np.abs(points[:, :2] - box[:2]) <= 0.5 * np.hypot(wide[3], wide[4])).all(axis=1)
        )
        inside = points_in_boxes(
            torch.from_numpy(points[near, :3].astype(np.float64)), torch.from_numpy(wide[None])
        )[:, 0]
        crops.append((points[near[inside.numpy()], :3] - box[:3]).astype(np.float32))
    return crops


def window(box: NDArray[np.float64]) -> NDArray[np.float64]:
    """The part of a large box that is nearest to the sensor.

    Args:
        box: (7,), LiDAR frame.

    Returns:
        (7,) the same box, at most 6 m long and wide and, from its foot, 4 m high.
    """
    cos, sin = np.cos(box[6]), np.sin(box[6])
    sensor = np.array([-cos * box[0] - sin * box[1], sin * box[0] - cos * box[1]])
    size = np.minimum(box[3:5], _REACH)
    room = (box[3:5] - size) / 2
    shift = np.clip(sensor, -room, room)
    out = box.copy()
    out[0] += cos * shift[0] - sin * shift[1]
    out[1] += sin * shift[0] + cos * shift[1]
    out[3:5] = size
    out[5] = min(box[5], _TALLEST)
    out[2] += (out[5] - box[5]) / 2
    return out


def _read_crops(
    config: ObjectsConfig, split: str, grid_size: int | None, progress: Progress
) -> ObjectSet:
    classes = config.class_names
    parts = [
        part
        for frame in _read_all(_Crops(config, split), config.num_workers, split, progress)
        for part in frame
    ]
    sizes = [len(crop) for _, _, crop, _ in parts]
    return _of_points(
        classes,
        [object_id for object_id, _, _, _ in parts],
        np.array([classes.index(name) for _, name, _, _ in parts], np.int64),
        np.concatenate([np.zeros((0, 3), np.float32), *(np.asarray(part[2]) for part in parts)]),
        np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64),
        np.array([part[3] for part in parts], np.float32).reshape(-1, 3),
    )


def _write_cache(path: Path, objects: ObjectSet, key: str) -> None:
    arrays: dict[str, Any] = {"labels": objects.labels, "ids": np.array(objects.ids)}
    if objects.grids is not None:
        arrays["grids"] = np.packbits(objects.grids, axis=-1)
        arrays["width"] = np.array(objects.grids.shape[-1])
    else:
        arrays |= {
            "points": objects.points,
            "offsets": objects.offsets,
            "origins": objects.origins,
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "wb") as file:
        np.savez_compressed(file, key=np.array(key), **arrays)


def _read_cache(path: Path, classes: Sequence[str], key: str) -> ObjectSet | None:
    """What was stored under ``key``; None if nothing was, or it is damaged."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            stored = {name: arrays[name] for name in arrays.files}
        if str(stored["key"]) != key:
            return None
        ids = stored["ids"].tolist()
        if "grids" in stored:
            grids = np.unpackbits(stored["grids"], axis=-1, count=int(stored["width"]))
            return _of_grids(tuple(classes), ids, stored["labels"], grids)
        return _of_points(
            tuple(classes),
            ids,
            stored["labels"],
            *(stored[name] for name in ("points", "offsets", "origins")),
        )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        warnings.warn(f"{path}: is damaged; what it held is read anew", stacklevel=3)
        return None


def sample_rows(count: int, wanted: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """``wanted`` random rows of ``count``, none twice while they last; zeros if there are none."""
    if count >= wanted:
        return rng.permutation(count)[:wanted]
    if count == 0:
        return np.zeros(wanted, np.int64)
    return np.concatenate([np.arange(count), rng.integers(0, count, wanted - count)])
