from __future__ import annotations

import math

import pytest
import torch
from shapely import affinity
from shapely.geometry import box as shapely_box

from voxelpool.detection import (
    AnchorGenerator,
    AnchorSpec,
    TargetAssigner,
    encode,
    iou_nearest,
    iou_standup,
)

CAR = AnchorSpec("Car", (3.9, 1.6, 1.56), -1.0, 0.6, 0.45)
PEDESTRIAN = AnchorSpec("Pedestrian", (0.8, 0.6, 1.73), -0.6, 0.5, 0.35)
SQUARE = AnchorSpec("Square", (1.0, 1.0, 1.0), 0.0, 0.6, 0.2, rotations=(0.0,))
RANGE = (0.0, -8.0, -3.0, 16.0, 8.0, 1.0)


def rectangle(box, kind):
    """A polygon for one box under one way of measuring."""
    x, y, _, length, width, _, yaw = box
    if kind == "nearest":
        turns = round(yaw / (math.pi / 2))
        yaw = turns * math.pi / 2
    polygon = shapely_box(x - length / 2, y - width / 2, x + length / 2, y + width / 2)
    polygon = affinity.rotate(polygon, yaw, use_radians=True)
    return polygon.envelope if kind == "standup" else polygon


def iou(a, b, kind):
    a, b = rectangle(a, kind), rectangle(b, kind)
    return a.intersection(b).area / a.union(b).area


def random_boxes(count, generator, size=(3.9, 1.6, 1.5)):
    boxes = torch.rand(count, 7, generator=generator, dtype=torch.float64)
    boxes[:, 0] *= 16
    boxes[:, 1] = boxes[:, 1] * 16 - 8
    boxes[:, 2] -= 1.5
    boxes[:, 3:6] = torch.tensor(size).double() * (0.8 + 0.4 * boxes[:, 3:6])
    boxes[:, 6] = (boxes[:, 6] * 2 - 1) * math.pi
    return boxes


def brute_force(anchors, anchor_classes, specs, boxes, class_ids, kind):
    """The rules of section 3.1, anchor by anchor and box by box."""
    labels, matched = [], []
    table = [[0.0] * len(boxes) for _ in anchors]
    for i, anchor in enumerate(anchors):
        for j, box in enumerate(boxes):
            reach = (math.hypot(*anchor[3:5]) + math.hypot(*box[3:5])) / 2
            if kind == "standup":
                reach *= math.sqrt(2)
            close = math.hypot(anchor[0] - box[0], anchor[1] - box[1]) < reach
            if class_ids[j] == anchor_classes[i] and close:
                table[i][j] = iou(anchor, box, kind)
    best_of_box = [max((row[j] for row in table), default=0.0) for j in range(len(boxes))]
    for i in range(len(anchors)):
        spec = specs[anchor_classes[i]]
        row = table[i]
        claims = [j for j in range(len(boxes)) if best_of_box[j] > 0
                  and class_ids[j] == anchor_classes[i]
                  and row[j] >= best_of_box[j] * (1 - 1e-4)]  # fmt: skip
        best = max(range(len(boxes)), key=lambda j: row[j], default=None)
        if claims:
            labels.append(1)
            matched.append(max(claims, key=lambda j: row[j]))
        elif best is not None and row[best] > spec.matched_threshold:
            labels.append(1)
            matched.append(best)
        else:
            negative = all(value < spec.unmatched_threshold for value in row)
            labels.append(0 if negative else -1)
            matched.append(-1)
    return torch.tensor(labels), torch.tensor(matched)


@pytest.mark.parametrize("function", [iou_nearest, iou_standup])
def test_aligned_ious(function, device):
    generator = torch.Generator().manual_seed(0)
    a, b = random_boxes(30, generator), random_boxes(20, generator)
    kind = function.__name__.removeprefix("iou_")
    expected = [[iou(p, q, kind) for q in b.tolist()] for p in a.tolist()]
    out = function(a.to(device), b.to(device)).cpu()
    torch.testing.assert_close(out, torch.tensor(expected).double())
    assert function(a[:0], b).shape == (0, 20)


def test_nearest_axis():
    anchor = torch.tensor([[0.0, 0, 0, 4, 2, 1, 0]])
    yaws = torch.tensor([0.7, 0.8, math.pi / 2, 2.4, math.pi, -0.7, -0.8, -math.pi])
    boxes = anchor.repeat(8, 1)
    boxes[:, 6] = yaws
    across = 4 / 12
    torch.testing.assert_close(
        iou_nearest(anchor, boxes)[0],
        torch.tensor([1, across, across, 1, 1, 1, across, 1]),
    )


