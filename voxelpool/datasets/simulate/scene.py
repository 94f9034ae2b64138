"""Street scenes around the sensor: where the road, the houses, the plants and the traffic are.

A scene is laid out along a road with coordinates s (forward along the road, 0 beside the sensor)
and t (to the left of the road's centre line), and comes out in the LiDAR frame.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from voxelpool.datasets.simulate import objects
from voxelpool.datasets.simulate.meshes import Mesh, loft, merge

Float = NDArray[np.float64]

# Ground below the sensor (m), as in KITTI's sweeps.
GROUND_Z = -1.70
# Nothing is laid out beyond this distance (m) along the road.
EXTENT = 88.0
# What unlabelled things are called: lamps and signs on a pole, houses and walls, guard rails and
# fences, bushes and hedges, trees, skips and the like, dustbins, large signs on two legs.
THINGS = ("pole", "wall", "fence", "bush", "tree", "container", "bin", "sign")
# Half length, half width (m) of the place kept free for the car that carries the sensor.
_EGO = (0.0, 0.0, 6.5, 2.6, 0.0)


@dataclass(frozen=True, eq=False)
class SceneObject:
    """Something that KITTI labels.

    Attributes:
        name: its class.
        box: (7,) x, y, z of the centre, length, width, height (m), yaw, LiDAR frame.
        mesh: its surface in the LiDAR frame; the box is tight around it.
        colour: reflectance of its paint or cloth, 0 to 1.
    """

    name: str
    box: Float
    mesh: Mesh
    colour: float


@dataclass(frozen=True, eq=False)
class SceneThing:
    """Something that stands along a street and that KITTI does not label.

    Attributes:
        name: one of THINGS.
        box: (7,) like a SceneObject's, around what is above the ground.
    """

    name: str
    box: Float


@dataclass(frozen=True, eq=False)
class Scene:
    """What the sensor stands in.

    Attributes:
        statics: everything that is not labelled, ground included, in the LiDAR frame.
        shade: (T,) how bright each triangle of statics is relative to its material.
        objects: what is.
        things: what of the statics is an object to itself.
    """

    statics: Mesh
    shade: Float
    objects: list[SceneObject]
    things: list[SceneThing] = field(default_factory=list)

    @property
    def boxes(self) -> Float:
        """(n, 7) boxes of the objects."""
        return np.array([thing.box for thing in self.objects]).reshape(-1, 7)


def overlaps(rectangle: ArrayLike, others: ArrayLike) -> NDArray[np.bool_]:
    """Whether a rectangle in the plane overlaps each of the others.

    Args:
        rectangle: (5,) x, y, length, width, yaw.
        others: (N, 5).

    Returns:
        (N,) bool, by the separating axis theorem.
    """
    a = np.asarray(rectangle, np.float64)
    b = np.asarray(others, np.float64).reshape(-1, 5)
    dx, dy = b[:, 0] - a[0], b[:, 1] - a[1]
    cos_a, sin_a = np.cos(a[4]), np.sin(a[4])
    cos_b, sin_b = np.cos(b[:, 4]), np.sin(b[:, 4])
    cos = np.abs(cos_a * cos_b + sin_a * sin_b)
    sin = np.abs(sin_a * cos_b - cos_a * sin_b)
    length_a, width_a, length_b, width_b = a[2] / 2, a[3] / 2, b[:, 2] / 2, b[:, 3] / 2
    apart = np.abs(dx * cos_a + dy * sin_a) >= length_a + length_b * cos + width_b * sin
    apart |= np.abs(dy * cos_a - dx * sin_a) >= width_a + length_b * sin + width_b * cos
    apart |= np.abs(dx * cos_b + dy * sin_b) >= length_b + length_a * cos + width_a * sin
    apart |= np.abs(dy * cos_b - dx * sin_b) >= width_b + length_a * sin + width_a * cos
    return ~apart


class Ground:
    """An uneven, slightly tilted ground."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.level = GROUND_Z + np.clip(rng.normal(0, 0.02), -0.04, 0.04)
        self.slope = rng.normal(0, (0.006, 0.008))
        angle = rng.uniform(0, 2 * np.pi, 5)
        wave = 2 * np.pi / rng.uniform(18, 70, 5)
        self.wave = np.stack([wave * np.cos(angle), wave * np.sin(angle)])
        self.phase = rng.uniform(0, 2 * np.pi, 5)
        self.height = rng.uniform(0.004, 0.022, 5)
        # Level under the sensor, whose height above the road is given.
        self.level -= (self.height * np.sin(self.phase)).sum()

    def __call__(self, x: ArrayLike, y: ArrayLike) -> Float:
        """Height (m) in the LiDAR frame at (x, y)."""
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        z = self.level + self.slope[0] * x + self.slope[1] * y
        for (u, v), phase, height in zip(self.wave.T, self.phase, self.height, strict=True):
            z = z + height * np.sin(u * x + v * y + phase)
        return z

    def mesh(self, material: int, sink: float) -> Mesh:
        """The whole ground, ``sink`` metres below its height."""
        near, far = np.arange(0, 30, 3.0), np.arange(30, 97, 6.0)
        line = np.concatenate([-far[::-1], -near[:0:-1], near, far])
        x, y = np.meshgrid(line, line, indexing="ij")
        vertices = np.stack([x, y, self(x, y) - sink], axis=-1).reshape(-1, 3)
        n = len(line)
        i, j = np.meshgrid(np.arange(n - 1), np.arange(n - 1), indexing="ij")
        a = (i * n + j).ravel()
        triangles = np.concatenate(
            [np.stack([a, a + n, a + n + 1], axis=1), np.stack([a, a + n + 1, a + 1], axis=1)]
        )
        return Mesh(vertices, triangles, np.full(len(triangles), int(material)))


