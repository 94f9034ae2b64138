from __future__ import annotations

import math

import pytest
import torch

from voxelpool.detection import AnchorGenerator, AnchorSpec, VoxelsUnderAnchors, flatten_maps

CAR = AnchorSpec("Car", (3.9, 1.6, 1.56), -1.0, 0.6, 0.45)
CYCLIST = AnchorSpec("Cyclist", (1.76, 0.6, 1.73), -0.6, 0.5, 0.35, rotations=(0.0, 1.0, 2.0))
CAR_RANGE = (0.0, -40.0, -3.0, 70.4, 40.0, 1.0)


def test_paper_car_anchors(device):
    generator = AnchorGenerator([CAR], CAR_RANGE, (200, 176))
    anchors = generator.anchors(device=device)
    assert anchors.shape == (200, 176, 2, 7)
    assert anchors[..., 0].numel() == 70_400
    assert anchors.dtype == torch.float32 and anchors.device.type == device.type
    # The first cell covers [0, 0.4) x [-40, -39.6), the last [70, 70.4) x [39.6, 40).
    expected = torch.tensor([0.2, -39.8, -1.0, 3.9, 1.6, 1.56, 0.0], device=device)
    torch.testing.assert_close(anchors[0, 0, 0], expected)
    expected = torch.tensor([70.2, 39.8, -1.0, 3.9, 1.6, 1.56, math.pi / 2], device=device)
    torch.testing.assert_close(anchors[-1, -1, 1], expected)


def test_centres_are_those_of_the_cells():
    anchors = AnchorGenerator([CAR, CYCLIST], (2.0, -1.0, 0.0, 5.0, 3.0, 1.0), (2, 6)).anchors(
        dtype=torch.float64
    )
    for row in range(2):
        for column in range(6):
            x, y = 2.0 + 0.5 * column + 0.25, -1.0 + 2.0 * row + 1.0
            torch.testing.assert_close(
                anchors[row, column, :, :2], torch.tensor([[x, y]]).double().expand(5, 2)
            )


def test_classes_and_rotations_in_order():
    generator = AnchorGenerator([CAR, CYCLIST], CAR_RANGE, (2, 3))
    assert generator.per_location == 5
    assert generator.class_names == ("Car", "Cyclist")
    assert generator.class_ids().tolist() == [0, 0, 1, 1, 1]
    cell = generator.anchors(dtype=torch.float64)[1, 2]
    assert cell[:, 3:6].tolist() == [[3.9, 1.6, 1.56]] * 2 + [[1.76, 0.6, 1.73]] * 3
    assert cell[:, 6].tolist() == [0.0, math.pi / 2, 0.0, 1.0, 2.0]
    assert cell[:, 2].tolist() == [-1.0] * 2 + [-0.6] * 3


def test_flatten_maps_follows_the_anchors():
    """Each number of the maps carries its own place, which must come out in anchor order."""
    batch, per_location, height, width = 2, 3, 4, 5
    b, a, h, w = torch.meshgrid(
        *(torch.arange(n) for n in (batch, per_location, height, width)), indexing="ij"
    )
    score_map = (((b * 10 + h) * 10 + w) * 10 + a).double()
    residual_map = torch.stack([score_map * 10 + i for i in range(7)], dim=2).flatten(1, 2)
    scores, residuals, _ = flatten_maps(score_map, residual_map)
    assert scores.shape == (2, 60) and residuals.shape == (2, 60, 7)
    for frame in range(batch):
        row = 0
        for y in range(height):
            for x in range(width):
                for anchor in range(per_location):
                    place = ((frame * 10 + y) * 10 + x) * 10 + anchor
                    assert scores[frame, row] == place
                    assert residuals[frame, row].tolist() == [place * 10 + i for i in range(7)]
                    row += 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": (3.9, 0.0, 1.5)}, "anchor of Car: size must be three positive"),
        ({"rotations": ()}, "anchor of Car: no rotation"),
        ({"matched_threshold": 0.3}, "anchor of Car: 0 <= unmatched"),
    ],
)
def test_impossible_specs_are_errors(arguments, message):
    values = {
        "class_name": "Car",
        "size": (3.9, 1.6, 1.56),
        "z_center": -1.0,
        "matched_threshold": 0.6,
        "unmatched_threshold": 0.45,
    }
    with pytest.raises(ValueError, match=message):
        AnchorSpec(**{**values, **arguments})


