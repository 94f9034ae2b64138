from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxelpool.datasets.calibration import Calibration, crop_to_image, wrap_angle
from voxelpool.datasets.kitti_format import DONT_CARE, image_size, read_label
from voxelpool.errors import DataError

P2 = np.array([[700.0, 0, 600, 45], [0, 700, 180, -0.3], [0, 0, 1, 0.005]])
# LiDAR x, y, z are camera z, -x, -y.
AXES = np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]])


def rotation(axis: int, angle: float) -> np.ndarray:
    matrix = np.eye(3)
    a, b = [k for k in range(3) if k != axis]
    matrix[a, a] = matrix[b, b] = np.cos(angle)
    matrix[a, b], matrix[b, a] = -np.sin(angle), np.sin(angle)
    return matrix


def plain_calibration() -> Calibration:
    """No tilt, no offset: every number can be worked out by hand."""
    pinhole = np.array([[700.0, 0, 600, 0], [0, 700, 180, 0], [0, 0, 1, 0]])
    return Calibration(pinhole, np.eye(3), np.column_stack([AXES, np.zeros(3)]))


def tilted_calibration() -> Calibration:
    r0 = rotation(0, 0.01) @ rotation(1, -0.008)
    transform = np.column_stack([rotation(2, 0.006) @ AXES, [0.02, -0.07, -0.3]])
    return Calibration(P2, r0, transform)


def write(path: Path, **rows: str) -> Path:
    path.write_text("".join(f"{key}: {value}\n" for key, value in rows.items()))
    return path


def rows_of(calibration: Calibration) -> dict[str, str]:
    matrices = {
        "P2": calibration.P2,
        "R0_rect": calibration.R0,
        "Tr_velo_to_cam": calibration.Tr_velo_to_cam,
    }
    return {key: " ".join(map(repr, value.ravel().tolist())) for key, value in matrices.items()}


def test_axes_by_hand() -> None:
    calibration = plain_calibration()
    assert calibration.lidar_to_camera([[10.0, 2.0, -1.5]]).tolist() == [[-2.0, 1.5, 10.0]]
    uv, depth = calibration.project([[10.0, 2.0, -1.5]])
    np.testing.assert_allclose(uv, [[600 - 140, 180 + 105]])
    np.testing.assert_allclose(depth, [10])


def test_transforms_follow_the_devkits_formula() -> None:
    calibration = tilted_calibration()
    xyz = np.random.default_rng(0).uniform([2, -20, -3], [60, 20, 3], (50, 3))
    for point, seen, pixel, depth in zip(
        xyz, calibration.lidar_to_camera(xyz), *calibration.project(xyz), strict=True
    ):
        camera = calibration.R0 @ (calibration.Tr_velo_to_cam @ np.append(point, 1))
        image = calibration.P2 @ np.append(camera, 1)
        np.testing.assert_allclose(seen, camera, atol=1e-12)
        np.testing.assert_allclose(pixel, image[:2] / image[2], atol=1e-9)
        np.testing.assert_allclose(depth, image[2], atol=1e-12)
    back = calibration.camera_to_lidar(calibration.lidar_to_camera(xyz))
    np.testing.assert_allclose(back, xyz, atol=1e-12)


def test_box_conversion_by_hand() -> None:
    # Bottom centre 10 m ahead and 1.7 m below; rotation_y = -pi/2 looks along camera +z = LiDAR +x.
    boxes = plain_calibration().boxes_to_lidar([[0.0, 1.7, 10.0]], [[1.5, 1.6, 3.9]], [-np.pi / 2])
    np.testing.assert_allclose(boxes, [[10, 0, -1.7 + 0.75, 3.9, 1.6, 1.5, 0]], atol=1e-12)
    # rotation_y = 0 looks along camera +x = LiDAR -y.
    boxes = plain_calibration().boxes_to_lidar([[0.0, 1.7, 10.0]], [[1.5, 1.6, 3.9]], [0.0])
    np.testing.assert_allclose(boxes[0, 6], -np.pi / 2)


finite = st.floats(-80, 80)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            *(finite, finite, st.floats(-3, 3)),
            *(st.floats(0.1, 20), st.floats(0.1, 4), st.floats(0.1, 4)),
            st.floats(-10, 10),
        ),
        max_size=5,
    )
)
def test_boxes_round_trip(rows: list[tuple[float, ...]]) -> None:
    calibration = tilted_calibration()
    boxes = np.array(rows, np.float64).reshape(-1, 7)
    location, hwl, rotation_y = calibration.boxes_to_camera(boxes)
    back = calibration.boxes_to_lidar(location, hwl, rotation_y)
    np.testing.assert_allclose(back[:, :6], boxes[:, :6], atol=1e-9)
    turn = back[:, 6] - boxes[:, 6]
    np.testing.assert_allclose(np.cos(turn), 1, atol=1e-9)
    for angle in (back[:, 6], rotation_y):
        assert ((angle >= -np.pi) & (angle < np.pi)).all()


