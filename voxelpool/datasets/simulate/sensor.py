"""A Velodyne HDL-64E as KITTI's sweeps show it, by ray casting.

The figures are measurements of KITTI's sweeps, not the data sheet's: 64 rings from top to bottom,
about 2,080 firings each (.18 degrees apart), returns from 1.46 m to 80 m, 1 mm resolution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxelpool.datasets.simulate.meshes import Material, merge
from voxelpool.datasets.simulate.scene import Scene

Float = NDArray[np.float64]
Float32 = NDArray[np.float32]
M = Material

RINGS = 64
RANGE = (1.46, 79.9)
RANGE_NOISE = 0.009
# Elevation of the beams in degrees, as seen from the origin of the point cloud.
ELEVATION = np.concatenate([np.linspace(2.0, -8.33, 32), np.linspace(-8.83, -24.33, 32)]) + 0.6

# The first ring (from the top) that the sensor's own car stops, by azimuth in degrees.
_CAR_OUTLINE = np.array(
    [
        *((0, 57.0), (8, 58.5), (15, 60.5), (25, 63.5), (31, 62.5), (38, 62.5), (43, 64.5)),
        *((118, 64.5), (124, 63.0), (130, 60.5), (138, 60.5), (143, 63.0), (149, 63.0)),
        *((154, 58.0), (162, 54.0), (170, 52.3), (190, 52.3), (200, 54.5), (208, 59.5)),
        *((214, 63.0), (222, 61.5), (230, 60.0), (238, 60.5), (241, 64.5), (268, 64.5)),
        *((277, 62.0), (280, 49.0), (299, 49.5), (302, 63.5), (320, 62.0), (328, 63.0)),
        *((338, 63.5), (345, 60.5), (352, 58.5), (360, 57.0)),
    ]
).T
# Middle and half width of its masts in degrees, and the rings that they stop.
_CAR_MASTS = ((155.5, 4.0, 41, 50), (205.5, 4.5, 42, 51))

# Material: (reflectance at normal incidence, its spread, share of rays without a return).
SURFACES: dict[int, tuple[float, float, float]] = {
    M.ASPHALT: (0.33, 0.07, 0.01),
    M.PAVEMENT: (0.40, 0.07, 0.01),
    M.GRASS: (0.44, 0.09, 0.02),
    M.SOIL: (0.36, 0.08, 0.02),
    M.MARKING: (0.60, 0.10, 0.00),
    M.FACADE: (0.42, 0.09, 0.01),
    M.WINDOW: (0.10, 0.15, 0.40),
    M.WOOD: (0.36, 0.10, 0.03),
    M.LEAF: (0.38, 0.15, 0.04),
    M.METAL: (0.36, 0.18, 0.06),
    M.SIGN: (0.85, 0.12, 0.00),
    M.PAINT: (1.00, 0.08, 0.08),  # times the object's colour
    M.GLASS: (0.08, 0.10, 0.62),
    M.TYRE: (0.06, 0.05, 0.20),
    M.PLATE: (0.90, 0.10, 0.00),
    M.CLOTH: (1.00, 0.08, 0.03),  # times the object's colour
    M.SKIN: (0.40, 0.08, 0.02),
    M.PLASTIC: (0.28, 0.13, 0.06),
}
# Unevenness in metres of unlabelled things whose meshes are too smooth; at a grazing angle it
# moves a return along the ray by a multiple of it.
_ROUGHNESS = np.zeros(len(SURFACES))
_ROUGHNESS[[M.ASPHALT, M.PAVEMENT, M.MARKING]] = 0.002
_ROUGHNESS[[M.GRASS, M.SOIL]] = 0.01
_ROUGHNESS[[M.FACADE, M.WINDOW]] = 0.04
_ROUGHNESS[[M.WOOD, M.LEAF]] = 0.08
# By distance in metres: how reflectance is scaled, and how much of it is reported as zero.
_GAIN = np.array([(0, 0.85), (6, 0.95), (14, 1.2), (30, 1.0), (80, 0.5)]).T
_DARK = np.array([(0, 0.2), (4, 0.17), (6, 0.10), (14, 0.04), (25, 0.1), (55, 0.65), (80, 0.75)]).T
# The same of KITTI's vehicles, measured on cars of which nothing is hidden (docs/sim_to_real.md).
# What their paint sends back gets lost with distance, of some nearly all and of others nothing,
# and wherever it is seen at a grazing angle; most of the rest is reported as zero.
_FAINT_LOSS = np.array([(0, 0.0), (12, 0.0), (32, 0.95)]).T
_GRAZING = 0.2
_GRAZING_LOSS = np.array([(0, 0.0), (15, 0.1), (40, 1.0)]).T
_FAINT_DARK = np.array([(0, 0.1), (10, 0.2), (25, 0.5), (35, 0.75)]).T
_GLASS_DARK = np.array([(0, 0.5), (10, 0.6), (25, 0.9)]).T
# Near windows send more back, half of it from behind the glass, up to so many metres deeper.
_GLASS_LOSS = np.array([(0, 0.3), (15, 0.35), (25, 0.5), (45, 0.8)]).T
_CABIN = 0.9
_VEHICLES = ("Car", "Van", "Truck", "Tram", "Misc")
_TABLE = np.array([SURFACES[material] for material in range(len(SURFACES))])
_COLOURED = np.isin(np.arange(len(_TABLE)), (M.PAINT, M.CLOTH))


@dataclass(frozen=True, eq=False)
class Sweep:
    """One turn of the sensor.

    Attributes:
        points: (N, 4) float32 x, y, z (m), reflectance 0 to 0.99; ring by ring from the top.
        owner: (N,) int64 the object that each point lies on, -1 none.
        share: (n,) float64 for each object the share of the rays towards it that reach it, NaN
            if none is directed at it.
        aimed: (n,) int64 how many rays would hit the object if it stood alone.
    """

    points: Float32
    owner: NDArray[np.int64]
    share: Float
    aimed: NDArray[np.int64]


def directions(rng: np.random.Generator) -> Float32:
    """(F, 3) unit vectors of a turn's firings, ring by ring, azimuth increasing from 0.

    Firings that the carrying car's own body stops are left out.
    """
    columns = int(rng.integers(2145, 2185))
    elevation = np.radians(ELEVATION + rng.normal(0.05, 0.2) + rng.normal(0, 0.015, RINGS))
    start = rng.uniform(0, 1, (RINGS, 1))
    azimuth = ((np.arange(columns) + start) * (2 * np.pi / columns)).astype(np.float32)
    cos = np.cos(elevation, dtype=np.float32)[:, None]
    rays = np.empty((RINGS, columns, 3), np.float32)
    rays[..., 0] = np.cos(azimuth) * cos
    rays[..., 1] = np.sin(azimuth) * cos
    rays[..., 2] = np.sin(elevation)[:, None]
    return rays[_free_of_car(rng, columns)]


def _free_of_car(rng: np.random.Generator, columns: int) -> NDArray[np.bool_]:
    """(RINGS, columns) whether a firing passes bonnet, roof and masts of the sensor's own car."""
    degrees = np.arange(columns) * (360 / columns)
    lowest = np.interp(degrees, *_CAR_OUTLINE) + rng.normal(0, 0.25)
    ring = np.arange(RINGS)[:, None]
    free = ring < lowest + rng.normal(0, 0.3, columns)
    for middle, half, first, last in _CAR_MASTS:
        mast = np.abs(degrees - middle - rng.normal(0, 1.0)) < half
        free &= ~(mast & (ring >= first) & (ring < last))
    return free


