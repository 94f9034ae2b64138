"""Kinds of street, each a function that lays out a site."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from voxelpool.datasets.simulate import objects, statics
from voxelpool.datasets.simulate.meshes import Material, loft
from voxelpool.datasets.simulate.scene import EXTENT, Ground, Road, Scene, Site

M = Material
_KERB = 0.12
# How far behind the sensor objects are placed; none of them is labelled.
_BEHIND = -30.0


def make_scene(rng: np.random.Generator, oblique: float = 0.0) -> Scene:
    """A random street scene.

    Args:
        rng: draws everything.
        oblique: share of the scenes, 0 to 1, whose street bends or is left by the sensor, and whose
            cars turn at the crossing and are parked at an angle. Highways stay as they are.
    """
    names = list(_LAYOUTS)
    weights = np.array([_LAYOUTS[name][1] for name in names])
    name = names[int(rng.choice(len(names), p=weights / weights.sum()))]
    return _LAYOUTS[name][0](rng, oblique > 0 and rng.random() < oblique).finish()


def _site(
    rng: np.random.Generator,
    offset: float,
    *,
    bend: float = 0.0,
    turn: float = 0.012,
    oblique: bool = False,
) -> Site:
    curvature = float(np.clip(rng.normal(0, bend), -0.012, 0.012)) if bend else 0.0
    heading = float(rng.normal(0, turn))
    if oblique and rng.random() < 0.6:
        curvature = float(rng.choice([-1, 1]) * rng.uniform(0.004, 0.015))
    elif oblique:
        heading = float(rng.choice([-1, 1]) * rng.uniform(0.15, 1.0))
    return Site(rng, Road(curvature, offset, heading), Ground(rng), oblique)


def _segments(cross: float | None, half: float) -> list[tuple[float, float]]:
    """The stretches of the street, without the crossing if there is one."""
    if cross is None:
        return [(-EXTENT, EXTENT)]
    return [(-EXTENT, cross - half), (cross + half, EXTENT)]


def _vehicle(rng: np.random.Generator, heavy: float) -> str:
    draw = rng.random()
    if draw < 0.4 * heavy:
        return "Truck"
    if draw < heavy + 0.02:
        return "Van"
    return "Misc" if draw > 0.985 else "Car"


def _traffic(
    site: Site, t: float, direction: int, gap: float, *, heavy: float = 0.1, first: float = _BEHIND
) -> None:
    """Vehicles in a lane, on average ``gap`` metres apart."""
    rng = site.rng
    s, last = first + rng.exponential(gap), rng.uniform(35, EXTENT - 8)
    while s < last:
        name = _vehicle(rng, heavy)
        size = objects.draw_size(rng, name)
        yaw = rng.normal(0, 0.02) + (0 if direction > 0 else np.pi)
        s += size[0] / 2
        site.add_object(name, s, t + rng.normal(0, 0.2), yaw, size=size)
        s += size[0] / 2 + rng.uniform(2.0, 6.0) + rng.exponential(gap)


def _parked(
    site: Site,
    t: float,
    stretch: tuple[float, float],
    share: float,
    *,
    square: bool = False,
    direction: int = 1,
    heavy: float = 0.06,
) -> None:
    """A row of parked vehicles: along the road, square to it or, if oblique, in between."""
    rng = site.rng
    slant = np.pi / 2 if square else 0.0
    if site.oblique and (square or rng.random() < 0.3):
        square, slant = True, rng.uniform(0.6, 1.25) * rng.choice([-1, 1])
    s = stretch[0] + rng.uniform(0, 3)
    while s < stretch[1] - 3:
        name = "Car" if square or rng.random() > heavy else "Van"
        size = objects.draw_size(rng, name)
        pitch = 2.5 / abs(np.sin(slant)) if square else size[0] + rng.uniform(0.5, 1.4)
        if rng.random() < share:
            if square:
                yaw = slant - (0 if rng.random() < 0.6 else np.pi) + rng.normal(0, 0.03)
            else:
                yaw = 0 if (rng.random() < 0.85) == (direction > 0) else np.pi
                yaw += rng.normal(0, 0.025)
            at = s + pitch / 2
            site.add_object(name, at, t + rng.normal(0, 0.12), yaw, size=size, margin=0.1)
        s += pitch
        if rng.random() < 0.04:
            s += rng.uniform(4, 12)


def _walkers(
    site: Site, count: float, band: tuple[float, float], raised: float, *, group: float = 0.3
) -> None:
    """People on foot in a band beside the road."""
    rng = site.rng
    for _ in range(rng.poisson(count)):
        s, t = rng.uniform(4, 55), rng.uniform(min(band), max(band))
        yaw = float(rng.normal(0, 0.3) + np.pi * rng.integers(2))
        if rng.random() < 0.15:
            yaw = rng.uniform(-np.pi, np.pi)
        number = 1 + int(rng.random() < group) + int(rng.random() < group * 0.4)
        for k in range(number):
            name = "Person_sitting" if rng.random() < 0.02 else "Pedestrian"
            site.add_object(
                name, s + rng.normal(0, 0.3), t + 0.8 * k, yaw, raised=raised, margin=0.02
            )


def _cyclists(site: Site, count: float, ts: tuple[float, ...]) -> None:
    rng = site.rng
    for _ in range(rng.poisson(count)):
        t = float(rng.choice(ts) + rng.normal(0, 0.3))
        yaw = rng.normal(0, 0.1) + (0 if (t < 0) == (rng.random() < 0.85) else np.pi)
        site.add_object("Cyclist", rng.uniform(5, 50), t, yaw, margin=0.05)


def _furniture(
    site: Site,
    t: float,
    side: int,
    stretch: tuple[float, float],
    raised: float,
    *,
    trees: float,
    dense: float = 1.0,
) -> None:
    """Lamps, signs, bins, street trees and look-alikes along a kerb."""
    rng = site.rng
    s = stretch[0] + rng.uniform(2, 14)
    while s < stretch[1] - 2:
        draw = rng.random()
        if draw < trees:
            site.add_static(
                "tree", statics.tree(rng, rng.uniform(5, 10)), (0.5, 0.5), s, t, raised=raised
            )
        elif draw < trees + 0.25:
            lamp = statics.lamp(rng.uniform(5, 8))
            site.add_static(
                "pole", lamp, (0.3, 0.3), s, t, np.pi if side > 0 else 0.0, raised=raised
            )
        elif draw < trees + 0.45:
            site.add_static("pole", statics.sign(rng), (0.3, 0.3), s, t, raised=raised)
        elif draw < trees + 0.55:
            site.add_static("bin", statics.bin_(rng), (0.7, 0.7), s, t, raised=raised)
        elif draw < trees + 0.63:
            mesh, footprint = statics.container(rng)
            yaw = rng.choice([0.0, np.pi / 2])
            site.add_static(
                "container", mesh, footprint, s, t + side * 0.5 * footprint[1], yaw, raised=raised
            )
        s += rng.exponential(6 / dense) + 2.0


def _shrubs(site: Site, t: float, side: int, depth: float, count: float) -> None:
    """Bushes and small trees where there is room in a strip beside the road."""
    rng = site.rng
    for _ in range(rng.poisson(count)):
        s, at = rng.uniform(-5, 45), t + side * rng.uniform(0.5, depth)
        if rng.random() < 0.8:
            l, w, h = rng.uniform(0.8, 3.5), rng.uniform(0.8, 2.0), rng.uniform(0.6, 2.4)  # noqa: E741
            site.add_static("bush", statics.bush(rng, l, w, h), (l, w), s, at, rng.uniform(0, 3))
        else:
            site.add_static("tree", statics.conifer(rng, rng.uniform(2, 6)), (0.8, 0.8), s, at)


def _plots(site: Site, t: float, side: int, stretch: tuple[float, float], kind: str) -> None:
    """What closes the view beside the road: houses, hedges, fences, walls, gardens."""
    rng = site.rng
    s = stretch[0]
    while s < stretch[1]:
        length = float(rng.uniform(9, 24))
        middle = s + length / 2
        facing = 0.0 if side > 0 else np.pi
        if kind == "city":
            depth, height = 12.0, rng.uniform(8, 18)
            setback = rng.choice([0.0, 0.0, 1.5, 6.0])
        else:
            depth, height = rng.uniform(7, 11), rng.uniform(4.5, 9)
            setback = rng.uniform(0.5, 8)
            front = rng.random()
            edge = t + side * 0.3
            if front < 0.4:
                h = rng.uniform(0.8, 2.0)
                site.add_static(
                    "bush",
                    statics.hedge(rng, length - 2, 0.9, h),
                    (length - 2, 0.9),
                    middle,
                    edge + side * 0.3,
                )
            elif front < 0.58:
                site.add_static(
                    "fence",
                    statics.fence(length - 1, rng.uniform(0.8, 1.6)),
                    (length - 1, 0.2),
                    middle,
                    edge,
                )
            elif front < 0.82:
                wall = statics.wall(length - 1, rng.uniform(0.5, 2.0))
                site.add_static("wall", wall, (length - 1, 0.3), middle, edge)
            if setback > 3:
                for _ in range(rng.integers(0, 4)):
                    at = s + rng.uniform(1, length - 1)
                    back = edge + side * rng.uniform(1.5, setback)
                    if rng.random() < 0.6:
                        l, w, h = rng.uniform(1.0, 4.0), rng.uniform(0.8, 2.0), rng.uniform(0.6, 2)  # noqa: E741
                        site.add_static("bush", statics.bush(rng, l, w, h), (l, w), at, back)
                    else:
                        site.add_static(
                            "tree", statics.tree(rng, rng.uniform(4, 9)), (1, 1), at, back
                        )
        width = length if kind == "city" else length - rng.uniform(2, 5)
        if rng.random() < (0.92 if kind == "city" else 0.85):
            at = t + side * (setback + depth / 2 + 0.8)
            site.add_static(
                "wall",
                statics.house(rng, width, depth, height),
                (width - 0.2, depth),
                middle,
                at,
                facing,
            )
        s += length + (0.0 if rng.random() < 0.7 else rng.uniform(2, 7))


def _backdrop(site: Site, nearest: float, *, woods: float = 0.5) -> None:
    """Far rows of trees and houses on all sides, so that few rays leave for the sky."""
    rng = site.rng
    for side in (-1, 1):
        s = -EXTENT
        while s < EXTENT:
            length = rng.uniform(12, 30)
            t = side * (nearest + rng.uniform(0, 14))
            _backdrop_piece(site, s + length / 2, t, 0.0 if side > 0 else np.pi, length, woods)
            s += length
    for end in (-1, 1):
        t = -nearest
        while t < nearest:
            length = rng.uniform(10, 24)
            s = end * rng.uniform(66, 78)
            _backdrop_piece(site, s, t + length / 2, -end * np.pi / 2, length, woods)
            t += length


def _backdrop_piece(
    site: Site, s: float, t: float, yaw: float, length: float, woods: float
) -> None:
    rng = site.rng
    if rng.random() < woods:
        height = rng.uniform(5, 11)
        mesh = statics.hedge(rng, length, 5.0, height)
        site.add_static("tree", mesh, (length, 4.0), s, t, yaw)  # a row of them
    elif rng.random() < 0.85:
        mesh = statics.house(rng, length, 9.0, rng.uniform(5, 13))
        site.add_static("wall", mesh, (length, 9.0), s, t, yaw)


def _residential(rng: np.random.Generator, oblique: bool) -> Site:
    half = rng.uniform(2.4, 3.3)
    site = _site(rng, -0.5 * half + rng.normal(0, 0.25), bend=0.002, oblique=oblique)
    walk = rng.uniform(1.5, 3.0)
    cross = float(rng.uniform(15, 60)) if rng.random() < 0.4 else None
    site.statics.append(site.ground.mesh(M.GRASS, 0.05))
    verge = half + (2.1 if rng.random() < 0.8 else 0.0)
    site.strip((-verge, verge), (-EXTENT, EXTENT), 0.0, M.ASPHALT)
    if cross is not None:
        _cross_road(site, cross, 3.0, cars=0.6)
    if rng.random() < 0.45:
        _traffic(site, half / 2, -1, 45)
    if rng.random() < 0.4:
        _traffic(site, -half / 2, 1, 60, first=8)
    for side in (-1, 1):
        full = rng.choice([0.0, 0.15, 0.4, 0.75], p=(0.2, 0.2, 0.3, 0.3))
        for start, end in _segments(cross, 6.0):
            site.strip((side * verge, side * (verge + walk)), (start, end), _KERB, M.PAVEMENT)
            if verge > half:
                stretch = (max(start, _BEHIND), min(end, rng.uniform(20, 70)))
                _parked(site, side * (half + 1.0), stretch, full, direction=-side)
            edge = verge + walk
            _furniture(site, side * (verge + 0.5), side, (start, end), _KERB, trees=0.25)
            _plots(site, side * edge, side, (start, end), "residential")
        _shrubs(site, side * (verge + walk), side, 7.0, 42)
        _walkers(site, 0.35, (side * (verge + 0.8), side * (verge + walk)), _KERB)
    _cyclists(site, 0.3, (-half + 0.7, half - 0.7))
    _backdrop(site, 32)
    return site


def _cross_road(site: Site, s: float, half: float, *, cars: float) -> None:
    """A road across, with traffic on it."""
    rng = site.rng
    for t in (-EXTENT, 0.0):
        along = np.linspace(t, t + EXTENT, 20)
        x, y, _ = site.road.pose(s + half * np.array([-1, -1, 1, 1]), along[:, None])
        z = site.ground(x, y) + np.array([-0.3, 0.005, 0.005, -0.3])
        site.statics.append(loft(np.stack([x, y, z], axis=-1), M.ASPHALT))
    for _ in range(rng.poisson(cars)):
        direction = rng.choice([-1, 1])
        t = rng.uniform(-25, 25)
        name = _vehicle(rng, 0.1)
        yaw = direction * np.pi / 2
        if site.oblique:
            yaw += rng.uniform(-1.0, 1.0)
        site.add_object(name, s + direction * half / 2, t, yaw)


def _city(rng: np.random.Generator, oblique: bool) -> Site:
    lanes = int(rng.integers(1, 3))
    half = 3.3 * lanes
    lane = int(rng.integers(lanes))
    site = _site(rng, -3.3 * (lane + 0.5) + rng.normal(0, 0.2), oblique=oblique)
    site.statics.append(site.ground.mesh(M.PAVEMENT, 0.05))
    walk = rng.uniform(2.5, 5)
    cross = float(rng.uniform(9, 40)) if rng.random() < 0.75 else None
    site.strip((-half, half), (-EXTENT, EXTENT), 0.0, M.ASPHALT)
    if cross is not None:
        _cross_road(site, cross, 3.3 * int(rng.integers(1, 3)), cars=1.6)
    if rng.random() < 0.06:
        site.add_object("Tram", rng.uniform(15, 55), half + 2.0, np.pi * rng.integers(2))
    for k in range(lanes):
        t = 3.3 * (k + 0.5)
        _traffic(site, t, -1, 38)
        _traffic(site, -t, 1, 40, first=7)
    for side in (-1, 1):
        for start, end in _segments(cross, 9.0):
            site.strip((side * half, side * (half + walk)), (start, end), _KERB, M.PAVEMENT)
            if rng.random() < 0.3:
                stretch = (max(start, _BEHIND), min(end, rng.uniform(20, 60)))
                _parked(site, side * (half + 1.2), stretch, 0.5)
            _furniture(site, side * (half + 0.6), side, (start, end), _KERB, trees=0.3, dense=1.3)
            _plots(site, side * (half + walk), side, (start, end), "city")
        _shrubs(site, side * half, side, walk + 4.0, 22)
        _walkers(site, 1.0, (side * (half + 0.5), side * (half + walk)), _KERB)
    if cross is not None:
        _walkers(site, 0.8, (-half, half), 0.0)
    _cyclists(site, 0.5, (-half + 0.7, half - 0.7))
    _backdrop(site, 42, woods=0.2)
    return site


def _country(rng: np.random.Generator, oblique: bool) -> Site:
    half = rng.uniform(2.7, 3.6)
    site = _site(rng, -half / 2 + rng.normal(0, 0.2), bend=0.005, oblique=oblique)
    site.statics.append(site.ground.mesh(M.GRASS, 0.03))
    site.strip((-half, half), (-EXTENT, EXTENT), 0.02, M.ASPHALT)
    _traffic(site, half / 2, -1, 40, heavy=0.15)
    _traffic(site, -half / 2, 1, 50, heavy=0.15, first=10)
    for side in (-1, 1):
        edge = half + rng.uniform(1.0, 4.0)
        if rng.random() < 0.4:
            for s in np.arange(-80, 80, 20.0):
                site.add_static(
                    "fence", statics.guard_rail(20), (20, 0.3), s + 10, side * (half + 0.7)
                )
        if rng.random() < 0.3:
            _parked(site, side * (half + 3.0), (5, 45), 0.4, square=rng.random() < 0.5)
        _furniture(site, side * edge, side, (-70, 75), 0.0, trees=0.3, dense=0.7)
        _shrubs(site, side * edge, side, 7.0, 40)
        _wood(site, side, edge + 1.0, edge + 24, rng.uniform(0.3, 1.0))
        if rng.random() < 0.4:
            _plots(site, side * (edge + 4), side, (-60, 70), "residential")
    _cyclists(site, 0.15, (-half + 0.5, half - 0.5))
    _backdrop(site, 38, woods=0.85)
    return site


def _wood(site: Site, side: int, near: float, far: float, dense: float) -> None:
    """Trees, conifers and bushes scattered in a band."""
    rng = site.rng
    for _ in range(rng.poisson(60 * dense)):
        s, t = rng.uniform(-70, 78), side * (near + (far - near) * rng.random() ** 1.5)
        kind = rng.random()
        if kind < 0.4:
            l, w, h = rng.uniform(1.0, 4.5), rng.uniform(1.0, 2.5), rng.uniform(0.7, 2.5)  # noqa: E741
            site.add_static("bush", statics.bush(rng, l, w, h), (l, w), s, t, rng.uniform(0, 3))
        elif kind < 0.8:
            site.add_static("tree", statics.tree(rng, rng.uniform(5, 11)), (0.8, 0.8), s, t)
        else:
            site.add_static("tree", statics.conifer(rng, rng.uniform(5, 12)), (1.5, 1.5), s, t)


def _highway(rng: np.random.Generator, oblique: bool) -> Site:
    lanes = int(rng.integers(2, 4))
    centre = rng.uniform(1.0, 2.5)
    ts = centre + 3.6 * (np.arange(lanes) + 0.5)
    site = _site(rng, -float(rng.choice(ts)) + rng.normal(0, 0.2), bend=0.001, turn=0.006)
    edge = centre + 3.6 * lanes + 2.0
    site.statics.append(site.ground.mesh(M.GRASS, 0.05))
    site.strip((-edge, edge), (-EXTENT, EXTENT), 0.0, M.ASPHALT)
    for s in np.arange(-80, 80, 20.0):
        site.add_static("fence", statics.guard_rail(20), (20, 0.3), s + 10, 0.0)
        for side in (-1, 1):
            site.add_static("fence", statics.guard_rail(20), (20, 0.3), s + 10, side * (edge + 0.5))
    for k, t in enumerate(ts):
        heavy = 0.35 if k == lanes - 1 else 0.08
        _traffic(site, float(t), -1, 55, heavy=heavy)
        _traffic(site, float(-t), 1, 50, heavy=heavy, first=8)
    for side in (-1, 1):
        if rng.random() < 0.35:
            for s in np.arange(-80, 80, 20.0):
                wall = statics.wall(20, rng.uniform(2.5, 4.0))
                site.add_static("wall", wall, (20, 0.3), s + 10, side * (edge + 3))
        else:
            _wood(site, side, edge + 2.5, edge + 16, 1.0)
        for s in rng.uniform(10, 75, rng.poisson(0.6)):
            site.add_static(
                "sign", statics.gantry_sign(rng), (0.4, 4.2), float(s), side * (edge + 3)
            )
    _backdrop(site, 34, woods=0.8)
    return site


def _car_park(rng: np.random.Generator, oblique: bool) -> Site:
    site = _site(rng, float(rng.normal(0, 1.0)), turn=0.05, oblique=oblique)
    site.statics.append(site.ground.mesh(M.ASPHALT, 0.0))
    full = rng.choice([0.15, 0.35, 0.6])
    square = rng.random() < 0.8
    last = float(rng.uniform(15, 45))
    for side in (-1, 1):
        first = 5.6 if square else 4.0
        _parked(site, side * first, (-20, last), full, square=square)
        if rng.random() < 0.5:
            _parked(site, side * (first + 5.3), (-20, last), full, square=square)
        _furniture(site, side * (first + 9), side, (-60, 70), 0.0, trees=0.4)
        _plots(site, side * (first + 14), side, (-75, 75), rng.choice(["city", "residential"]))
        _walkers(site, 0.25, (side * 2.0, side * 15), 0.0)
        _shrubs(site, side * (first + 6), side, 12.0, 20)
    if rng.random() < 0.4:
        _traffic(site, float(rng.normal(0, 1)), 1 if rng.random() < 0.5 else -1, 60, first=10)
    _backdrop(site, 40)
    return site


_LAYOUTS: dict[str, tuple[Callable[[np.random.Generator, bool], Site], float]] = {
    "residential": (_residential, 0.40),
    "city": (_city, 0.24),
    "country": (_country, 0.16),
    "highway": (_highway, 0.12),
    "car park": (_car_park, 0.08),
}
