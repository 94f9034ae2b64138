"""Groups the points of a sweep by voxel and stores the voxels."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from _cli import DIMS_HELP, INTENSITY_HELP, JsonOut, console, run, write_json
from rich.table import Table

from voxelpool.config import load_detector_config
from voxelpool.datasets.sweeps import LoneSweep, read_lone_sweep
from voxelpool.files import atomic_write, refuse_existing
from voxelpool.ops import voxelize
from voxelpool.structures import Voxels


def main(
    sweep: Annotated[
        Path, typer.Argument(metavar="INPUT", help="a sweep: .bin, .npy, .pcd, .ply or .las")
    ],
    config: Annotated[Path, typer.Option(help="grid and points per voxel are taken from here")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="the .npz to write; without it, none")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="replace keys of CONFIG"),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="of the random sample in full voxels; default: CONFIG's")
    ] = None,
    dims: Annotated[int, typer.Option(min=3, help=DIMS_HELP)] = 4,
    intensity_max: Annotated[float | None, typer.Option(help=INTENSITY_HELP)] = None,
    padded: Annotated[
        bool, typer.Option("--padded", help="also store the padded buffer, voxels (K, T, dims)")
    ] = False,
    crop: Annotated[
        bool,
        typer.Option(
            "--crop/--no-crop",
            help="crop to the image if the calibration lies beside INPUT in KITTI's layout",
        ),
    ] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace OUT")] = False,
    json_out: JsonOut = None,
) -> None:
    """Voxelizes one sweep, as training on CONFIG would, and says what became of its points.

    OUT holds coords (K, 4) int32: batch, z, y, x of each voxel; point_index (M,) int64: rows of
    INPUT, grouped by voxel; offsets (K + 1,) int64: where each voxel begins in point_index; and
    the grid's range and voxel_size. --padded adds voxels (K, T, dims) float32 and num_points (K,).

    Example: python tools/voxelize.py data/kitti/training/velodyne/000000.bin
    --config configs/voxelnet_car.yaml -o 000000.npz
    """
    settings = load_detector_config(config, overrides or [])
    if out is not None and not overwrite:
        refuse_existing(out)
    grid, limit = settings.grid.to_grid(), settings.vfe.max_points
    read = read_lone_sweep(
        sweep,
        dims=dims,
        crop=crop and settings.data.crop_to_image,
        intensity_max=intensity_max,
    )
    points = torch.from_numpy(read.points)
    everything = voxelize(points, grid)
    started = time.perf_counter()
    voxels = voxelize(
        points,
        grid,
        max_points=limit,
        max_voxels=settings.vfe.max_voxels,
        seed=settings.seed if seed is None else seed,
    )
    milliseconds = 1000 * (time.perf_counter() - started)
    console.print(_summary(sweep, read, everything, voxels, limit, milliseconds))
    if out is None:
        console.print("nothing is written without -o OUT.npz")
    else:
        with atomic_write(out, "wb") as file:
            np.savez(file, **_arrays(read, voxels, limit if padded else None))
        console.print(str(out), highlight=False)
    counts = {
        "read": read.num_read,
        "not_finite": read.num_nonfinite,
        "outside_image": read.num_outside_image,
        "outside_range": len(read.points) - everything.num_points,
        "sampled_away": everything.num_points - voxels.num_points,
        "kept": voxels.num_points,
    }
    write_json(
        {"points": counts, "voxels": voxels.num_voxels, "milliseconds": milliseconds}, json_out
    )


def _arrays(read: LoneSweep, voxels: Voxels, padded_to: int | None) -> dict[str, Any]:
    arrays = {
        "coords": voxels.coords.numpy(),
        "offsets": voxels.offsets.numpy(),
        "point_index": read.rows[voxels.point_index.numpy()],
        "range": np.array(voxels.grid.range),
        "voxel_size": np.array(voxels.grid.voxel_size),
    }
    if padded_to is not None:
        arrays["voxels"] = voxels.pad(torch.from_numpy(read.points), padded_to)[0].numpy()
        arrays["num_points"] = voxels.counts().numpy()
    return arrays


def _summary(
    sweep: Path,
    read: LoneSweep,
    everything: Voxels,
    voxels: Voxels,
    limit: int,
    milliseconds: float,
) -> Table:
    counts, all_counts = voxels.counts(), everything.counts()
    mean = counts.double().mean().item() if len(counts) else 0.0
    no_crop = "" if read.calibration is not None else " (no calibration)"
    rows = {
        "points read": f"{read.num_read:,}",
        "dropped, not finite": f"{read.num_nonfinite:,}",
        f"dropped, outside the image{no_crop}": f"{read.num_outside_image:,}",
        "dropped, outside the range": f"{len(read.points) - everything.num_points:,}",
        "dropped, sampled away": f"{everything.num_points - voxels.num_points:,}",
        "points kept": f"{voxels.num_points:,}",
        f"voxels, of {voxels.grid.num_cells:,} cells": f"{voxels.num_voxels:,}",
        "points per voxel, mean": f"{mean:.2f}",
        "points in the fullest voxel": f"{int(all_counts.max()) if len(all_counts) else 0:,}",
        f"voxels over {limit} points": f"{int((all_counts > limit).sum()):,}",
        "time to voxelize": f"{milliseconds:.1f} ms",
    }
    table = Table(show_header=False, title=sweep.name, title_justify="left")
    table.add_column()
    table.add_column(justify="right")
    for name, value in rows.items():
        table.add_row(name, value)
    return table


if __name__ == "__main__":
    run(main)
