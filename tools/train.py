"""Trains a detector or a classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import _cli
import typer

from voxelpool.config import ClassifierConfig, load_config
from voxelpool.training import find_run, fit, new_run


def main(
    config: Annotated[Path, typer.Argument(help="a file of configs/")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="replace keys of it")
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="folder of the run  [default: runs/NAME, never reused]")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="continue --run, or the newest run of the config")
    ] = False,
) -> None:
    """Trains the network of a configuration; the run's folder gets all that comes out of it.

    Example: python tools/train.py configs/voxelnet_car.yaml train.batch_size=4 data.root=data/kitti

    Example: python tools/train.py configs/classify_voxnet_crops.yaml objects.root=data/simulated
    """
    settings = load_config(config, overrides or [])
    place = find_run(settings, run) if resume else new_run(settings, run)
    _cli.console.print(f"{'resuming' if resume else 'training'} {settings.name} in {place.folder}")
    _cli.say_backend(settings)
    with _cli.reading() as reading:
        fit(settings, place, resume=resume, reading=reading)
    metric = "accuracy" if isinstance(settings, ClassifierConfig) else "AP"
    _cli.console.print(f"checkpoints: {place.best} (best {metric}), {place.last} (last epoch)")


if __name__ == "__main__":
    _cli.run(main)
