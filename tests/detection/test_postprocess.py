from __future__ import annotations

import cmath
import math

import pytest
import torch
from shapely import affinity
from shapely.geometry import box as shapely_box

from voxelpool.detection import Detections, Postprocessor, Predictions, decode, encode


def logit(p):
    return math.log(p / (1 - p))


def line_of_anchors(count, device="cpu"):
    """Anchors of 4 x 2 x 1.5 m, ten metres apart."""
    anchors = torch.tensor([[0.0, 0, 0, 4, 2, 1.5, 0]]).repeat(count, 1)
    anchors[:, 0] = torch.arange(count) * 10
    return anchors.to(device)


def run(post, scores, anchors, residuals=None, class_ids=None):
    scores = torch.tensor([[logit(s) for s in scores]], device=anchors.device)
    residuals = torch.zeros(1, len(anchors), 7) if residuals is None else residuals
    class_ids = torch.tensor([0]) if class_ids is None else torch.tensor(class_ids)
    (result,) = post(
        Predictions(scores, residuals.to(anchors.device)), anchors, class_ids.to(anchors.device)
    )
    return result


def test_threshold_order_and_decoding(device):
    anchors = line_of_anchors(4, device)
    truth = anchors.cpu().clone()
    truth[:, :3] += 0.5
    truth[:, 6] = torch.tensor([0.1, 3.0, -3.0, -1.0])
    residuals = encode(truth, anchors.cpu())[None]
    result = run(Postprocessor(score_threshold=0.3), [0.4, 0.2, 0.9, 0.31], anchors, residuals)
    assert isinstance(result, Detections) and len(result) == 3
    torch.testing.assert_close(result.boxes.cpu(), truth[[2, 0, 3]], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.scores.cpu(), torch.tensor([0.9, 0.4, 0.31]))
    assert result.class_ids.tolist() == [0, 0, 0]
    assert result.to("cpu").boxes.device.type == "cpu"


def test_suppression_is_by_class(device):
    anchors = line_of_anchors(1, device).repeat(4, 1)
    anchors[3, 0] = 3.0  # overlaps the others by 1/7
    result = run(Postprocessor(nms_iou=0.1), [0.6, 0.8, 0.7, 0.5], anchors, None, [0, 0, 1, 1])
    assert result.class_ids.tolist() == [0, 1]
    torch.testing.assert_close(result.scores.cpu(), torch.tensor([0.8, 0.7]))
    result = run(Postprocessor(nms_iou=0.2), [0.6, 0.8, 0.7, 0.5], anchors, None, [0, 0, 1, 1])
    assert result.class_ids.tolist() == [0, 1, 1]


def test_ties_go_to_the_first_anchor(device):
    anchors = line_of_anchors(1, device).repeat(300, 1)
    anchors[:, 0] = torch.arange(300) % 3 * 10
    anchors[:, 2] = torch.arange(300)
    result = run(Postprocessor(), [0.5] * 300, anchors)
    assert result.boxes[:, 2].tolist() == [0, 1, 2]
    result = run(Postprocessor(max_detections=2), [0.5] * 300, anchors)
    assert result.boxes[:, 2].tolist() == [0, 1]
    result = run(Postprocessor(nms_pre=1), [0.5] * 300, anchors)
    assert result.boxes[:, 2].tolist() == [0]


def test_counts(device):
    anchors = line_of_anchors(6, device)
    scores = [0.5, 0.6, 0.7, 0.8, 0.9, 0.4]
    ids = [0, 1, 0, 1, 0, 1]
    result = run(Postprocessor(max_detections=3), scores, anchors, None, ids)
    assert result.boxes[:, 0].tolist() == [40, 30, 20]
    # Before the suppression the count is that of a class.
    result = run(Postprocessor(nms_pre=2), scores, anchors, None, ids)
    assert result.boxes[:, 0].tolist() == [40, 30, 20, 10]


