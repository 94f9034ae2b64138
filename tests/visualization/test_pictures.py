"""Pictures show what they must where they must."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from voxelpool.errors import DataError, VoxelpoolError
from voxelpool.visualization import BoxGroup, Scene, perspective, render_3d, render_bev
from voxelpool.visualization.bev import BevPlan
from voxelpool.visualization.canvas import HEADER
from voxelpool.visualization.perspective import Camera
from voxelpool.visualization.window import show

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
