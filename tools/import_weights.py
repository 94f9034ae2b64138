"""Brings weights that another package trained into a checkpoint of this one."""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path
from typing import Annotated

import _cli
import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor

from voxelpool.config import load_detector_config
from voxelpool.errors import CheckpointError
from voxelpool.files import refuse_existing
from voxelpool.models.checkpoint import write_checkpoint
from voxelpool.models.import_weights import (
    Code,
    Format,
    ImportedWeights,
    import_weights,
    read_source,
)


def main(
    source: Annotated[Path, typer.Argument(help="checkpoint or state dict of the other package")],
    format: Annotated[Format, typer.Option(help="the package that trained it")],
    config: Annotated[
        Path,
        typer.Option(help="a detector as that package has it, such as configs/*_openpcdet.yaml"),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="checkpoint to write")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="replace keys of CONFIG")
    ] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CLASS...",
            help="the source's classes in their order, if it is not the one that is published",
        ),
    ] = None,
    boxes: Annotated[
        Code,
        typer.Option(
            help="their code; mmdet3d: legacy before 1.0, which auto takes from the source if it "
            "tells its version"
        ),
    ] = "auto",
    points: Annotated[
        Code,
        typer.Option(
            help="their code in a pillar; mmdet3d: legacy, which auto takes, or current if it was "
            "trained with legacy=False"
        ),
    ] = "auto",
    allow_differences: Annotated[
        bool,
        typer.Option(
            "--allow-differences", help="only warn where CONFIG contradicts the package's code"
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace OUT")] = False,
    json_out: _cli.JsonOut = None,
) -> None:
    """Brings weights of OpenPCDet, mmdetection3d or zhulf0804/PointPillars into a checkpoint.

    SECOND and PointPillars of the first two, PointPillars of the third. The checkpoint holds its
    configuration, and all other tools take it. Nothing of SOURCE is run: a file that holds more
    than data is refused. Class order, box code, names and layouts are brought over; what CONFIG
    must say for the boxes to be those of the source is checked.

    Example: python tools/import_weights.py pointpillar_7728.pth --format openpcdet
    --config configs/pointpillars_openpcdet.yaml -o pointpillars_openpcdet.ckpt
    """
    settings = load_detector_config(config, overrides or [])
    if not overwrite:
        refuse_existing(out)
    found = read_source(source)
    try:
        imported = import_weights(
            found,
            format,
            settings,
            classes=classes,
            boxes=boxes,
            points=points,
            allow_differences=allow_differences,
        )
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error
    for warning in imported.warnings:
        _cli.warn(warning)
    report(imported, found.weights)
    write_checkpoint(out, settings, imported.weights)
    _cli.console.print(str(out))
    parts = {name: getattr(imported, name) for name in ("mapped", "left", "missing", "warnings")}
    _cli.write_json({"path": str(out), **parts}, json_out)


def report(imported: ImportedWeights, given: dict[str, Tensor]) -> None:
    """Prints what was mapped, a row a layer, what was left and what is missing."""
    table = Table(
        "there", "here", "shapes there", title=f"{len(imported.mapped)} tensors", box=SIMPLE_HEAD
    )
    for (theirs, ours), pairs in groupby(imported.mapped, key=lambda pair: tuple(map(layer, pair))):
        shapes = ("x".join(map(str, given[name].shape)) or "1" for name, _ in pairs)
        table.add_row(theirs, ours, ", ".join(dict.fromkeys(shapes)))
    _cli.console.print(table)
    for what, names in (("left", imported.left), ("missing", imported.missing)):
        _cli.console.print(f"{what}: {', '.join(names) or 'nothing'}", highlight=False)


def layer(name: str) -> str:
    """The name of a tensor's layer."""
    return name.rpartition(".")[0]


if __name__ == "__main__":
    sys.argv[1:] = _cli.repeat_options(sys.argv[1:], ("--classes",))
    _cli.run(main)
