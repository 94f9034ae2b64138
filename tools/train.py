"""Trains a detector or a classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import _cli
import typer

from voxelpool.config import ClassifierConfig, load_config
from voxelpool.training import distributed, find_run, fit, new_run


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
    json_out: _cli.JsonOut = None,
) -> None:
    """Trains the network of a configuration; the run's folder gets all that comes out of it.

    Example: python tools/train.py configs/voxelnet_car.yaml train.batch_size=4 data.root=data/kitti

    Example: torchrun --nproc-per-node 2 -- tools/train.py configs/voxelnet_car.yaml

    Example: python tools/train.py configs/classify_voxnet_crops.yaml objects.root=data/simulated
    """
    settings = load_config(config, overrides or [])
    with distributed.joined():
        first, processes = distributed.rank() == 0, distributed.size()
        _cli.console.quiet |= not first
        place = distributed.on_first(
            lambda: find_run(settings, run) if resume else new_run(settings, run)
        )
        doing = f"{'resuming' if resume else 'training'} {settings.name} in {place.folder}"
        _cli.console.print(doing + (f", {processes} processes" if processes > 1 else ""))
        _cli.say_backend(settings)
        with _cli.reading() as reading:
            trained = fit(
                settings,
                place,
                resume=resume,
                progress=not (_cli.console.quiet or json_out == Path("-")),
                reading=reading if first else None,
            )
    _cli.console.print(f"last checkpoint: {place.last}")
    if trained.best_value is None:
        _cli.console.print("no validation has been reached")
    elif isinstance(settings, ClassifierConfig):
        _cli.console.print(f"best accuracy: {trained.best_value:.1%}: {place.best}")
    else:
        _cli.console.print(f"best AP (3D, moderate): {trained.best_value:.2f}: {place.best}")
    if first:
        best = None if trained.best_value is None else str(place.best)
        values = {"run": str(place.folder), "last": str(place.last), "best": best}
        _cli.write_json({**values, "best_value": trained.best_value}, json_out)


if __name__ == "__main__":
    _cli.run(main)
