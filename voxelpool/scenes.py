"""Scenes to look at, from what lies on disk, from the simulator and from a detector."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from voxelpool.config import Config, load_detector_config
from voxelpool.datasets.calibration import Calibration
from voxelpool.datasets.kitti import (
    DONT_CARE,
    FramePaths,
    KittiObjects,
    difficulty,
    find_beside,
    read_label,
    read_result,
)
from voxelpool.datasets.sweeps import read_lone_sweep
from voxelpool.errors import ConfigError, DataError
from voxelpool.ops import voxelize
from voxelpool.structures import VoxelGrid, Voxels
from voxelpool.visualization import (
    FOUND,
    LABELLED,
    BoxGroup,
    CameraImage,
    Scene,
    VoxelGroup,
    match_boxes,
)
from voxelpool.visualization.lessons import (
    HeatMap,
    draw_heat,
    draw_point_counts,
    kept_marks,
    winner_marks,
)
from voxelpool.visualization.scene import ColorBy, VoxelShape

DEFAULT_GRID = VoxelGrid((-70.4, -70.4, -3.0, 70.4, 70.4, 1.0), (0.2, 0.2, 0.4))
"""Of voxels that are shown without a configuration: VoxelNet's, all around."""

COLUMNS = ("x", "y", "z", "reflectance")
"""What the columns of a point are called."""


@dataclass(frozen=True)
class Voxelization:
    """How a sweep is voxelized; see `voxelpool.ops.voxelize`."""

    grid: VoxelGrid = DEFAULT_GRID
    max_points: int | None = None
    max_voxels: int | None = None
    seed: int = 0

    @classmethod
    def of(cls, config: Config) -> Voxelization:
        """As a detector of this configuration does it."""
        block = config.vfe
        return cls(config.grid.to_grid(), block.max_points, block.max_voxels, config.seed)

    def __call__(self, points: NDArray[np.floating[Any]]) -> Voxels:
        """The voxels of a sweep (N, >=3)."""
        return voxelize(
            torch.from_numpy(points),
            self.grid,
            max_points=self.max_points,
            max_voxels=self.max_voxels,
            seed=self.seed,
        )


def frame_ids(root: str | os.PathLike[str]) -> list[str]:
    """The frames of a data set in KITTI's layout that can be looked at, sorted.

    Those in ``training/velodyne``, or in ``testing/velodyne`` where the first holds none.

    Raises:
        DataError: there are none.
    """
    for folder in ("training", "testing"):
        found = sorted(path.stem for path in (Path(root) / folder / "velodyne").glob("*.bin"))
        if found:
            return found
    raise DataError(f"{root}: no sweeps in training/velodyne or testing/velodyne")


def frame_path(root: str | os.PathLike[str], frame_id: str) -> Path:
    """The sweep of a frame of a data set in KITTI's layout.

    Raises:
        DataError: there is none.
    """
    for folder in ("training", "testing"):
        path = FramePaths.of(Path(root) / folder, frame_id).sweep
        if path.is_file():
            return path
    raise DataError(f"{root}: no frame {frame_id} in training/velodyne or testing/velodyne")


def frames_between(ids: Sequence[str], text: str) -> list[str]:
    """The frames that "a:b" means: as a slice of Python does, of their sorted list.

    Raises:
        DataError: no two whole numbers, or no frame is meant.
    """
    parts = text.split(":")
    try:
        first, last = (int(part) if part else None for part in parts)
    except ValueError:
        raise DataError(f"frames must be A:B, two whole numbers, got {text!r}") from None
    chosen = list(ids[first:last])
    if not chosen:
        raise DataError(f"frames {text}: none of the {len(ids)} there are")
    return chosen