def _scene(meshes: list[Any]) -> Any:
    import open3d as o3d

    whole = merge(meshes)
    scene = o3d.t.geometry.RaycastingScene(nthreads=1)
    scene.add_triangles(
        o3d.core.Tensor(whole.vertices.astype(np.float32)),
        o3d.core.Tensor(whole.triangles.astype(np.uint32)),
    )
    return scene, whole


def scan(rng: np.random.Generator, scene: Scene, faint: bool = False) -> Sweep:
    """Turns the sensor once at the origin of ``scene``.

    Args:
        rng: where the randomness comes from.
        scene: what it stands in.
        faint: whether vehicles send back as little as those of KITTI do; which rays hit what, and
            all else, does not depend on it.
    """
    rays = directions(rng)
    packed = np.zeros((len(rays), 6), np.float32)
    packed[:, 3:] = rays
    meshes = [scene.statics, *(thing.mesh for thing in scene.objects)]
    caster, whole = _scene(meshes)
    import open3d as o3d

    answer = caster.cast_rays(o3d.core.Tensor(packed), nthreads=1)
    distance = answer["t_hit"].numpy()
    hit = np.flatnonzero((distance > RANGE[0]) & (distance < RANGE[1]))
    primitive = answer["primitive_ids"].numpy()[hit].astype(np.int64)
    normal = answer["primitive_normals"].numpy()[hit]
    distance = distance[hit].astype(np.float64)
    direction = rays[hit]
    cosine = np.abs((normal * direction).sum(axis=1))

    sizes = [len(mesh.triangles) for mesh in meshes]
    triangle_owner = np.repeat(np.arange(-1, len(scene.objects)), sizes)
    owner = triangle_owner[primitive]
    material = whole.material[primitive]
    colours = np.array([thing.colour for thing in scene.objects] + [0.3])

    base, spread, loss = _TABLE[material].T
    scene_gain = np.exp(rng.normal(0, 0.07))
    shade = np.concatenate([scene.shade, np.ones(len(whole.triangles) - len(scene.shade))])
    base = np.where(_COLOURED[material], base * colours[owner], base)
    base *= scene_gain * shade[primitive]
    bright = base * (0.62 + 0.38 * cosine) * np.interp(distance, *_GAIN)
    # What little comes back from far away or at a grazing angle is lost more often.
    weak = np.clip(0.01 + (distance / 80) ** 2 * 0.2 + 0.15 * (cosine < 0.03), 0, 1)
    lost = 1 - (1 - loss) * (1 - weak * np.clip(1.15 - bright, 0.2, 1.0))
    deeper, vehicle_dark = np.zeros(len(hit)), np.zeros(len(hit))
    if faint:
        lost, vehicle_dark, deeper = _vehicle_returns(
            rng.spawn(1)[0], scene, owner, material, direction * distance[:, None], cosine, lost
        )
    kept = rng.random(len(hit)) >= lost

    noise = rng.standard_normal((2, len(hit)))
    rough = _ROUGHNESS[material] * (owner < 0) / np.maximum(cosine, 0.05)
    distance += np.hypot(RANGE_NOISE, np.minimum(rough, 0.3)) * noise[0] + deeper
    np.clip(distance, *RANGE, out=distance)
    reflectance = bright + spread * noise[1] - 0.02
    dark = np.maximum(np.interp(distance, *_DARK) * rng.uniform(0.5, 1.5), vehicle_dark)
    reflectance[rng.random(len(hit)) < dark] = 0.0
    points = np.empty((len(hit), 4))
    points[:, :3] = np.round(direction * distance[:, None], 3)
    points[:, 3] = np.clip(np.round(reflectance, 2), 0.0, 0.99)
    share, aimed = _visibility(scene, packed, hit, owner)
    return Sweep(points[kept].astype(np.float32), owner[kept], share, aimed)