def test_impossible_generators_are_errors():
    with pytest.raises(ValueError, match="no anchor spec"):
        AnchorGenerator([], CAR_RANGE, (2, 2))
    with pytest.raises(ValueError, match="at least 1 x 1"):
        AnchorGenerator([CAR], CAR_RANGE, (0, 2))
    with pytest.raises(ValueError, match="point_range"):
        AnchorGenerator([CAR], (0, 0, 0, 0, 1, 1), (2, 2))


def test_edges_are_reached():
    """As OpenPCDet has it: steps of range / (n - 1), first and last anchors on the edges."""
    grid = AnchorGenerator([CAR], CAR_RANGE, (200, 176), "edges")
    anchors = grid.anchors(dtype=torch.float64)
    assert anchors[0, 0, 0, :2].tolist() == [0.0, -40.0]
    assert anchors[-1, -1, 0, :2].tolist() == pytest.approx([70.4, 40.0], rel=1e-12)
    steps = anchors[:, :, 0, 0].diff(dim=1), anchors[:, :, 0, 1].diff(dim=0)
    for step, expected in zip(steps, (70.4 / 175, 80 / 199), strict=True):
        torch.testing.assert_close(step, torch.full_like(step, expected))
    with pytest.raises(ValueError, match="placement must be centers or edges, got 'corners'"):
        AnchorGenerator([CAR], CAR_RANGE, (2, 2), "corners")


def test_flatten_maps_of_several_classes_and_directions():
    batch, per_location, classes, height, width = 2, 3, 4, 2, 3
    maps = {}
    for name, values in (("score", classes), ("residual", 7), ("direction", 2)):
        size = (batch, per_location * values, height, width)
        maps[name] = torch.arange(math.prod(size)).view(size)
    found = flatten_maps(*maps.values())
    row = 0
    for y in range(height):
        for x in range(width):
            for a in range(per_location):
                for part, name in zip(found, maps, strict=True):
                    values = part.shape[-1]
                    expected = maps[name][1, a * values : (a + 1) * values, y, x]
                    assert torch.equal(part[1, row], expected)
                row += 1
    assert row == found.scores.shape[1] and found.scores.shape[2] == classes


def test_voxels_under_anchors_are_those_that_their_hulls_touch(device):
    """Against rectangles drawn by shapely, cell by cell; anchors on and over the edges too."""
    shapely = pytest.importorskip("shapely")
    generator = torch.Generator().manual_seed(0)
    count, cells, point_range = 60, (12, 20), (0.0, -3.0, -1.0, 10.0, 3.0, 1.0)
    anchors = torch.zeros(count, 7)
    anchors[:, 0] = torch.rand(count, generator=generator) * 14 - 2
    anchors[:, 1] = torch.rand(count, generator=generator) * 10 - 5
    anchors[:, 3:6] = torch.rand(count, 3, generator=generator) * 3 + 0.1
    anchors[:, 6] = torch.rand(count, generator=generator) * 7 - 3.5
    anchors[:10, :5] = torch.tensor([5.0, 0.0, 0.0, 2.0, 1.0])
    anchors[:10, 6] = math.pi / 2 * torch.arange(10)
    coords = torch.cat(
        [
            torch.randint(0, high, (300, 1), generator=generator)
            for high in (2, 3, cells[0], cells[1])
        ],
        dim=1,
    )

    counter = VoxelsUnderAnchors(anchors, point_range, cells).to(device)
    counts = counter(coords.int().to(device), 3)

    assert counts.shape == (3, count) and (counts[2] == 0).all()
    for row, anchor in enumerate(anchors.double()):
        x, y, length, width, yaw = anchor[[0, 1, 3, 4, 6]].tolist()
        footprint = shapely.box(-length / 2, -width / 2, length / 2, width / 2)
        turned = shapely.affinity.rotate(footprint, yaw, (0, 0), use_radians=True)
        hull = shapely.box(*shapely.affinity.translate(turned, x, y).bounds).buffer(-1e-4)
        touched = {
            (i, j)
            for i in range(cells[0])
            for j in range(cells[1])
            if hull.intersects(shapely.box(j / 2, i / 2 - 3, j / 2 + 0.5, i / 2 - 2.5))
        }
        for frame in (0, 1):
            under = [(i, j) in touched for b, _, i, j in coords.tolist() if b == frame]
            assert counts[frame, row] == sum(under), (frame, row)