def test_what_is_kept_is_the_mean_of_what_lies_closest(device):
    """By hand: weights 2/3 and 1/3; the third overlaps by 1/7, the last is of another class."""
    anchors = line_of_anchors(1, device).repeat(4, 1)
    anchors[:, 0] = torch.tensor([0.0, 0.6, 3.0, 0.3])
    anchors[1, 6] = 0.2
    scores, ids = [0.8, 0.4, 0.6, 0.7], [0, 0, 0, 1]
    kept = run(Postprocessor(nms_iou=0.2), scores, anchors, None, ids)
    assert kept.boxes[:, 0].tolist() == pytest.approx([0.0, 0.3, 3.0])
    merged = run(Postprocessor(nms_iou=0.2, merge_iou=0.5), scores, anchors, None, ids)
    assert merged.class_ids.tolist() == kept.class_ids.tolist() == [0, 1, 0]
    torch.testing.assert_close(merged.scores, kept.scores)
    assert merged.boxes[:, 0].tolist() == pytest.approx([0.2, 0.3, 3.0])
    yaw = math.atan2(math.sin(0.4), 2 + math.cos(0.4)) / 2
    assert merged.boxes[:, 6].tolist() == pytest.approx([yaw, 0.0, 0.0])
    assert merged.boxes[0, 1:6].tolist() == pytest.approx([0, 0, 4, 2, 1.5])
    few = run(Postprocessor(nms_iou=0.2, merge_iou=0.5, max_detections=1), scores, anchors, None)
    assert few.boxes[:, 0].tolist() == pytest.approx([(0.8 * 0 + 0.4 * 0.6 + 0.7 * 0.3) / 1.9])


def test_means_are_of_at_least_the_box_itself(device):
    """Also where its score is zero or it hardly overlaps itself, being so flat."""
    anchors = line_of_anchors(2, device)
    anchors[:, 3] = 1e-7
    scores = torch.full((1, 2), -200.0, device=device)
    residuals = torch.zeros(1, 2, 7, device=device)
    post = Postprocessor(score_threshold=0.0, merge_iou=0.9999)
    (result,) = post(Predictions(scores, residuals), anchors, torch.zeros(1, device=device).long())
    torch.testing.assert_close(result.boxes, anchors)


def test_center_range(device):
    anchors = line_of_anchors(4, device)
    anchors[2, 2] = -9
    post = Postprocessor(center_range=(10, -1, -3, 30, 1, 1))
    assert run(post, [0.5] * 4, anchors).boxes[:, 0].tolist() == [10, 30]


def test_a_box_out_of_range_suppresses_none():
    anchors = line_of_anchors(1).repeat(2, 1)
    anchors[0, 0] = -0.1
    post = Postprocessor(center_range=(0, -9, -9, 9, 9, 9))
    assert run(post, [0.9, 0.5], anchors).boxes[:, 0].tolist() == [0]


def test_not_finite_is_dropped(device):
    anchors = line_of_anchors(4, device)
    residuals = torch.zeros(1, 4, 7)
    residuals[0, 0, 0], residuals[0, 1, 6] = torch.inf, torch.nan
    scores = torch.tensor([[1.0, 1.0, torch.nan, 1.0]], device=device)
    (result,) = Postprocessor()(
        Predictions(scores, residuals.to(device)), anchors, torch.zeros(1, device=device).long()
    )
    assert result.boxes[:, 0].tolist() == [30]


def test_nothing_found(device):
    anchors = line_of_anchors(3, device)
    result = run(Postprocessor(score_threshold=0.5), [0.1] * 3, anchors)
    assert result.boxes.shape == (0, 7) and result.scores.shape == (0,)
    assert result.class_ids.shape == (0,) and result.class_ids.dtype == torch.int64
    empty = Postprocessor()(
        Predictions(torch.zeros(2, 0), torch.zeros(2, 0, 7)),
        torch.zeros(0, 7),
        torch.zeros(1).long(),
    )
    assert [len(r) for r in empty] == [0, 0]
    assert Postprocessor()(Predictions(torch.zeros(0, 3), torch.zeros(0, 3, 7)), anchors.cpu(),
                           torch.zeros(1).long()) == []  # fmt: skip


def polygon(box):
    x, y, _, length, width, _, yaw = box
    rectangle = shapely_box(x - length / 2, y - width / 2, x + length / 2, y + width / 2)
    return affinity.rotate(rectangle, yaw, use_radians=True)