@dataclass(frozen=True)
class Road:
    """From road coordinates to the LiDAR frame.

    Attributes:
        curvature: of the centre line, 1/m, positive to the left.
        offset: t of the sensor.
        heading: of the sensor relative to the road, radians.
    """

    curvature: float
    offset: float
    heading: float

    def pose(self, s: ArrayLike, t: ArrayLike) -> tuple[Float, Float, Float]:
        """x, y (m) and direction of the road (radians) at (s, t)."""
        s, t = np.broadcast_arrays(np.asarray(s, np.float64), np.asarray(t, np.float64))
        turned = self.curvature * s
        if abs(self.curvature) < 1e-6:
            x, y = s, t
        else:
            x = (1 / self.curvature - t) * np.sin(turned)
            y = 1 / self.curvature - (1 / self.curvature - t) * np.cos(turned)
        y = y - self.offset
        cos, sin = np.cos(self.heading), np.sin(self.heading)
        return cos * x + sin * y, -sin * x + cos * y, turned - self.heading


class Site:
    """A scene in the making: places things where nothing stands yet.

    Args:
        rng: draws everything.
        road: along which it is laid out.
        ground: on which all stands.
        oblique: see `make_scene`.
    """

    def __init__(
        self, rng: np.random.Generator, road: Road, ground: Ground, oblique: bool = False
    ) -> None:
        self.rng, self.road, self.ground, self.oblique = rng, road, ground, oblique
        self.statics: list[Mesh] = []
        self.objects: list[SceneObject] = []
        self.things: list[SceneThing] = []
        self._taken = np.zeros((256, 5))
        self._taken[0] = _EGO
        self._count = 1

    def _claim(self, x: float, y: float, length: float, width: float, yaw: float) -> bool:
        """Reserves a rectangle if it is free."""
        rectangle = (x, y, length, width, yaw)
        if overlaps(rectangle, self._taken[: self._count]).any():
            return False
        if self._count == len(self._taken):
            self._taken = np.concatenate([self._taken, np.zeros_like(self._taken)])
        self._taken[self._count] = rectangle
        self._count += 1
        return True

    def strip(
        self, t: tuple[float, float], s: tuple[float, float], height: float, material: int
    ) -> None:
        """A lane of ground from t[0] to t[1], raised by ``height``."""
        if s[1] - s[0] < 0.5:
            return
        along = np.linspace(*s, max(2, int((s[1] - s[0]) / 4) + 1))
        across = np.array([t[0], t[0], t[1], t[1]])
        x, y, _ = self.road.pose(along[:, None], across)
        z = self.ground(x, y) + np.array([-0.3, height, height, -0.3])
        self.statics.append(loft(np.stack([x, y, z], axis=-1), material, caps=material))

    def add_object(
        self,
        name: str,
        s: float,
        t: float,
        yaw: float = 0.0,
        *,
        size: Float | None = None,
        raised: float = 0.0,
        margin: float = 0.25,
    ) -> bool:
        """Places an object unless something is in its way.

        Args:
            name: its class.
            s: of its centre.
            t: of its centre.
            yaw: relative to the road.
            size: (l, w, h) in metres; drawn if not given.
            raised: height of what it stands on above the ground.
            margin: kept free all around, metres.
        """
        size = objects.draw_size(self.rng, name) if size is None else size
        x, y, direction = (float(value) for value in self.road.pose(s, t))
        yaw = float(np.mod(yaw + direction + np.pi, 2 * np.pi) - np.pi)
        if not self._claim(x, y, size[0] + 2 * margin, size[1] + 2 * margin, yaw):
            return False
        z = float(self.ground(x, y)) + raised + size[2] / 2
        mesh = objects.build(self.rng, name, size).moved(x, y, z, yaw)
        colour = float(np.clip(self.rng.beta(1.3, 2.6), 0.02, 0.9))
        self.objects.append(SceneObject(name, np.array([x, y, z, *size, yaw]), mesh, colour))
        return True

    def add_static(
        self,
        name: str,
        mesh: Mesh,
        footprint: tuple[float, float],
        s: float,
        t: float,
        yaw: float = 0.0,
        *,
        raised: float = 0.0,
    ) -> bool:
        """Places an unlabelled thing of (length, width) unless something is in its way.

        Args:
            name: one of THINGS.
            mesh: standing on z = 0 about the origin.
            footprint: (length, width) in metres that is kept free for it.
            s: where the mesh's origin comes to stand.
            t: the same, across the road.
            yaw: relative to the road.
            raised: height of what it stands on above the ground.
        """
        x, y, direction = (float(value) for value in self.road.pose(s, t))
        if not self._claim(x, y, *footprint, yaw + direction):
            return False
        z = float(self.ground(x, y)) + raised
        self.statics.append(mesh.moved(x, y, z, yaw + direction))
        self.things.append(SceneThing(name, _box_above_ground(mesh, x, y, z, yaw + direction)))
        return True

    def finish(self) -> Scene:
        """The scene as laid out so far."""
        sizes = [len(mesh.triangles) for mesh in self.statics]
        shade = np.exp(self.rng.normal(0, 0.13, len(sizes)))
        return Scene(merge(self.statics), np.repeat(shade, sizes), self.objects, self.things)


def _box_above_ground(mesh: Mesh, x: float, y: float, z: float, yaw: float) -> Float:
    """(7,) box of a mesh that stands on z = 0, moved to x, y, z and turned by yaw."""
    low, high = mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)
    low[2] = 0.0
    middle, size = (low + high) / 2, high - low
    cos, sin = np.cos(yaw), np.sin(yaw)
    centre = (
        x + cos * middle[0] - sin * middle[1],
        y + sin * middle[0] + cos * middle[1],
        z + middle[2],
    )
    return np.array([*centre, *size, np.mod(yaw + np.pi, 2 * np.pi) - np.pi])