@pytest.mark.parametrize("angle", [np.pi, -np.pi, 3 * np.pi, -1e-17, 1e300, 0.0])
def test_wrap_angle_stays_in_its_interval(angle: float) -> None:
    wrapped = wrap_angle(angle)
    assert -np.pi <= wrapped < np.pi
    if abs(angle) < 100:
        np.testing.assert_allclose(np.exp(1j * wrapped), np.exp(1j * angle), atol=1e-12)


def dense_projection(
    box: np.ndarray, calibration: Calibration, size: tuple[int, int]
) -> np.ndarray | None:
    """The image box of many points of the box's surface: an oracle without near-plane clipping."""
    location, hwl, rotation_y = calibration.boxes_to_camera(box[None])
    h, w, length = hwl[0]
    line = np.linspace(-0.5, 0.5, 161)
    a, b = (grid.ravel() for grid in np.meshgrid(line, line))
    faces = []
    for axis in range(3):
        for side in (-0.5, 0.5):
            unit = np.empty((a.size, 3))
            unit[:, axis] = side
            unit[:, [k for k in range(3) if k != axis]] = np.column_stack([a, b])
            faces.append(unit)
    unit = np.concatenate(faces) * [length, h, w] - [0, h / 2, 0]
    c, s = np.cos(rotation_y[0]), np.sin(rotation_y[0])
    camera = unit @ np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]).T + location[0]
    image = np.column_stack([camera, np.ones(len(camera))]) @ calibration.P2.T
    image = image[image[:, 2] > 0.01]
    if not len(image):
        return None
    uv = image[:, :2] / image[:, 2:]
    limit = np.array(size) - 1
    low, high = np.clip(uv.min(0), 0, limit), np.clip(uv.max(0), 0, limit)
    return np.concatenate([low, high]) if (high > low).all() else None


def test_boxes_to_image_matches_a_dense_projection() -> None:
    calibration, size = tilted_calibration(), (1242, 375)
    rng = np.random.default_rng(1)
    boxes = np.column_stack(
        [
            *(rng.uniform(-6, 40, 300), rng.uniform(-15, 15, 300), rng.uniform(-2, 1, 300)),
            *(rng.uniform(0.5, 8, 300), rng.uniform(0.5, 3, 300), rng.uniform(0.5, 3, 300)),
            rng.uniform(-np.pi, np.pi, 300),
        ]
    )
    found = calibration.boxes_to_image(boxes, size)
    behind = inside = crossing = 0
    for box, bbox in zip(boxes, found, strict=True):
        expected = dense_projection(box, calibration, size)
        if expected is None:
            behind += 1
            assert not bbox.any()
            continue
        inside += 1
        near = box[0] - np.hypot(box[3], box[4]) / 2 < 0.5
        crossing += near
        # Near the camera the oracle's samples are many pixels apart.
        np.testing.assert_allclose(bbox, expected, atol=40 if near else 0.5)
    assert behind > 30 and inside > 100 and crossing > 5


def test_box_around_the_camera_covers_the_image_and_one_behind_nothing() -> None:
    boxes = [[0.0, 0, 0, 4, 2, 2, 0], [-10.0, 0, 0, 4, 2, 2, 0.3]]
    found = plain_calibration().boxes_to_image(boxes, (1242, 375))
    assert found.tolist() == [[0, 0, 1241, 374], [0, 0, 0, 0]]


def test_no_boxes() -> None:
    calibration = plain_calibration()
    assert calibration.boxes_to_lidar(np.zeros((0, 3)), np.zeros((0, 3)), []).shape == (0, 7)
    assert calibration.boxes_to_image(np.zeros((0, 7)), (10, 10)).shape == (0, 4)
    location, hwl, rotation_y = calibration.boxes_to_camera(np.zeros((0, 7)))
    assert location.shape == hwl.shape == (0, 3) and rotation_y.shape == (0,)


def test_crop_has_inclusive_lower_and_exclusive_upper_edges() -> None:
    # Depth 7 makes a metre 100 pixels: u = 600 - 100 y, v = 180 - 100 z.
    calibration, size = plain_calibration(), (1200, 360)
    eps = 1e-9
    cases = {
        (7.0, 6.0, 0.0): True,  # u = 0
        (7.0, 6.0 + eps, 0.0): False,
        (7.0, -6.0, 0.0): False,  # u = width
        (7.0, -6.0 + eps, 0.0): True,
        (7.0, 0.0, 1.8): True,  # v = 0
        (7.0, 0.0, -1.8): False,  # v = height
        (-7.0, 0.0, 0.0): False,  # behind, though its pixel would fit
        (0.0, 0.0, 0.0): False,
        (np.nan, 0.0, 0.0): False,
        (np.inf, 0.0, 0.0): False,
    }
    found = crop_to_image(np.array(list(cases)), calibration, size)
    assert found.tolist() == list(cases.values())
    assert crop_to_image(np.zeros((0, 4), np.float32), calibration, size).shape == (0,)
    with pytest.raises(DataError, match=r"\(N, >=3\), got \(4, 2\)"):
        crop_to_image(np.zeros((4, 2)), calibration, size)