def overlap(one, other):
    a, b = polygon(one.tolist()), polygon(other.tolist())
    return a.intersection(b).area / a.union(b).area


def mean_box(boxes, scores, rows):
    """By scores; the axis as the direction of the doubled angles' resultant."""
    if len(rows) == 1:
        return boxes[rows[0]]
    total = sum(scores[i].item() for i in rows)
    mean = sum(boxes[i] * scores[i].item() for i in rows) / total
    axis = cmath.phase(sum(cmath.rect(scores[i].item(), 2 * boxes[i, 6].item()) for i in rows)) / 2
    same_way = sum(scores[i].item() * math.copysign(1, math.cos(boxes[i, 6] - axis)) for i in rows)
    yaw = axis if same_way > 0 else axis + math.pi
    mean[6] = (yaw + math.pi) % (2 * math.pi) - math.pi
    return mean


@pytest.mark.parametrize("merge_iou", [1.0, 0.4])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_against_brute_force(seed, merge_iou, device):
    generator = torch.Generator().manual_seed(seed)
    height, width, per_location = 6, 7, 2
    anchors = torch.zeros(height, width, per_location, 7)
    anchors[..., 0] = torch.arange(width)[None, :, None] * 1.7
    anchors[..., 1] = torch.arange(height)[:, None, None] * 1.3
    anchors[..., 3:6] = torch.tensor([3.9, 1.6, 1.5])
    anchors[..., 1, 6] = math.pi / 2
    class_ids = torch.tensor([0, 1])
    count = height * width * per_location
    # Few distinct scores, so that ties are common.
    scores = torch.randint(-4, 4, (2, count), generator=generator).float()
    residuals = 0.3 * torch.randn(2, count, 7, generator=generator)
    post = Postprocessor(
        score_threshold=0.2, nms_iou=0.15, merge_iou=merge_iou, nms_pre=20, max_detections=9
    )
    predictions = Predictions(scores.to(device), residuals.to(device))
    results = post(predictions, anchors.to(device), class_ids.to(device))
    merged = 0
    for frame, result in enumerate(results):
        boxes = decode(residuals[frame], anchors.view(-1, 7))
        kept, means = [], {}
        for class_id in (0, 1):
            rows = [i for i in range(class_id, count, 2) if scores[frame, i].sigmoid() >= 0.2]
            rows = sorted(rows, key=lambda i: (-scores[frame, i].item(), i))[:20]
            chosen = []
            for row in rows:
                if all(overlap(boxes[row], boxes[i]) <= 0.15 for i in chosen):
                    chosen.append(row)
                    near = [i for i in rows if overlap(boxes[row], boxes[i]) > merge_iou]
                    means[row] = mean_box(boxes, scores[frame].sigmoid(), near or [row])
                    merged += len(near) > 1
            kept += chosen
        kept = sorted(kept, key=lambda i: -scores[frame, i].item())[:9]
        expected = torch.stack([means[i] for i in kept])
        torch.testing.assert_close(result.boxes.cpu(), expected, rtol=1e-5, atol=1e-5)
        assert result.class_ids.tolist() == [i % 2 for i in kept]
    assert (merged > 0) == (merge_iou < 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"score_threshold": 1.5}, "score_threshold must be in"),
        ({"nms_iou": -0.1}, "nms_iou must be in"),
        ({"merge_iou": 1.1}, "merge_iou must be in"),
        ({"nms_pre": 0}, "nms_pre must be at least 1"),
        ({"max_detections": 0}, "max_detections must be at least 1"),
        ({"center_range": (0, 1)}, "center_range"),
    ],
)
def test_impossible_arguments_are_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        Postprocessor(**arguments)


def test_shapes_that_do_not_fit_are_errors():
    anchors = line_of_anchors(4)
    with pytest.raises(ValueError, match="do not fit 4 anchors"):
        Postprocessor()(
            Predictions(torch.zeros(1, 3), torch.zeros(1, 3, 7)), anchors, torch.zeros(1).long()
        )
    with pytest.raises(ValueError, match="3 class ids do not fit 4 anchors"):
        Postprocessor()(
            Predictions(torch.zeros(1, 4), torch.zeros(1, 4, 7)), anchors, torch.zeros(3).long()
        )


