"""KITTI labels of a simulated sweep, by the rules that KITTI's annotators followed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from voxelpool.datasets.calibration import Calibration, crop_to_image, observation_angle
from voxelpool.datasets.kitti_format import DONT_CARE, KittiObjects
from voxelpool.datasets.simulate.scene import Scene
from voxelpool.datasets.simulate.sensor import Sweep

Float = NDArray[np.float64]

# Less of an object in the image than this share, or a lower 2D box (px), is no object at all.
_MIN_INSIDE = 0.04
_MIN_HEIGHT = 6.0
# Below this height (px) or this number of points an object becomes DontCare.
_LABEL_HEIGHT = 14.0
_LABEL_POINTS = 3
# Share of the objects with fewer points that are labelled all the same.
_LABELLED_WITHOUT_POINTS = 0.25

# Focal length (px), principal point (px), P2's and P3's last columns as in KITTI's recordings.
_CAMERAS = (
    (721.5377, (609.5593, 172.8540), (44.85728, 0.2163791, 0.002745884), -339.5242),
    (707.0493, (604.0814, 180.5066), (45.75831, -0.3454157, 0.004981016), -333.4597),
    (718.3351, (600.3891, 181.5122), (44.50382, -0.5951107, 0.002616315), -337.2877),
)
_CAMERA_SHARES = (0.7, 0.2, 0.1)
_CAMERA_POSITION = (0.27, -0.004, -0.075)


@dataclass(frozen=True)
class Annotator:
    """Which objects get boxes, and how: nothing but labels depends on it.

    Attributes:
        lift: how far above the ground they stand, metres.
        scale: how much longer, wider and higher than the objects they are.
        shift: how much nearer to the sensor they stand, along their length and as a share of it;
            less where that is across the line of sight, by the cosine between the two.
        visible: least share of the rays towards an object that must reach it; those that are
            hidden more become DontCare regions.
    """

    lift: float = 0.0
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    shift: float = 0.0
    visible: float = 0.0

    def boxes(self, objects: Float) -> Float:
        """The boxes (n, 7) around the objects that fill (n, 7); the sensor is at the origin."""
        boxes = objects.copy()
        boxes[:, 3:6] *= self.scale
        boxes[:, 2] += (boxes[:, 5] - objects[:, 5]) / 2 + self.lift
        axis = np.stack([np.cos(objects[:, 6]), np.sin(objects[:, 6])], axis=1)
        distance = np.linalg.norm(objects[:, :2], axis=1)
        away = (objects[:, :2] * axis).sum(axis=1) / np.maximum(distance, 1e-9)
        boxes[:, :2] -= (self.shift * objects[:, 3] * away)[:, None] * axis
        return boxes


EXACT = Annotator()
"""Boxes that the objects fill, however hidden they are."""


def _small_rotation(angles: Float) -> Float:
    """(3, 3) rotation by angles (radians) about x, y and z in turn."""
    (a, b, c), cos, sin = angles, np.cos, np.sin
    x = np.array([[1, 0, 0], [0, cos(a), -sin(a)], [0, sin(a), cos(a)]])
    y = np.array([[cos(b), 0, sin(b)], [0, 1, 0], [-sin(b), 0, cos(b)]])
    z = np.array([[cos(c), -sin(c), 0], [sin(c), cos(c), 0], [0, 0, 1]])
    return np.asarray(z @ y @ x)


def draw_calibration(rng: np.random.Generator) -> Calibration:
    """A calibration like those of KITTI's recording days."""
    focal, centre, last, right = _CAMERAS[int(rng.choice(len(_CAMERAS), p=_CAMERA_SHARES))]
    P2 = np.array(
        [[focal, 0, centre[0], last[0]], [0, focal, centre[1], last[1]], [0, 0, 1, last[2]]]
    )
    P0, P1, P3 = P2.copy(), P2.copy(), P2.copy()
    P0[:, 3] = 0
    P1[:, 3] = (right - last[0] - 3.19, 0, 0)
    P3[:, 3] = (right, last[1] + 2.0, last[2])
    R0 = _small_rotation(rng.normal((0.0043, -0.0074, -0.0098), 0.001))
    axes = np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]])
    # The cameras look about 1 degree off the sensor's level.
    rotation = _small_rotation(rng.normal((-0.0148, 0.0075, -0.0007), 0.001)) @ axes
    translation = -rotation @ (np.array(_CAMERA_POSITION) + rng.normal(0, 0.004, 3))
    Tr = np.column_stack([rotation, translation])
    imu = np.column_stack([_small_rotation(rng.normal(0, 0.001, 3)), (-0.8087, 0.3196, -0.7997)])
    others = {"P0": P0, "P1": P1, "P3": P3, "Tr_imu_to_velo": imu}
    return Calibration(P2, R0, Tr, others)