def test_save_and_load_keep_every_number(tmp_path: Path) -> None:
    calibration = tilted_calibration()
    calibration = Calibration(
        calibration.P2, calibration.R0, calibration.Tr_velo_to_cam, {"P0": np.full((3, 4), 1 / 3)}
    )
    calibration.save(tmp_path / "c.txt")
    back = Calibration.load(tmp_path / "c.txt")
    for name in ("P2", "R0", "Tr_velo_to_cam"):
        assert np.array_equal(getattr(back, name), getattr(calibration, name)), name
    assert np.array_equal(back.others["P0"], np.full(12, 1 / 3))
    keys = [line.split(":")[0] for line in (tmp_path / "c.txt").read_text().splitlines()]
    assert keys == ["P0", "P1", "P2", "P3", "R0_rect", "Tr_velo_to_cam", "Tr_imu_to_velo"]


def test_pickle_and_cached_matrices() -> None:
    calibration = tilted_calibration()
    point = [[5.0, 1.0, 0.0]]
    before = calibration.project(point)[0]
    assert np.array_equal(pickle.loads(pickle.dumps(calibration)).project(point)[0], before)


def test_other_key_names_order_and_rows_without_numbers(tmp_path: Path) -> None:
    rows = rows_of(tilted_calibration())
    path = tmp_path / "c.txt"
    path.write_text(
        f"calib_time: 09-Jan-2012 13:57:47\nTr_velo_cam {rows['Tr_velo_to_cam']}\n\n"
        f"R_rect {rows['R0_rect']}\nP2: {rows['P2']}\n\n"
    )
    assert np.array_equal(Calibration.load(path).R0, tilted_calibration().R0)


@pytest.mark.parametrize("key", ["P2", "R0_rect", "Tr_velo_to_cam"])
def test_a_missing_key_is_named_with_the_file(tmp_path: Path, key: str) -> None:
    rows = rows_of(plain_calibration())
    del rows[key]
    path = write(tmp_path / "000042.txt", **rows)
    with pytest.raises(DataError, match=rf"000042\.txt: no calibration key {key}"):
        Calibration.load(path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"P2": "1 2 3"}, r"c\.txt: P2 has 3 values, expected 12 \(3x4\)"),
        ({"P2": "1 2 x"}, r"c\.txt:1: P2: could not convert string to float: 'x'"),
        ({"R0_rect": " ".join(["nan"] * 9)}, r"c\.txt:2: R0_rect holds NaN or infinity"),
        ({"R0_rect": " ".join(["0"] * 9)}, r"c\.txt: .*cannot be inverted"),
    ],
)
def test_bad_rows(tmp_path: Path, rows: dict[str, str], message: str) -> None:
    path = write(tmp_path / "c.txt", **(rows_of(plain_calibration()) | rows))
    with pytest.raises(DataError, match=message):
        Calibration.load(path)


def test_a_key_given_twice_and_a_binary_file(tmp_path: Path) -> None:
    path = tmp_path / "c.txt"
    path.write_text("P2: 1\nP2: 1\n")
    with pytest.raises(DataError, match=r"c\.txt:2: calibration key P2 is given twice"):
        Calibration.load(path)
    path.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(DataError, match="not a text file"):
        Calibration.load(path)


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(DataError, match=r"P2 must be \(3, 4\), got \(3, 3\)"):
        Calibration(np.eye(3), np.eye(3), np.eye(3, 4))
    with pytest.raises(DataError, match=r"boxes must be \(N, 7\), got \(2, 6\)"):
        plain_calibration().boxes_to_image(np.zeros((2, 6)), (10, 10))
    with pytest.raises(DataError, match=r"coordinates must be \(N, 3\), got \(2, 4\)"):
        plain_calibration().lidar_to_camera(np.zeros((2, 4)))


def test_real_calibrations_are_written_as_they_were(kitti_sample: Path, tmp_path: Path) -> None:
    for path in sorted((kitti_sample / "training" / "calib").glob("*.txt")):
        Calibration.load(path).save(tmp_path / path.name)
        assert (tmp_path / path.name).read_text().strip() == path.read_text().strip()


def test_real_boxes_project_onto_their_labels(kitti_sample: Path) -> None:
    """Annotators drew most 2D boxes from the projected 3D box, so the median error is small."""
    folder, errors = kitti_sample / "training", []
    for image in sorted((folder / "image_2").glob("*.png")):
        calibration = Calibration.load(folder / "calib" / f"{image.stem}.txt")
        objects = read_label(folder / "label_2" / f"{image.stem}.txt")
        objects = objects[[row for row, name in enumerate(objects.type) if name != DONT_CARE]]
        boxes = calibration.boxes_to_lidar(objects.location, objects.dimensions, objects.rotation_y)
        found = calibration.boxes_to_image(boxes, image_size(image))
        errors.append(np.abs(found - objects.bbox).max(axis=1))
        alpha = wrap_angle(
            objects.rotation_y - np.arctan2(objects.location[:, 0], objects.location[:, 2])
        )
        # P2's own offset and two decimals: facts are within a few hundredths of a radian.
        assert (np.abs(wrap_angle(alpha - objects.alpha)) < 0.06).all()
    assert np.median(np.concatenate(errors)) < 1.5
