"""Simulates LiDAR sweeps of street scenes and writes them in KITTI's layout."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from _cli import JsonOut, console, progress, run, write_json
from rich.markup import escape

from voxelpool.datasets.simulate import Settings, prepare, write_frames
from voxelpool.errors import ConfigError


def main(
    out: Annotated[Path, typer.Argument(help="folder of the data set; new or empty")],
    frames: Annotated[int, typer.Option(help="how many frames")],
    val_frames: Annotated[
        int, typer.Option(help="how many of them, the last ones, are for validation")
    ] = 0,
    seed: Annotated[int, typer.Option(help="of all randomness")] = 0,
    label_lift: Annotated[
        float, typer.Option(help="how far above the ground labels stand, metres; KITTI's 0.05")
    ] = 0.0,
    label_scale: Annotated[
        tuple[float, float, float],
        typer.Option(
            metavar="L W H", help="how much longer, wider and higher than objects labels are"
        ),
    ] = (1.0, 1.0, 1.0),
    label_shift: Annotated[
        float,
        typer.Option(
            help="how much nearer to the sensor than objects labels stand, along their length and "
            "as a share of it"
        ),
    ] = 0.0,
    label_visible: Annotated[
        float,
        typer.Option(
            help="least share of the rays towards an object that must reach it, or it is not "
            "labelled; KITTI's 0.2"
        ),
    ] = 0.0,
    oblique: Annotated[
        float,
        typer.Option(
            help="share of the scenes, highways apart, in which the street bends or is left, cars "
            "turn and are parked at an angle"
        ),
    ] = 0.0,
    faint: Annotated[
        bool,
        typer.Option(
            "--faint",
            help="vehicles send back as little as KITTI's: paint loses returns with distance, of "
            "some nearly all of them, and windows are seen through",
        ),
    ] = False,
    workers: Annotated[int, typer.Option(help="processes, of one thread each")] = 1,
    resume: Annotated[
        bool, typer.Option("--resume", help="complete a data set of the same settings")
    ] = False,
    json_out: JsonOut = None,
) -> None:
    """Simulates sweeps of an HDL-64E in random streets, with labels and calibration as KITTI's.

    Frame i depends on the seed and on i only, whatever the number of workers. There are no
    images; 1242 x 375 pixels are assumed.

    Example: python tools/simulate.py data/simulated --frames 720 --val-frames 120 --workers 2
    """
    if workers < 1:
        raise ConfigError(f"workers must be at least 1, got {workers}")
    settings = Settings(
        frames,
        val_frames,
        seed,
        label_lift,
        label_scale,
        label_shift,
        label_visible,
        oblique,
        faint,
    )
    missing = prepare(out, settings, resume=resume)
    if missing:
        done = write_frames(out, settings, missing, workers=workers)
        for _ in progress(done, "simulating", total=len(missing)):
            pass
        text = f"{frames} frames, {frames - val_frames} for training, {val_frames} for validation"
    else:
        text = f"all {frames} frames are there"
    console.print(escape(f"{out}: {text}"), highlight=False)
    write_json({"root": str(out), **asdict(settings), "written": len(missing)}, json_out)


if __name__ == "__main__":
    run(main)
