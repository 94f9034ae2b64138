"""What stands along a street and is not labelled: houses, walls, plants, poles, look-alikes.

Every shape stands on z = 0 about the origin and reaches a little below, for uneven ground.
"""

from __future__ import annotations

import numpy as np

from voxelpool.datasets.simulate.meshes import Material, Mesh, box, leaves, loft, merge, tube

M = Material
_SINK = 0.4


def house(rng: np.random.Generator, length: float, depth: float, height: float) -> Mesh:
    """A house along x whose front is at y = -depth / 2, with window rows and sometimes a gable."""
    parts = [box((length, depth, height + _SINK), M.FACADE, z=-_SINK)]
    if rng.random() < 0.5 and height < 12:
        half, ridge = depth / 2, height + 0.35 * depth
        section = [(-half - 0.3, height - 0.1), (0.0, ridge), (half + 0.3, height - 0.1)]
        ends = [[(x, y, z) for y, z in section] for x in (-length / 2 - 0.2, length / 2 + 0.2)]
        parts.append(loft(ends, M.SOIL, caps=M.FACADE))
    floors = max(1, int(height // 3))
    pitch = rng.uniform(2.2, 3.5)
    for floor in range(min(floors, 3)):
        for x in np.arange(-length / 2 + pitch / 2, length / 2 - 0.6, pitch):
            # Panes lie a little behind or before the wall.
            parts.append(
                box((1.1, 0.06, 1.4), M.WINDOW, x=x, y=-depth / 2 - 0.01, z=0.9 + 3 * floor)
            )
    if rng.random() < 0.6:
        at = rng.uniform(-0.4, 0.4) * length
        parts.append(box((1.6, 0.9, 2.6 + _SINK), M.FACADE, x=at, y=-depth / 2 - 0.4, z=-_SINK))
    return merge(parts)


def wall(length: float, height: float, thickness: float = 0.25, material: int = M.FACADE) -> Mesh:
    """A plain wall along x."""
    return box((length, thickness, height + _SINK), material, z=-_SINK)


def fence(length: float, height: float) -> Mesh:
    """Posts and rails along x."""
    posts = [
        box((0.08, 0.08, height + _SINK), M.WOOD, x=x, z=-_SINK)
        for x in np.arange(-length / 2, length / 2 + 0.01, 2.0)
    ]
    rails = [
        box((length, 0.04, 0.14), M.WOOD, z=share * height) for share in (0.15, 0.4, 0.65, 0.88)
    ]
    return merge([*posts, *rails])


def guard_rail(length: float) -> Mesh:
    """A motorway's rail on posts along x."""
    posts = [
        box((0.1, 0.1, 0.6 + _SINK), M.METAL, x=x, z=-_SINK)
        for x in np.arange(-length / 2, length / 2 + 0.01, 4.0)
    ]
    return merge([*posts, box((length, 0.08, 0.32), M.METAL, z=0.45)])


def hedge(rng: np.random.Generator, length: float, width: float, height: float) -> Mesh:
    """A clipped hedge along x: a lumpy core and loose leaves."""
    count = max(2, int(length / 1.2) + 1)
    x = np.linspace(-length / 2, length / 2, count)
    half = 0.5 * width * rng.uniform(0.4, 0.75, (count, 2))
    top = height * rng.uniform(0.75, 0.95, (count, 2))
    sections = np.empty((count, 4, 3))
    sections[:, :, 0] = x[:, None] + rng.normal(0, 0.08, (count, 4))
    sections[:, :, 1] = np.stack([-half[:, 0], -half[:, 0], half[:, 1], half[:, 1]], axis=1)
    bottom = np.full(count, -_SINK)
    sections[:, :, 2] = np.stack([bottom, top[:, 0], top[:, 1], bottom], axis=1)
    core = loft(sections, M.LEAF, caps=M.LEAF)
    count = int(min(600, 18 * length * (height + width)))
    middle = rng.uniform(-0.5, 0.5, (count, 1, 3)) * (length, width, height)
    middle[..., 2] += height / 2
    corners = (middle + rng.normal(0, 0.10, (count, 3, 3))).reshape(-1, 3)
    loose = Mesh(corners, np.arange(3 * count).reshape(-1, 3), np.full(count, int(M.LEAF)))
    return merge([core, loose])


def bush(rng: np.random.Generator, length: float, width: float, height: float) -> Mesh:
    """A shrub: leaves around a small dense middle."""
    count = int(np.clip(60 * (length + width + height), 120, 500))
    centre, radii = (0, 0, 0.48 * height), (length / 2, width / 2, 0.55 * height)
    return leaves(rng, count, 0.22, centre, radii, shell=0.2)


def tree(rng: np.random.Generator, height: float) -> Mesh:
    """A broad-leaved tree: a trunk that leans a little, some boughs, a ragged crown."""
    clear = height * rng.uniform(0.22, 0.38)
    lean = rng.normal(0, 0.02 * height, 2)
    thick = 0.018 * height + rng.uniform(0.04, 0.12)
    top = (*lean, 0.75 * height)
    parts = [
        tube(
            [(0, 0, -_SINK), (*(0.4 * lean), clear), top],
            (1.25 * thick, thick, 0.3 * thick),
            M.WOOD,
        )
    ]
    spread = height * rng.uniform(0.18, 0.32)
    for angle in rng.uniform(0, 2 * np.pi, 3):
        end = (lean[0] + 0.8 * spread * np.cos(angle), lean[1] + 0.8 * spread * np.sin(angle))
        path = [(*(0.4 * lean), clear), (*end, clear + 0.35 * height)]
        parts.append(tube(path, (0.5 * thick, 0.15 * thick), M.WOOD, sides=4))
    for _ in range(3):
        shift = rng.normal(0, 0.35 * spread, 3)
        centre = (lean[0] + shift[0], lean[1] + shift[1], clear + 0.34 * height + shift[2])
        radii = (spread, spread, 0.33 * height) * rng.uniform(0.6, 1.0, 3)
        parts.append(leaves(rng, 130, 0.34, centre, radii, shell=0.3))
    return merge(parts)


def conifer(rng: np.random.Generator, height: float) -> Mesh:
    """A spruce: a cone of loose needles down to the ground."""
    count = 320
    level = 1 - rng.random(count) ** 0.6
    radius = (1 - level) * 0.2 * height * rng.uniform(0.3, 1.0, count)
    angle = rng.uniform(0, 2 * np.pi, count)
    middle = np.stack(
        [radius * np.cos(angle), radius * np.sin(angle), 0.4 + level * (height - 0.4)], axis=1
    )
    corners = middle[:, None] + rng.normal(0, 0.22, (count, 3, 3))
    needles = Mesh(
        corners.reshape(-1, 3), np.arange(3 * count).reshape(-1, 3), np.full(count, int(M.LEAF))
    )
    return merge([tube([(0, 0, -_SINK), (0, 0, 0.8 * height)], (0.18, 0.05), M.WOOD), needles])


def pole(height: float, radius: float = 0.08, material: int = M.METAL) -> Mesh:
    """A lamp post or a bollard."""
    return tube([(0, 0, -_SINK), (0, 0, height)], (radius, 0.7 * radius), material)


def lamp(height: float) -> Mesh:
    """A street lamp whose arm reaches along +y."""
    arm = tube([(0, 0, height - 0.1), (0, 1.6, height)], 0.05, M.METAL, sides=4)
    head = box((0.3, 0.7, 0.15), M.METAL, y=1.8, z=height - 0.05)
    return merge([pole(height), arm, head])


def sign(rng: np.random.Generator) -> Mesh:
    """A traffic sign facing -x."""
    height = rng.uniform(2.0, 2.8)
    size = rng.uniform(0.45, 0.8)
    plate = box((0.03, size, size), M.SIGN, x=-0.05, z=height - size)
    return merge([pole(height, 0.035), plate])


def gantry_sign(rng: np.random.Generator) -> Mesh:
    """A large direction sign on two legs facing -x."""
    width, bottom = rng.uniform(2.0, 4.0), rng.uniform(1.0, 2.2)
    legs = [pole(bottom + 1.2, 0.06).moved(0, side * width / 3) for side in (-1, 1)]
    return merge([*legs, box((0.05, width, 1.4), M.SIGN, x=-0.1, z=bottom)])


def container(rng: np.random.Generator) -> tuple[Mesh, tuple[float, float]]:
    """Something as big as a car that is none: skip, glass bank, kiosk, stack. Mesh, (l, w)."""
    kind = rng.integers(4)
    if kind == 0:  # a skip: sides slope
        l, w, h = rng.uniform(3.0, 5.5), rng.uniform(1.6, 2.0), rng.uniform(1.1, 1.7)  # noqa: E741
        ends = []
        for x, low in ((-l / 2, 0.6 * h), (-0.3 * l, 0.0), (0.3 * l, 0.0), (l / 2, 0.6 * h)):
            ends.append([(x, -0.4 * w, low), (x, -w / 2, h), (x, w / 2, h), (x, 0.4 * w, low)])
        return loft(ends, M.METAL, caps=M.METAL), (l, w)
    if kind == 1:  # a row of bins
        count = int(rng.integers(2, 6))
        bins = [
            box((0.6, 0.7, 1.1), M.PLASTIC, x=0.75 * (i - (count - 1) / 2)) for i in range(count)
        ]
        return merge(bins), (0.75 * count, 0.7)
    if kind == 2:  # glass banks
        count = int(rng.integers(1, 4))
        parts = []
        for i in range(count):
            x = 1.5 * (i - (count - 1) / 2)
            parts.append(
                tube(
                    [(x, 0, -0.1), (x, 0, 1.0), (x, 0, 1.6)], (0.6, 0.62, 0.35), M.PLASTIC, sides=8
                )
            )
        return merge(parts), (1.5 * count, 1.3)
    l, w, h = rng.uniform(2.2, 4.5), rng.uniform(1.4, 2.2), rng.uniform(1.2, 2.4)  # noqa: E741
    return box((l, w, h + _SINK), M.WOOD, z=-_SINK), (l, w)


def bin_(rng: np.random.Generator) -> Mesh:
    """A dustbin, about as tall and wide as a small person."""
    return box((0.6, 0.6, rng.uniform(0.9, 1.3)), M.PLASTIC)