@pytest.mark.parametrize("kind", ["nearest", "rotated", "standup"])
@pytest.mark.parametrize("seed", [0, 1])
def test_against_brute_force(kind, seed, device):
    generator = torch.Generator().manual_seed(seed)
    anchor_generator = AnchorGenerator([CAR, PEDESTRIAN], RANGE, (12, 16))
    anchors = anchor_generator.anchors(dtype=torch.float64)
    cars, people = random_boxes(6, generator), random_boxes(6, generator, (0.8, 0.6, 1.7))
    # A car on an anchor, so that some are above the threshold in any case.
    cars[0, :2], cars[0, 6] = torch.tensor([8.5, 0.6667]), 0.05
    frames = [torch.cat([cars, people]), cars[:0], people]
    ids = [torch.tensor([0] * 6 + [1] * 6), torch.zeros(0).long(), torch.tensor([1] * 6)]
    # Strangers' boxes have no part: same places as cars, but of no class.
    frames[2] = torch.cat([frames[2], cars])
    ids[2] = torch.cat([ids[2], torch.full((6,), -1)])
    assigner = TargetAssigner(anchor_generator, iou=kind)
    targets = assigner(
        anchors.to(device), [f.to(device) for f in frames], [i.to(device) for i in ids]
    )
    flat = anchors.view(-1, 7)
    classes = anchor_generator.class_ids().repeat(12 * 16)
    assert torch.equal(targets.class_ids.cpu(), classes)
    for frame in range(3):
        labels, matched = brute_force(
            flat.tolist(), classes.tolist(), anchor_generator.specs,
            frames[frame].tolist(), ids[frame].tolist(), kind,
        )  # fmt: skip
        assert torch.equal(targets.labels[frame].cpu(), labels)
        assert torch.equal(targets.matched[frame].cpu(), matched)
        positive = labels == 1
        expected = torch.zeros(len(flat), 7, dtype=torch.float64)
        expected[positive] = encode(frames[frame][matched[positive]], flat[positive])
        torch.testing.assert_close(targets.residuals[frame].cpu(), expected)
    assert (targets.labels[1] == 0).all()
    assert targets.num_positive == (targets.labels == 1).sum()


def single_row(specs=(SQUARE,), columns=4):
    """Anchors (N, 7) at x = 0.5, 1.5, ..., y = 0."""
    generator = AnchorGenerator(specs, (0.0, -0.5, 0.0, float(columns), 0.5, 1.0), (1, columns))
    return generator, generator.anchors(dtype=torch.float64).view(-1, 7)


def square(x, y=0.0, length=1.0):
    return [x, y, 0.0, length, 1.0, 1.0, 0.0]


def assign(boxes, specs=(SQUARE,), ids=None, columns=4):
    generator, anchors = single_row(specs, columns)
    boxes = torch.tensor(boxes, dtype=torch.float64).view(-1, 7)
    ids = torch.zeros(len(boxes)).long() if ids is None else torch.tensor(ids)
    targets = TargetAssigner(generator)(anchors, [boxes], [ids])
    return targets.labels[0].tolist(), targets.matched[0].tolist()


def test_all_that_tie_for_the_best_are_positive():
    # Midway between two cells: each overlaps by a half, an IoU of 1/3, below the threshold.
    assert assign([square(2.0)]) == ([0, 1, 1, 0], [-1, 0, 0, -1])


def test_rounding_does_not_break_ties():
    """Anchors wholly inside the box have one IoU, wherever in the box they lie."""
    generator = AnchorGenerator([SQUARE], (60.1, -0.5, 0.0, 70.1, 0.5, 1.0), (1, 10))
    boxes = torch.tensor([square(65.1, length=6.3)])
    targets = TargetAssigner(generator)(generator.anchors(), [boxes], [torch.zeros(1)])
    assert targets.labels[0].tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 0, 0]


def test_box_without_overlap_has_no_anchor():
    assert assign([square(2.0, y=5.0)]) == ([0] * 4, [-1] * 4)
    # Touching edges overlap by nothing.
    assert assign([square(1.5, y=1.0)]) == ([0] * 4, [-1] * 4)


def test_in_between_is_ignored():
    # Overlaps of 0.6 and 0.4 make IoUs of 3/7 (the best, hence positive) and 1/4 (ignored).
    assert assign([square(1.9)]) == ([0, 1, -1, 0], [-1, 0, -1, -1])


