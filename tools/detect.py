"""Finds objects in sweeps."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path
from typing import Annotated, Any

import _cli
import torch
import typer
from rich.table import Table

from voxelpool import Detector
from voxelpool.config import Config, load_detector_config
from voxelpool.datasets.kitti import find_beside, read_label, results_from_boxes, write_result
from voxelpool.datasets.sweeps import LoneSweep, find_sweeps, read_ahead, read_lone_sweep
from voxelpool.detection import Detections
from voxelpool.errors import ConfigError, DataError
from voxelpool.files import atomic_write, refuse_existing
from voxelpool.models import Precision
from voxelpool.models.checkpoint import trained_detector_config
from voxelpool.models.weights import find_weights
from voxelpool.visualization import FOUND, LABELLED, BoxGroup, Scene, render_3d, render_bev

BOX_FIELDS = ("x", "y", "z", "dx", "dy", "dz", "yaw")


def main(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="[CONFIG] INPUT... [KEY=VALUE]...",
            help="the configuration that was trained, unless --weights brings one; sweeps (.bin, "
            ".npy, .pcd, .ply, .las) or folders of them; keys of the configuration",
        ),
    ],
    checkpoint: Annotated[
        Path | None, typer.Option(help="weights of CONFIG that tools/train.py wrote")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="instead of CONFIG and --checkpoint: the name of weights that came with the "
            "package, or a file that brings its configuration",
            metavar="NAME|PATH",
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="folder for what is found")] = Path(
        "detections"
    ),
    calib: Annotated[
        Path | None, typer.Option(help="KITTI calibration of the sweep, if not beside it")
    ] = None,
    dims: Annotated[int, typer.Option(min=4, help=_cli.DIMS_HELP)] = 4,
    intensity_max: Annotated[float | None, typer.Option(help=_cli.INTENSITY_HELP)] = None,
    png: Annotated[
        bool, typer.Option("--png", help="also draw each sweep from above and in 3D")
    ] = False,
    min_score: Annotated[
        float, typer.Option(help="draw boxes from this score on", min=0, max=1)
    ] = 0.5,
    score_threshold: Annotated[
        float | None,
        typer.Option(help="write boxes from this score on; default: as configured", min=0, max=1),
    ] = None,
    nms_iou: Annotated[
        float | None,
        typer.Option(
            help="drop boxes that overlap a better one by more; default: as configured",
            min=0,
            max=1,
        ),
    ] = None,
    votes: Annotated[
        int | None,
        typer.Option(
            help="look at each sweep so many times, mirrored, turned and scaled, and average the "
            "boxes; 8 finds more and costs 8 times as long; default: as configured",
            min=1,
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="cpu, cuda, cuda:1; default: cuda where there is one")
    ] = "cuda" if torch.cuda.is_available() else "cpu",
    precision: Annotated[
        Precision, typer.Option(help="32, or bf16: faster, boxes differ by about 1 cm")
    ] = "32",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace files in OUT")] = False,
    json_out: _cli.JsonOut = None,
) -> None:
    """Finds objects in sweeps and writes KITTI result files, one a sweep.

    Calibration and image size are found beside a sweep in KITTI's layout, or given with --calib;
    the sweep is then cropped to the image, as the training was. Without calibration the whole
    sweep is searched, and boxes are written as CSV and JSON in the LiDAR frame.

    Example: python tools/detect.py configs/demo.yaml data/simulated/training/velodyne/000000.bin
    --checkpoint runs/demo/checkpoints/best.ckpt -o detections --png

    Example: python tools/detect.py --weights voxelnet_car_sim sweeps/ -o detections --votes 8
    """
    overrides = [text for text in arguments if "=" in text and not Path(text).exists()]
    inputs = [text for text in arguments if text not in overrides]
    path, settings = chosen(inputs, overrides, checkpoint, weights)
    paths = sweeps_named(inputs)
    if calib is not None and len(paths) > 1:
        raise DataError(f"--calib belongs to one sweep, but INPUT names {len(paths)}")
    detector = Detector.load(
        path,
        config=settings,
        device=device,
        score_threshold=score_threshold,
        nms_iou=nms_iou,
        votes=votes,
        precision=precision,
    )
    _cli.say_backend(settings, device)
    if not overwrite:
        refuse_existing(out)
    summary = Table("sweep", "points", "found", "best score", "ms", title=f"{settings.name}")
    written: list[Path] = []
    crop = settings.data.crop_to_image
    sweeps = read_ahead(
        read_lone_sweep(path, dims=dims, crop=crop, calibration=calib, intensity_max=intensity_max)
        for path in paths
    )
    results = []
    for path, sweep in zip(_cli.progress(paths, "detecting"), sweeps, strict=True):
        started = time.perf_counter()
        found = detector.detect(sweep.points)
        milliseconds = 1000 * (time.perf_counter() - started)
        out.mkdir(parents=True, exist_ok=True)
        files = write_found(out, path.stem, found, sweep)
        if png:
            files += draw_found(out, path, found, sweep, min_score)
        written += files
        results.append(
            {
                "sweep": str(path),
                "points": len(sweep.points),
                "milliseconds": milliseconds,
                "objects": records_of(found),
                "files": [str(file) for file in files],
            }
        )
        best = f"{found.scores[0]:.2f}" if len(found) else "-"
        counts = ", ".join(f"{found.names.count(name)} {name}" for name in settings.classes)
        summary.add_row(path.stem, str(len(sweep.points)), counts, best, f"{milliseconds:.0f}")
    _cli.console.print(summary)
    for path in written if len(written) <= 10 else [out]:
        _cli.console.print(str(path))
    _cli.write_json(results, json_out)


def chosen(
    inputs: list[str], overrides: list[str], checkpoint: Path | None, weights: str | None
) -> tuple[Path, Config]:
    """The file of the weights and its configuration; takes CONFIG out of ``inputs``."""
    if weights is not None:
        if checkpoint is not None:
            raise ConfigError("--weights and --checkpoint: give one of them")
        for text in inputs:
            if Path(text).suffix in (".yaml", ".yml"):
                raise ConfigError(f"{text}: --weights brings a configuration of its own")
        path = find_weights(weights)
        return path, trained_detector_config(path, overrides)
    if checkpoint is None:
        raise ConfigError("CONFIG goes with --checkpoint; without it give --weights NAME|PATH")
    if not inputs:
        raise ConfigError("CONFIG: none given")
    return checkpoint, load_detector_config(inputs.pop(0), overrides)


def sweeps_named(inputs: list[str]) -> list[Path]:
    """The sweeps that INPUT means, each of another name."""
    if not inputs:
        raise DataError("INPUT: no sweep given")
    found = find_sweeps(inputs)
    names = [path.stem for path in found]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise DataError(f"two sweeps are named {min(twice)}: their results would be one file")
    return found


def write_found(out: Path, name: str, found: Detections, sweep: LoneSweep) -> list[Path]:
    """Writes what was found in one sweep; returns the files."""
    if sweep.calibration is not None and sweep.image_size is not None:
        path = out / f"{name}.txt"
        write_result(
            path,
            results_from_boxes(
                found.boxes.double().numpy(),
                found.scores.double().numpy(),
                found.names,
                sweep.calibration,
                sweep.image_size,
            ),
        )
        return [path]
    records = records_of(found)
    with atomic_write(out / f"{name}.json") as file:
        json.dump(records, file, indent=1)
    with atomic_write(out / f"{name}.csv") as file:
        table = csv.DictWriter(file, ("class", "score", *BOX_FIELDS), lineterminator="\n")
        table.writeheader()
        table.writerows(records)
    return [out / f"{name}.json", out / f"{name}.csv"]


def records_of(found: Detections) -> list[dict[str, Any]]:
    """What was found in one sweep, a dictionary a box, in the LiDAR frame."""
    return [
        {"class": kind, "score": score, **dict(zip(BOX_FIELDS, box, strict=True))}
        for kind, score, box in zip(
            found.names, found.scores.tolist(), found.boxes.tolist(), strict=True
        )
    ]


def draw_found(
    out: Path, path: Path, found: Detections, sweep: LoneSweep, min_score: float
) -> list[Path]:
    """Draws one sweep with what was found and, where it has labels, what is there."""
    shown = found[found.scores >= min_score]
    groups = [
        BoxGroup(
            shown.boxes,
            label="found",
            color=FOUND,
            scores=shown.scores,
            names=shown.names,
        )
    ]
    beside = find_beside(path)
    if sweep.calibration is not None and beside is not None and beside.label.is_file():
        objects = read_label(beside.label)
        known = objects[[row for row, name in enumerate(objects.type) if name in found.classes]]
        boxes = known.lidar_boxes(sweep.calibration)
        groups.insert(0, BoxGroup(boxes, label="labelled", color=LABELLED, names=known.type))
    scene = Scene(points=sweep.points, boxes=groups, title=path.stem)
    pictures = [out / f"{path.stem}_bev.png", out / f"{path.stem}_3d.png"]
    render_bev(scene, pictures[0])
    render_3d(scene, pictures[1])
    return pictures


if __name__ == "__main__":
    _cli.run(main)
