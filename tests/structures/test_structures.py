"""VoxelGrid, Voxels and Boxes3D."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from voxelpool.structures import Boxes3D, VoxelGrid, Voxels, wrap_angle

PAPER_CAR = VoxelGrid((0, -40, -3, 70.4, 40, 1), (0.2, 0.2, 0.4))


class TestVoxelGrid:
    def test_shape_of_the_paper(self) -> None:
        assert PAPER_CAR.shape == (10, 400, 352)
        assert PAPER_CAR.num_cells == 1_408_000

    def test_values_become_floats(self) -> None:
        assert all(isinstance(value, float) for value in PAPER_CAR.range)
        assert hash(PAPER_CAR) == hash(VoxelGrid((0, -40, -3, 70.4, 40, 1), (0.2, 0.2, 0.4)))

    @pytest.mark.parametrize(
        ("bounds", "size", "message"),
        [
            ((0, 0, 0, 1, 1, 1), (0.3, 0.1, 0.1), "along x.*whole number"),
            ((0, 0, 0, 1, 1, 1), (0.1, -0.1, 0.1), "along y must be positive"),
            ((0, 0, 1, 1, 1, 1), (0.1, 0.1, 0.1), "along z is empty"),
            ((0, 0, 0, 1, 1), (0.1, 0.1, 0.1), "got 5 values"),
            ((0, 0, 0, 1, 1, math.inf), (0.1, 0.1, 0.1), "finite"),
            ((0, 0, 0, 1, 1, 1), (2.0, 0.1, 0.1), "along x.*whole number"),
        ],
    )
    def test_refuses(self, bounds: tuple, size: tuple, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            VoxelGrid(bounds, size)

    def test_tolerates_a_thousandth_of_a_cell(self) -> None:
        assert VoxelGrid((0, 0, 0, 1.00009, 1, 1), (0.1, 0.1, 0.1)).shape == (10, 10, 10)
        with pytest.raises(ValueError, match="whole number"):
            VoxelGrid((0, 0, 0, 1.00011, 1, 1), (0.1, 0.1, 0.1))


class TestVoxels:
    voxels = Voxels(
        coords=torch.tensor([[0, 0, 0, 1], [0, 2, 1, 0], [1, 0, 0, 0]], dtype=torch.int32),
        offsets=torch.tensor([0, 2, 3, 6]),
        point_index=torch.tensor([1, 4, 0, 2, 3, 6]),
        grid=PAPER_CAR,
        batch_size=2,
    )

    def test_counts(self) -> None:
        assert self.voxels.counts().tolist() == [2, 1, 3]
        assert self.voxels.voxel_of_point().tolist() == [0, 0, 1, 2, 2, 2]
        assert (self.voxels.num_voxels, self.voxels.num_points) == (3, 6)

    def test_pad_keeps_the_first_points_and_zeroes_the_rest(self) -> None:
        features = torch.arange(14.0).view(7, 2) + 1
        padded, mask = self.voxels.pad(features, 2)
        assert mask.tolist() == [[True, True], [True, False], [True, True]]
        assert torch.equal(padded[0], features[[1, 4]])
        assert torch.equal(padded[1], torch.stack([features[0], torch.zeros(2)]))
        assert torch.equal(padded[2], features[[2, 3]])

    def test_pad_refuses_no_slots(self) -> None:
        with pytest.raises(ValueError, match="max_points"):
            self.voxels.pad(torch.zeros(7, 2), 0)

    def test_empty(self) -> None:
        none = Voxels(
            torch.zeros((0, 4), dtype=torch.int32),
            torch.zeros(1, dtype=torch.int64),
            torch.zeros(0, dtype=torch.int64),
            PAPER_CAR,
        )
        padded, mask = none.pad(torch.zeros(5, 3), 4)
        assert padded.shape == (0, 4, 3)
        assert mask.shape == (0, 4)
        assert none.voxel_of_point().shape == (0,)


class TestBoxes3D:
    @given(st.floats(-1e4, 1e4))
    def test_wrap_angle_is_a_turn_away_and_in_range(self, angle: float) -> None:
        wrapped = wrap_angle(torch.tensor(angle, dtype=torch.float64)).item()
        assert -math.pi <= wrapped < math.pi
        turns = (angle - wrapped) / (2 * math.pi)
        assert abs(turns - round(turns)) < 1e-9

    def test_yaw_is_wrapped(self) -> None:
        box = Boxes3D(torch.tensor([[0, 0, 0, 4, 2, 1.5, math.pi]], dtype=torch.float64))
        assert box.yaws.item() == -math.pi

    def test_corners_match_rotation_by_complex_numbers(self) -> None:
        generator = np.random.default_rng(0)
        values = generator.uniform(0.5, 5, (20, 7))
        corners = Boxes3D(torch.from_numpy(values)).corners().numpy()
        for box, eight in zip(values, corners, strict=True):
            seen = (eight[:, 0] - box[0] + 1j * (eight[:, 1] - box[1])) * np.exp(-1j * box[6])
            assert np.allclose(np.abs(seen.real), box[3] / 2)
            assert np.allclose(np.abs(seen.imag), box[4] / 2)
            assert np.allclose(np.sort(eight[:, 2]), box[2] + np.repeat([-0.5, 0.5], 4) * box[5])
            assert len(np.unique(np.round(eight, 9), axis=0)) == 8

    def test_first_corner_is_front_left_bottom(self) -> None:
        box = Boxes3D(torch.tensor([[1.0, 2.0, 3.0, 4.0, 2.0, 1.0, 0.0]]))
        assert box.corners()[0, 0].tolist() == [3.0, 3.0, 2.5]

    @pytest.mark.parametrize(
        ("tensor", "error", "message"),
        [
            (torch.zeros(3, 6), ValueError, r"\(N, 7\), got \(3, 6\)"),
            (torch.zeros(7), ValueError, r"\(N, 7\)"),
            (torch.zeros(1, 7, dtype=torch.int64), TypeError, "floating-point.*int64"),
            ([[0.0] * 7], TypeError, "floating-point tensor, got list"),
        ],
    )
    def test_refuses(self, tensor: object, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            Boxes3D(tensor)  # type: ignore[arg-type]

    def test_empty(self) -> None:
        assert len(Boxes3D.empty()) == 0
        assert Boxes3D.empty().corners().shape == (0, 8, 3)


def test_voxels_keep_their_first_points() -> None:
    grid = VoxelGrid((0, 0, 0, 4, 1, 1), (1, 1, 1))
    coords = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 2], [1, 0, 0, 3]], dtype=torch.int32)
    offsets, index = torch.tensor([0, 4, 5, 8]), torch.tensor([2, 5, 6, 9, 1, 0, 3, 4])
    voxels = Voxels(coords, offsets, index, grid, 2)
    found = voxels.first(2)
    assert found.offsets.tolist() == [0, 2, 3, 5]
    assert found.point_index.tolist() == [2, 5, 1, 0, 3]
    assert torch.equal(found.coords, coords) and found.batch_size == 2
    assert torch.equal(voxels.first(9).point_index, index)
    empty = Voxels(coords[:0], offsets[:1], index[:0], grid)
    assert empty.first(3).num_points == 0
    with pytest.raises(ValueError, match="max_points must be at least 1, got 0"):
        voxels.first(0)
