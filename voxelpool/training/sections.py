"""The sections of a report: figures as tables, charts and drawn frames."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import compress
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from voxelpool.config import AnyConfig, ClassifierConfig, Config
from voxelpool.datasets.kitti import Frame, KittiDataset, KittiObjects
from voxelpool.evaluation import (
    DIFFICULTIES,
    Band,
    ClassificationScores,
    FrameScore,
    KittiResult,
    Matches,
    bands,
    score_histogram,
    table_rows,
)
from voxelpool.training.metrics import Series
from voxelpool.training.results import FoundInFrames
from voxelpool.visualization import (
    FALSE,
    FOUND,
    LABELLED,
    MISSED,
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
    smoothed,
)

DISTANCES = (0, 10, 20, 30, 40, 50, 60, math.inf)
"""Ends of the bands, metres from the camera on the ground."""
POINTS = (0, 10, 30, 100, 300, 1000, math.inf)
"""Ends of the bands, points in a box."""
Overlaps: TypeAlias = Mapping[str, Mapping[str, float]]
"""Overlap to exceed by "strict" or "loose" and class."""
Banded: TypeAlias = dict[str, dict[str, dict[str, list[Band]]]]
"""By class, "distance" or "points", and "strict" or "loose"."""

_ASIDE = (0.5, 0.52, 0.56)
_PICTURE = (960, 960)
_METRICS = {"3d": "3D", "bev": "BEV", "2d": "2D", "aos": "AOS"}
_CURVES = ("3d", "bev")
_SMOOTHED = 60  # a curve is the mean over this part of its length, both ways


def precision_section(results: Mapping[str, KittiResult], overlaps: Overlaps) -> Section:
    """Average precision by class and metric."""
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


def curves_section(results: Mapping[str, KittiResult], overlaps: Overlaps) -> Section:
    """Precision over recall by class, metric and difficulty."""
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


def all_bands(found: FoundInFrames, matches: Mapping[str, Mapping[str, Matches]]) -> Banded:
    """Bands of every class; ranges without objects or false alarms are left out."""
    far = [[_distances(frame) for frame in part] for part in (found.labels, found.results)]
    by_what: dict[str, tuple[Sequence[Any], Sequence[Any], Sequence[float]]] = {
        "distance": (far[0], far[1], DISTANCES),
        "points": (found.label_points, found.result_points, POINTS),
    }
    banded: Banded = {}
    for name in matches["strict"]:
        for what, (labelled, detected, edges) in by_what.items():
            own = {
                kind: bands(
                    m[name], m[name].of_objects(labelled), m[name].of_found(detected), edges
                )
                for kind, m in matches.items()
            }
            filled = [
                any(band.objects or band.false_alarms for band in of_kinds)
                for of_kinds in zip(*own.values(), strict=True)
            ]
            banded.setdefault(name, {})[what] = {
                kind: list(compress(of_kind, filled)) for kind, of_kind in own.items()
            }
    return banded


def _distances(objects: KittiObjects) -> np.ndarray:
    return np.hypot(objects.location[:, 0], objects.location[:, 2])


def bands_section(banded: Banded, overlaps: Overlaps) -> Section:
    """Recall and average precision by ranges of distance and of points in the box."""
    pictures, tables = [], []
    for name, by_what in banded.items():
        iou = {kind: f"{overlaps[kind][name]:g}" for kind in overlaps}
        for what, heading, unit in (
            ("distance", "by distance", "metres from the camera"),
            ("points", "by points in the box", "points"),
        ):
            own = by_what[what]
            names = [_band_name(band, what) for band in own["strict"]]
            title = f"{name}, 3D, {heading}"
            groups, head = {}, [unit, "objects"]
            for kind, of_kind in own.items():
                groups[f"recall > {iou[kind]}"] = [100 * band.recall for band in of_kind]
                groups[f"AP > {iou[kind]}"] = [band.average_precision for band in of_kind]
                figures = ("found", "false", "recall, %", "AP, %")
                head += [f"{figure} > {iou[kind]}" for figure in figures]
            rows = [
                [place, str(of_kinds[0].objects), *(text for b in of_kinds for text in _cells(b))]
                for place, *of_kinds in zip(names, *own.values(), strict=True)
            ]
            tables.append(Table(title, head, rows))
            pictures.append(
                _chart(
                    f"{what}_{name.lower()}",
                    f"recall and average precision of {name} {heading}",
                    draw_groups,
                    groups,
                    names,
                    title=title,
                    x_label=unit,
                    y_label="%",
                    y_range=(0.0, 100.0),
                )
            )
    text = (
        "All objects that count at hard, which includes easy and moderate, and detections at any "
        "score. A detection that found nothing belongs to the band of its own box. AP is the area "
        "under the curve of the band by itself: every object counts, however few they are, so it "
        "differs a little from the mean of 40 recalls above."
    )
    return Section("By distance and by number of points", text, [*pictures, *tables])


def _cells(band: Band) -> list[str]:
    shares = (number(100 * band.recall), number(band.average_precision))
    return [str(band.hits), str(band.false_alarms), *shares]


def _band_name(band: Band, what: str) -> str:
    if math.isinf(band.high):
        return f"{band.low:g}+"
    last = band.high - 1 if what == "points" else band.high
    return f"{band.low:g}-{last:g}"


def scores_section(matches: Mapping[str, Matches], min_iou: Mapping[str, float]) -> Section:
    """Scores of what matches and of what does not."""
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
                number(best, 3),
                *map(str, (right, wrong, missed)),
                number(100 * right / (right + wrong) if right + wrong else math.nan),
                number(100 * right / (right + missed) if right + missed else math.nan),
                number(200 * right / whole if whole else math.nan),
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


def training_section(config: AnyConfig, metrics: Mapping[str, Series]) -> Section:
    """Losses, learning rate and what validations gave."""
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
        _chart(
            "learning_rate",
            "learning rate over steps",
            draw_lines,
            rates,
            title="Learning rate",
            x_label="step",
        )
    )
    if isinstance(config, ClassifierConfig):
        lines = [
            Line(text, metrics[name].epoch + 1, 100 * metrics[name].value)
            for name, text in (("val/accuracy", "all objects"), ("val/class_mean", "class mean"))
            if name in metrics
        ]
        if "train/accuracy" in metrics:
            line = _training_line("accuracy", metrics["train/accuracy"])
            items.append(
                _chart(
                    "train_accuracy",
                    "accuracy in training over steps",
                    draw_lines,
                    [Line("batches", line.x, 100 * np.asarray(line.y))],
                    title="Accuracy in training, augmented",
                    x_label="step",
                    y_label="%",
                )
            )
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
    last_epoch = max(config.train.epochs, *(np.max(line.x) for line in lines), 1)
    items.append(
        _chart(
            name,
            alt,
            draw_lines,
            lines,
            title=title,
            x_label="epoch",
            y_label="%",
            x_range=(0.0, float(last_epoch)),
            y_range=(0.0, 100.0),
            marks=True,
        )
    )
    rows = [
        [name, *(f"{x:.5g}" for x in (values[0], values[-1], values.min(), values.max()))]
        for name, values in sorted((name, series.value) for name, series in metrics.items())
    ]
    items.append(
        Table("All that was logged", ["figure", "first", "last", "lowest", "highest"], rows)
    )
    text = f"{plural(config.train.epochs, 'epoch')} planned. Lines of steps are smoothed."
    return Section("Training", text, items)


def _training_line(name: str, series: Series) -> Line:
    reach = len(series.value) // _SMOOTHED
    return Line(name, series.step, smoothed(series.value, reach))


def best_and_worst(
    ranked: Sequence[FrameScore], count: int
) -> tuple[list[FrameScore], list[FrameScore]]:
    """Of few frames none is both; the worst come first of theirs."""
    best = list(ranked[: min(count, math.ceil(len(ranked) / 2))])
    rest = ranked[len(best) :]
    return best, list(reversed(rest[-count:])) if count else []


def frames_section(
    config: Config,
    found: FoundInFrames,
    frames: KittiDataset,
    matches: Mapping[str, Matches],
    min_score: Mapping[str, float],
    chosen: tuple[Sequence[FrameScore], Sequence[FrameScore]],
) -> Section:
    """Drawn frames."""
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
        "scores gives. Labelled: green if found, yellow if missed. Detected: orange if right, "
        "magenta if false, which a box beside a missed object is if it overlaps too little. Grey: "
        "does not count, such as what is hidden or too far."
    )
    return Section("Worst and best frames", text, pictures, large=True)


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
        (labels, label_state, "missed", "missed", MISSED),
        (labels, label_state, "found", "found", LABELLED),
        (results, result_state, "wrong", "false", FALSE),
        (results, result_state, "right", "right", FOUND),
    ):
        own = objects[[k for k, is_state in states.items() if is_state == state]]
        if len(own):
            boxes = own.lidar_boxes(frame.calibration)
            groups.append(BoxGroup(boxes, text, color, scores=own.score, names=own.type))
    return Scene(frame.points, groups, f"{frame.frame_id} {kind}")


def _chart(
    name: str, alt: str, draw: Callable[..., Image.Image], *arguments: Any, **options: Any
) -> Picture:
    light, dark = (draw(*arguments, **options, dark=dark) for dark in (False, True))
    return Picture(name, light, alt, dark=dark)


def accuracy_section(config: ClassifierConfig, scores: ClassificationScores) -> Section:
    """Recall and precision of each class."""
    counts = scores.confusion.sum(axis=1).tolist()
    rows = [
        [name, str(count), *(number(100 * share) for share in shares)]
        for name, count, *shares in zip(
            scores.classes, counts, scores.recall.tolist(), scores.precision.tolist(), strict=True
        )
    ]
    text = (
        f"Of {plural(scores.num_objects, 'object')}, by {plural(config.objects.votes, 'vote')} "
        "each. Accuracy is the share of all objects that were recognized, class mean the mean of "
        "the recall over the classes."
    )
    table = Table("Classes", ["class", "objects", "recall, %", "precision, %"], rows)
    return Section("Accuracy", text, [table])


def confusion_section(scores: ClassificationScores) -> Section:
    """What was taken for what, as a picture and in numbers."""
    title = f"{number(100 * scores.accuracy)}% of {scores.num_objects}"
    picture = confusion_picture(scores.confusion, scores.classes, title=title)
    rows = [
        [name, *map(str, counts)]
        for name, counts in zip(scores.classes, scores.confusion.tolist(), strict=True)
    ]
    return Section(
        "Confusion",
        "Rows are what objects are, columns what they were taken for.",
        [
            Picture("confusion", picture, "confusion matrix", natural=True),
            Table("Confusion, objects", ["is", *scores.classes], rows),
        ],
    )


def number(value: float, digits: int = 2) -> str:
    """With so many decimals; a dash for what is not finite."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"


def plural(count: int, word: str) -> str:
    """Such as "1 frame" and "2 frames"."""
    return f"{count} {word}{'' if count == 1 else 's'}"
