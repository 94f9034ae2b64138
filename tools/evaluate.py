"""Scores detections against labels as KITTI's object benchmark does, and classifiers."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from itertools import groupby
from pathlib import Path
from typing import Annotated

import _cli
import torch
import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from voxelpool.config import ClassifierConfig, Config, load_config
from voxelpool.datasets.kitti import (
    KittiObjects,
    read_label,
    read_result,
    read_split,
    write_result,
)
from voxelpool.errors import ConfigError, DataError
from voxelpool.evaluation import (
    DIFFICULTIES,
    MIN_IOU,
    ClassificationScores,
    KittiResult,
    evaluate,
    table_rows,
)
from voxelpool.files import atomic_directory, refuse_existing
from voxelpool.models import Precision
from voxelpool.training import classify_split, detect_split
from voxelpool.visualization import draw_confusion

CLASSES = ["Car", "Pedestrian", "Cyclist"]


def main(
    config: Annotated[
        Path | None, typer.Argument(help="detect first, with the detector of this configuration")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="replace keys of CONFIG")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="weights that tools/train.py wrote; goes with CONFIG")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="folder of label files, such as label_2; with CONFIG, that of its data"),
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(
            help="folder of result files, one a frame; with CONFIG, they are written there"
        ),
    ] = None,
    split: Annotated[
        Path | None,
        typer.Option(
            help="list of frame ids; only these are evaluated; with CONFIG: data.val_split"
        ),
    ] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option(metavar="CLASS...", help="what to evaluate; with CONFIG, its classes"),
    ] = None,
    min_iou: Annotated[
        list[str] | None,
        typer.Option(metavar="CLASS=IOU...", help="overlap that a match must exceed"),
    ] = None,
    json_out: _cli.JsonOut = None,
    picture: Annotated[
        Path | None,
        typer.Option(
            help="classifier: its confusion matrix  [default: confusion.png by CHECKPOINT]"
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="where to detect: cpu, cuda, cuda:1")] = "cuda"
    if torch.cuda.is_available()
    else "cpu",
    precision: Annotated[
        Precision,
        typer.Option(help="32, or bf16: faster, boxes differ by about 1 cm"),
    ] = "32",
) -> None:
    """Computes average precision (2D, bird's-eye view, 3D) and orientation similarity (AOS).

    Frames with a result file are evaluated, so that a frame without detections needs an empty one.
    By default a match must exceed an overlap of 0.7 for Car and 0.5 for Pedestrian and Cyclist.

    Example: python tools/evaluate.py --labels data/kitti/training/label_2 --results detections
    --split data/kitti/ImageSets/val.txt --classes Car Cyclist --min-iou Car=0.5 --json ap.json

    Example: python tools/evaluate.py configs/demo.yaml --checkpoint runs/demo/checkpoints/best.ckpt

    With the configuration of a classifier: accuracy over all objects of its validation split and
    the mean over the classes, by the votes of objects.votes turns, and the confusion matrix.

    Example: python tools/evaluate.py configs/classify_voxnet_crops.yaml objects.votes=1
    --checkpoint runs/classify_voxnet_crops/checkpoints/best.ckpt
    """
    overlaps = parse_min_iou(min_iou or [])
    if config is not None:
        if checkpoint is None or labels is not None:
            raise ConfigError("CONFIG goes with --checkpoint, and its labels are those of its data")
        settings = load_config(config, overrides or [])
        if isinstance(settings, ClassifierConfig):
            if results is not None or classes or min_iou or precision != "32":
                raise ConfigError(
                    f"{config}: is a classifier; --results, --classes, --min-iou and --precision "
                    "are for detectors"
                )
            with _cli.reading() as reading:
                scores = classify_split(
                    settings, checkpoint, split=split, device=device, progress=reading
                )
            picture = picture or checkpoint.with_name("confusion.png")
            report_classes(scores, settings, picture, json_out)
            return
        classes = classes or list(settings.classes)
        truth, found = detect(settings, checkpoint, split, results, device, precision)
    else:
        if checkpoint is not None or labels is None or results is None:
            raise ConfigError("give --labels and --results, or CONFIG and --checkpoint")
        classes = classes or CLASSES
        truth, found = read_frames(labels, results, split)
    report(evaluate(truth, found, classes, overlaps), classes, overlaps, json_out)


def detect(
    config: Config,
    checkpoint: Path,
    split: Path | None,
    out: Path | None,
    device: str,
    precision: Precision = "32",
) -> tuple[list[KittiObjects], list[KittiObjects]]:
    """Detects in every frame of a split; writes the results to ``out`` if there is one."""
    if out is not None:
        refuse_existing(out)
    _cli.say_backend(config, device)
    truth, found = [], []
    with nullcontext() if out is None else atomic_directory(out) as folder, _cli.reading() as bar:
        for frame, objects in detect_split(
            config, checkpoint, split=split, device=device, precision=precision, progress=bar
        ):
            assert frame.objects is not None, "frames are read with their labels"
            truth.append(frame.objects)
            found.append(objects)
            if folder is not None:
                write_result(folder / f"{frame.frame_id}.txt", objects)
    return truth, found


def report_classes(
    scores: ClassificationScores, config: ClassifierConfig, picture: Path, json_out: Path | None
) -> None:
    """Prints the table, and writes the picture and the JSON file."""
    votes = config.objects.votes
    title = f"{config.name}, {scores.num_objects} objects, {votes} vote{'s' if votes > 1 else ''}"
    table = Table("class", title=title, box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in ("objects", "recall, %", "precision, %"):
        table.add_column(heading, justify="right")
    counts = scores.confusion.sum(axis=1).tolist()
    for name, count, *shares in zip(
        scores.classes, counts, scores.recall.tolist(), scores.precision.tolist(), strict=True
    ):
        table.add_row(name, str(count), *(f"{100 * x:.2f}" if x == x else "-" for x in shares))
    _cli.console.print(table)
    _cli.console.print(
        f"overall accuracy {100 * scores.accuracy:.2f} %, "
        f"class mean {100 * scores.class_mean:.2f} %",
        highlight=False,
    )
    draw_confusion(
        scores.confusion,
        scores.classes,
        picture,
        title=f"{config.name}: {100 * scores.accuracy:.1f}% of {scores.num_objects}",
    )
    _cli.console.print(str(picture))
    _cli.write_json({"votes": votes, **scores.to_dict()}, json_out)


def report(
    result: KittiResult,
    classes: Sequence[str],
    min_iou: Mapping[str, float],
    json_out: Path | None,
) -> None:
    """Prints the table and writes the JSON file."""
    _cli.console.print(ap_table(result, min_iou))
    absent = [name for name in classes if name not in result.curves]
    if absent:
        _cli.console.print(f"not evaluated, as never detected: {', '.join(absent)}")
    _cli.write_json(result.to_dict(), json_out)


def ap_table(result: KittiResult, min_iou: Mapping[str, float]) -> Table:
    """Average precision in percent, a row for each class and metric."""
    frames = f"{result.num_frames} frame{'s' if result.num_frames != 1 else ''}"
    table = Table(
        title=f"average precision, %, {frames}",
        box=SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
        show_edge=False,
    )
    for title in ("class", "IoU >", "metric"):
        table.add_column(title, no_wrap=True)
    for recall in ("R40", "R11"):
        for difficulty in DIFFICULTIES:
            table.add_column(f"{recall}\n{difficulty}", justify="right", no_wrap=True)
    for name, rows in groupby(table_rows(result), key=lambda row: row.class_name):
        heading = (name, f"{min_iou.get(name, MIN_IOU[name]):g}")
        for row in rows:
            values = (f"{value:.2f}" for value in (*row.r40, *row.r11))
            table.add_row(*heading, row.metric.upper(), *values)
            heading = ("", "")
        table.add_section()
    return table


def read_frames(
    labels: Path, results: Path, split: Path | None
) -> tuple[list[KittiObjects], list[KittiObjects]]:
    """Reads the label and the result of every frame that has a result file."""
    for option, folder in (("--labels", labels), ("--results", results)):
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder ({option})")
    present = {path.stem for path in results.glob("*.txt")}
    wanted = sorted(present) if split is None else read_split(split)
    names = [name for name in wanted if name in present]
    if not names:
        which = "" if split is None else f" of a frame of {split}"
        raise DataError(f"{results}: holds no result file{which}")
    if len(names) < len(wanted):
        missing = next(name for name in wanted if name not in present)
        _cli.warn(
            f"{results}: {len(wanted) - len(names)} of the {len(wanted)} frames of {split} have no "
            f"result file and do not count, the first is {missing}.txt"
        )
    without = [name for name in names if not (labels / f"{name}.txt").is_file()]
    if without:
        raise DataError(
            f"{labels / without[0]}.txt: no such label file, but {results / without[0]}.txt is a "
            f"result ({len(without)} of {len(names)} results have no label)"
        )
    truth, found = [], []
    for name in _cli.progress(names, "reading"):
        truth.append(read_label(labels / f"{name}.txt"))
        found.append(read_result(results / f"{name}.txt"))
    return truth, found


def parse_min_iou(settings: Sequence[str]) -> dict[str, float]:
    """{"Car": 0.5} from ["Car=0.5"]."""
    overlaps = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        try:
            overlaps[name] = float(value)
        except ValueError:
            raise ConfigError(
                f"--min-iou takes CLASS=IOU, such as Car=0.5, got {setting!r}"
            ) from None
    return overlaps


if __name__ == "__main__":
    sys.argv[1:] = _cli.repeat_options(sys.argv[1:], ("--classes", "--min-iou"))
    _cli.run(main)