def _vehicle_returns(
    rng: np.random.Generator,
    scene: Scene,
    owner: NDArray[np.int64],
    material: NDArray[np.int64],
    place: Float,
    cosine: Float32,
    lost: Float,
) -> tuple[Float, Float, Float]:
    """How vehicles like KITTI's send the rays back that hit them.

    Args:
        rng: where the randomness comes from.
        scene: what was hit.
        owner: (H,) which of its objects, -1 none.
        material: (H,) of what was hit.
        place: (H, 3) where it was hit, metres.
        cosine: (H,) between ray and normal.
        lost: (H,) share of such rays that do not come back without this.

    Returns:
        The share that is lost, the least share of the rest that is reported as zero, and how much
        farther away, in metres, returns come from.
    """
    count = len(scene.objects)
    distance = np.linalg.norm(place, axis=1)
    vehicle = np.array([thing.name in _VEHICLES for thing in scene.objects] + [False])[owner]
    paint, glass = vehicle & (material == M.PAINT), vehicle & (material == M.GLASS)
    dullness = np.append(rng.random(count) ** 2, 0.0)[owner]
    shine = np.append(rng.uniform(0.6, 1.4, count), 0.0)[owner]

    grazing = np.clip(1 - cosine / _GRAZING, 0, 1) * np.interp(distance, *_GRAZING_LOSS)
    swallowed = 1 - (1 - dullness * np.interp(distance, *_FAINT_LOSS)) * (1 - grazing)
    lost = np.where(paint, 1 - (1 - lost) * (1 - swallowed), lost)
    lost = np.where(glass, np.interp(distance, *_GLASS_LOSS), lost)

    dark = np.where(paint, np.interp(distance, *_FAINT_DARK) * shine, 0.0)
    dark = np.where(glass, np.interp(distance, *_GLASS_DARK), dark)

    deeper = np.where(rng.random(len(owner)) < 0.5, rng.uniform(0, _CABIN, len(owner)), 0.0)
    rows = np.flatnonzero(glass)
    boxes = scene.boxes[owner[rows]]
    behind = place[rows] * (1 + deeper[rows] / distance[rows])[:, None] - boxes[:, :3]
    cos, sin = np.cos(boxes[:, 6]), np.sin(boxes[:, 6])
    along = cos * behind[:, 0] + sin * behind[:, 1]
    across = cos * behind[:, 1] - sin * behind[:, 0]
    inside = (np.abs(along) < boxes[:, 3] / 2) & (np.abs(across) < boxes[:, 4] / 2)
    deeper[~glass] = 0.0
    deeper[rows[~inside]] = 0.0
    return lost, dark, deeper


