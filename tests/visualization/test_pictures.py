"""Pictures show what they must where they must."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from voxelpool.errors import DataError, VoxelpoolError
from voxelpool.structures import VoxelGrid
from voxelpool.visualization import (
    BoxGroup,
    CameraImage,
    PointGroup,
    Scene,
    VoxelGroup,
    draw_camera,
    perspective,
    render_3d,
    render_bev,
    render_camera,
)
from voxelpool.visualization.bev import BevPlan
from voxelpool.visualization.canvas import HEADER
from voxelpool.visualization.film import draw_scene, render_strip
from voxelpool.visualization.perspective import Camera
from voxelpool.visualization.scene import colormap
from voxelpool.visualization.window import KEYS, Shown, _Keys, show

GREEN, ORANGE = (0.0, 1.0, 0.0), (1.0, 0.5, 0.0)
BOX = np.array([[20.0, 5.0, -0.8, 4.0, 1.6, 1.5, 0.4]])
BOUNDS = (0.0, -20.0, 40.0, 20.0)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def near(picture: np.ndarray, color: tuple[float, float, float], below_header: bool = True) -> set:
    """(row, column) of the pixels of nearly a colour."""
    close = np.abs(picture - np.array(color) * 255).max(axis=2) < 40
    close[: HEADER if below_header else 0] = False
    return set(zip(*np.nonzero(close), strict=True))


def is_near(spots: set, column: float, row: float, reach: int = 2) -> bool:
    around = range(-reach, reach + 1)
    return any(
        (int(row) + down, int(column) + right) in spots for down in around for right in around
    )


def cloud(count: int = 2000) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.column_stack([rng.uniform([1, -18, -2], [39, 18, 1], (count, 3)), rng.random(count)])


def test_a_box_from_above_is_where_it_must_be(tmp_path: Path) -> None:
    render_bev(Scene(cloud(0), [BoxGroup(BOX, "a", GREEN)]), tmp_path / "a.png", bounds=BOUNDS)
    picture = pixels(tmp_path / "a.png")
    assert picture.shape == (1200, 1200, 3)
    green = near(picture, GREEN)
    # By hand: 1144 rows below the header for 40 m; forward is up, left is left.
    scale = (1200 - HEADER) / 40
    cos, sin = np.cos(0.4), np.sin(0.4)
    for forward, left in ((2, 0.8), (2, -0.8), (-2, 0.8), (-2, -0.8), (0, 0.8), (2, 0)):
        x, y = 20 + forward * cos - left * sin, 5 + forward * sin + left * cos
        assert is_near(green, 600 - y * scale, 1200 - x * scale)
    rows, columns = np.array(sorted(green)).T
    reach = np.hypot(1200 - rows - 20 * scale, 600 - columns - 5 * scale) / scale
    assert reach.max() < np.hypot(2, 0.8) + 2, "nothing green far from the box and its tick"
    assert not is_near(green, 600 - 5 * scale, 1200 - 20 * scale), "boxes are not filled"


def test_points_from_above_are_where_they_must_be(tmp_path: Path) -> None:
    lone = np.array([[10.0, -7.0, -1.0], [30.0, 12.0, 0.5]])
    render_bev(Scene(lone), tmp_path / "a.png", bounds=BOUNDS)
    plan = BevPlan.fit(np.array(BOUNDS[:2]), np.array(BOUNDS[2:]), (1200, 1200))
    empty = tmp_path / "b.png"
    render_bev(Scene(lone[:0]), empty, bounds=BOUNDS)
    changed = np.abs(pixels(tmp_path / "a.png") - pixels(empty)).max(axis=2) > 60
    changed[:HEADER] = False
    spots = np.argwhere(changed)
    for column, row in plan.pixels(lone[:, :2]):
        assert np.abs(spots - [row, column]).max(axis=1).min() <= 2
    expected = plan.pixels(lone[:, :2])[:, ::-1]
    distance = np.abs(spots[:, None] - expected[None]).max(axis=2).min(axis=1)
    assert distance.max() <= 4, "nothing else has changed"


def seen_by(camera: Camera, xyz: np.ndarray) -> np.ndarray:
    """Column and row of points by the pinhole's formula, written anew with trigonometry."""
    eye, target = np.array(camera.eye), np.array(camera.target)
    ahead = (target - eye) / np.linalg.norm(target - eye)
    yaw, pitch = np.arctan2(ahead[1], ahead[0]), np.arcsin(ahead[2])
    turn = np.array([[np.cos(yaw), np.sin(yaw), 0], [-np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
    tilt = np.array(
        [[np.cos(pitch), 0, np.sin(pitch)], [0, 1, 0], [-np.sin(pitch), 0, np.cos(pitch)]]
    )
    depth, left, up = tilt @ turn @ (xyz - eye).T
    focal = camera.size[1] / 2 / np.tan(np.radians(camera.vertical_fov / 2))
    return np.stack(
        [camera.size[0] / 2 - focal * left / depth, camera.size[1] / 2 - focal * up / depth], axis=1
    )


@pytest.mark.parametrize("view", ["oblique", "driver"])
@pytest.mark.parametrize("renderer", ["projection", "open3d"])
def test_a_box_in_perspective_is_where_it_must_be(view: str, renderer: str, tmp_path: Path) -> None:
    group = BoxGroup(BOX, "a", GREEN)
    scene = Scene(cloud(), [group])
    try:
        render_3d(scene, tmp_path / "a.png", view=view, renderer=renderer)  # type: ignore[arg-type]
    except RuntimeError as error:
        pytest.skip(f"Open3D's renderer does not start here: {error}")
    green = near(pixels(tmp_path / "a.png"), GREEN)
    camera = Camera(*perspective.EYES[view], 50.0, (1600, 900 - HEADER))  # type: ignore[index]
    corners = seen_by(camera, group.corners()[0])
    for column, row in corners:
        assert is_near(green, column, row + HEADER, reach=4)
    middle = (corners[0] + corners[1]) / 2
    assert is_near(green, middle[0], middle[1] + HEADER, reach=4), "the edge between two corners"
    low, high = corners.min(axis=0), corners.max(axis=0)
    rows, columns = np.array(sorted(green)).T
    skirt = 0.8 * (high - low).max()
    assert (columns > low[0] - skirt).all() and (columns < high[0] + skirt).all()
    assert (rows - HEADER > low[1] - skirt).all() and (rows - HEADER < high[1] + skirt).all()


def test_boxes_behind_the_eye_are_not_drawn(tmp_path: Path) -> None:
    behind = BOX - np.array([[60.0, 0, 0, 0, 0, 0, 0]])
    scene = Scene(cloud(), [BoxGroup(behind, "a", GREEN)])
    render_3d(scene, tmp_path / "a.png", view="driver", renderer="projection")
    assert not near(pixels(tmp_path / "a.png"), GREEN)


@pytest.mark.parametrize("draw", [render_bev, lambda s, p: render_3d(s, p, renderer="projection")])
class TestEveryPicture:
    def test_empty_scenes(self, draw, tmp_path: Path) -> None:
        none = BoxGroup(np.zeros((0, 7)), "none", GREEN)
        draw(Scene(np.zeros((0, 4)), [none]), tmp_path / "a.png")
        draw(Scene(cloud(), [none]), tmp_path / "b.png")
        assert not near(pixels(tmp_path / "a.png"), GREEN)
        assert (pixels(tmp_path / "a.png") != pixels(tmp_path / "b.png")).any()

    def test_nan_points_are_dropped(self, draw, tmp_path: Path) -> None:
        points = cloud()
        spoilt = np.concatenate([points, np.full((5, 4), np.nan), [[1, np.inf, 0, 0]]])
        draw(Scene(points), tmp_path / "a.png")
        draw(Scene(torch.from_numpy(spoilt)), tmp_path / "b.png")
        assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()

    def test_the_same_twice(self, draw, tmp_path: Path) -> None:
        scene = Scene(cloud(), [BoxGroup(BOX, "a", GREEN, scores=[0.5], names=["Car"])], "title")
        draw(scene, tmp_path / "a.png")
        draw(scene, tmp_path / "b.png")
        assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()

    def test_the_legend_names_the_colours(self, draw, tmp_path: Path) -> None:
        groups = [BoxGroup(BOX, "labelled", GREEN), BoxGroup(BOX, "found", ORANGE)]
        draw(Scene(cloud(), groups, "title"), tmp_path / "a.png")
        header = pixels(tmp_path / "a.png")[:HEADER]
        assert near(header, GREEN, below_header=False)
        assert near(header, ORANGE, below_header=False)

    def test_a_folder_that_is_not_there(self, draw, tmp_path: Path) -> None:
        with pytest.raises(OSError, match="cannot write"):
            draw(Scene(cloud()), tmp_path / "none" / "a.png")


GRID = VoxelGrid((0, -20, -3, 40, 20, 1), (1.0, 1.0, 1.0))
# Of the highest count, the first cell from x 10, y -7, z -2; of the lowest, the second.
VOXELS = VoxelGroup([[1, 13, 10], [2, 32, 30]], [16, 1], GRID)


def of_shade(picture: np.ndarray, share: float, shade: float = 1.0) -> np.ndarray:
    """(n, 2) column, row of the pixels of a colour of the scale."""
    color = colormap(np.array([share]))[0] * shade
    close = np.abs(picture - color).max(axis=2) < 6
    close[:HEADER] = False
    return np.argwhere(close)[:, ::-1]


def test_voxels_from_above_are_where_they_must_be(tmp_path: Path) -> None:
    render_bev(Scene(cloud(), voxels=VOXELS), tmp_path / "a.png", bounds=BOUNDS)
    plan = BevPlan.fit(np.array(BOUNDS[:2]), np.array(BOUNDS[2:]), (1200, 1200))
    for share, (x, y) in ((1.0, (10, -7)), (0.0, (30, 12))):
        spots = of_shade(pixels(tmp_path / "a.png"), share)
        corners = plan.pixels(np.array([[x, y], [x + 1, y + 1]], float))
        np.testing.assert_allclose(spots.min(axis=0), corners.min(axis=0), atol=3)
        np.testing.assert_allclose(spots.max(axis=0), corners.max(axis=0), atol=3)


@pytest.mark.parametrize("renderer", ["projection", "open3d"])
def test_voxels_in_perspective_are_where_they_must_be(renderer: str, tmp_path: Path) -> None:
    scene = Scene(cloud(), voxels=VOXELS)
    try:
        render_3d(scene, tmp_path / "a.png", renderer=renderer)  # type: ignore[arg-type]
    except RuntimeError as error:
        pytest.skip(f"Open3D's renderer does not start here: {error}")
    picture = pixels(tmp_path / "a.png")
    camera = Camera(*perspective.EYES["oblique"], 50.0, (1600, 900 - HEADER))
    top = seen_by(camera, np.array([[10.0, -7, -1], [11, -7, -1], [11, -6, -1], [10, -6, -1]]))
    spots = of_shade(picture, 1.0)
    low, high = (edge + np.array([0, HEADER]) for edge in (top.min(axis=0), top.max(axis=0)))
    np.testing.assert_allclose(spots.min(axis=0), low, atol=3)
    np.testing.assert_allclose(spots.max(axis=0), high, atol=3)
    assert len(of_shade(picture, 1.0, 0.72)), "the side that looks to the eye, darker"
    assert not len(of_shade(picture, 1.0, 0.6)), "the side that looks away"


def test_nearer_cubes_hide_what_is_behind(tmp_path: Path) -> None:
    far = [1, 20, 20]
    wall = [[z, y, 12] for z in (2, 3) for y in (19, 20)]
    for name, coords in (("hidden", [far, *wall]), ("alone", [far])):
        voxels = VoxelGroup(coords, [16] + [1] * (len(coords) - 1), GRID)
        scene = Scene(cloud(0), voxels=voxels)
        render_3d(scene, tmp_path / f"{name}.png", view="driver", renderer="projection")
    assert len(of_shade(pixels(tmp_path / "alone.png"), 1.0)) > 20
    assert not len(of_shade(pixels(tmp_path / "hidden.png"), 1.0))


def test_marks_and_voxels_as_points(tmp_path: Path) -> None:
    mark = PointGroup([[10.0, -7, 0]], "mark", GREEN)
    points = VoxelGroup(VOXELS.coords, VOXELS.counts, GRID, "points")
    scene = Scene(cloud(0), voxels=points, marks=[mark])
    render_bev(scene, tmp_path / "a.png", bounds=BOUNDS)
    picture = pixels(tmp_path / "a.png")
    plan = BevPlan.fit(np.array(BOUNDS[:2]), np.array(BOUNDS[2:]), (1200, 1200))
    green = near(picture, GREEN)
    assert is_near(green, *plan.pixels(np.array([10.0, -7])))
    assert len(green) < 60
    middle = of_shade(picture, 1.0).mean(axis=0)
    np.testing.assert_allclose(middle, plan.pixels(np.array([10.5, -6.5])), atol=2)
    render_3d(scene, tmp_path / "b.png", renderer="projection")
    camera = Camera(*perspective.EYES["oblique"], 50.0, (1600, 900 - HEADER))
    column, row = seen_by(camera, np.array([[10.0, -7, 0]]))[0]
    assert is_near(near(pixels(tmp_path / "b.png"), GREEN), column, row + HEADER)


def forward_camera(width: int = 400, height: int = 200) -> CameraImage:
    """Looks along x with a focal length of 150 pixels."""
    projection = [[width / 2, -150, 0, 0], [height / 2, 0, -150, 0], [1, 0, 0, 0]]
    return CameraImage(np.full((height, width, 3), 90, np.uint8), projection)


def test_the_camera_sees_boxes_and_points_where_they_are(tmp_path: Path) -> None:
    point = np.array([[10.0, 2, 1], [-10, 2, 1]])
    behind = BOX - np.array([[60.0, 0, 0, 0, 0, 0, 0]])
    scene = Scene(
        point,
        [BoxGroup(np.concatenate([BOX, behind]), "a", GREEN)],
        marks=[PointGroup([[10.0, -2, 1]], "b", ORANGE)],
        camera=forward_camera(),
    )
    render_camera(scene, tmp_path / "a.png", width=800)
    picture = pixels(tmp_path / "a.png")
    assert picture.shape == (400, 800, 3)
    green = near(picture, GREEN, below_header=False)
    corners = scene.boxes[0].corners()[0]
    for x, y, z in corners:
        assert is_near(green, 2 * (200 - 150 * y / x), 2 * (100 - 150 * z / x))
    columns = np.array(sorted(green))[:, 1]
    assert columns.min() > 2 * (200 - 150 * (corners[:, 1] / corners[:, 0]).max()) - 9
    assert columns.max() < 2 * (200 - 150 * (corners[:, 1] / corners[:, 0]).min()) + 9
    assert is_near(near(picture, ORANGE, below_header=False), 2 * (200 + 30), 2 * (100 - 15))
    plain = np.asarray(draw_camera(scene, width=800, points=False)).astype(int)
    changed = np.argwhere(np.abs(plain - picture).max(axis=2) > 10)
    around = [[2 * (100 - 15), 2 * (200 - 30)], [2 * (100 - 15), 2 * (200 + 30)]]
    assert np.abs(changed[:, None] - around).max(axis=2).min(axis=1).max() <= 3
    with pytest.raises(DataError, match="no camera image"):
        draw_camera(Scene(point))


def test_pictures_with_the_image_below_and_film_strips(tmp_path: Path) -> None:
    scene = Scene(cloud(), [BoxGroup(BOX, "a", GREEN)], camera=forward_camera())
    whole = draw_scene(scene, size=(600, 600))
    assert whole.size == (600, 900)
    assert (np.asarray(whole)[-1, 0] == 90).all()
    others = [Scene(cloud(), [BoxGroup(BOX, "a", color)]) for color in (GREEN, ORANGE, GREEN)]
    render_strip(others, tmp_path / "a.png")
    strip = pixels(tmp_path / "a.png")
    height, width = strip.shape[0] // 2, strip.shape[1] // 2
    quarters = [strip[:height, :width], strip[:height, width:], strip[height:, :width]]
    assert [bool(near(part, ORANGE)) for part in quarters] == [False, True, False]
    assert [bool(near(part, GREEN)) for part in quarters] == [True, False, True]
    assert len(np.unique(strip[height + 8 :, width + 8 :].reshape(-1, 3), axis=0)) == 1
    with pytest.raises(DataError, match="at least one scene"):
        render_strip([], tmp_path / "b.png")


def test_boxes_are_written_on(tmp_path: Path) -> None:
    """The same picture but for what is written above the box."""
    for name, scores in (("a", None), ("b", [0.5])):
        scene = Scene(cloud(0), [BoxGroup(BOX, "x", GREEN, scores=scores)])
        render_3d(scene, tmp_path / f"{name}.png", renderer="projection")
    changed = np.argwhere((pixels(tmp_path / "a.png") != pixels(tmp_path / "b.png")).any(axis=2))
    camera = Camera(*perspective.EYES["oblique"], 50.0, (1600, 900 - HEADER))
    outline = seen_by(camera, BoxGroup(BOX, "x", GREEN).corners()[0])
    spot = [outline[:, 1].min() + HEADER - 12, (outline[:, 0].min() + outline[:, 0].max()) / 2]
    assert len(changed) and np.abs(changed - spot).max() < 25


class FakeWindow:
    """What Open3D's window would be asked."""

    def __init__(self) -> None:
        self.keys: dict[int, object] = {}
        self.shapes: list[object] = []

    def register_key_callback(self, code: int, action: object) -> None:
        self.keys[code] = action

    def clear_geometries(self) -> None:
        self.shapes.clear()

    def add_geometry(self, shape: object, reset_bounding_box: bool) -> None:
        self.shapes.append(shape)

    def press(self, key: str) -> None:
        self.keys[ord(key)](self)  # type: ignore[operator]

    def kinds(self) -> list[str]:
        return [type(shape).__name__ for shape in self.shapes]


def test_the_keys_of_the_window() -> None:
    boxes = BoxGroup(BOX, "a", GREEN, names=["Car"])
    scenes = [Scene(cloud(), [boxes], "one", voxels=VOXELS), Scene(cloud(7), [boxes], "two")]
    window, said = FakeWindow(), []
    _Keys(window, Shown(scenes), said.append)
    assert all(f"{key.lower()} {text}" in said[0] for key, text in KEYS.items())
    everything = window.kinds()
    assert everything.count("LineSet") == 5 and "TriangleMesh" in everything
    window.press("V")
    assert "TriangleMesh" not in window.kinds()
    window.press("B")
    assert window.kinds().count("LineSet") == 4
    window.press("O")
    assert "PointCloud" not in window.kinds()
    for key in "VBO":
        window.press(key)
    assert sorted(window.kinds()) == sorted(everything)
    window.press("C")
    assert "points by reflectance" in said[-1]
    window.press("N")
    assert said[-1].startswith("2 of 2, two")
    cloud_shown = next(s for s in window.shapes if type(s).__name__ == "PointCloud")
    assert len(cloud_shown.points) == 7
    window.press("N")
    assert said[-1].startswith("1 of 2, one")
    window.keys[263](window)  # left
    assert said[-1].startswith("2 of 2, two")
    window.press("H")
    assert said[-1] == said[0]


def test_without_a_renderer_the_projection_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 1, "", "eglInitialize failed")

    monkeypatch.setattr(perspective.subprocess, "run", fail)
    monkeypatch.setattr(perspective, "_open3d_failed", False)
    scene = Scene(cloud(), [BoxGroup(BOX, "a", GREEN)])
    with pytest.warns(UserWarning, match="does not start here.*eglInitialize failed"):
        render_3d(scene, tmp_path / "a.png")
    render_3d(scene, tmp_path / "b.png", renderer="projection")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with pytest.raises(RuntimeError, match="eglInitialize failed"):
        render_3d(scene, tmp_path / "c.png", renderer="open3d")
    assert not (tmp_path / "c.png").exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Scene(np.zeros((3, 2))), r"points: expected shape \(N, 3 or more\)"),
        (lambda: Scene(np.zeros((3, 3)), color="reflectance"), r"\(N, 4 or more\)"),
        (lambda: Scene(np.zeros((3, 3)), color="red"), "unknown color 'red'"),  # type: ignore[arg-type]
        (lambda: BoxGroup(np.zeros((3, 6)), "a", GREEN), r"boxes 'a': expected shape \(n, 7\)"),
        (lambda: BoxGroup(BOX * np.nan, "a", GREEN), "box 0 holds a value that is not finite"),
        (lambda: BoxGroup(BOX, "a", (2, 0, 0)), "color must be three values"),
        (lambda: BoxGroup(BOX, "a", GREEN, scores=[1, 2]), "1 boxes but scores"),
        (lambda: BoxGroup(BOX, "a", GREEN, names=["b", "c"]), "1 boxes but 2 names"),
    ],
)
def test_bad_scenes_are_refused(make, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make()


def test_a_window_needs_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    with pytest.raises(VoxelpoolError, match="no display"):
        show(Scene(cloud()))
