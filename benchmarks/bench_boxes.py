"""Rotated boxes: overlaps, suppression, points in boxes.

Example: python benchmarks/bench_boxes.py --only nms
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from _data import CAR_GRID, boxes, sweep
from _measure import OURS, Case, Contender, Setting, main, powers, thread_counts
from _peers import shapely
from torch import Tensor

from voxelpool import ops
from voxelpool.detection import AnchorGenerator, AnchorSpec
from voxelpool.ops.reference import boxes as reference

CAR = AnchorSpec("Car", (3.9, 1.6, 1.56), -1.0, matched_threshold=0.6, unmatched_threshold=0.45)
SHAPELY = 1e-6  # what its overlaps may differ by
PART = 20  # boxes whose overlaps the loop computes; its time is scaled up


def as_is(output: Tensor) -> list[Tensor]:
    """The result of a contender that returns one tensor."""
    return [output]


def polygons(rows: Tensor) -> np.ndarray:
    """The outlines of boxes seen from above."""
    outlines = []
    for x, y, _, dx, dy, _, yaw in rows.double().tolist():
        c, s = math.cos(yaw), math.sin(yaw)
        corners = ((dx / 2, dy / 2), (-dx / 2, dy / 2), (-dx / 2, -dy / 2), (dx / 2, -dy / 2))
        ring = [(x + c * u - s * v, y + s * u + c * v) for u, v in corners]
        outlines.append(shapely.Polygon(ring))
    return np.array(outlines)


def shapely_loop(a: Tensor, b: Tensor) -> Tensor:
    """IoU (N, M) one pair after the other; only pairs that touch are clipped."""
    first, second = polygons(a), polygons(b)
    out = np.zeros((len(first), len(second)))
    for i, p in enumerate(first):
        for j, q in enumerate(second):
            if p.intersects(q):
                inter = p.intersection(q).area
                out[i, j] = inter / (p.area + q.area - inter)
    return torch.from_numpy(out)


def shapely_arrays(a: Tensor, b: Tensor) -> Tensor:
    """The same without a loop in Python: a tree of bounding boxes, and arrays of pairs."""
    first, second = polygons(a), polygons(b)
    i, j = shapely.STRtree(second).query(first)
    inter = shapely.area(shapely.intersection(first[i], second[j]))
    out = np.zeros((len(first), len(second)))
    out[i, j] = inter / (shapely.area(first)[i] + shapely.area(second)[j] - inter)
    return torch.from_numpy(out)


def overlaps(setting: Setting) -> Iterator[Case]:
    """IoU of cars: spread, crowded, and of all anchors with the objects of a frame."""
    count = setting.size(2000, 40)
    part = min(PART, count)
    for scene, side in (("over 80 x 80 m", 80.0), ("crowded on 15 x 15 m", 15.0)):
        there = boxes(count, side)
        here = there.to(setting.device)
        contenders = [
            Contender(
                OURS,
                lambda here=here: ops.boxes_iou_bev(here, here),
                lambda iou: [iou[:part], iou],
            ),
            Contender(
                "shapely loop",
                shapely and (lambda there=there: shapely_loop(there[:part], there)),
                as_is,
                SHAPELY,
                f"{part} rows of {count:,}, scaled",
                count / part,
            ),
            Contender(
                "shapely arrays",
                shapely and (lambda there=there: shapely_arrays(there[:part], there)),
                as_is,
                SHAPELY,
                f"{part} rows of {count:,}, scaled",
                count / part,
            ),
        ]
        yield Case(
            f"boxes_iou_bev {count:,} x {count:,}, {scene}",
            contenders,
            goals={"shapely loop": 20.0},
            bytes_moved=4 * count * count,
        )

    shape = (20, 18) if setting.quick else (200, 176)
    anchors = AnchorGenerator([CAR], CAR_GRID.range, shape).anchors().reshape(-1, 7)
    objects = boxes(40, 40.0)
    there = (anchors.to(setting.device), objects.to(setting.device))
    for name, iou, volume in (
        ("boxes_iou_bev", ops.boxes_iou_bev, False),
        ("boxes_iou_3d", ops.boxes_iou_3d, True),
    ):
        yield Case(
            f"{name}, {len(anchors):,} anchors x {len(objects)} objects",
            [
                Contender(OURS, lambda iou=iou: iou(*there), as_is),
                Contender(
                    "PyTorch",
                    lambda volume=volume: reference.boxes_iou(*there, volume, torch.float32),
                    as_is,
                    note="the reference",
                ),
            ],
            bytes_moved=4 * len(anchors) * len(objects),
        )


def greedy(above: np.ndarray, scores: Tensor) -> Tensor:
    """Suppression, given which pairs overlap too much."""
    order = torch.argsort(scores, descending=True, stable=True)
    above = above[order][:, order]
    gone = np.zeros(len(order), bool)
    for i in range(len(order)):
        if not gone[i]:
            gone[i + 1 :] |= above[i, i + 1 :]
    return order[torch.from_numpy(~gone)]


def by_matrix(there: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Suppression by brute force, from all overlaps in float64."""
    exact = there.double()
    above = [(ops.boxes_iou_bev(rows, exact) > threshold).numpy() for rows in exact.split(1000)]
    return greedy(np.concatenate(above), scores)