def wanted_scenes(
    path: str | os.PathLike[str] | None = None,
    *,
    root: str | os.PathLike[str] | None = None,
    frame: str | None = None,
    frames: str | None = None,
    simulate: int | None = None,
    results: str | os.PathLike[str] | None = None,
    min_score: float = 0.3,
    match_iou: float = 0.5,
    color: ColorBy = "height",
    crop: bool = True,
) -> list[Scene]:
    """The scenes that a user names: by a file, as frames of a data set, or by a seed.

    Args:
        path: a sweep, or what ``tools/voxelize.py`` wrote (.npz).
        root: or a data set in KITTI's layout, with ``frame`` or ``frames``.
        frame: one of its frames.
        frames: "a:b", see `frames_between`; of the frames with results, if there are results.
        simulate: or a seed; ``frames`` counts its frames, by default the first is meant.
        results: see `sweep_scene`, as are the others.
        min_score: see there.
        match_iou: see there.
        color: see there.
        crop: see there.

    Raises:
        ConfigError: not one of them is given, or what does not go together.
        DataError: see `sweep_scene`.
        OSError: a file cannot be read.
    """
    if sum(one is not None for one in (path, root, simulate)) != 1:
        raise ConfigError("give INPUT.bin, or --root and --frame, or --simulate: one of them")
    if simulate is not None:
        if frame is not None or results is not None:
            raise ConfigError("--simulate has neither --frame nor --results")
        rows = range(1) if frames is None else _rows(frames)
        return [simulated_scene(simulate, row, color=color) for row in rows]
    if path is not None and (frame is not None or frames is not None):
        raise ConfigError("--frame and --frames belong to --root")
    if path is not None and Path(path).suffix == ".npz":
        return [voxelized_scene(path, color=color)]
    if path is not None:
        paths = [Path(path)]
    else:
        assert root is not None
        if (frame is None) == (frames is None):
            raise ConfigError("give INPUT.bin, or --root and --frame or --frames")
        if frames is not None:
            ids = frame_ids(root)
            if results is not None:
                ids = [one for one in ids if (Path(results) / f"{one}.txt").is_file()]
            paths = [frame_path(root, one) for one in frames_between(ids, frames)]
        else:
            assert frame is not None
            paths = [frame_path(root, frame)]
    return [
        sweep_scene(
            one,
            results=results,
            min_score=min_score,
            match_iou=match_iou,
            color=color,
            crop=crop,
        )
        for one in paths
    ]


def _rows(text: str) -> range:
    first, _, last = text.partition(":")
    if not (last.isdigit() and (first.isdigit() or not first)) or int(first or 0) >= int(last):
        raise ConfigError(f"frames of --simulate must be A:B, two whole numbers, got {text!r}")
    return range(int(first or 0), int(last))


def sweep_scene(
    path: str | os.PathLike[str],
    *,
    results: str | os.PathLike[str] | None = None,
    min_score: float = 0.3,
    match_iou: float = 0.5,
    classes: Sequence[str] | None = None,
    color: ColorBy = "height",
    crop: bool = True,
) -> Scene:
    """A sweep with the boxes and the image that are known of it, found beside it.

    Args:
        path: the sweep.
        results: a folder of KITTI result files. With labels too, matches and misses are told.
        min_score: results below are not shown.
        match_iou: see `match_boxes`.
        classes: what the results looked for; None: what is in the sweep's result file.
        color: see `Scene`.
        crop: keep only what the camera sees, where it is known.

    Raises:
        DataError: a file is bad, or results have no calibration to be shown with.
        OSError: a file cannot be read.
    """
    path = Path(path)
    sweep = read_lone_sweep(path, crop=crop)
    beside, calibration = find_beside(path), sweep.calibration
    groups: list[BoxGroup] = []
    if calibration is not None and beside is not None and beside.label.is_file():
        groups.append(labelled_group(read_label(beside.label), calibration))
    if results is not None:
        if calibration is None:
            raise DataError(f"{path}: results need the calibration of the sweep beside it")
        found = read_result(Path(results) / f"{path.stem}.txt")
        assert found.score is not None, "results are read with their scores"
        sought = list(classes) if classes is not None else sorted(set(found.type))
        sure = found[np.flatnonzero(found.score >= min_score)]
        shown = _group(sure, calibration, "found", FOUND)
        groups = match_boxes(groups[0], shown, iou=match_iou, classes=sought) if groups else [shown]
    camera = None
    if calibration is not None and beside is not None and beside.image.is_file():
        camera = camera_image(beside.image, calibration)
    return Scene(sweep.points, groups, title=path.stem, color=color, camera=camera)


def labelled_group(objects: KittiObjects, calibration: Calibration) -> BoxGroup:
    """The objects of a label file with their difficulties."""
    known = objects[[row for row, name in enumerate(objects.type) if name != DONT_CARE]]
    group = _group(known, calibration, "labelled", LABELLED)
    return replace(group, difficulty=difficulty(known))


