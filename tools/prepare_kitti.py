"""Checks a KITTI download; writes cropped sweeps and the objects of a split."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from _cli import JsonOut, console, progress, run, write_json
from rich.markup import escape
from rich.table import Table

from voxelpool.datasets.kitti import KittiDataset
from voxelpool.datasets.kitti_check import FRAMES, Report, check_kitti
from voxelpool.datasets.object_database import (
    ObjectDatabase,
    build_object_database,
    database_path,
)
from voxelpool.errors import DataError


def main(
    root: Annotated[Path, typer.Argument(help="folder with training/, testing/ and ImageSets/")],
    split: Annotated[
        list[str] | None,
        typer.Option(help="check, and insist on, this split only; may be given several times"),
    ] = None,
    cache: Annotated[
        bool,
        typer.Option(
            "--cache",
            help="also write cropped sweeps to ROOT/*/velodyne_cropped; a stopped run goes on",
        ),
    ] = False,
    cache_dir: Annotated[
        Path | None,
        typer.Option(help="write the cropped sweeps below this folder (implies --cache)"),
    ] = None,
    gt_database: Annotated[
        bool,
        typer.Option(
            "--gt-database",
            help="also cut the objects of a split out of its sweeps and write them to "
            "ROOT/gt_database_SPLIT.npz, for data.augment: sample_objects  [split: train]",
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace a database that is there")
    ] = False,
    json_out: JsonOut = None,
) -> None:
    """Checks a KITTI download: folders, ids, every file, splits. Exit code 1 if it is unusable.

    Every problem is listed with its file; the last line is the verdict. Missing images are no
    more than a warning: 1242 x 375 pixels are assumed.

    Example: python tools/prepare_kitti.py data/kitti --cache --gt-database
    """
    databases = {
        name: database_path(root, name) for name in (split or ["train"] if gt_database else [])
    }
    for path in databases.values():
        if path.exists() and not overwrite:
            raise DataError(f"{path}: is there already; --overwrite replaces it")
    report = check_kitti(
        root, split, cache=cache or cache_dir is not None, cache_root=cache_dir, progress=progress
    )
    for problem in report.problems:
        colour = "red" if problem.severity == "error" else "yellow"
        text = escape(f"{problem.path}: {problem.message}")
        console.print(f"[{colour}]{problem.severity}:[/] {text}", highlight=False)
    console.print(_table(report))
    for name, folder in report.folders.items():
        if folder.objects:
            counts = ", ".join(f"{kind} {count}" for kind, count in folder.objects.most_common())
            console.print(f"{name} objects: {counts}", highlight=False)
        if cache or cache_dir is not None:
            written, kept = folder.newly_cached, folder.already_cached
            console.print(f"{name} cropped sweeps: {written} written, {kept} were up to date")
    for name, missing in report.splits.items():
        state = "complete" if not missing else f"{missing} frames missing"
        console.print(f"split {name}: {state}", highlight=False)
    colour = "green" if report.usable else "bold red"
    console.print(f"[{colour}]{escape(f'{root}: {report.verdict()}')}[/]", highlight=False)
    write_json(_values(report), json_out)
    if not report.usable:
        raise typer.Exit(1)
    for name, path in databases.items():
        frames = KittiDataset(root, name, require_labels=True)
        database = build_object_database(frames, progress=progress)
        database.save(path)
        console.print(_objects_table(database))
        console.print(f"{path}: {len(database)} objects of {len(frames)} frames")


def _values(report: Report) -> dict[str, Any]:
    """The report for programs."""
    problems = [
        {"severity": one.severity, "path": str(one.path), "message": one.message}
        for one in report.problems
    ]
    folders = {
        name: {
            "frames": folder.frames,
            "images": folder.images,
            "points": sum(folder.points),
            "objects": dict(folder.objects),
        }
        for name, folder in report.folders.items()
    }
    return {
        "usable": report.usable,
        "verdict": report.verdict(),
        "problems": problems,
        "folders": folders,
        "missing": dict(report.splits),
    }


def _objects_table(database: ObjectDatabase) -> Table:
    table = Table("class")
    headers = ("objects", "easy", "moderate", "hard", "none of them", "with 5 points or more")
    for header in headers:
        table.add_column(header, justify="right")
    for name in sorted(set(database.names.tolist())):
        of_class = database.names == name
        levels = [int((database.difficulty[of_class] == level).sum()) for level in range(4)]
        enough = len(database.rows(name, 5))
        table.add_row(name, *(f"{count:,}" for count in (int(of_class.sum()), *levels, enough)))
    return table


def _table(report: Report) -> Table:
    table = Table("folder", "frames (KITTI's)", "images")
    for header in ("points: least", "mean", "most", "in image"):
        table.add_column(header, justify="right")
    for name, folder in report.folders.items():
        row = [name, f"{folder.frames:,} ({FRAMES[name]:,})", f"{folder.images:,}"]
        if folder.points:
            mean = sum(folder.points) / len(folder.points)
            row += [f"{min(folder.points):,}", f"{mean:,.0f}", f"{max(folder.points):,}"]
        if folder.cropped:
            row.append(f"{sum(folder.cropped) / len(folder.cropped):,.0f}")
        table.add_row(*row)
    return table


if __name__ == "__main__":
    run(main)