def by_shapely(there: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Suppression by shapely's overlaps."""
    return greedy((shapely_arrays(there, there) > threshold).numpy(), scores)


def suppression(setting: Setting) -> Iterator[Case]:
    """NMS of 10,000 boxes in scenes of several kinds."""
    count = setting.size(10_000, 60)
    generator = torch.Generator().manual_seed(4)
    clusters = boxes(max(1, count // 100), 80.0, seed=2).repeat_interleave(100, dim=0)[:count]
    shaken = clusters + 0.1 * torch.randn(clusters.shape, generator=generator)
    scenes = {
        "over 80 x 80 m": boxes(count, 80.0),
        "crowded on 15 x 15 m": boxes(count, 15.0),
        "in clusters of 100": shaken,
        "apart": boxes(count, 3000.0),
    }
    scores = torch.rand(count, generator=torch.Generator().manual_seed(3))
    for scene, there in scenes.items():
        here, here_scores = there.to(setting.device), scores.to(setting.device)
        for threshold in (0.01, 0.5, 0.7):
            peers = [Contender("whole matrix", partial(by_matrix, there, scores, threshold))]
            if scene == "apart":  # shapely takes minutes where boxes lie close
                found = shapely and partial(by_shapely, there, scores, threshold)
                peers.append(Contender("shapely arrays", found))
            yield Case(
                f"nms_rotated, {count:,} boxes {scene}, threshold {threshold}",
                [
                    Contender(OURS, partial(ops.nms_rotated, here, here_scores, threshold), as_is),
                    *(replace(peer, result=as_is) for peer in peers),
                ],
                limit_ms=100.0,
            )


def membership(setting: Setting) -> Iterator[Case]:
    """Which points of a sweep lie in which boxes."""
    points, kind = sweep(False, setting.size(120_000, 500))
    objects = boxes(40, 40.0)
    here, there = points.to(setting.device), objects.to(setting.device)
    yield Case(
        f"points_in_boxes, {len(points):,} points ({kind} sweep) x {len(objects)}",
        [
            Contender(OURS, lambda: ops.points_in_boxes(here, there), as_is),
            Contender(
                "PyTorch",
                lambda: reference.points_in_boxes(here, there),
                as_is,
                note="the reference",
            ),
        ],
        bytes_moved=len(points) * (12 + len(objects)),
    )


def curves(setting: Setting) -> Iterator[Case]:
    """How suppression scales in boxes and threads."""
    places = [("boxes", n) for n in powers(100, setting.size(100_000, 100))]
    places += [("threads", t) for t in thread_counts(setting)]
    for axis, place in places:
        count = place if axis == "boxes" else setting.size(10_000, 50)
        here = boxes(count, 80.0).to(setting.device)
        scores = torch.rand(count, generator=torch.Generator().manual_seed(3)).to(setting.device)
        yield Case(
            f"nms_rotated over {axis}: {count:,} boxes, {place:,} {axis}",
            [
                Contender(
                    OURS,
                    lambda here=here, s=scores: ops.nms_rotated(here, s, 0.1),
                    as_is,
                )
            ],
            curve=("nms_rotated", axis, place),
            threads=place if axis == "threads" else None,
        )


def cases(setting: Setting) -> Iterator[Case]:
    """All of them."""
    yield from overlaps(setting)
    yield from suppression(setting)
    yield from membership(setting)
    yield from curves(setting)


if __name__ == "__main__":
    main("boxes", cases, __doc__)