def test_thresholds_are_strict():
    """At an IoU of exactly 1/2 an anchor is neither above nor below, hence ignored."""
    spec = AnchorSpec("Square", (1.0, 1.0, 1.0), 0.0, 0.5, 0.5, rotations=(0.0,))
    wide = [1.5, 0.5, 0.0, 1.0, 2.0, 1.0, 0.0]
    # Alone it is the best of the box all the same.
    assert assign([wide], [spec]) == ([0, 1, 0, 0], [-1, 0, -1, -1])
    generator, anchors = single_row([spec])
    anchors[3] = anchors[1]
    anchors[3, 4] = 1.25  # the better one
    anchors[3, 1] = 0.125
    targets = TargetAssigner(generator)(
        anchors, [torch.tensor([wide], dtype=torch.float64)], [torch.zeros(1)]
    )
    assert targets.labels[0].tolist() == [0, -1, 0, 1]
    for matched, unmatched, expected in ((0.49, 0.4, 1), (0.6, 0.51, 0), (0.6, 0.49, -1)):
        spec = AnchorSpec("Square", (1.0, 1.0, 1.0), 0.0, matched, unmatched, rotations=(0.0,))
        generator, _ = single_row([spec])
        targets = TargetAssigner(generator)(
            anchors, [torch.tensor([wide], dtype=torch.float64)], [torch.zeros(1)]
        )
        assert targets.labels[0, 1] == expected


def test_the_best_anchor_of_a_box_learns_that_box():
    generator, anchors = single_row()
    assigner = TargetAssigner(generator)
    anchors[2, 0] = 1.6
    boxes = torch.tensor([square(1.5), square(2.4)], dtype=torch.float64)
    # Anchor 2 overlaps box 0 by 0.9 of 1.1 but anchor 1 wholly; it overlaps box 1 by 0.2 of 1.8,
    # where anchor 3 is the best with 0.4 of 1.6.
    anchors[3, 0] = 3.0
    assert assigner(anchors, [boxes], [torch.zeros(2)]).matched[0].tolist() == [-1, 0, 0, 1]
    # Without anchor 3 it is the best for box 1, and learns it, although it overlaps box 0 more.
    anchors[3, 0] = 9.0
    assert assigner(anchors, [boxes], [torch.zeros(2)]).matched[0].tolist() == [-1, 0, 1, -1]


def test_contested_anchor_learns_the_box_it_overlaps_most():
    boxes = [square(1.45), [1.5, 0.65, 0.0, 1.0, 1.0, 1.0, 0.0], square(1.5)]
    assert assign(boxes) == ([0, 1, 0, 0], [-1, 2, -1, -1])
    assert assign([square(1.5), square(1.5)]) == ([0, 1, 0, 0], [-1, 0, -1, -1])


def test_classes_do_not_mix():
    other = AnchorSpec("Other", (1.0, 1.0, 1.0), 0.0, 0.6, 0.2, rotations=(0.0,))
    boxes = [square(0.5), square(2.5)]
    labels, matched = assign(boxes, [SQUARE, other], ids=[1, 0])
    assert labels == [0, 1, 0, 0, 1, 0, 0, 0]
    assert matched == [-1, 0, -1, -1, 1, -1, -1, -1]


def test_every_overlapped_box_of_a_paper_sized_map_has_an_anchor(device):
    generator = AnchorGenerator([CAR], (0.0, -40.0, -3.0, 70.4, 40.0, 1.0), (200, 176))
    anchors = generator.anchors(device=device)
    boxes = random_boxes(15, torch.Generator().manual_seed(3)).float().to(device)
    boxes[:, :2] *= 4
    ids = torch.zeros(15, device=device).long()
    targets = TargetAssigner(generator)(anchors, [boxes, boxes[:0]], [ids, ids[:0]])
    assert targets.labels.shape == (2, 70_400) and targets.residuals.shape == (2, 70_400, 7)
    assert set(targets.matched[0].unique().tolist()) == set(range(-1, 15))
    assert targets.residuals.isfinite().all()
    assert (targets.residuals[targets.labels != 1] == 0).all()


def test_plain_angle_on_request():
    generator, anchors = single_row([SQUARE])
    boxes = torch.tensor([square(1.5)]).double()
    boxes[0, 6] = -3.0
    for start, expected in ((None, -3.0), (-math.pi / 2, 2 * math.pi - 3.0)):
        targets = TargetAssigner(generator, angle_start=start)(anchors, [boxes], [torch.zeros(1)])
        assert targets.residuals[0, 1, 6].item() == pytest.approx(expected)


def test_bad_input_is_named():
    generator, anchors = single_row([SQUARE])
    assigner = TargetAssigner(generator)
    boxes = torch.zeros(2, 7)
    with pytest.raises(ValueError, match=r"frame 1: boxes must be \(n, 7\)"):
        assigner(anchors, [boxes, boxes[:, :6]], [torch.zeros(2), torch.zeros(2)])
    with pytest.raises(ValueError, match="boxes of 1 frames but class ids of 2"):
        assigner(anchors, [boxes], [torch.zeros(2), torch.zeros(2)])
    with pytest.raises(ValueError, match="got 'exact'"):
        TargetAssigner(generator, iou="exact")
    two = AnchorGenerator([CAR], RANGE, (2, 2))
    with pytest.raises(ValueError, match="no multiple of the 2"):
        TargetAssigner(two)(torch.zeros(7, 7), [], [])
