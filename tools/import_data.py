"""Brings sweeps and boxes of any sensor into KITTI's layout, for training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from _cli import DIMS_HELP, INTENSITY_HELP, JsonOut, console, progress, run, write_json
from rich.markup import escape

from voxelpool.datasets.import_sweeps import (
    AHEAD,
    ImportSettings,
    check_frames,
    read_boxes,
    write_frames,
)
from voxelpool.datasets.sweeps import find_sweeps
from voxelpool.errors import ConfigError
from voxelpool.files import atomic_directory, refuse_existing


def main(
    sweeps: Annotated[
        Path, typer.Argument(help="folder of .bin, .npy, .pcd, .ply or .las sweeps, one a frame")
    ],
    out: Annotated[Path, typer.Argument(help="folder of the data set; new or empty")],
    boxes: Annotated[
        Path,
        typer.Option(
            help="boxes in the sensor's frame: a .csv or .json file, or a folder with one a frame"
        ),
    ],
    val_frames: Annotated[
        int, typer.Option(min=0, help="how many frames, the last ones by name, are for validation")
    ] = 0,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--class",
            metavar="THEIRS=OURS",
            help="a class of the boxes and KITTI's for it, such as car=Car; may be given several "
            "times; what is not named is left out  [default: all, by KITTI's names]",
        ),
    ] = None,
    ahead: Annotated[
        str, typer.Option(help=f"the sensor's axis that looks ahead: {', '.join(AHEAD)}")
    ] = "x",
    sensor_height: Annotated[
        float | None,
        typer.Option(
            help="metres of the sensor above the ground, which is brought to where KITTI's lies; "
            "default: sweeps keep their height"
        ),
    ] = None,
    dims: Annotated[int, typer.Option(min=3, help=DIMS_HELP)] = 4,
    intensity_max: Annotated[float | None, typer.Option(help=INTENSITY_HELP)] = None,
    json_out: JsonOut = None,
) -> None:
    """Brings a folder of sweeps and their boxes into KITTI's layout, which all tools take.

    Boxes have the columns or keys frame, class, x, y, z (of the centre), dx, dy, dz (length, width,
    height; metres) and yaw (radians, counter-clockwise from x); docs/custom_data.md has more. A
    frame is a sweep's name without its suffix. OUT is written whole or not at all.

    Example: python tools/import_data.py sweeps data/mine --boxes boxes.csv --val-frames 100
    --class car=Car --class truck=Truck --ahead y --sensor-height 1.84

    Example: python tools/train.py configs/demo.yaml data.root=data/mine data.crop_to_image=false
    """
    settings = ImportSettings(
        val_frames, dims, intensity_max, ahead, sensor_height, parse_classes(classes)
    )
    refuse_existing(out)
    paths = find_sweeps([sweeps])
    known = read_boxes(boxes)
    check_frames(paths, known, settings)
    with atomic_directory(out) as folder:
        counts = write_frames(folder, progress(paths, "importing"), known, settings)
    found = ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "no boxes"
    frames = f"{len(paths)} frames, {settings.val_frames} for validation"
    console.print(escape(f"{out}: {frames}; {found}"), highlight=False)
    write_json({"root": str(out), "frames": len(paths), "boxes": counts}, json_out)


def parse_classes(pairs: list[str] | None) -> dict[str, str] | None:
    """{"car": "Car"} from ["car=Car"]."""
    classes = {}
    for pair in pairs or []:
        theirs, equals, ours = pair.rpartition("=")
        if not (theirs and equals and ours):
            raise ConfigError(f"--class takes THEIRS=OURS, such as car=Car, got {pair!r}")
        classes[theirs] = ours
    return classes or None


if __name__ == "__main__":
    run(main)