def _wrap(angle: Any) -> Any:
    return np.mod(angle + np.pi, 2 * np.pi) - np.pi


def _visibility(
    scene: Scene, packed: Float32, hit: NDArray[np.int64], owner: NDArray[np.int64]
) -> tuple[Float, NDArray[np.int64]]:
    """How much of each object the sensor sees, and how many rays are directed at it."""
    count = len(scene.objects)
    aimed = np.zeros(count, np.int64)
    seen = np.bincount(owner[owner >= 0], minlength=count)
    if count:
        import open3d as o3d

        # Only rays into the objects' angular bounds are followed through all objects.
        wanted = np.zeros(len(packed), bool)
        azimuth = np.arctan2(packed[:, 4], packed[:, 3])
        for thing in scene.objects:
            v = thing.mesh.vertices
            middle = np.arctan2(thing.box[1], thing.box[0])
            relative = _wrap(np.arctan2(v[:, 1], v[:, 0]) - middle)
            sine = v[:, 2] / np.sqrt((v**2).sum(axis=1))
            rows = np.flatnonzero(
                (packed[:, 5] > sine.min() - 0.01) & (packed[:, 5] < sine.max() + 0.01)
            )
            aside = _wrap(azimuth[rows] - middle)
            wanted[rows[(aside > relative.min() - 0.01) & (aside < relative.max() + 0.01)]] = True
        caster, _ = _scene([thing.mesh for thing in scene.objects])
        chosen = np.flatnonzero(wanted)
        answer = caster.list_intersections(o3d.core.Tensor(packed[chosen]), nthreads=1)
        sizes = [len(thing.mesh.triangles) for thing in scene.objects]
        of_triangle = np.repeat(np.arange(count), sizes)
        thing_hit = of_triangle[answer["primitive_ids"].numpy().astype(np.int64)]
        ray = answer["ray_ids"].numpy().astype(np.int64)
        pairs = np.unique(ray * count + thing_hit)
        aimed = np.bincount(pairs % count, minlength=count)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(aimed > 0, np.minimum(seen / aimed, 1.0), np.nan)
    return share, aimed
