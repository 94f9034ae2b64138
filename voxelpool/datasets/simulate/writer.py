"""Simulated data sets in KITTI's folder layout."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from voxelpool.datasets.calibration import Calibration
from voxelpool.datasets.kitti_format import (
    DEFAULT_IMAGE_SIZE,
    DONT_CARE,
    KittiObjects,
    write_label,
    write_splits,
    write_sweep,
)
from voxelpool.datasets.simulate.labels import EXACT, Annotator, draw_calibration, label
from voxelpool.datasets.simulate.layouts import make_scene
from voxelpool.datasets.simulate.scene import Scene
from voxelpool.datasets.simulate.sensor import Sweep, scan
from voxelpool.errors import DataError
from voxelpool.files import atomic_write, refuse_existing

SETTINGS_FILE = "simulate.json"
# Frames of another version of the simulator do not continue a data set.
VERSION = 4
_FOLDERS = ("velodyne", "label_2", "calib")
# No KITTI frame is without an object; a scene without one is drawn again.
_ATTEMPTS = 50


@dataclass(frozen=True)
class Settings:
    """What a simulated data set depends on.

    Attributes:
        frames: how many there are.
        val_frames: how many of them, the last ones, are for validation.
        seed: of all randomness; frame i depends on it and on i only.
        label_lift: see `Annotator`, as are the next three; the rest does not depend on them. What
            is like KITTI's cars stands in docs/sim_to_real.md.
        label_scale: see there.
        label_shift: see there.
        label_visible: see there.
        oblique: share of the scenes in which cars stand at all angles, see `make_scene`.
        faint: whether vehicles send back as little as those of KITTI do, see `scan`.
        version: of the simulator.
    """

    frames: int
    val_frames: int = 0
    seed: int = 0
    label_lift: float = 0.0
    label_scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    label_shift: float = 0.0
    label_visible: float = 0.0
    oblique: float = 0.0
    faint: bool = False
    version: int = VERSION

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise DataError(f"frames must be at least 1, got {self.frames}")
        if not 0 <= self.val_frames <= self.frames:
            raise DataError(
                f"val_frames must be between 0 and frames={self.frames}, got {self.val_frames}"
            )
        if self.seed < 0:
            raise DataError(f"seed must not be negative, got {self.seed}")
        if not abs(self.label_lift) <= 1:
            raise DataError(f"label_lift must be between -1 and 1 m, got {self.label_lift}")
        scale = tuple(self.label_scale)
        if len(scale) != 3 or not all(0.5 <= factor <= 2 for factor in scale):
            raise DataError(f"label_scale must be three factors from 0.5 to 2, got {scale}")
        object.__setattr__(self, "label_scale", scale)
        if not abs(self.label_shift) <= 0.5:
            raise DataError(f"label_shift must be between -0.5 and 0.5, got {self.label_shift}")
        if not 0 <= self.label_visible <= 1:
            raise DataError(f"label_visible must be between 0 and 1, got {self.label_visible}")
        if not 0 <= self.oblique <= 1:
            raise DataError(f"oblique must be between 0 and 1, got {self.oblique}")

    @property
    def annotator(self) -> Annotator:
        """What is labelled, and how."""
        return Annotator(self.label_lift, self.label_scale, self.label_shift, self.label_visible)


@dataclass(frozen=True, eq=False)
class SimulatedFrame:
    """A frame and the scene behind it."""

    scene: Scene
    sweep: Sweep
    calibration: Calibration
    objects: KittiObjects


def simulate_frame(
    seed: int,
    index: int,
    annotator: Annotator = EXACT,
    oblique: float = 0.0,
    faint: bool = False,
) -> SimulatedFrame:
    """Frame ``index`` of the data set of ``seed``, as an annotator labels it: always the same."""
    for attempt in range(_ATTEMPTS):
        rng = np.random.default_rng([seed, index, attempt])
        scene = make_scene(rng, oblique)
        calibration = draw_calibration(rng)
        sweep = scan(rng, scene, faint)
        objects = label(rng, scene, sweep, calibration, DEFAULT_IMAGE_SIZE, annotator)
        if any(name != DONT_CARE for name in objects.type):
            return SimulatedFrame(scene, sweep, calibration, objects)
    raise DataError(f"no scene with an object in {_ATTEMPTS} attempts (seed {seed}, frame {index})")


def read_scene(root: str | os.PathLike[str], frame_id: str) -> Scene:
    """The scene behind a frame of a simulated data set, laid out anew.

    Args:
        root: the data set.
        frame_id: such as "000042".

    Raises:
        DataError: the data set is not simulated, is of another version of the simulator, or its
            calibration is not that of the scene.
    """
    root = Path(root)
    file = root / SETTINGS_FILE
    try:
        settings = _read_settings(file)
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}; only simulated scenes are known") from None
    if settings.version != VERSION:
        raise DataError(
            f"{file}: was simulated by version {settings.version}, this is {VERSION}, which lays "
            "out other scenes"
        )
    path = root / "training" / "calib" / f"{frame_id}.txt"
    written = Calibration.load(path)
    for attempt in range(_ATTEMPTS):
        rng = np.random.default_rng([settings.seed, int(frame_id), attempt])
        scene = make_scene(rng, settings.oblique)
        if np.allclose(draw_calibration(rng).Tr_velo_to_cam, written.Tr_velo_to_cam, atol=1e-6):
            return scene
    raise DataError(f"{path}: is not the calibration that was simulated")


def _paths(root: Path, index: int) -> tuple[Path, Path, Path]:
    """Sweep, label and calibration of a frame."""
    folder = root / "training"
    name = f"{index:06d}"
    return (
        folder / "velodyne" / f"{name}.bin",
        folder / "label_2" / f"{name}.txt",
        folder / "calib" / f"{name}.txt",
    )


def write_frame(root: Path, settings: Settings, index: int) -> None:
    """Simulates a frame and writes its files; the sweep comes last and marks it as complete."""
    frame = simulate_frame(
        settings.seed, index, settings.annotator, settings.oblique, settings.faint
    )
    sweep, labels, calib = _paths(root, index)
    frame.calibration.save(calib)
    write_label(labels, frame.objects, decimals=2)
    write_sweep(sweep, frame.sweep.points)


def prepare(root: Path, settings: Settings, *, resume: bool = False) -> list[int]:
    """Makes the folders, split lists and settings file of a data set.

    Args:
        root: the folder.
        settings: of the data set.
        resume: continue one that was started with the same settings.

    Returns:
        Indices of the frames that are still to be written, ascending.

    Raises:
        FileExistsError: the folder holds something and ``resume`` is not asked for.
        DataError: the folder holds something else than a data set of these settings.
        OSError: a file cannot be written.
    """
    file = root / SETTINGS_FILE
    if not resume:
        refuse_existing(root)
    elif file.exists():
        _check_settings(file, settings)
    elif root.exists() and any(root.iterdir()):
        raise DataError(f"{root}: holds files but no {SETTINGS_FILE}, so it cannot be continued")
    for folder in _FOLDERS:
        (root / "training" / folder).mkdir(parents=True, exist_ok=True)
    if not file.exists():
        with atomic_write(file) as out:
            out.write(json.dumps(asdict(settings), indent=2) + "\n")
    ids = [f"{index:06d}" for index in range(settings.frames)]
    write_splits(root, ids, settings.val_frames)
    return [
        index
        for index in range(settings.frames)
        if not all(path.exists() for path in _paths(root, index))
    ]


def _read_settings(file: Path) -> Settings:
    """The settings of a data set; those that came after it was simulated are at their defaults."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise DataError("expected an object of settings")
        return Settings(**found)
    except (ValueError, TypeError) as error:
        raise DataError(f"{file}: {error}") from None


def _check_settings(file: Path, settings: Settings) -> None:
    begun = asdict(_read_settings(file))
    for key, value in asdict(settings).items():
        if begun[key] != value:
            raise DataError(
                f"{file}: the data set was started with {key}={begun[key]}, not {value}; "
                "give the same settings or another folder"
            )


def write_frames(
    root: Path, settings: Settings, indices: list[int], *, workers: int = 1
) -> Iterator[int]:
    """Writes frames into a prepared folder, on ``workers`` processes of one thread each.

    Yields:
        The index of each frame once it is written, in any order.
    """
    if workers < 1:
        raise DataError(f"workers must be at least 1, got {workers}")
    tasks = [(root, settings, index) for index in indices]
    if workers == 1 or len(tasks) < 2:
        yield from map(_task, tasks)
        return
    context = multiprocessing.get_context("spawn")
    with _single_threaded(), context.Pool(min(workers, len(tasks))) as pool:
        yield from pool.imap_unordered(_task, tasks)


def _task(task: tuple[Path, Settings, int]) -> int:
    write_frame(*task)
    return task[2]


@contextmanager
def _single_threaded() -> Iterator[None]:
    """Processes started meanwhile keep to one thread in OpenMP and BLAS."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