def of_classes(post, chances, anchors, residuals=None, directions=None):
    """The boxes of one frame from chances (N, K)."""
    residuals = torch.zeros(1, len(anchors), 7) if residuals is None else residuals
    predictions = Predictions(torch.tensor(chances).logit()[None], residuals, directions)
    (result,) = post(predictions, anchors, torch.tensor([0]))
    return result


def test_an_anchor_that_scores_all_classes_may_be_several():
    anchors = line_of_anchors(3)
    anchors[1, 0] = 1.0  # overlaps the first by 3/5
    chances = [[0.6, 0.3], [0.5, 0.7], [0.05, 0.2]]
    result = of_classes(Postprocessor(score_threshold=0.25, nms_iou=0.1), chances, anchors)
    assert result.class_ids.tolist() == [1, 0]
    torch.testing.assert_close(result.scores, torch.tensor([0.7, 0.6]))
    assert result.boxes[:, 0].tolist() == [1.0, 0.0]
    result = of_classes(Postprocessor(score_threshold=0.1, nms_iou=0.9), chances, anchors)
    assert result.class_ids.tolist() == [1, 0, 0, 1, 1]
    torch.testing.assert_close(result.scores, torch.tensor([0.7, 0.6, 0.5, 0.3, 0.2]))


def test_agnostic_suppression_takes_the_best_class_and_drops_across_classes():
    anchors = line_of_anchors(3)
    anchors[1, 0] = 1.0
    chances = [[0.6, 0.3], [0.5, 0.7], [0.05, 0.2]]
    post = Postprocessor(score_threshold=0.1, nms_iou=0.1, nms="agnostic")
    result = of_classes(post, chances, anchors)
    assert result.class_ids.tolist() == [1, 1]
    assert result.boxes[:, 0].tolist() == [1.0, 20.0]
    alone = run(post, [0.4, 0.6, 0.3], anchors, None, [0, 1, 0])
    assert alone.class_ids.tolist() == [1, 0] and alone.boxes[:, 0].tolist() == [1.0, 20.0]
    assert len(of_classes(post, [[0.01, 0.02]] * 3, anchors)) == 0


def test_candidates_of_the_frame_are_chosen_by_their_best_score():
    anchors = line_of_anchors(4)
    chances = [[0.9, 0.3], [0.2, 0.8], [0.7, 0.75], [0.5, 0.6]]
    post = Postprocessor(nms_pre=2, nms_pre_of="frame")
    result = of_classes(post, chances, anchors)
    found = list(zip(result.boxes[:, 0].tolist(), result.class_ids.tolist(), strict=True))
    assert found == [(0.0, 0), (10.0, 1), (0.0, 1), (10.0, 0)]
    by_class = of_classes(Postprocessor(nms_pre=2), chances, anchors)
    found = list(zip(by_class.boxes[:, 0].tolist(), by_class.class_ids.tolist(), strict=True))
    assert found == [(0.0, 0), (10.0, 1), (20.0, 1), (20.0, 0)]


def test_boxes_are_turned_into_their_direction():
    """The residual knows the yaw up to half a turn."""
    anchors = line_of_anchors(3)
    truth = anchors.clone()
    truth[:, 6] = torch.tensor([0.1, 3.0, -2.0])
    seen = truth.clone()
    seen[:, 6] += torch.tensor([math.pi, 0.0, math.pi])
    offset = math.pi / 4
    ways = torch.tensor([1, 0, 1])  # pi/4 to 5 pi/4 is way 0
    directions = torch.nn.functional.one_hot(ways, 2)[None].float()
    post = Postprocessor(direction_offset=offset)
    result = of_classes(
        post, [[0.9], [0.8], [0.7]], anchors, encode(seen, anchors)[None], directions
    )
    torch.testing.assert_close(result.boxes, truth, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("arguments", [{"nms": "soft"}, {"nms_pre_of": "batch"}])
def test_unknown_names_are_errors(arguments):
    with pytest.raises(ValueError, match="class or agnostic and nms_pre_of class or frame"):
        Postprocessor(**arguments)
