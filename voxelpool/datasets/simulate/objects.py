"""The things that KITTI labels: their sizes and their shapes.

Sizes are the means and spreads of KITTI's labels (Qi et al. 2018, Frustum PointNets; MonoFlex).
A shape faces +x, fills its box exactly and has the box's centre at the origin.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from voxelpool.datasets.simulate.meshes import Material, Mesh, box, loft, merge, tube

Float = NDArray[np.float64]
M = Material

# Length, width, height in metres: mean, standard deviation, least, most.
SIZES: dict[str, tuple[tuple[float, float, float, float], ...]] = {
    "Car": ((3.88, 0.42, 2.4, 5.2), (1.63, 0.10, 1.35, 1.95), (1.53, 0.13, 1.25, 2.0)),
    "Van": ((5.07, 0.60, 3.9, 6.8), (1.90, 0.16, 1.6, 2.3), (2.21, 0.28, 1.8, 3.0)),
    "Truck": ((10.1, 3.0, 5.5, 17.0), (2.59, 0.20, 2.2, 3.0), (3.25, 0.40, 2.6, 4.1)),
    "Pedestrian": ((0.84, 0.23, 0.35, 1.5), (0.66, 0.14, 0.35, 1.05), (1.76, 0.11, 1.2, 2.05)),
    "Person_sitting": ((0.80, 0.15, 0.5, 1.2), (0.60, 0.08, 0.4, 0.8), (1.27, 0.08, 1.0, 1.5)),
    "Cyclist": ((1.76, 0.17, 1.3, 2.1), (0.60, 0.12, 0.35, 0.9), (1.74, 0.09, 1.45, 2.0)),
    "Tram": ((16.2, 4.0, 9.0, 30.0), (2.53, 0.12, 2.2, 2.8), (3.53, 0.10, 3.2, 3.8)),
    "Misc": ((3.64, 1.2, 1.6, 6.5), (1.54, 0.30, 0.9, 2.4), (1.92, 0.45, 1.0, 3.0)),
}


def draw_size(rng: np.random.Generator, name: str) -> Float:
    """Length, width and height (3,) in metres; long ones tend to be wide."""
    z = rng.standard_normal(3)
    z[1] = 0.6 * z[0] + 0.8 * z[1]
    mean, std, least, most = np.array(SIZES[name]).T
    return np.clip(mean + std * z, least, most)


def build(rng: np.random.Generator, name: str, size: Float) -> Mesh:
    """A shape of the class that fills the box of ``size`` (l, w, h) about the origin."""
    return _BUILDERS[name](rng, size).fitted(size)


@dataclass(frozen=True)
class _CarStyle:
    """Side view of a car: x relative to its length (front +.5), z relative to its height."""

    tail: float  # where the rear window meets the body
    roof_rear: float
    roof_front: float
    screen: float  # where the windscreen meets the bonnet
    boot: float  # height of the body at the tail
    belt: float
    bonnet: float


_CAR_STYLES = (
    _CarStyle(-0.475, -0.37, 0.06, 0.25, 0.60, 0.60, 0.57),  # hatchback
    _CarStyle(-0.36, -0.17, 0.07, 0.24, 0.67, 0.62, 0.59),  # saloon
    _CarStyle(-0.485, -0.43, 0.06, 0.23, 0.60, 0.60, 0.56),  # estate
    _CarStyle(-0.485, -0.41, 0.09, 0.24, 0.62, 0.62, 0.63),  # off-roader
    _CarStyle(-0.480, -0.41, 0.15, 0.36, 0.58, 0.58, 0.54),  # people carrier
)


def _wheels(l: float, w: float, places: tuple[float, ...], radius: float) -> list[Mesh]:  # noqa: E741
    """Pairs of wheels on the ground, their outer faces at the sides of the width ``w``."""
    wheels = []
    for place in places:
        for side in (-1, 1):
            y = np.array([side * w / 2, side * (w / 2 - 0.22)])
            path = np.column_stack([np.full(2, place * l), y, np.full(2, radius)])
            wheels.append(tube(path, radius, M.TYRE, sides=10))
    return wheels


def _car(rng: np.random.Generator, size: Float) -> Mesh:
    l, w, h = size  # noqa: E741
    if l < 3.75:
        pick = rng.choice(5, p=(0.75, 0.0, 0.0, 0.1, 0.15))
    else:
        pick = rng.choice(5, p=(0.2, 0.35, 0.25, 0.1, 0.1))
    if h > 1.65:
        pick = 3 + int(rng.random() < 0.5)
    s = _CAR_STYLES[pick]
    body = np.array(
        [  # x, z low, z up, half width
            (-0.500, 0.30, 0.46, 0.40),
            (-0.490, 0.20, s.boot - 0.03, 0.44),
            (-0.440, 0.16, s.boot, 0.475),
            (s.tail + 0.06, 0.14, s.boot, 0.49),
            (-0.10, 0.13, s.belt, 0.495),
            (s.screen, 0.13, s.belt - 0.01, 0.495),
            (0.380, 0.14, s.bonnet - 0.02, 0.485),
            (0.455, 0.15, s.bonnet - 0.07, 0.455),
            (0.490, 0.18, 0.42, 0.41),
            (0.500, 0.26, 0.36, 0.36),
        ]
    )
    if s.tail < -0.44:
        body = np.delete(body, 3, axis=0)
    x, low, up, half = body.T
    middle = low + 0.55 * (up - low)
    y = np.stack([-0.93 * half, -half, -0.92 * half, 0.92 * half, half, 0.93 * half], axis=1)
    z = np.stack([low, middle, up, up, middle, low], axis=1)
    sections = np.stack([np.broadcast_to(x[:, None], y.shape) * l, y * w, z * h], axis=-1)
    parts = [loft(sections, M.PAINT, caps=M.PAINT)]
    roof = s.roof_front + 0.3 * (s.roof_rear - s.roof_front)
    cabin = np.array(
        [  # x, z of the belt, z of the roof, half width at the belt and at the roof
            (s.tail, s.boot - 0.02, s.boot, 0.44, 0.43),
            (s.roof_rear, s.belt - 0.02, 0.965, 0.46, 0.35),
            (roof, s.belt - 0.02, 1.0, 0.465, 0.365),
            (s.roof_front, s.belt - 0.02, 0.975, 0.46, 0.355),
            (s.screen, s.belt - 0.02, s.belt, 0.44, 0.43),
        ]
    )
    x, belt, top, wide, narrow = cabin.T
    y = np.stack([-wide, -narrow, narrow, wide], axis=1)
    z = np.stack([belt, top, top, belt], axis=1)
    sections = np.stack([np.broadcast_to(x[:, None], y.shape) * l, y * w, z * h], axis=-1)
    skin = np.full((4, 4), M.GLASS)
    skin[1:3, 1] = M.PAINT
    skin[:, 3] = M.PAINT
    parts.append(loft(sections, skin))
    radius = min(0.215 * h, 0.36)
    parts += _wheels(l, w, (0.32, -0.31), radius)
    for end in (-0.499, 0.499):
        plate = box((0.02, 0.5, 0.12), M.PLATE, x=end * l, z=0.30 * h)
        parts.append(plate)
    for side in (-1, 1):  # pillars and lamps
        parts.append(
            box((0.05, 0.3 * w / 1.6, 0.1), M.PLASTIC, x=0.487 * l, y=side * 0.3 * w, z=0.43 * h)
        )
    return merge(parts)


def _van(rng: np.random.Generator, size: Float) -> Mesh:
    l, w, h = size  # noqa: E741
    nose = 0.5 - rng.uniform(0.55, 1.0) / l
    side = np.array(
        [  # x, z low, z up, half width at the bottom and at the top
            (-0.50, 0.18, 0.94, 0.48, 0.44),
            (-0.49, 0.14, 0.99, 0.495, 0.455),
            (0.05, 0.14, 1.0, 0.495, 0.455),
            (nose - 0.22, 0.14, 0.98, 0.495, 0.44),
            (nose, 0.14, 0.56, 0.49, 0.45),
            (0.47, 0.15, 0.45, 0.46, 0.42),
            (0.50, 0.18, 0.30, 0.42, 0.40),
        ]
    )
    x, low, up, wide, narrow = side.T
    belt = np.minimum(0.58, up - 0.02)
    y = np.stack([-wide, -wide, -narrow, narrow, wide, wide], axis=1)
    z = np.stack([low, belt, up, up, belt, low], axis=1)
    sections = np.stack([np.broadcast_to(x[:, None], y.shape) * l, y * w, z * h], axis=-1)
    skin = np.full((6, 6), M.PAINT)
    skin[3, 1:4] = M.GLASS
    skin[2, (1, 3)] = M.GLASS
    if rng.random() < 0.4:
        skin[1, (1, 3)] = M.GLASS
    plates = [box((0.02, 0.5, 0.12), M.PLATE, x=end * l, z=0.25 * h) for end in (-0.499, 0.499)]
    wheels = _wheels(l, w, (0.32, -0.31), min(0.16 * h, 0.38))
    return merge([loft(sections, skin, caps=M.PAINT), *wheels, *plates])


def _truck(rng: np.random.Generator, size: Float) -> Mesh:
    l, w, h = size  # noqa: E741
    cab_length = min(2.2, 0.35 * l)
    cab_height = min(h, rng.uniform(2.5, 3.2))
    x0 = l / 2 - cab_length
    cab = np.array(
        [(x0, 0.45, cab_height), (l / 2 - 0.35, 0.40, cab_height), (l / 2, 0.40, 0.5 * cab_height)]
    )
    sections = np.stack(
        [
            np.column_stack(
                [np.full(4, x), np.array([-1, -1, 1, 1]) * 0.48 * w, (low, up, up, low)]
            )
            for x, low, up in cab
        ]
    )
    skin = np.full((2, 4), M.PAINT)
    skin[1, 1] = M.GLASS
    parts = [loft(sections, skin, caps=M.PAINT)]
    load = l - cab_length - 0.3
    kind = rng.random()
    centre = -l / 2 + load / 2
    if kind < 0.65:
        parts.append(box((load, w, h - 1.0), M.METAL, x=centre, z=1.0))
    elif kind < 0.85:
        path = np.array([(-l / 2, 0, 1 + (h - 1) / 2), (-l / 2 + load, 0, 1 + (h - 1) / 2)])
        parts.append(tube(path, 0.5 * min(h - 1.0, w), M.METAL, sides=12))
        parts.append(box((load, w, 0.15), M.METAL, x=centre, z=0.95))
    else:
        parts.append(box((load, w, 0.45 * (h - 1.0)), M.METAL, x=centre, z=1.0))
        parts.append(box((0.6 * load, 0.8 * w, h - 1.0), M.WOOD, x=centre, z=1.0))
    parts.append(box((l - 1.0, 0.8, 0.4), M.METAL, x=-0.2, z=0.55))
    places = (0.5 - 1.3 / l, -0.5 + 1.2 / l, -0.5 + 2.5 / l)
    return merge([*parts, *_wheels(l, w, places if l > 7.5 else places[:2], 0.48)])


def _tram(rng: np.random.Generator, size: Float) -> Mesh:
    l, w, h = size  # noqa: E741
    side = np.array(
        [
            (-0.50, 0.10, 0.50, 0.36),
            (-0.48, 0.08, 0.92, 0.47),
            (-0.45, 0.08, 0.97, 0.50),
            (0.45, 0.08, 0.97, 0.50),
            (0.48, 0.08, 0.92, 0.47),
            (0.50, 0.10, 0.50, 0.36),
        ]
    )
    x, low, up, half = side.T
    belt, top = np.minimum(0.38, up - 0.05), up - 0.12
    y = np.stack([-half, -half, -half, -0.9 * half, 0.9 * half, half, half, half], axis=1)
    z = np.stack([low, belt, top, up, up, top, belt, low], axis=1)
    sections = np.stack([np.broadcast_to(x[:, None], y.shape) * l, y * w, z * h], axis=-1)
    skin = np.full((5, 8), M.PAINT)
    skin[:, (1, 5)] = M.GLASS
    roof = box((0.3 * l, 0.6 * w, 0.06 * h), M.METAL, x=0.1 * l, z=0.96 * h)
    bogies = [box((2.0, 0.8 * w, 0.4), M.METAL, x=at * l) for at in (-0.3, 0.3)]
    return merge([loft(sections, skin, caps=M.GLASS), roof, *bogies])


def _misc(rng: np.random.Generator, size: Float) -> Mesh:
    l, w, h = size  # noqa: E741
    if rng.random() < 0.5:  # a trailer with a drawbar
        load = box((0.75 * l, w, h - 0.5), M.METAL, x=-0.125 * l, z=0.5)
        bar = box((0.3 * l, 0.12, 0.12), M.METAL, x=0.35 * l, z=0.45)
        return merge([load, bar, *_wheels(0.75 * l, w, (-0.17,), min(0.32, 0.3 * h))])
    body = box((0.7 * l, 0.9 * w, 0.45 * h), M.PAINT, x=-0.1 * l, z=0.2 * h)
    cab = box((0.4 * l, 0.8 * w, 0.75 * h), M.GLASS, x=-0.2 * l, z=0.25 * h, top=M.PAINT)
    arm = box((0.35 * l, 0.6 * w, 0.2 * h), M.METAL, x=0.325 * l, z=0.05 * h)
    return merge([body, cab, arm, *_wheels(l, w, (0.2, -0.3), 0.25 * h)])


def _figure(
    hip: tuple[float, float], feet: list[tuple[float, float, float]], lean: float, arms: Float
) -> list[Mesh]:
    """A person 1.75 m tall when upright.

    Args:
        hip: x and z of the hips.
        feet: knee x, foot x, foot z of the left and the right leg.
        lean: how far the shoulders are before the hips.
        arms: (2, 2) x and z of the left and the right hand.
    """
    x, z = hip
    shoulder = (x + lean, z + 0.52)
    parts = [
        tube(
            [(x, 0, z - 0.06), (x + 0.5 * lean, 0, z + 0.3), (*shoulder[:1], 0, shoulder[1])],
            (0.16, 0.18, 0.15),
            M.CLOTH,
            sides=8,
        ),
        tube(
            [
                (shoulder[0] + 0.02, 0, shoulder[1] + 0.06),
                (shoulder[0] + 0.04, 0, shoulder[1] + 0.20),
                (shoulder[0] + 0.04, 0, shoulder[1] + 0.34),
            ],
            (0.07, 0.105, 0.06),
            M.SKIN,
            sides=8,
        ),
    ]
    for side, (knee, foot, height) in zip((1, -1), feet, strict=True):
        path = [
            (x, side * 0.09, z),
            (knee, side * 0.10, (z + height) / 2),
            (foot, side * 0.10, height + 0.03),
        ]
        parts.append(tube(path, (0.095, 0.075, 0.05), M.CLOTH))
        parts.append(box((0.26, 0.10, 0.08), M.TYRE, x=foot + 0.06, y=side * 0.10, z=height))
    for side, hand in zip((1, -1), arms, strict=True):
        elbow = ((shoulder[0] + hand[0]) / 2 - 0.06, (shoulder[1] + hand[1]) / 2)
        path = [
            (shoulder[0], side * 0.19, shoulder[1] - 0.03),
            (elbow[0], side * 0.26, elbow[1]),
            (hand[0], side * 0.22, hand[1]),
        ]
        parts.append(tube(path, (0.065, 0.05, 0.04), M.CLOTH))
    return parts


def _pedestrian(rng: np.random.Generator, size: Float) -> Mesh:
    stride = 0.5 * size[0] * rng.uniform(0.6, 0.95) - 0.05
    feet = [(0.6 * stride, stride, 0.0), (-0.3 * stride, -stride, 0.03)]
    if rng.random() < 0.5:
        feet.reverse()
    swing = np.array([(-0.7 * stride, 0.85), (0.8 * stride, 0.88)])
    if rng.random() < 0.3:
        swing = np.array([(0.25, 1.05), (0.25, 1.05)])
    return merge(_figure((0.0, 0.90), feet, 0.03, swing))


def _sitting(rng: np.random.Generator, size: Float) -> Mesh:
    feet = [(0.40, 0.42, 0.0), (0.40, 0.38, 0.0)]
    person = _figure((0.0, 0.50), feet, -0.03, np.array([(0.3, 0.55), (0.3, 0.55)]))
    seat = box((0.42, 0.42, 0.42), M.WOOD, x=-0.03)
    back = box((0.05, 0.42, 0.85), M.WOOD, x=-0.25)
    return merge([*person, seat, back])


def _cyclist(rng: np.random.Generator, size: Float) -> Mesh:
    parts = []
    ring = np.linspace(0, 2 * np.pi, 11)
    half = np.array([0.0, 0.025, 0.0])
    for x in (-0.52, 0.52):
        rim = np.stack([x + 0.33 * np.cos(ring), 0 * ring, 0.34 + 0.33 * np.sin(ring)], axis=1)
        inner = rim + (np.array([x, 0, 0.34]) - rim) * 0.16
        sections = np.stack(
            [
                rim + half,
                rim - half,
                inner - half,
                inner + half,
            ],
            axis=1,
        )
        parts.append(loft(sections, M.TYRE))
        parts.append(box((0.12, 0.08, 0.12), M.METAL, x=x, z=0.28))
    for start, end in (
        ((-0.52, 0, 0.34), (-0.18, 0, 0.88)),
        ((-0.05, 0, 0.30), (-0.20, 0, 0.92)),
        ((-0.05, 0, 0.30), (0.36, 0, 0.85)),
        ((-0.18, 0, 0.80), (0.36, 0, 0.88)),
        ((0.52, 0, 0.34), (0.34, 0, 1.02)),
        ((-0.52, 0, 0.34), (-0.05, 0, 0.30)),
        ((0.36, -0.30, 1.03), (0.36, 0.30, 1.03)),
    ):
        parts.append(tube([start, end], 0.022, M.METAL, sides=4))
    up = rng.uniform(0.20, 0.42)
    feet = [(0.18, -0.02, up), (0.12, 0.0, 0.62 - up)]
    lean = rng.uniform(0.12, 0.32)
    parts += _figure((-0.20, 0.98), feet, lean, np.array([(0.32, 1.06), (0.32, 1.06)]))
    return merge(parts)


_BUILDERS: dict[str, Callable[[np.random.Generator, Float], Mesh]] = {
    "Car": _car,
    "Van": _van,
    "Truck": _truck,
    "Pedestrian": _pedestrian,
    "Person_sitting": _sitting,
    "Cyclist": _cyclist,
    "Tram": _tram,
    "Misc": _misc,
}