def _group(
    objects: KittiObjects, calibration: Calibration, label: str, color: tuple[float, float, float]
) -> BoxGroup:
    """Objects of a KITTI file as boxes in the LiDAR frame."""
    boxes = objects.lidar_boxes(calibration)
    return BoxGroup(boxes, label, color, scores=objects.score, names=objects.type)


def camera_image(path: str | os.PathLike[str], calibration: Calibration) -> CameraImage:
    """An image with the projection that belongs to it.

    Raises:
        DataError: the file is no image.
    """
    try:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError) as error:
        raise DataError(f"{path}: no image can be read from it ({error})") from None
    # The projection is linear in x, y, z, 1: its columns are what it makes of the axes.
    corners = np.concatenate([np.zeros((1, 3)), np.eye(3)])
    seen = calibration.lidar_to_camera(corners)
    seen = seen @ calibration.P2[:, :3].T + calibration.P2[:, 3]
    return CameraImage(pixels, np.column_stack([(seen[1:] - seen[0]).T, seen[0]]))


def simulated_scene(seed: int, index: int = 0, *, color: ColorBy = "height") -> Scene:
    """Frame ``index`` of the simulated data set of ``seed``, all around."""
    from voxelpool.datasets.simulate import simulate_frame  # needs open3d

    frame = simulate_frame(seed, index)
    group = labelled_group(frame.objects, frame.calibration)
    title = f"simulated, seed {seed}, frame {index}"
    return Scene(frame.sweep.points, [group], title=title, color=color)


def voxelized_scene(
    path: str | os.PathLike[str], *, shape: VoxelShape = "cubes", color: ColorBy = "height"
) -> Scene:
    """What ``tools/voxelize.py`` wrote: the voxels, and the points if it stored them padded.

    Raises:
        DataError: the file is another one, or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        bounds, size = (tuple(arrays[name].tolist()) for name in ("range", "voxel_size"))
        grid = VoxelGrid(bounds, size)
        voxels = VoxelGroup(arrays["coords"], np.diff(arrays["offsets"]), grid, shape)
        points = np.zeros((0, 4))
        if "voxels" in arrays:
            padded, held = arrays["voxels"], arrays["num_points"]
            points = padded[np.arange(padded.shape[1]) < held[:, None]]
    except OSError:
        raise
    except Exception as error:
        raise DataError(f"{path}: not what tools/voxelize.py writes ({error})") from None
    return Scene(points, title=Path(path).stem, color=color, voxels=voxels)


def with_voxels(scene: Scene, how: Voxelization, shape: VoxelShape = "cubes") -> Scene:
    """The scene with its points' voxels, or with those it has in this shape."""
    if scene.voxels is not None:
        return replace(scene, voxels=replace(scene.voxels, shape=shape))
    voxels = how(scene.points.astype(np.float32))
    return replace(scene, voxels=VoxelGroup.of(voxels, shape))


def kept_scene(scene: Scene, how: Voxelization) -> Scene:
    """The scene with its points told apart by what voxelization makes of them."""
    points = scene.points.astype(np.float32)
    marks = kept_marks(
        points, how.grid, max_points=how.max_points, max_voxels=how.max_voxels, seed=how.seed
    )
    return replace(scene, points=scene.points[:0], voxels=None, marks=marks)


def winner_scene(scene: Scene, how: Voxelization, channel: str = "z") -> Scene:
    """The scene with the points that win the maximum of a channel in their voxels.

    Raises:
        DataError: the points have no such channel.
    """
    names = COLUMNS[: scene.points.shape[1]]
    if channel not in names:
        raise DataError(f"channel must be one of {', '.join(names)}, got {channel!r}")
    points = scene.points.astype(np.float32)
    values = points[:, names.index(channel)]
    marks = winner_marks(points, how(points), values, channel)
    return replace(scene, points=scene.points[:0], voxels=None, marks=marks)


