"""A page about a training: its course, what its network finds, and where it fails."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from voxelpool.config import AnyConfig, ClassifierConfig, Config
from voxelpool.datasets.calibration import Calibration
from voxelpool.datasets.kitti import Frame, KittiDataset, KittiObjects
from voxelpool.errors import DataError
from voxelpool.evaluation import (
    DIFFICULTIES,
    LOOSE_IOU,
    MIN_IOU,
    Band,
    ClassificationScores,
    FrameScore,
    KittiResult,
    Matches,
    bands,
    evaluate,
    frame_scores,
    match_objects,
    score_histogram,
    table_rows,
)
from voxelpool.files import atomic_directory, atomic_write, refuse_existing
from voxelpool.ops import points_in_boxes
from voxelpool.training.metrics import Series
from voxelpool.visualization import (
    BoxGroup,
    Line,
    Picture,
    Scene,
    Section,
    Table,
    confusion_picture,
    draw_bev,
    draw_groups,
    draw_histogram,
    draw_lines,
    page,
    smoothed,
)

PAGE = "report.html"
DISTANCES = (0, 10, 20, 30, 40, 50, 60, math.inf)
"""Ends of the bands, metres from the camera on the ground."""
POINTS = (0, 10, 30, 100, 300, 1000, math.inf)
"""Ends of the bands, points in a box."""

_FOUND, _MISSED = (0.3, 0.85, 0.45), (1.0, 0.85, 0.2)
_RIGHT, _WRONG, _ASIDE = (0.35, 0.7, 1.0), (1.0, 0.35, 0.3), (0.5, 0.52, 0.56)
_PICTURE = (960, 960)
_METRICS = {"3d": "3D", "bev": "BEV", "2d": "2D", "aos": "AOS"}
_CURVES = ("3d", "bev")
_SMOOTHED = 60  # a curve is the mean over this part of its length, both ways


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


@dataclass(eq=False)
class FoundInFrames:
    """What is labelled and what was found in frames, without their points.

    Attributes:
        ids: of the frames.
        labels: all rows of their label files.
        results: what was found.
        label_points: points in the box of each label; 0 for DontCare.
        result_points: points in the box of each result.
    """

    ids: list[str] = field(default_factory=list)
    labels: list[KittiObjects] = field(default_factory=list)
    results: list[KittiObjects] = field(default_factory=list)
    label_points: list[np.ndarray] = field(default_factory=list)
    result_points: list[np.ndarray] = field(default_factory=list)

    @classmethod
    def gather(cls, found: Iterable[tuple[Frame, KittiObjects]]) -> FoundInFrames:
        """Takes what `detect_split` or `read_split_results` yields.

        Raises:
            DataError: there are no frames.
        """
        gathered = cls()
        for frame, objects in found:
            assert frame.objects is not None, "frames are read with their labels"
            gathered.ids.append(frame.frame_id)
            gathered.labels.append(frame.objects)
            gathered.results.append(objects)
            gathered.label_points.append(_points_inside(frame, frame.objects))
            gathered.result_points.append(_points_inside(frame, objects))
        if not gathered.ids:
            raise DataError("the validation split holds no frames")
        return gathered


def _points_inside(frame: Frame, objects: KittiObjects) -> np.ndarray:
    counts = np.zeros(len(objects), np.int64)
    rows = np.flatnonzero((objects.dimensions > 0).all(axis=1))
    if len(rows) and len(frame.points):
        boxes = _boxes(objects[rows], frame.calibration)
        xyz = np.ascontiguousarray(frame.points[:, :3], np.float64)
        inside = points_in_boxes(torch.from_numpy(xyz), torch.from_numpy(boxes))
        counts[rows] = inside.sum(0).numpy()
    return counts


def _boxes(objects: KittiObjects, calibration: Calibration) -> np.ndarray:
    return calibration.boxes_to_lidar(objects.location, objects.dimensions, objects.rotation_y)


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
    chosen = _best_and_worst(ranked, num_frames)
    banded = _all_bands(found, matches)
    sections = [
        _precision_section(results, overlaps),
        _curves_section(results, overlaps),
        _bands_section(banded, overlaps),
        _scores_section(matches["strict"], overlaps["strict"]),
        _training_section(config, metrics),
    ]
    if frames is not None:
        sections.append(
            _frames_section(config, found, frames, matches["strict"], min_score, chosen)
        )
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
        ("validated on", f"{_plural(len(found.ids), 'frame')} of {config.data.root}"),
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


def _precision_section(
    results: Mapping[str, KittiResult], overlaps: Mapping[str, Mapping[str, float]]
) -> Section:
    head = ["class", "IoU >", "metric"]
    head += [f"{recall} {name}" for recall in ("R40", "R11") for name in DIFFICULTIES]
    tables = []
    for kind, title in (
        ("strict", "Average precision, %, at the overlap of the class"),
        ("loose", "Average precision, %, at the loose overlap"),
    ):
        rows = [
            [
                row.class_name,
                f"{overlaps[kind][row.class_name]:g}",
                _METRICS[row.metric],
                *(f"{value:.2f}" for value in (*row.r40, *row.r11)),
            ]
            for row in table_rows(results[kind])
        ]
        tables.append(Table(title, head, rows, texts=3))
    counts = results["strict"].num_ground_truth
    tables.append(
        Table(
            "Objects that count",
            ["class", *DIFFICULTIES],
            [[name, *map(str, numbers)] for name, numbers in counts.items()],
        )
    )
    never = [name for name in counts if name not in results["strict"].curves]
    text = (
        "Computed as KITTI's development kit does. R40 is the mean precision over 40 recalls from "
        "1/40 to 1, R11 that over 11 from 0 to 1. AOS weighs it by the orientation."
    )
    if never:
        text += f" Never detected, and therefore not evaluated: {', '.join(never)}."
    return Section("Average precision", text, tables)


def _curves_section(
    results: Mapping[str, KittiResult], overlaps: Mapping[str, Mapping[str, float]]
) -> Section:
    pictures = []
    for name in overlaps["strict"]:
        for metric in _CURVES:
            for kind, result in results.items():
                if metric not in result.curves.get(name, {}):
                    continue
                recall, precision = result.precision_recall(name, metric)
                reached = np.where(precision > 0, precision, np.nan)
                lines = [
                    Line(difficulty, recall, row)
                    for difficulty, row in zip(DIFFICULTIES, reached, strict=True)
                ]
                title = f"{name}, {_METRICS[metric]}, IoU > {overlaps[kind][name]:g}"
                pictures.append(
                    _chart(
                        f"precision_{name.lower()}_{metric}_{kind}",
                        f"precision over recall: {title}",
                        draw_lines,
                        lines,
                        title=title,
                        x_label="recall",
                        y_label="precision",
                        x_range=(0.0, 1.0),
                        y_range=(0.0, 1.0),
                    )
                )
    text = (
        "The curves that the average precision above is the mean of: at each recall the best "
        "precision there or beyond. A curve ends at the highest recall that is reached."
    )
    return Section("Precision over recall", text, pictures)


def _all_bands(
    found: FoundInFrames, matches: Mapping[str, Mapping[str, Matches]]
) -> dict[str, dict[str, dict[str, list[Band]]]]:
    """Class, then "distance" or "points", then "strict" or "loose"."""
    far = [[_distances(frame) for frame in part] for part in (found.labels, found.results)]
    by_what = {
        "distance": (*far, DISTANCES),
        "points": (found.label_points, found.result_points, POINTS),
    }
    banded: dict[str, dict[str, dict[str, list[Band]]]] = {}
    for kind, by_class in matches.items():
        for name, of_class in by_class.items():
            for what, (labelled, detected, edges) in by_what.items():
                own = bands(
                    of_class, of_class.of_objects(labelled), of_class.of_found(detected), edges
                )
                banded.setdefault(name, {}).setdefault(what, {})[kind] = own
    return banded


def _distances(objects: KittiObjects) -> np.ndarray:
    return np.hypot(objects.location[:, 0], objects.location[:, 2])


def _bands_section(
    banded: Mapping[str, Mapping[str, Mapping[str, Sequence[Band]]]],
    overlaps: Mapping[str, Mapping[str, float]],
) -> Section:
    items: list[Table | Picture] = []
    for name, by_what in banded.items():
        for what, heading, unit in (
            ("distance", "by distance", "metres from the camera"),
            ("points", "by points in the box", "points"),
        ):
            own = by_what[what]
            names = [_band_name(band, what) for band in own["strict"]]
            if not names:
                continue
            loose = {(band.low, band.high): band for band in own["loose"]}
            lines = [loose.get((band.low, band.high)) for band in own["strict"]]
            strict_iou, loose_iou = (f"{overlaps[kind][name]:g}" for kind in ("strict", "loose"))
            groups = {
                f"recall > {strict_iou}": [100 * band.recall for band in own["strict"]],
                f"AP > {strict_iou}": [band.average_precision for band in own["strict"]],
                f"recall > {loose_iou}": [100 * b.recall if b else math.nan for b in lines],
                f"AP > {loose_iou}": [b.average_precision if b else math.nan for b in lines],
            }
            items.append(
                _chart(
                    f"{what}_{name.lower()}",
                    f"recall and average precision of {name} {heading}",
                    draw_groups,
                    groups,
                    names,
                    title=f"{name}, 3D, {heading}",
                    x_label=unit,
                    y_label="%",
                    y_range=(0.0, 100.0),
                )
            )
            rows = [
                [
                    place,
                    str(band.objects),
                    *(
                        text
                        for one in (band, other)
                        for text in (
                            (str(one.hits), str(one.false_alarms), _percent(100 * one.recall),
                             _percent(one.average_precision)) if one else ("-",) * 4
                        )
                    ),
                ]
                for place, band, other in zip(names, own["strict"], lines, strict=True)
            ]  # fmt: skip
            head = [unit, "objects"]
            for overlap in (strict_iou, loose_iou):
                head += [
                    f"{figure} > {overlap}" for figure in ("found", "false", "recall, %", "AP, %")
                ]
            items.append(Table(f"{name}, 3D, {heading}", head, rows))
    text = (
        "All objects that count at hard, which includes easy and moderate, and detections at any "
        "score. A detection that found nothing belongs to the band of its own box. AP is the area "
        "under the curve of the band by itself: every object counts, however few they are, so it "
        "differs a little from the mean of 40 recalls above."
    )
    return Section("By distance and by number of points", text, items)


def _band_name(band: Band, what: str) -> str:
    if math.isinf(band.high):
        return f"{band.low:g}+"
    last = band.high - 1 if what == "points" else band.high
    return f"{band.low:g}–{last:g}"


def _scores_section(matches: Mapping[str, Matches], min_iou: Mapping[str, float]) -> Section:
    items: list[Table | Picture] = []
    rows = []
    for name, of_class in matches.items():
        edges, hits, alarms = score_histogram(of_class)
        best = of_class.best_score
        items.append(
            _chart(
                f"scores_{name.lower()}",
                f"scores of {name}: matched against unmatched detections",
                draw_histogram,
                edges,
                {"matched": hits, "unmatched": alarms},
                title=f"{name}, 3D, IoU > {min_iou[name]:g}",
                x_label="score",
                y_label="detections",
                mark=best if math.isfinite(best) else None,
            )
        )
        sure = of_class.score >= best
        right = int(np.count_nonzero(of_class.found[sure] >= 0))
        wrong, missed = int(np.count_nonzero(sure)) - right, len(of_class.finder) - right
        whole = 2 * right + wrong + missed
        rows.append(
            [
                name,
                _decimals(best),
                *map(str, (right, wrong, missed)),
                _percent(100 * right / (right + wrong) if right + wrong else math.nan),
                _percent(100 * right / (right + missed) if right + missed else math.nan),
                _percent(200 * right / whole if whole else math.nan),
            ]
        )
    head = ["class", "score from", "found", "false", "missed", "precision, %", "recall, %", "F1, %"]
    items.append(Table("Where precision and recall balance best", head, rows))
    text = (
        "Detections that match an object that counts at hard, and those that match nothing. The "
        "dashed line is the score from which on F1, the harmonic mean of precision and recall, is "
        "highest."
    )
    return Section("Scores", text, items)


def _training_section(config: AnyConfig, metrics: Mapping[str, Series]) -> Section:
    items: list[Table | Picture] = []
    losses = [
        _training_line(name.removeprefix("train/"), series)
        for name, series in metrics.items()
        if name.startswith("train/") and name not in ("train/num_positive", "train/accuracy")
    ]
    losses.sort(key=lambda line: line.name != "loss")
    if "val/loss" in metrics:
        losses.append(Line("validation", metrics["val/loss"].step, metrics["val/loss"].value))
    items.append(
        _chart(
            "loss", "loss over steps", draw_lines, losses, title="Loss", x_label="step", log=True
        )
    )
    rates = [
        Line(name, series.step, series.value)
        for name, series in metrics.items()
        if name.startswith("lr-")
    ]
    items.append(
        _chart("learning_rate", "learning rate over steps", draw_lines, rates,
               title="Learning rate", x_label="step")
    )  # fmt: skip
    if isinstance(config, ClassifierConfig):
        lines = [
            Line(text, metrics[name].epoch + 1, 100 * metrics[name].value)
            for name, text in (("val/accuracy", "all objects"), ("val/class_mean", "class mean"))
            if name in metrics
        ]
        if "train/accuracy" in metrics:
            line = _training_line("accuracy", metrics["train/accuracy"])
            items.append(
                _chart("train_accuracy", "accuracy in training over steps", draw_lines,
                       [Line("batches", line.x, 100 * np.asarray(line.y))],
                       title="Accuracy in training, augmented", x_label="step", y_label="%")
            )  # fmt: skip
        name, alt, title = "accuracy", "validation accuracy over epochs", "Validation accuracy"
    else:
        lines = [
            Line(f"{name} {_METRICS[metric]}", series.epoch + 1, series.value)
            for name in config.classes
            for metric in _CURVES
            for series in [metrics.get(f"val/{name}/{metric}/moderate")]
            if series is not None
        ]
        name, alt = "validation", "validation average precision over epochs"
        title = "Validation AP, moderate, R40"
    items.append(
        _chart(name, alt, draw_lines, lines, title=title, x_label="epoch", y_label="%", marks=True)
    )
    last = _last_values(metrics)
    rows = [
        [name, _significant(series.value[0]), _significant(last[name]), _significant(series.value.min()),
         _significant(series.value.max())]
        for name, series in sorted(metrics.items())
    ]  # fmt: skip
    items.append(
        Table("All that was logged", ["figure", "first", "last", "lowest", "highest"], rows)
    )
    text = f"{_plural(config.train.epochs, 'epoch')} planned. Lines of steps are smoothed."
    return Section("Training", text, items)


def _training_line(name: str, series: Series) -> Line:
    reach = len(series.value) // _SMOOTHED
    return Line(name, series.step, smoothed(series.value, reach))


def _best_and_worst(
    ranked: Sequence[FrameScore], count: int
) -> tuple[list[FrameScore], list[FrameScore]]:
    """Of few frames none is both; the worst come first of theirs."""
    best = list(ranked[: min(count, math.ceil(len(ranked) / 2))])
    rest = ranked[len(best) :]
    return best, list(reversed(rest[-count:])) if count else []


def _frames_section(
    config: Config,
    found: FoundInFrames,
    frames: KittiDataset,
    matches: Mapping[str, Matches],
    min_score: Mapping[str, float],
    chosen: tuple[Sequence[FrameScore], Sequence[FrameScore]],
) -> Section:
    pictures = []
    for kind, scores in (("worst", chosen[1]), ("best", chosen[0])):
        for place, score in enumerate(scores, start=1):
            frame_id = found.ids[score.frame]
            caption = (
                f"{frame_id}, {kind} {place}: {score.hits} found, {score.missed} missed, "
                f"{score.false_alarms} false, F1 {100 * score.f1:.0f} %"
            )
            scene = _scene(frames[score.frame], found, score.frame, matches, min_score, kind)
            x0, y0, _, x1, y1, _ = config.grid.range
            image = draw_bev(scene, bounds=(x0, y0, x1, y1), size=_PICTURE)
            pictures.append(Picture(f"{kind}_{place}_{frame_id}", image, caption, caption))
    text = (
        "From above, the worst first. Drawn are detections from the score on that the table of "
        "scores gives. Labelled: green if found, yellow if missed. Detected: blue if right, red if "
        "wrong. Grey: does not count, such as what is hidden or too far."
    )
    return Section("Worst and best frames", text, pictures)


def _scene(
    frame: Frame,
    found: FoundInFrames,
    row: int,
    matches: Mapping[str, Matches],
    min_score: Mapping[str, float],
    kind: str,
) -> Scene:
    labels, results = found.labels[row], found.results[row]
    assert results.score is not None, "results have scores"
    label_state = {k: "aside" for k, name in enumerate(labels.type) if name in matches}
    result_state = {
        k: "aside"
        for k, (name, score) in enumerate(zip(results.type, results.score, strict=True))
        if name in matches and score >= min_score[name]
    }
    for name, of_class in matches.items():
        sure = np.append(of_class.score >= min_score[name], False)
        for k in np.flatnonzero(of_class.object_frame == row):
            state = "found" if sure[of_class.finder[k]] else "missed"
            label_state[int(of_class.object_row[k])] = state
        for k in np.flatnonzero((of_class.found_frame == row) & sure[:-1]):
            state = "right" if of_class.found[k] >= 0 else "wrong"
            result_state[int(of_class.found_row[k])] = state
    groups = []
    for objects, states, state, text, color in (
        (labels, label_state, "aside", "not counted", _ASIDE),
        (results, result_state, "aside", "not counted", _ASIDE),
        (labels, label_state, "missed", "missed", _MISSED),
        (labels, label_state, "found", "found", _FOUND),
        (results, result_state, "wrong", "wrong", _WRONG),
        (results, result_state, "right", "right", _RIGHT),
    ):
        own = objects[[k for k, is_state in states.items() if is_state == state]]
        if len(own):
            boxes = _boxes(own, frame.calibration)
            groups.append(BoxGroup(boxes, text, color, scores=own.score, names=own.type))
    return Scene(frame.points, groups, f"{frame.frame_id} {kind}")


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
    counts = scores.confusion.sum(axis=1).tolist()
    rows = [
        [name, str(count), *(_percent(100 * share) for share in shares)]
        for name, count, *shares in zip(
            scores.classes, counts, scores.recall.tolist(), scores.precision.tolist(), strict=True
        )
    ]
    table = Table("Classes", ["class", "objects", "recall, %", "precision, %"], rows)
    title = f"{_percent(100 * scores.accuracy)} % of {scores.num_objects}"
    picture = confusion_picture(scores.confusion, scores.classes, title=title)
    votes = config.objects.votes
    text = (
        f"Of {_plural(scores.num_objects, 'object')}, by "
        f"{_plural(votes, 'vote')} each. Accuracy is the share of all objects that were "
        "recognized, class mean the mean of the recall over the classes."
    )
    sections = [
        Section("Accuracy", text, [table]),
        Section(
            "Confusion",
            "Rows are what objects are, columns what they were taken for.",
            [Picture("confusion", picture, "confusion matrix", natural=True)],
        ),
        _training_section(config, metrics),
    ]
    own = [
        ("network", f"{config.name}: {config.model}"),
        ("validated on", f"{_plural(scores.num_objects, 'object')} of {config.objects.root}"),
        ("accuracy", f"{_percent(100 * scores.accuracy)} %"),
        ("class mean", f"{_percent(100 * scores.class_mean)} %"),
    ]
    numbers = {"votes": votes, **scores.to_dict(), "training": _last_values(metrics)}
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
        for path in sorted(folder.iterdir()):
            if path.name != PAGE and path.suffix != ".png":
                raise FileExistsError(
                    f"{folder}: is not overwritten, as {path.name} in it is no part of a report"
                )


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
            picture.image.save(unfinished / f"{picture.name}.png", optimize=True)
    return [folder / PAGE, *(folder / f"{picture.name}.png" for picture in pictures)]


def _chart(
    name: str, alt: str, draw: Callable[..., Image.Image], *arguments: Any, **options: Any
) -> Picture:
    light, dark = (draw(*arguments, **options, dark=dark) for dark in (False, True))
    return Picture(name, light, alt, dark=dark)


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
    best = matches.best_score
    return {
        "edges": edges.tolist(),
        "matched": hits.tolist(),
        "unmatched": alarms.tolist(),
        "best_score": best if math.isfinite(best) else None,
    }


def _frame_numbers(found: FoundInFrames, score: FrameScore) -> dict[str, Any]:
    return {
        "frame": found.ids[score.frame],
        "found": score.hits,
        "missed": score.missed,
        "false": score.false_alarms,
        "f1": score.f1,
    }


def _last_values(metrics: Mapping[str, Series]) -> dict[str, float]:
    return {name: float(series.value[-1]) for name, series in sorted(metrics.items())}


def _percent(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "-"


def _decimals(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "-"


def _significant(value: float) -> str:
    return f"{value:.5g}"


def _plural(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"
