"""What a scene makes of its points, boxes and voxels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from shapely import Polygon

from voxelpool.errors import DataError
from voxelpool.ops import voxelize
from voxelpool.structures import VoxelGrid
from voxelpool.visualization import (
    FALSE,
    MISSED,
    BoxGroup,
    CameraImage,
    PointGroup,
    Scene,
    VoxelGroup,
    match_boxes,
)
from voxelpool.visualization.scene import class_color, colormap, cube_mesh, distance_to_boxes

GREEN, ORANGE = (0.0, 1.0, 0.0), (1.0, 0.5, 0.0)
GRID = VoxelGrid((0, -20, -3, 40, 20, 1), (0.5, 0.4, 0.25))


def random_boxes(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    low, high = [0, -10, -1, 2, 1, 1, -4], [30, 10, 1, 5, 2, 2, 4]
    return rng.uniform(low, high, (count, 7))


def test_distance_to_the_nearest_box() -> None:
    """Held against the nearest point of each box, found by clipping in the box's own axes."""
    boxes, rng = random_boxes(5), np.random.default_rng(1)
    points = rng.uniform([-5, -15, -3], [35, 15, 3], (500, 3))
    expected = []
    for point in points:
        reach = []
        for x, y, z, dx, dy, dz, yaw in boxes:
            turn = np.array(
                [[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]]
            )
            half = np.array([dx, dy, dz]) / 2
            nearest = turn @ np.clip(turn.T @ (point - [x, y, z]), -half, half) + [x, y, z]
            reach.append(np.linalg.norm(point - nearest))
        expected.append(min(reach))
    np.testing.assert_allclose(distance_to_boxes(points, boxes), expected, atol=1e-9)
    assert np.isinf(distance_to_boxes(points, boxes[:0])).all()
    scene = Scene(points, [BoxGroup(boxes, "a", GREEN)], color="distance")
    np.testing.assert_allclose(scene.values(), expected, atol=1e-9)
    nearest, farthest = np.argmin(expected), np.argmax(expected)
    assert (scene.colors()[nearest] == colormap(np.ones(1))[0]).all(), "near is light"
    assert (scene.colors()[farthest] == colormap(np.zeros(1))[0]).all()


def test_points_have_the_class_of_the_first_box_around_them() -> None:
    points = np.array([[0.0, 0, 0], [10, 0, 0], [20, 0, 0], [30, 0, 0]])
    size = [2.0, 2, 2, 0]
    groups = [
        BoxGroup([[0.0, 0, 0, *size], [10, 0, 0, *size]], "a", GREEN, names=["Car", "Tricycle"]),
        BoxGroup([[10.0, 0, 0, *size], [20, 0, 0, *size]], "b", ORANGE, names=["Van", "Car"]),
        BoxGroup([[30.0, 0, 0, *size]], "without names", ORANGE),
    ]
    scene = Scene(points, groups, color="class")
    assert scene.classes() == ["Car", "Tricycle", "Van"]
    assert scene.values().tolist() == [0, 1, 0, -1]
    colors = scene.colors()
    assert tuple(colors[0]) == tuple(colors[2]) == class_color("Car", scene.classes())
    assert len({tuple(color) for color in colors.tolist()}) == 3


def test_what_points_can_be_coloured_by() -> None:
    named = BoxGroup(random_boxes(1), "a", GREEN, names=["Car"])
    assert Scene(np.zeros((2, 3))).colorings() == ["height", "range"]
    assert Scene(np.zeros((2, 4)), [BoxGroup(random_boxes(1), "a", GREEN)]).colorings() == [
        "height", "reflectance", "range", "distance",
    ]  # fmt: skip
    assert Scene(np.zeros((2, 3)), [named]).colorings()[-1] == "class"


def test_colours_that_need_boxes_where_there_are_none() -> None:
    dark = colormap(np.zeros(1))[0]
    assert (Scene(np.zeros((2, 3)), color="distance").colors() == dark).all()
    assert len(np.unique(Scene(np.zeros((2, 3)), color="class").colors(), axis=0)) == 1


def test_voxels_are_where_the_grid_has_them() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform([0, -20, -3], [40, 20, 1], (400, 3)).astype(np.float32)
    voxels = voxelize(torch.from_numpy(points), GRID)
    group = VoxelGroup.of(voxels)
    held = points[voxels.point_index.numpy()]
    offset = held - group.lows()[voxels.voxel_of_point().numpy()]
    assert (offset > -1e-4).all() and (offset < np.array(GRID.voxel_size) + 1e-4).all()
    np.testing.assert_allclose(
        group.middles() - group.lows(), np.tile(group.size / 2, (len(group), 1))
    )
    assert group.counts.sum() == len(points)
    light = group.colors().astype(int).sum(axis=1)
    assert (np.diff(light[np.argsort(group.counts, kind="stable")]) >= 0).all(), "more is lighter"


def test_cubes_are_closed_and_look_outward() -> None:
    """The volume that the triangles enclose, by the divergence theorem, is that of the voxels."""
    coords = np.array([[0, 0, 0], [3, 7, 2], [9, 9, 9]])
    corners, triangles, colors = cube_mesh(VoxelGroup(coords, np.ones(3), GRID))
    assert corners.shape == (72, 3) and triangles.shape == (36, 3) and colors.shape == (72, 3)
    a, b, c = corners[triangles].transpose(1, 0, 2)
    volume = np.einsum("ij,ij->i", a, np.cross(b, c)).sum() / 6
    assert volume == pytest.approx(3 * np.prod(GRID.voxel_size))
    assert not len(cube_mesh(VoxelGroup(coords, np.ones(3), GRID, "points"))[0])
    assert not len(cube_mesh(None)[0])


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    def outline(box: np.ndarray) -> Polygon:
        x, y, _, dx, dy, _, yaw = box
        corners = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) * [dx / 2, dy / 2]
        turn = np.array([[np.cos(yaw), np.sin(yaw)], [-np.sin(yaw), np.cos(yaw)]])
        return Polygon(corners @ turn + [x, y])

    first, second = outline(a), outline(b)
    shared = first.intersection(second).area
    return shared / (first.area + second.area - shared)


