"""Triangle meshes with a material on every triangle, and the shapes they are put together from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float = NDArray[np.float64]
Int = NDArray[np.int64]


class Material:
    """What a surface is made of: decides how it reflects (see sensor.SURFACES).

    Plain integers and no enumeration: to NumPy, which asks whatever it is given for attributes,
    the members of one answer by Python code, and a Ctrl-C that comes meanwhile is lost.
    """

    ASPHALT = 0
    PAVEMENT = 1
    GRASS = 2
    SOIL = 3
    MARKING = 4
    FACADE = 5
    WINDOW = 6
    WOOD = 7
    LEAF = 8
    METAL = 9
    SIGN = 10
    PAINT = 11
    GLASS = 12
    TYRE = 13
    PLATE = 14
    CLOTH = 15
    SKIN = 16
    PLASTIC = 17


@dataclass(frozen=True, eq=False)
class Mesh:
    """Triangles.

    Attributes:
        vertices: (V, 3) float64, metres.
        triangles: (T, 3) int64, rows of vertices.
        material: (T,) int64, values of :class:`Material`.
    """

    vertices: Float
    triangles: Int
    material: Int

    def moved(self, x: float = 0.0, y: float = 0.0, z: float = 0.0, yaw: float = 0.0) -> Mesh:
        """Turned by ``yaw`` about the vertical through the origin, then shifted."""
        cos, sin = np.cos(yaw), np.sin(yaw)
        old = self.vertices
        new = np.empty_like(old)
        new[:, 0] = cos * old[:, 0] - sin * old[:, 1] + x
        new[:, 1] = sin * old[:, 0] + cos * old[:, 1] + y
        new[:, 2] = old[:, 2] + z
        return Mesh(new, self.triangles, self.material)

    def fitted(self, size: ArrayLike) -> Mesh:
        """Shifted and stretched so that it fills the box of ``size`` (3,) about the origin."""
        low, high = self.vertices.min(axis=0), self.vertices.max(axis=0)
        centred = (self.vertices - (low + high) / 2) * (np.asarray(size) / (high - low))
        return Mesh(centred, self.triangles, self.material)


def merge(meshes: Sequence[Mesh]) -> Mesh:
    """One mesh of all the triangles, in the given order."""
    if not meshes:
        return Mesh(np.zeros((0, 3)), np.zeros((0, 3), np.int64), np.zeros(0, np.int64))
    starts = np.cumsum([0] + [len(mesh.vertices) for mesh in meshes])
    return Mesh(
        np.concatenate([mesh.vertices for mesh in meshes]),
        np.concatenate(
            [mesh.triangles + start for mesh, start in zip(meshes, starts, strict=False)]
        ),
        np.concatenate([mesh.material for mesh in meshes]),
    )


@lru_cache(maxsize=256)
def _loft_triangles(sections: int, corners: int, caps: bool) -> tuple[Int, Int]:
    """Triangles of a loft and, for each, the number of the face it belongs to."""
    i, k = np.meshgrid(np.arange(sections - 1), np.arange(corners), indexing="ij")
    a, b = i * corners + k, i * corners + (k + 1) % corners
    quads = np.stack([a, b, b + corners, a, b + corners, a + corners], axis=-1)
    triangles = [quads.reshape(-1, 3)]
    face = [np.repeat(np.arange((sections - 1) * corners), 2)]
    if caps:
        fan = np.stack(
            [np.zeros(corners - 2, int), np.arange(1, corners - 1), np.arange(2, corners)], axis=-1
        )
        last = (sections - 1) * corners
        triangles += [fan[:, ::-1], fan + last]
        face.append(np.full(2 * (corners - 2), (sections - 1) * corners))
    return np.concatenate(triangles), np.concatenate(face)


def loft(sections: ArrayLike, material: ArrayLike, *, caps: int | None = None) -> Mesh:
    """The skin between cross-sections that follow one another.

    Args:
        sections: (S, K, 3) convex cross-sections of K corners each, metres.
        material: Material, or an array that broadcasts to (S - 1, K): side k of piece s spans
            corners k and k + 1.
        caps: material of the two ends; None leaves them open.
    """
    array = np.asarray(sections, np.float64)
    count, corners = array.shape[:2]
    triangles, face = _loft_triangles(count, corners, caps is not None)
    faces = np.broadcast_to(np.asarray(material, np.int64), (count - 1, corners)).ravel()
    if caps is not None:
        faces = np.append(faces, int(caps))
    return Mesh(array.reshape(-1, 3), triangles, faces[face])


_SQUARE = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])


def box(
    size: Sequence[float],
    material: ArrayLike,
    *,
    top: int | None = None,
    x: float = 0.0,
    y: float = 0.0,
    z: float = 0.0,
    yaw: float = 0.0,
) -> Mesh:
    """A box of ``size`` (along x, y, z) standing at height ``z`` on (x, y)."""
    length, width, height = size
    sections = np.empty((2, 4, 3))
    sections[:, :, :2] = _SQUARE * (length, width)
    sections[0, :, 2], sections[1, :, 2] = 0.0, height
    caps = int(np.ravel(material)[0]) if top is None else top
    return loft(sections, material, caps=caps).moved(x, y, z, yaw)


@lru_cache(maxsize=64)
def _circle(sides: int) -> Float:
    angle = (np.arange(sides) + 0.5) * 2 * np.pi / sides
    return np.column_stack([np.cos(angle), np.sin(angle)])


def tube(path: ArrayLike, radius: ArrayLike, material: int, *, sides: int = 6) -> Mesh:
    """A round bar along ``path`` (S, 3), of one radius or of one for each point of the path."""
    points = np.asarray(path, np.float64)
    along = points[-1] - points[0]
    along /= np.linalg.norm(along)
    helper = np.array([1.0, 0.0, 0.0]) if abs(along[0]) < 0.7 else np.array([0.0, 1.0, 0.0])
    u = np.array(
        [
            along[1] * helper[2] - along[2] * helper[1],
            along[2] * helper[0] - along[0] * helper[2],
            along[0] * helper[1] - along[1] * helper[0],
        ]
    )
    u /= np.linalg.norm(u)
    v = np.array(
        [
            along[1] * u[2] - along[2] * u[1],
            along[2] * u[0] - along[0] * u[2],
            along[0] * u[1] - along[1] * u[0],
        ]
    )
    ring = _circle(sides)
    offsets = ring[:, :1] * u + ring[:, 1:] * v
    radii = np.broadcast_to(np.asarray(radius, np.float64), (len(points),))
    return loft(points[:, None] + radii[:, None, None] * offsets, material, caps=material)


def leaves(
    rng: np.random.Generator,
    count: int,
    size: float,
    centre: Sequence[float],
    radii: Sequence[float],
    *,
    shell: float = 0.6,
    material: int = Material.LEAF,
) -> Mesh:
    """Loose triangles in an ellipsoid: foliage that some rays pass.

    Args:
        rng: where the randomness comes from.
        count: number of triangles.
        size: their edge in metres.
        centre: of the ellipsoid.
        radii: of the ellipsoid.
        shell: radius, relative, within which there are few.
        material: of the triangles.
    """
    direction = rng.standard_normal((count, 3))
    direction /= np.sqrt((direction**2).sum(axis=1, keepdims=True)) + 1e-9
    distance = shell + (1 - shell) * rng.random((count, 1)) ** 0.5
    middle = direction * distance * np.asarray(radii) + np.asarray(centre)
    corners = middle[:, None] + rng.standard_normal((count, 3, 3)) * (0.6 * size)
    triangles = np.arange(3 * count).reshape(-1, 3)
    return Mesh(corners.reshape(-1, 3), triangles, np.full(count, material))