def _boxes_in_endless_image(calibration: Calibration, boxes: Float) -> Float:
    """(n, 4) 2D boxes as if the image had no borders."""
    far = 1e6
    P2 = calibration.P2.copy()
    P2[:2] += far * P2[2]
    wide = replace(calibration, P2=P2)
    return wide.boxes_to_image(boxes, (int(2 * far), int(2 * far))) - far


def label(
    rng: np.random.Generator,
    scene: Scene,
    sweep: Sweep,
    calibration: Calibration,
    image_size: tuple[int, int],
    annotator: Annotator = EXACT,
) -> KittiObjects:
    """What an annotator would write of the scene.

    Args:
        rng: decides which of the objects that can hardly be seen are labelled.
        scene: the scene.
        sweep: its sweep: occlusion and point counts come from it.
        calibration: of the frame.
        image_size: (width, height) in pixels.
        annotator: which objects get boxes, and how.

    Returns:
        The objects in the image, in the scene's order, then DontCare regions. ``occluded`` is 0
        to 3 by the share of the rays towards the object that reach it, ``truncated`` the share of
        the 2D box that is outside the image.
    """
    boxes = annotator.boxes(scene.boxes)
    count = len(boxes)
    if not count:
        return KittiObjects.empty()
    location, dimensions, rotation_y = calibration.boxes_to_camera(boxes)
    bbox = calibration.boxes_to_image(boxes, image_size)
    whole = _boxes_in_endless_image(calibration, boxes)
    area = (bbox[:, 2] - bbox[:, 0]) * (bbox[:, 3] - bbox[:, 1])
    whole_area = (whole[:, 2] - whole[:, 0]) * (whole[:, 3] - whole[:, 1])
    inside = np.divide(area, whole_area, out=np.zeros(count), where=whole_area > 0)
    height = bbox[:, 3] - bbox[:, 1]

    in_image = crop_to_image(sweep.points, calibration, image_size)
    owner = sweep.owner[in_image]
    points = np.bincount(owner[owner >= 0], minlength=count)
    # Where no ray goes, the annotator judges by the image, which this simulator does not have.
    share = np.nan_to_num(sweep.share, nan=1.0)
    occluded = np.select([share > 0.8, share > 0.4, share > 0.08], [0, 1, 2], default=3)

    lucky = rng.random(count) < _LABELLED_WITHOUT_POINTS
    present = (inside > _MIN_INSIDE) & (height >= _MIN_HEIGHT)
    clear = (points >= _LABEL_POINTS) & (height >= _LABEL_HEIGHT)
    labelled = present & (clear | (lucky & (height >= _LABEL_HEIGHT)))
    labelled &= share >= annotator.visible
    # What is hidden altogether is not in the image either.
    region = present & ~labelled & (share > 0.02)

    order = np.concatenate([np.flatnonzero(labelled), np.flatnonzero(region)])
    known = labelled[order]
    alpha = observation_angle(location, rotation_y)
    names = [thing.name for thing in scene.objects]
    return KittiObjects(
        type=[names[i] if labelled[i] else DONT_CARE for i in order],
        truncated=np.where(known, np.round(1 - inside[order], 2) + 0.0, -1),
        occluded=np.where(known, occluded[order], -1),
        alpha=np.where(known, alpha[order], -10),
        bbox=bbox[order],
        dimensions=np.where(known[:, None], dimensions[order], -1),
        location=np.where(known[:, None], location[order], -1000),
        rotation_y=np.where(known, rotation_y[order], -10),
    )
