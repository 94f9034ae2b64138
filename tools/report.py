"""Writes a page about a training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import _cli
import torch
import typer

from voxelpool.config import AnyConfig, ClassifierConfig, load_config
from voxelpool.errors import CheckpointError, ConfigError, DataError
from voxelpool.models import Precision
from voxelpool.training import (
    FoundInFrames,
    Run,
    classify_split,
    detect_split,
    labelled_frames,
    read_split_results,
)
from voxelpool.training.metrics import Series, read_metrics
from voxelpool.training.report import (
    Report,
    check_report_folder,
    classifier_report,
    detector_report,
    write_report,
)


def main(
    run: Annotated[Path, typer.Argument(help="the folder of a training, such as runs/demo")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="replace keys of the run's configuration"),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="weights to evaluate  [default: RUN's best, or its last without one]"),
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(
            help="folder of result files of the validation split, as tools/evaluate.py --results "
            "writes it; nothing is detected then"
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="folder to write  [default: RUN/report]")
    ] = None,
    frames: Annotated[
        int, typer.Option(min=0, help="so many of the best and of the worst frames are drawn")
    ] = 3,
    json_out: _cli.JsonOut = None,
    device: Annotated[str, typer.Option(help="where to compute: cpu, cuda, cuda:1")] = "cuda"
    if torch.cuda.is_available()
    else "cpu",
    precision: Annotated[
        Precision,
        typer.Option(help="of detection: 32, or bf16: faster, boxes differ by about 1 cm"),
    ] = "32",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace a report in OUT")] = False,
) -> None:
    """Writes one HTML page about a training, and its pictures beside it as PNG.

    Of a detector: average precision, precision over recall, recall and average precision by
    distance and by points in the box, scores, the worst and the best frames, and the course of
    the training. Of a classifier: accuracy, confusion and the course of the training.

    Example: python tools/report.py runs/demo --json runs/demo/report.json

    Example: python tools/report.py runs/demo --results runs/demo/results -o report

    Example: python tools/report.py runs/voxelnet_car data.root=/data/kitti --device cuda
    """
    out = out or run / "report"
    settings, metrics = read_run(run, overrides or [])
    check_report_folder(out, overwrite)
    if results is not None and checkpoint is not None:
        raise ConfigError("--results and --checkpoint: give one of them")
    facts = [("run", str(run))]
    if results is None:
        checkpoint = checkpoint or trained(run)
        facts.append(("weights", str(checkpoint)))
    else:
        facts.append(("results", str(results)))
    report: Report
    if isinstance(settings, ClassifierConfig):
        if checkpoint is None or precision != "32":
            raise ConfigError(
                f"{run}: is a classifier; --results and --precision are for detectors"
            )
        with _cli.reading() as reading:
            scores = classify_split(settings, checkpoint, device=device, progress=reading)
        report = classifier_report(settings, metrics, scores, facts)
    else:
        with _cli.reading() as reading:
            if results is not None:
                found = read_split_results(settings, results, progress=reading)
            else:
                assert checkpoint is not None
                _cli.say_backend(settings, device)
                found = detect_split(
                    settings, checkpoint, device=device, precision=precision, progress=reading
                )
            gathered = FoundInFrames.gather(found)
        report = detector_report(
            settings,
            metrics,
            gathered,
            facts,
            num_frames=frames,
            frames=labelled_frames(settings) if frames else None,
        )
    for path in write_report(report, out, overwrite=overwrite):
        _cli.console.print(str(path), highlight=False)
    _cli.write_json({"run": str(run), **report.numbers}, json_out)


def read_run(folder: Path, overrides: list[str]) -> tuple[AnyConfig, dict[str, Series]]:
    """The configuration of a run and what it logged."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of a training")
    path = Run(folder).config_path
    if not path.is_file():
        raise DataError(f"{path}: no such file; RUN is a folder that tools/train.py wrote")
    return load_config(path, overrides), read_metrics(folder / "metrics.csv")


def trained(folder: Path) -> Path:
    """The checkpoint of a run that is evaluated."""
    run = Run(folder)
    for path in (run.best, run.last):
        if path.is_file():
            return path
    raise CheckpointError(f"{run.best}: no such checkpoint, nor {run.last.name} beside it")


if __name__ == "__main__":
    _cli.run(main)
