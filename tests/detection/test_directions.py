"""Which way round boxes are, and turning them so."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from voxelpool.detection import direction_of, face

ANGLES = st.floats(-20, 20)


@given(yaw=ANGLES, offset=st.floats(-4, 4))
def test_a_turned_box_faces_the_other_way_and_is_brought_back(yaw: float, offset: float) -> None:
    yaws = torch.tensor([yaw, yaw + math.pi], dtype=torch.float64)
    ways = direction_of(yaws, offset)
    edge = (yaw - offset) / math.pi
    if abs(edge - round(edge)) < 1e-9:
        return  # on the border between both
    assert ways.sum() == 1
    for seen in yaws:  # half a turn is not known, the direction is
        for way in (0, 1):
            (found,) = face(seen[None], torch.tensor([way]), offset)
            assert -math.pi <= found < math.pi
            assert direction_of(found, offset) == way
            assert abs(math.sin(float(found) - yaw)) < 1e-9
    expected = math.floor(edge) % 2
    assert int(ways[0]) == expected


@pytest.mark.parametrize(
    ("yaw", "way"), [(math.pi / 4, 0), (3.0, 0), (-3.0, 0), (-2.3, 1), (0.0, 1), (0.78, 1)]
)
def test_the_bins_of_the_field(yaw: float, way: int) -> None:
    """OpenPCDet: floor(((yaw - pi/4) mod 2 pi) / pi)."""
    assert direction_of(torch.tensor(yaw, dtype=torch.float64), math.pi / 4) == way
