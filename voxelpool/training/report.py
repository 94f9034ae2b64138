"""A page about a training: its course, what its network finds, and where it fails."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxelpool.config import ClassifierConfig, Config
from voxelpool.datasets.kitti import KittiDataset
from voxelpool.evaluation import (
    DIFFICULTIES,
    LOOSE_IOU,
    MIN_IOU,
    ClassificationScores,
    FrameScore,
    KittiResult,
    Matches,
    evaluate,
    frame_scores,
    match_objects,
    score_histogram,
)
from voxelpool.evaluation.breakdown import plain
from voxelpool.files import atomic_directory, atomic_write, refuse_existing
from voxelpool.training.metrics import Series
from voxelpool.training.results import FoundInFrames
from voxelpool.training.sections import (
    accuracy_section,
    all_bands,
    bands_section,
    best_and_worst,
    confusion_section,
    curves_section,
    frames_section,
    number,
    plural,
    precision_section,
    scores_section,
    training_section,
)
from voxelpool.visualization import Picture, Section, page

PAGE = "report.html"


@dataclass(frozen=True, eq=False)
class Report:
    """What a page about a run says.

    Attributes:
        title: of the page.
        facts: names and texts at its top.
        sections: tables and pictures.
        numbers: the same figures for JSON.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    sections: Sequence[Section]
    numbers: Mapping[str, Any]


def detector_report(
    config: Config,
    metrics: Mapping[str, Series],
    found: FoundInFrames,
    facts: Sequence[tuple[str, str]] = (),
    *,
    num_frames: int = 3,
    frames: KittiDataset | None = None,
) -> Report:
    """Writes up a run of a detector.

    Args:
        config: of the run.
        metrics: of the run; see `read_metrics`.
        found: labels and results of its validation split.
        facts: further ones for the top of the page.
        num_frames: so many of the best and of the worst frames are drawn.
        frames: where the drawn ones are read, in the order of ``found``; None draws none.
    """
    classes = config.classes
    overlaps = {
        "strict": {name: MIN_IOU[name] for name in classes},
        "loose": {name: LOOSE_IOU[name] for name in classes},
    }
    results = {
        kind: evaluate(found.labels, found.results, classes, min_iou)
        for kind, min_iou in overlaps.items()
    }
    matches = {
        kind: match_objects(found.labels, found.results, classes, min_iou=min_iou)
        for kind, min_iou in overlaps.items()
    }
    min_score = {name: of_class.best_score for name, of_class in matches["strict"].items()}
    ranked = frame_scores(matches["strict"], len(found.ids), min_score)
    chosen = best_and_worst(ranked, num_frames)
    banded = all_bands(found, matches)
    sections = [
        precision_section(results, overlaps),
        curves_section(results, overlaps),
        bands_section(banded, overlaps),
        scores_section(matches["strict"], overlaps["strict"]),
        training_section(config, metrics),
    ]
    if frames is not None:
        sections.append(frames_section(config, found, frames, matches["strict"], min_score, chosen))
    numbers = {
        "frames": len(found.ids),
        "min_iou": overlaps,
        "objects": {name: list(n) for name, n in results["strict"].num_ground_truth.items()},
        "average_precision": {kind: result.to_dict() for kind, result in results.items()},
        "precision_recall": {kind: _curve_numbers(result) for kind, result in results.items()},
        "bands": {
            name: {
                what: {kind: [band.to_dict() for band in own] for kind, own in by_kind.items()}
                for what, by_kind in by_what.items()
            }
            for name, by_what in banded.items()
        },
        "scores": {name: _score_numbers(of_class) for name, of_class in matches["strict"].items()},
        "best_frames": [_frame_numbers(found, score) for score in chosen[0]],
        "worst_frames": [_frame_numbers(found, score) for score in chosen[1]],
        "training": _last_values(metrics),
    }
    own = [
        ("network", f"{config.name}: {config.model} of {', '.join(classes)}"),
        ("validated on", f"{plural(len(found.ids), 'frame')} of {config.data.root}"),
        *_headline(results, overlaps),
    ]
    return Report(f"Training of {config.name}", [*facts, *own], sections, numbers)


