"""Draws a sweep with its boxes."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import _cli
import numpy as np
import typer

from voxelpool.config import load_detector_config
from voxelpool.datasets.calibration import Calibration
from voxelpool.datasets.kitti import (
    DONT_CARE,
    FramePaths,
    KittiObjects,
    find_beside,
    read_label,
    read_result,
)
from voxelpool.datasets.sweeps import read_lone_sweep
from voxelpool.errors import ConfigError, DataError
from voxelpool.files import refuse_existing
from voxelpool.visualization import FOUND, LABELLED, BoxGroup, Scene, render_3d, render_bev
from voxelpool.visualization.window import show


class View(str, Enum):
    """Where a picture is taken from."""

    bev = "bev"
    oblique = "oblique"
    driver = "driver"


class Color(str, Enum):
    """What the colours of points mean."""

    height = "height"
    reflectance = "reflectance"
    range = "range"


def main(
    sweep: Annotated[Path | None, typer.Argument(metavar="[INPUT.bin]", help="a sweep")] = None,
    root: Annotated[Path | None, typer.Option(help="a data set in KITTI's layout")] = None,
    frame: Annotated[str | None, typer.Option(help="a frame of --root, such as 000008")] = None,
    results: Annotated[
        Path | None, typer.Option(help="folder of KITTI result files, drawn beside the labels")
    ] = None,
    min_score: Annotated[float, typer.Option(help="draw results from this score on")] = 0.3,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="the PNG; by default NAME_VIEW.png here")
    ] = None,
    view: Annotated[View, typer.Option(help="from above, behind or the side")] = View.bev,
    color: Annotated[Color, typer.Option(help="what colours of points mean")] = Color.height,
    crop: Annotated[
        bool, typer.Option("--crop/--no-crop", help="only what the camera sees, if known")
    ] = True,
    window: Annotated[bool, typer.Option("--window", help="open a window instead")] = False,
    augmented: Annotated[
        Path | None,
        typer.Option(metavar="CONFIG", help="draw --frame as it is and as CONFIG trains on it"),
    ] = None,
    epoch: Annotated[int, typer.Option(min=0, help="of the training, with --augmented")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace OUT")] = False,
) -> None:
    """Draws a sweep, its labels and results, to a PNG (no display needed) or in a window.

    Labels and calibration are found beside the sweep in KITTI's layout.

    Example: python tools/visualize.py --root data/simulated --frame 000600 --view oblique
    -o frame.png

    Example: python tools/visualize.py --augmented configs/demo.yaml --root data/simulated
    --frame 000000 --epoch 3
    """
    if augmented is not None:
        scenes = augmented_scenes(augmented, sweep, root, frame, epoch, color.value)
        name = scenes[0].title
    else:
        path = find_sweep(sweep, root, frame)
        scenes, name = [make_scene(path, results, min_score, color.value, crop)], path.stem
    if window:
        for scene in scenes:
            show(scene)
        return
    out = out or Path(f"{name}_{view.value}.png")
    outs = [out, out.with_name(f"{out.stem}_augmented{out.suffix}")][: len(scenes)]
    if not overwrite:
        for path in outs:
            refuse_existing(path)
    for scene, path in zip(scenes, outs, strict=True):
        if view is View.bev:
            render_bev(scene, path)
        else:
            render_3d(scene, path, view=view.value)
        _cli.console.print(str(path))


def augmented_scenes(
    config: Path, sweep: Path | None, root: Path | None, frame: str | None, epoch: int, color: str
) -> list[Scene]:
    """A training frame as it is, and as a configuration changes it."""
    from voxelpool.training import SweepData  # takes seconds, which no other picture needs

    if sweep is not None or frame is None:
        raise ConfigError("--augmented draws a frame of the training split: give --frame")
    settings = load_detector_config(config, [] if root is None else [f"data.root={root}"])
    frames = SweepData(settings).augmented_frames
    ids = frames.frames.frame_ids
    if frame not in ids:
        raise DataError(f"{settings.data.root}: no frame {frame} in {settings.data.train_split}")
    row = ids.index(frame)
    return [
        Scene(
            shown.points,
            [BoxGroup(shown.boxes, "labelled", LABELLED, names=shown.names)],
            title=title,
            color=color,  # type: ignore[arg-type]
        )
        for shown, title in (
            (frames.frames[row], frame),
            (frames[epoch, row], f"{frame} augmented, epoch {epoch}"),
        )
    ]


def find_sweep(sweep: Path | None, root: Path | None, frame: str | None) -> Path:
    """The sweep that the arguments mean."""
    if (sweep is None) == (root is None) or (root is None) != (frame is None):
        raise ConfigError("give INPUT.bin, or --root and --frame")
    if sweep is not None:
        return sweep
    assert root is not None and frame is not None
    for folder in ("training", "testing"):
        path = FramePaths.of(root / folder, frame).sweep
        if path.is_file():
            return path
    raise DataError(f"{root}: no frame {frame} in training/velodyne or testing/velodyne")


def make_scene(path: Path, results: Path | None, min_score: float, color: str, crop: bool) -> Scene:
    """The sweep, and the boxes that are known of it."""
    sweep = read_lone_sweep(path, crop=crop)
    groups = []
    beside = find_beside(path)
    if sweep.calibration is not None and beside is not None and beside.label.is_file():
        labels = read_label(beside.label)
        groups.append(group_of(labels, sweep.calibration, "labelled", LABELLED))
    if results is not None:
        if sweep.calibration is None:
            raise DataError(f"{path}: --results needs the calibration of the sweep beside it")
        found = read_result(results / f"{path.stem}.txt")
        assert found.score is not None, "results are read with their scores"
        sure = found[np.flatnonzero(found.score >= min_score)]
        groups.append(group_of(sure, sweep.calibration, "found", FOUND))
    return Scene(sweep.points, groups, title=path.stem, color=color)  # type: ignore[arg-type]


def group_of(
    objects: KittiObjects, calibration: Calibration, label: str, color: tuple[float, float, float]
) -> BoxGroup:
    """Objects of a KITTI file as boxes in the LiDAR frame."""
    known = objects[[row for row, name in enumerate(objects.type) if name != DONT_CARE]]
    boxes = calibration.boxes_to_lidar(known.location, known.dimensions, known.rotation_y)
    return BoxGroup(boxes, label, color, scores=known.score, names=known.type)


if __name__ == "__main__":
    _cli.run(main)