def detector_map(
    weights: str | os.PathLike[str],
    points: NDArray[np.floating[Any]],
    what: Literal["features", "scores"],
    *,
    config: Config | None = None,
    channel: int | None = None,
) -> HeatMap:
    """What a detector has of a sweep, from above.

    Args:
        weights: a file or a name; see `voxelpool.Detector.load`.
        points: (N, >=3) sweep, metres.
        what: "features": the map that the middle layers hand to the RPN; "scores": how sure it is
            of its surest anchor at each place, 0 where no anchor counts.
        config: see `voxelpool.Detector.load`.
        channel: of the features; None: the mean of all their magnitudes.

    Raises:
        CheckpointError: the weights cannot be used.
        DataError: the points have too few columns, or there is no such channel.
    """
    from voxelpool.models import load_detector
    from voxelpool.models.weights import find_weights

    network = load_detector(find_weights(weights), config).eval()
    columns = network.point_dims
    if points.shape[1] < columns:
        raise DataError(f"the detector needs {columns} values a point, got {points.shape[1]}")
    sweep = torch.from_numpy(np.ascontiguousarray(points[:, :columns], np.float32))
    x0, y0, _, x1, y1, _ = network.grid.range
    with torch.no_grad():
        voxels = network.voxelize(sweep)
        if what == "scores":
            scores = network.counted_scores(network.predict(sweep, voxels).scores, voxels)
            scores = scores[0].sigmoid().nan_to_num(0.0)
            height, width = network.rpn.output_size(*network.middle.out_size)
            best = scores.view(height, width, -1).amax(dim=2)
            return HeatMap(best, (x0, y0, x1, y1), "surest anchor's score", (0.0, 1.0))
        features = network.vfe.encode(sweep, voxels)
        maps = network.middle(features, voxels.coords, 1)[0]
    if channel is None:
        return HeatMap(maps.abs().mean(dim=0), (x0, y0, x1, y1), f"mean of {len(maps)} channels")
    if not 0 <= channel < len(maps):
        raise DataError(f"channel must be from 0 to {len(maps) - 1}, got {channel}")
    return HeatMap(maps[channel], (x0, y0, x1, y1), f"channel {channel}")


def draw_map(
    scene: Scene,
    what: Literal["histogram", "features", "scores"],
    how: Voxelization,
    weights: str | os.PathLike[str] | None = None,
    config: Config | None = None,
    channel: str | None = None,
) -> Image.Image:
    """Draws what is no scene: the histogram of points per voxel, or a map of a detector.

    Args:
        scene: its points are counted or detected in, its boxes are drawn over a map.
        what: see `draw_point_counts` and `detector_map`.
        how: the voxels of the histogram.
        weights: of a map; see `detector_map`, as are the others.
        config: see there.
        channel: see there.

    Raises:
        ConfigError: the channel is no number.
        DataError: see `detector_map`.
    """
    if what == "histogram":
        counts = replace(how, max_points=None, max_voxels=None)(scene.points.astype(np.float32))
        title = f"{scene.title}: points per voxel"
        return draw_point_counts(counts.counts(), max_points=how.max_points, title=title)
    if channel is not None and not channel.isdigit():
        raise ConfigError(f"the channel of a map is a whole number, got {channel!r}")
    assert weights is not None
    row = None if channel is None else int(channel)
    return draw_heat(detector_map(weights, scene.points, what, config=config, channel=row), scene)


def augmented_scenes(
    config: str | os.PathLike[str],
    frame_id: str,
    *,
    root: str | os.PathLike[str] | None = None,
    epoch: int = 0,
    color: ColorBy = "height",
) -> list[Scene]:
    """A training frame as it is, and as a configuration changes it.

    Raises:
        ConfigError: the configuration is bad.
        DataError: the training split has no such frame.
    """
    from voxelpool.training import SweepData  # takes seconds, which no other scene needs

    settings = load_detector_config(config, [] if root is None else [f"data.root={root}"])
    frames = SweepData(settings).augmented_frames
    ids = frames.frames.frame_ids
    if frame_id not in ids:
        split = settings.data.train_split
        raise DataError(f"{settings.data.root}: no frame {frame_id} in {split}")
    row = ids.index(frame_id)
    return [
        Scene(
            shown.points,
            [BoxGroup(shown.boxes, "labelled", LABELLED, names=shown.names)],
            title=title,
            color=color,
        )
        for shown, title in (
            (frames.frames[row], frame_id),
            (frames[epoch, row], f"{frame_id} augmented, epoch {epoch}"),
        )
    ]