def _headline(
    results: Mapping[str, KittiResult], overlaps: Mapping[str, Mapping[str, float]]
) -> list[tuple[str, str]]:
    rows = []
    for name in overlaps["strict"]:
        parts = []
        for kind, result in results.items():
            if name in result.curves and "3d" in result.curves[name]:
                value = result.average_precision(name, "3d")["R40"][1]
                parts.append(f"{value:.2f} % at IoU > {overlaps[kind][name]:g}")
        rows.append((f"{name}, 3D, moderate, R40", ", ".join(parts) or "never detected"))
    return rows


def classifier_report(
    config: ClassifierConfig,
    metrics: Mapping[str, Series],
    scores: ClassificationScores,
    facts: Sequence[tuple[str, str]] = (),
) -> Report:
    """Writes up a run of a classifier.

    Args:
        config: of the run.
        metrics: of the run; see `read_metrics`.
        scores: of its validation split.
        facts: further ones for the top of the page.
    """
    sections = [
        accuracy_section(config, scores),
        confusion_section(scores),
        training_section(config, metrics),
    ]
    own = [
        ("network", f"{config.name}: {config.model}"),
        ("validated on", f"{plural(scores.num_objects, 'object')} of {config.objects.root}"),
        ("accuracy", f"{number(100 * scores.accuracy)} %"),
        ("class mean", f"{number(100 * scores.class_mean)} %"),
    ]
    numbers = {"votes": config.objects.votes, **scores.to_dict(), "training": _last_values(metrics)}
    return Report(f"Training of {config.name}", [*facts, *own], sections, numbers)


def check_report_folder(folder: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Refuses a folder that `write_report` would refuse.

    Raises:
        FileExistsError: it holds something, and is not to be overwritten or holds more than
            a report.
    """
    folder = Path(folder)
    if not overwrite:
        refuse_existing(folder)
    elif folder.is_dir():
        names = sorted(path.name for path in folder.iterdir())
        strange = [name for name in names if name != PAGE and not name.endswith(".png")]
        if strange:
            raise FileExistsError(
                f"{folder}: is not overwritten, as {strange[0]} in it is no part of a report"
            )
        if names and PAGE not in names:
            raise FileExistsError(f"{folder}: is not overwritten, as it holds no {PAGE}")


def write_report(
    report: Report, folder: str | os.PathLike[str], *, overwrite: bool = False
) -> list[Path]:
    """Writes a page with all its pictures inside, and the pictures beside it.

    Args:
        report: what it says.
        folder: made for it, whole or not at all.
        overwrite: replace an earlier report.

    Returns:
        The page and the pictures.

    Raises:
        FileExistsError: see `check_report_folder`.
        OSError: it cannot be written.
    """
    folder = Path(folder)
    check_report_folder(folder, overwrite)
    pictures = [
        item for section in report.sections for item in section.items if isinstance(item, Picture)
    ]
    with atomic_directory(folder, replace=overwrite) as unfinished:
        with atomic_write(unfinished / PAGE) as file:
            file.write(page(report.title, report.facts, report.sections))
        for picture in pictures:
            (unfinished / f"{picture.name}.png").write_bytes(picture.png)
    return [folder / PAGE, *(folder / f"{picture.name}.png" for picture in pictures)]


def _curve_numbers(result: KittiResult) -> dict[str, Any]:
    numbers: dict[str, Any] = {}
    for name, metrics in result.curves.items():
        for metric in metrics:
            recall, precision = result.precision_recall(name, metric)
            numbers.setdefault(name, {})[metric] = {
                "recall": recall.tolist(),
                **dict(zip(DIFFICULTIES, precision.tolist(), strict=True)),
            }
    return numbers


def _score_numbers(matches: Matches) -> dict[str, Any]:
    edges, hits, alarms = score_histogram(matches)
    return {
        "edges": edges.tolist(),
        "matched": hits.tolist(),
        "unmatched": alarms.tolist(),
        "best_score": plain(matches.best_score),
    }


def _frame_numbers(found: FoundInFrames, score: FrameScore) -> dict[str, Any]:
    return {
        "frame": found.ids[score.frame],
        "found": score.hits,
        "missed": score.missed,
        "false": score.false_alarms,
        "f1": score.f1,
    }


def _last_values(metrics: Mapping[str, Series]) -> dict[str, float | None]:
    return {name: plain(float(series.value[-1])) for name, series in sorted(metrics.items())}
