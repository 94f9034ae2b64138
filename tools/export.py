"""Writes a detector as a file that runs without this package, or as small weights for it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import _cli
import typer

from voxelpool.config import load_detector_config
from voxelpool.errors import ConfigError
from voxelpool.files import refuse_existing
from voxelpool.models.checkpoint import average_checkpoints
from voxelpool.models.export import Gives, Takes, export_detector
from voxelpool.models.weights import SUFFIX, stored_difference, write_weights

#: As `voxelpool.models.export.Format`, or weights for this package.
Format: TypeAlias = Literal["torch-export", "onnx", "aoti", "weights"]


def main(
    config: Annotated[Path, typer.Argument(help="the configuration that was trained")],
    checkpoint: Annotated[
        list[Path],
        typer.Option(
            help="weights that tools/train.py wrote; of several, given one by one, their mean; "
            "they may know more classes than CONFIG"
        ),
    ],
    format: Annotated[Format, typer.Option(help="what to write")],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="file to write: .onnx for onnx, .pt for weights, otherwise .pt2"
        ),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="replace keys of CONFIG")
    ] = None,
    takes: Annotated[
        Takes, typer.Option(help="what goes in: padded voxels, or (N, 4) points; onnx: voxels")
    ] = "voxels",
    gives: Annotated[
        Gives,
        typer.Option(help="what comes out: scores, residuals and directions, or scores and boxes"),
    ] = "maps",
    batch_size: Annotated[int, typer.Option(help="sweeps that go in at once", min=1)] = 1,
    dense_input: Annotated[
        bool,
        typer.Option(
            "--dense-input",
            help="VoxelNet: make the whole input grid, for runtimes whose ScatterND cannot add; "
            "slow",
        ),
    ] = False,
    device: Annotated[
        str, typer.Option(help="that torch-export and aoti files are for: cpu, cuda")
    ] = "cpu",
    check: Annotated[
        bool, typer.Option(help="run what was written, and compare it with the detector")
    ] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace OUT")] = False,
    json_out: _cli.JsonOut = None,
) -> None:
    """Writes the network of a checkpoint as a torch.export program, ONNX model or AOTI package.

    Or, with --format weights, as a checkpoint of half the size for tools/detect.py --weights and
    voxelpool.Detector, which holds CONFIG and float16 and nothing of the training.

    Any other file runs without this package, for any number of voxels; docs/deploy.md shows how.
    SECOND can be a torch.export program or AOTI package, with its native back end. A package of
    AOTI is machine code, and making one needs a C++ compiler.

    Example: python tools/export.py configs/pointpillars_small.yaml
    --checkpoint runs/pointpillars_small/checkpoints/best.ckpt --format onnx -o pillars.onnx
    """
    settings = load_detector_config(config, overrides or [])
    if not overwrite:
        refuse_existing(out)
    detector = average_checkpoints(checkpoint, settings).to(device)
    if format == "weights":
        if (takes, gives, batch_size, dense_input) != ("voxels", "maps", 1, False):
            raise ConfigError("--takes, --gives, --batch-size, --dense-input: not of weights")
        if out.suffix != SUFFIX:
            raise ConfigError(f"{out}: weights are written to a file *{SUFFIX}")
        write_weights(out, detector)
        difference = stored_difference(out, detector) if check else None
        if difference is not None:
            _cli.console.print(f"scores differ from the detector's by up to {difference:.1e}")
        _cli.console.print(f"{out} ({out.stat().st_size / 1e6:.1f} MB)")
        _cli.write_json({"path": str(out), "difference": difference}, json_out)
        return
    if dense_input:
        if settings.model != "voxelnet":
            raise ConfigError(f"--dense-input is for VoxelNet, and {config} is a {settings.model}")
        detector.middle.dense_input = True
    difference = export_detector(
        detector,
        out,
        format,
        takes=takes,
        gives=gives,
        batch_size=batch_size,
        check=check,
        overwrite=overwrite,
    )
    if difference is not None:
        _cli.console.print(f"differs from the detector by {difference:.1e} of the largest number")
    _cli.console.print(str(out))
    _cli.write_json({"path": str(out), "difference": difference}, json_out)


if __name__ == "__main__":
    _cli.run(main)