@pytest.mark.parametrize("seed", range(5))
def test_matches_are_those_of_a_plain_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labelled = random_boxes(8, seed)
    found = np.concatenate([labelled, labelled[:4]]) + rng.normal(0, 0.25, (12, 7))
    scores = rng.random(12)
    names = rng.choice(["Car", "Van"], 8)
    kinds = rng.choice(["Car", "Van"], 12)
    free, right = set(range(8)), set()
    for row in sorted(range(12), key=lambda row: -scores[row]):
        overlaps = {o: overlap(found[row], labelled[o]) for o in free if names[o] == kinds[row]}
        best = max(overlaps, key=overlaps.__getitem__, default=None)
        if best is not None and overlaps[best] >= 0.4:
            free.discard(best)
            right.add(row)
    groups = match_boxes(
        BoxGroup(labelled, "labelled", GREEN, names=names),
        BoxGroup(found, "found", ORANGE, scores=scores, names=kinds),
        iou=0.4,
    )
    shown = {group.label: group for group in groups}
    kept = [row for row in range(8) if row not in free]
    np.testing.assert_allclose(shown["labelled and found"].boxes, labelled[kept])
    np.testing.assert_allclose(shown["found"].boxes, found[sorted(right)])
    np.testing.assert_allclose(shown["missed"].boxes, labelled[sorted(free)])
    wrong = [row for row in range(12) if row not in right]
    np.testing.assert_allclose(shown["false"].boxes, found[wrong])
    assert shown["missed"].color == MISSED and shown["false"].color == FALSE
    assert shown["found"].color == ORANGE and shown["labelled and found"].color == GREEN


def test_what_was_not_looked_for_is_not_missed() -> None:
    labelled = BoxGroup(random_boxes(3), "labelled", GREEN, names=["Car", "Tram", "Car"])
    found = BoxGroup(labelled.boxes[:1], "found", ORANGE, names=["Car"])
    assert [(g.label, len(g)) for g in match_boxes(labelled, found)] == [
        ("labelled, not looked for", 1), ("labelled and found", 1), ("missed", 1), ("found", 1),
    ]  # fmt: skip
    everything = match_boxes(labelled, found, classes=["Car", "Tram"])
    assert [len(group) for group in everything if group.label == "missed"] == [2]
    nothing = BoxGroup(np.zeros((0, 7)), "found", ORANGE, names=[])
    assert [g.label for g in match_boxes(labelled, nothing)] == ["labelled, not looked for"]
    assert [len(g) for g in match_boxes(labelled, nothing, classes=["Car"])] == [1, 2]
    assert match_boxes(nothing, nothing) == []
    with pytest.raises(DataError, match="iou must be above 0"):
        match_boxes(labelled, found, iou=0)


def test_what_is_written_beside_boxes() -> None:
    boxes = random_boxes(2)
    group = BoxGroup(boxes, "a", GREEN, scores=[0.5, 0.25], names=["Car", "Van"], difficulty=[1, 3])
    assert group.texts() == ["Car moderate 0.50", "Van 0.25"]
    assert group.legend() == "a: 2"
    cars = BoxGroup(boxes, "a", GREEN, names=["Car", "Car"])
    assert cars.texts() == ["", ""] and cars.texts(every_name=True) == ["Car", "Car"]
    assert cars.legend() == "a: 2 Car"
    assert group[[1]].texts(every_name=True) == ["Van 0.25"]
    assert len(group[np.array([False, False])]) == 0


def test_the_camera_projects_as_its_matrix() -> None:
    camera = CameraImage(np.zeros((4, 6, 3)), [[2.0, 0, 0, 1], [0, 3, 0, 2], [0, 0, 1, 4]])
    assert camera.view(np.array([[5.0, 6, 7]])).tolist() == [[11, 20, 11]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BoxGroup(random_boxes(2), "a", GREEN, difficulty=[0, 4]), "2 numbers from 0 to 3"),
        (lambda: BoxGroup(random_boxes(2), "a", GREEN, difficulty=[0]), "2 numbers from 0 to 3"),
        (lambda: PointGroup(np.zeros((2, 2)), "a", GREEN), r"points 'a': expected shape \(n, 3"),
        (lambda: PointGroup(np.zeros((2, 3)), "a", (0, 0, 2)), "color must be three values"),
        (lambda: VoxelGroup(np.zeros((2, 2)), [1, 1], GRID), r"coords \(K, 3 or 4\)"),
        (lambda: VoxelGroup(np.zeros((2, 3)), [1], GRID), r"got \(2, 3\) and \(1,\)"),
        (lambda: VoxelGroup(np.zeros((1, 3)), [-1], GRID), "a count is below 0"),
        (lambda: VoxelGroup(np.zeros((1, 3)), [1], GRID, "balls"), "unknown shape"),  # type: ignore[arg-type]
        (lambda: CameraImage(np.zeros((2, 2)), np.eye(3)), r"pixels \(H, W, 3\)"),
    ],
)
def test_bad_parts_are_refused(make, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make()
