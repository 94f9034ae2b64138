from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from voxelpool.detection import decode, encode

ANCHOR = [10.0, -2.0, -1.0, 3.0, 4.0, 2.0, 0.5]


def test_hand_computed():
    """The diagonal of the base is 5, the height 2."""
    anchor = torch.tensor(ANCHOR, dtype=torch.float64)
    box = torch.tensor([12.0, -3.0, 0.0, 6.0, 4.0, 1.0, 0.75], dtype=torch.float64)
    expected = torch.tensor(
        [0.4, -0.2, 0.5, math.log(2), 0.0, -math.log(2), 0.25], dtype=torch.float64
    )
    torch.testing.assert_close(encode(box, anchor), expected)
    torch.testing.assert_close(encode(box, anchor, angle_start=None), expected)
    torch.testing.assert_close(decode(expected, anchor), box)


def box_strategy(start, end):
    centre = st.floats(-80, 80)
    size = st.floats(0.05, 40)
    return st.tuples(centre, centre, centre, size, size, size, st.floats(start, end))


@settings(deadline=None)
@given(
    box=box_strategy(-math.pi, math.nextafter(math.pi, 0)),
    anchor=box_strategy(-math.pi, math.pi),
    start=st.sampled_from([None, -math.pi, -math.pi / 2, 0.0]),
)
def test_round_trip(box, anchor, start):
    box, anchor = torch.tensor([box]).double(), torch.tensor([anchor]).double()
    log_ratio = torch.log(box[0, 3:6] / anchor[0, 3:6])
    residual = encode(box, anchor, angle_start=start)
    if start is not None:
        assert start <= residual[0, 6] < start + 2 * math.pi
    decoded = decode(residual, anchor)
    assert -math.pi <= decoded[0, 6] < math.pi
    turns = (decoded[0, 6] - box[0, 6]) / (2 * math.pi)
    assert abs(turns - turns.round()) < 1e-9
    torch.testing.assert_close(decoded[:, :3], box[:, :3])
    if log_ratio.abs().max() < 4:
        torch.testing.assert_close(decoded[:, 3:6], box[:, 3:6])


@pytest.mark.parametrize(
    ("yaw", "anchor_yaw", "expected"),
    [
        (3.1, 0.0, 3.1),
        (-3.1, 0.0, -3.1 + 2 * math.pi),  # next to the one above, not opposite it
        (-1.0, 0.0, -1.0),
        (-1.6, 0.0, -1.6 + 2 * math.pi),
        (-math.pi / 2, math.pi / 2, math.pi),
        (1.5, math.pi / 2, 1.5 - math.pi / 2),
        (-math.pi / 2, 0.0, -math.pi / 2),
    ],
)
def test_angles_start_across_the_anchor(yaw, anchor_yaw, expected):
    box = torch.tensor([0.0, 0, 0, 1, 1, 1, yaw], dtype=torch.float64)
    anchor = torch.tensor([0.0, 0, 0, 1, 1, 1, anchor_yaw], dtype=torch.float64)
    assert encode(box, anchor)[6].item() == pytest.approx(expected)
    assert encode(box, anchor, angle_start=None)[6].item() == pytest.approx(yaw - anchor_yaw)


def test_angles_inside_are_left_bit_for_bit():
    yaw = torch.linspace(-1.57, 3.14, 1000)
    boxes = torch.cat([torch.ones(1000, 6), yaw[:, None]], dim=1)
    anchor = torch.tensor([0.0, 0, 0, 1, 1, 1, 0])
    assert torch.equal(encode(boxes, anchor)[:, 6], yaw)


def test_overflow_is_guarded(device):
    anchor = torch.tensor(ANCHOR, device=device)
    residual = torch.zeros(2, 7, device=device)
    residual[0, 3:6], residual[1, 3:6] = 1e4, -1e4
    boxes = decode(residual, anchor)
    assert boxes.isfinite().all()
    torch.testing.assert_close(boxes[0, 3:6], anchor[3:6] * math.exp(4))
    torch.testing.assert_close(boxes[1, 3:6], anchor[3:6] * math.exp(-4))
    flat = anchor.clone()
    flat[3] = 0
    assert encode(flat, anchor).isfinite().all()


def test_tiny_angle_below_the_start_does_not_leave_the_turn():
    anchor = torch.tensor([0.0, 0, 0, 1, 1, 1, 0])
    boxes = anchor.repeat(2, 1)
    boxes[:, 6] = torch.tensor([-math.pi - 1e-7, math.nextafter(-math.pi, -4)])
    yaw = decode(boxes * torch.tensor([1.0, 1, 1, 0, 0, 0, 1]), anchor)[:, 6]
    assert (yaw >= -math.pi).all() and (yaw < math.pi).all()


def test_broadcasts_and_empty(device):
    anchors = torch.tensor(ANCHOR, device=device).expand(4, 3, 7)
    assert encode(torch.ones(3, 7, device=device), anchors).shape == (4, 3, 7)
    assert decode(torch.zeros(0, 7, device=device), anchors[0, :0]).shape == (0, 7)
