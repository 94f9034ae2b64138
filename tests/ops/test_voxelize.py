"""Voxelization against a dictionary of lists, filled point by point here."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from voxelpool.ops import segment_max, voxelize, voxelize_static
from voxelpool.ops.reference import voxelize as reference
from voxelpool.structures import StaticVoxels, VoxelGrid, Voxels

GRID = VoxelGrid(range=(0.0, -40.0, -3.0, 70.4, 40.0, 1.0), voxel_size=(0.2, 0.2, 0.4))
COARSE = VoxelGrid(range=(-2.0, 0.0, -1.0, 2.0, 3.0, 1.0), voxel_size=(0.5, 0.5, 1.0))
# 10^12 cells a frame: keys of one frame and of a batch need more than 32 bits.
VAST = VoxelGrid(range=(-50.0, -50.0, -50.0, 50.0, 50.0, 50.0), voxel_size=(0.01, 0.01, 0.01))
GRIDS = {"grid": GRID, "coarse": COARSE, "vast": VAST}
MASK = (1 << 64) - 1


def splitmix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def random_number(seed: int, salt: bytes, index: int) -> int:
    stream = splitmix((seed & MASK) ^ int.from_bytes(salt, "big"))
    return splitmix((stream + (index + 1) * 0x9E3779B97F4A7C15) & MASK) >> 1


def loop_voxelize(points, grid, batch=None, max_points=None, max_voxels=None, seed=0):
    """coords, offsets and point_index as lists, one point at a time."""
    low, high = np.float32(grid.range[:3]), np.float32(grid.range[3:])
    size, cells = np.float32(grid.voxel_size), grid.shape[::-1]
    members: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    seen: dict[int, int] = {}
    for row, point in enumerate(points.cpu().numpy()):
        frame = 0 if batch is None else int(batch[row])
        place = seen[frame] = seen.get(frame, -1) + 1
        xyz = point[:3]
        if not all(low[a] <= xyz[a] < high[a] for a in range(3)):
            continue
        cell = [min(math.floor((xyz[a] - low[a]) / size[a]), cells[a] - 1) for a in range(3)]
        members.setdefault((frame, *cell[::-1]), []).append((place, row))
    if max_voxels is not None:
        _, height, width = grid.shape

        def draw(key):
            number = (key[1] * height + key[2]) * width + key[3]
            return random_number(seed, b"voxel", number), number

        for frame in seen:
            keys = sorted((key for key in members if key[0] == frame), key=draw)
            for key in keys[max_voxels:]:
                del members[key]
    coords, offsets, index = [], [0], []
    for key in sorted(members):
        inside = members[key]
        if max_points is not None:
            drawn = sorted(inside, key=lambda m: (random_number(seed, b"point", m[0]), m[0]))
            inside = sorted(drawn[:max_points], key=lambda m: m[1])
        coords.append(list(key))
        index += [row for _, row in inside]
        offsets.append(len(index))
    return coords, offsets, index


def random_cloud(rows: int, grid: VoxelGrid, seed: int, columns: int = 4) -> torch.Tensor:
    """Crowded near the middle, some out of range, on the faces of cells or not finite."""
    generator = np.random.default_rng(seed)
    low, high = np.array(grid.range[:3]), np.array(grid.range[3:])
    cloud = generator.uniform(0, 1, (rows, columns))
    spread = generator.choice([0.02, 0.3, 1.1], rows)[:, None]
    cloud[:, :3] = (low + high) / 2 + (cloud[:, :3] - 0.5) * spread * (high - low)
    on_face = generator.uniform(size=rows) < 0.2
    steps = np.round((cloud[:, :3] - low) / grid.voxel_size) * grid.voxel_size + low
    cloud[on_face, :3] = steps[on_face]
    for value in (np.nan, np.inf, -np.inf, -0.0):
        cloud[generator.integers(0, max(rows, 1), rows // 50), generator.integers(0, 3)] = value
    return torch.from_numpy(cloud).float()


def as_lists(voxels: Voxels):
    return voxels.coords.tolist(), voxels.offsets.tolist(), voxels.point_index.tolist()


def raw(voxels: Voxels):
    return voxels.coords, voxels.offsets, voxels.point_index


def raw_static(voxels: StaticVoxels):
    return voxels.coords, voxels.offsets, voxels.point_index, voxels.num_voxels


def run_reference(points, grid, batch=None, batch_size=1, max_points=-1, max_voxels=-1, seed=0):
    return reference.voxelize(
        points,
        batch,
        batch_size,
        grid.range,
        grid.voxel_size,
        grid.shape,
        max_points,
        max_voxels,
        seed,
    )


def assert_identical(a, b):
    for x, y in zip(a, b, strict=True):
        assert x.dtype == y.dtype
        assert torch.equal(x.cpu(), y.cpu())


# --- against the loop ----------------------------------------------------------------------------


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("rows", [0, 1, 7, 1000])
@pytest.mark.parametrize("limits", [(None, None), (1, None), (3, None), (None, 2), (2, 40)])
@pytest.mark.parametrize("frames", [None, 3])
def test_equals_a_loop(frames, limits, rows, grid, device):
    points = random_cloud(rows, grid, seed=rows)
    batch = None
    if frames is not None:
        batch = torch.randint(0, frames, (rows,), generator=torch.Generator().manual_seed(1))
    options = dict(max_points=limits[0], max_voxels=limits[1], seed=-5)
    expected = loop_voxelize(points, grid, batch, **options)
    voxels = voxelize(
        points.to(device),
        grid,
        batch=None if batch is None else batch.to(device),
        batch_size=frames,
        **options,
    )
    coords, offsets, index = as_lists(voxels)
    assert (offsets, index) == expected[1:]
    assert coords == expected[0]
    assert voxels.coords.dtype == torch.int32
    assert voxels.coords.shape == (len(offsets) - 1, 4)
    assert voxels.offsets.dtype == voxels.point_index.dtype == torch.int64
    assert voxels.batch_size == (frames or 1)
    assert voxels.grid == grid
    assert voxels.coords.device.type == device.type


@pytest.mark.parametrize("grid", [GRID, VAST], ids=["grid", "vast"])
@pytest.mark.parametrize("limits", [(-1, -1), (5, -1), (2, 700)])
def test_large_cloud_equals_the_reference(limits, grid, device):
    points = random_cloud(100_003, grid, seed=3).to(device)
    batch = torch.randint(0, 4, (len(points),), generator=torch.Generator().manual_seed(0))
    batch = batch.to(device)
    most = [None if limit < 0 else limit for limit in limits]
    actual = voxelize(
        points, grid, batch=batch, batch_size=4, max_points=most[0], max_voxels=most[1], seed=11
    )
    expected = run_reference(points.cpu(), grid, batch.cpu(), 4, *limits, 11)
    assert_identical(raw(actual), expected)
    assert actual.num_voxels > 1000


@settings(deadline=None, max_examples=80)
@given(
    rows=st.integers(0, 60),
    cloud=st.integers(0, 10**6),
    frames=st.integers(1, 4),
    max_points=st.none() | st.integers(1, 5),
    max_voxels=st.none() | st.integers(1, 5),
    seed=st.integers(-(2**63), 2**63 - 1),
)
def test_any_cloud(rows, cloud, frames, max_points, max_voxels, seed):
    points = random_cloud(rows, COARSE, cloud)
    batch = torch.randint(0, frames, (rows,), generator=torch.Generator().manual_seed(cloud))
    options = dict(max_points=max_points, max_voxels=max_voxels, seed=seed)
    expected = loop_voxelize(points, COARSE, batch, **options)
    assert as_lists(voxelize(points, COARSE, batch=batch, batch_size=frames, **options)) == expected
    limits = [-1 if limit is None else limit for limit in (max_points, max_voxels)]
    slow = run_reference(points, COARSE, batch, frames, *limits, seed)
    assert tuple(part.tolist() for part in slow) == expected


# --- edges of the range --------------------------------------------------------------------------


def test_lower_bound_is_in_and_upper_bound_is_out(device):
    low, high = GRID.range[:3], GRID.range[3:]
    inside = torch.tensor([1.0, 1.0, 0.0])
    for axis in range(3):
        at_low, at_high = inside.clone(), inside.clone()
        at_low[axis], at_high[axis] = low[axis], high[axis]
        below = torch.nextafter(at_low, torch.tensor(-math.inf))
        beneath = torch.nextafter(at_high, torch.tensor(-math.inf))
        cloud = torch.stack([at_low, at_high, below, beneath])
        cloud[2:, [a for a in range(3) if a != axis]] = inside[[a for a in range(3) if a != axis]]
        voxels = voxelize(cloud.to(device), GRID)
        assert sorted(voxels.point_index.tolist()) == [0, 3]
        cells = voxels.coords[:, 3 - axis].tolist()
        assert cells == [0, GRID.shape[2 - axis] - 1]


def test_every_cell_of_an_axis_holds_its_lower_face_in_float32():
    step, low = np.float32(0.2), np.float32(-40.0)
    faces = (np.arange(401, dtype=np.float32) * step + low).astype(np.float32)
    cloud = torch.zeros(401, 3)
    cloud[:, 1] = torch.from_numpy(faces)
    voxels = voxelize(cloud, GRID)
    quotient = (faces - low) / step
    kept = faces < np.float32(40.0)
    expected = np.minimum(np.floor(quotient[kept]), 399).astype(int)
    assert voxels.coords[voxels.voxel_of_point()][:, 2].sort().values.tolist() == expected.tolist()


def test_points_that_are_not_finite_or_out_of_range_are_dropped(device):
    cloud = torch.tensor(
        [
            [math.nan, 0, 0],
            [1, math.inf, 0],
            [1, 0, -math.inf],
            [-1, 0, 0],
            [1e30, 0, 0],
            [1, 0, 0],
            [1, -1e30, 3e38],
        ]
    )
    voxels = voxelize(cloud.to(device), GRID)
    assert voxels.point_index.tolist() == [5]
    nothing = voxelize(cloud[:5].to(device), GRID, max_points=3, max_voxels=7)
    assert as_lists(nothing) == ([], [0], [])


def test_no_points(device):
    voxels = voxelize(torch.zeros(0, 4, device=device), GRID, batch_size=2)
    assert as_lists(voxels) == ([], [0], [])
    assert voxels.coords.shape == (0, 4)
    no_batch = torch.zeros(0, dtype=torch.int32, device=device)
    assert voxelize(torch.zeros(0, 3, device=device), GRID, batch=no_batch).batch_size == 1


def test_coordinates_beyond_32_bits_of_cells(device):
    corner = torch.tensor([[49.999, 49.999, 49.999], [-50.0, -50.0, -50.0]])
    batch = torch.tensor([4_000_000, 0])
    voxels = voxelize(corner.to(device), VAST, batch=batch.to(device))
    assert voxels.coords.tolist() == [[0, 0, 0, 0], [4_000_000, 9999, 9999, 9999]]
    assert voxels.batch_size == 4_000_001


# --- sampling ------------------------------------------------------------------------------------


def one_voxel_cloud(rows: int) -> torch.Tensor:
    return torch.full((rows, 3), 0.05)


def test_the_seed_changes_the_sample_and_repeats_it(device):
    cloud = one_voxel_cloud(100).to(device)
    samples = [
        tuple(voxelize(cloud, GRID, max_points=10, seed=seed).point_index.tolist())
        for seed in range(50)
    ]
    assert len(set(samples)) == 50
    assert samples[7] == tuple(voxelize(cloud, GRID, max_points=10, seed=7).point_index.tolist())
    spread = random_cloud(1000, COARSE, 0).to(device)
    choices = {
        str(voxelize(spread, COARSE, max_voxels=10, seed=s).coords.tolist()) for s in range(50)
    }
    assert len(choices) == 50


def chi_square(counts: np.ndarray, expected: float) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


def test_every_point_is_sampled_equally_often():
    cloud, runs, kept = one_voxel_cloud(40), 4000, 10
    counts = np.zeros(40)
    together = np.zeros((40, 40))
    for seed in range(runs):
        chosen = voxelize(cloud, GRID, max_points=kept, seed=seed).point_index.numpy()
        assert len(chosen) == kept
        assert (np.diff(chosen) > 0).all()
        counts[chosen] += 1
        together[np.ix_(chosen, chosen)] += 1
    # Without replacement the variance of a count is runs p (1 - p), hence the factor.
    share = kept / 40
    assert chi_square(counts, runs * share) / (1 - share) < 73  # 99.9% of chi-square, 39 degrees
    pairs = together[np.triu_indices(40, 1)]
    expected = runs * share * (kept - 1) / 39
    assert abs(pairs - expected).max() < 5.5 * math.sqrt(expected)


def test_every_voxel_is_chosen_equally_often():
    x, y = torch.meshgrid(torch.arange(8) * 0.5 - 1.75, torch.arange(6) * 0.5 + 0.25, indexing="ij")
    cloud = torch.stack([x.flatten(), y.flatten(), torch.zeros(48)], dim=1)
    counts = np.zeros((6, 8))
    for seed in range(4000):
        coords = voxelize(cloud, COARSE, max_voxels=12, seed=seed).coords.numpy()
        assert len(coords) == 12
        counts[coords[:, 2], coords[:, 3]] += 1
    assert chi_square(counts, 1000) / 0.75 < 84  # 99.9% of chi-square, 47 degrees


def test_a_frame_is_the_same_alone_and_in_any_batch(device):
    frames = [random_cloud(rows, COARSE, rows).to(device) for rows in (300, 1, 500, 0, 401)]
    options = dict(max_points=2, max_voxels=9, seed=21)
    alone = [voxelize(frame, COARSE, **options) for frame in frames]
    for order in ([0, 1, 2, 3, 4], [4, 2, 0, 3, 1]):
        points = torch.cat([frames[f] for f in order])
        batch = torch.cat(
            [torch.full((len(frames[f]),), b, device=device) for b, f in enumerate(order)]
        )
        together = voxelize(points, COARSE, batch=batch, batch_size=5, **options)
        start = 0
        for b, f in enumerate(order):
            rows = together.coords[:, 0] == b
            assert torch.equal(together.coords[rows][:, 1:], alone[f].coords[:, 1:])
            counts = together.counts()[rows]
            assert torch.equal(counts, alone[f].counts())
            mine = together.point_index[rows[together.voxel_of_point()]] - start
            assert torch.equal(mine, alone[f].point_index)
            start += len(frames[f])


def test_interleaved_frames_keep_their_samples(device):
    a, b = one_voxel_cloud(50).to(device), one_voxel_cloud(60).to(device)
    batch = torch.tensor([0, 1] * 50 + [1] * 10, dtype=torch.uint8, device=device)
    mixed = voxelize(torch.cat([a, b]), GRID, batch=batch, max_points=5, seed=1)
    for frame, cloud in enumerate((a, b)):
        places = (batch == frame).nonzero().flatten()
        alone = voxelize(cloud, GRID, max_points=5, seed=1)
        assert torch.equal(mixed.point_index[frame * 5 : frame * 5 + 5], places[alone.point_index])


@pytest.mark.parametrize("grid", [GRID, VAST], ids=["grid", "vast"])
def test_threads_do_not_change_a_bit(grid):
    points = random_cloud(500_000, grid, seed=9)  # enough for seven threads
    batch = torch.randint(0, 3, (len(points),), generator=torch.Generator().manual_seed(0))
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            options = dict(batch=batch, batch_size=3, max_points=3, max_voxels=900)
            results.append(
                raw(voxelize(points, grid, **options))
                + raw_static(voxelize_static(points, grid, **options))
            )
    finally:
        torch.set_num_threads(before)
    assert_identical(results[0], results[1])
    assert_identical(results[0], results[2])


def test_layout_of_the_input_does_not_matter(device):
    wide = random_cloud(200, COARSE, 5, columns=9).to(device)
    expected = raw(voxelize(wide[:, :3].clone(), COARSE))
    for view in (wide, wide[:, :4], wide.t().contiguous().t()):
        assert_identical(raw(voxelize(view, COARSE)), expected)
    assert_identical(
        raw(voxelize(wide[::2, :3], COARSE)), raw(voxelize(wide[::2, :3].clone(), COARSE))
    )
    batch = torch.zeros(200, 2, dtype=torch.int64, device=device)[:, 1]
    assert_identical(raw(voxelize(wide, COARSE, batch=batch)), expected)


@pytest.mark.parametrize("columns", [3, 4, 5, 7])
@pytest.mark.parametrize("rows", [1, 15, 16, 17, 33, 100])
def test_blocks_of_points_and_their_rests(rows, columns, device):
    wide = random_cloud(rows + 1, COARSE, rows, columns=columns + 2)
    batch = torch.randint(0, 3, (rows + 3,), generator=torch.Generator().manual_seed(0))
    options = dict(max_points=2, seed=1)
    for points, frames in (
        (wide[1:, :columns], batch[3:]),
        (wide[:1, :columns].expand(rows, columns), batch[:1].expand(rows)),
        (wide.flatten()[1 : 1 + rows * columns].view(rows, columns), batch[1:-2]),
    ):
        voxels = voxelize(
            points.to(device), COARSE, batch=frames.to(device), batch_size=3, **options
        )
        assert as_lists(voxels) == loop_voxelize(points, COARSE, frames, **options)


@pytest.mark.parametrize("max_points", [1, 63, 4999])
def test_a_crowd_in_one_voxel(max_points, device):
    points = one_voxel_cloud(5000)
    points[::7] = math.nan
    voxels = voxelize(points.to(device), GRID, max_points=max_points, seed=3)
    assert as_lists(voxels) == loop_voxelize(points, GRID, max_points=max_points, seed=3)


def test_frames_in_any_order_and_far_apart(device):
    # More frames than points, and not in order.
    points = one_voxel_cloud(300)
    batch = torch.randint(0, 5, (300,), generator=torch.Generator().manual_seed(2)) * 1000
    options = dict(max_points=7, max_voxels=1, seed=5)
    voxels = voxelize(points.to(device), GRID, batch=batch.to(device), batch_size=5000, **options)
    assert as_lists(voxels) == loop_voxelize(points, GRID, batch, **options)


MEMORY_SCRIPT = """
import resource
import torch
from voxelpool.ops import voxelize
from voxelpool.structures import VoxelGrid

points = torch.rand(20_000, 3) * 100
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
voxelize(points, VoxelGrid((0, 0, 0, 100, 100, 100), (1.0, 1.0, 1.0)), max_points=5)
before = peak()
for step in (0.25, 0.01):  # 2^26 and 10^12 cells
    voxelize(points, VoxelGrid((0, 0, 0, 100, 100, 100), (step,) * 3), max_points=5, max_voxels=99)
print(peak() - before)
"""


def test_memory_does_not_grow_with_the_cells():
    done = subprocess.run(
        [sys.executable, "-c", MEMORY_SCRIPT], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 32 * 1024  # KiB; a bit a cell of the second grid were 120 GiB


# --- static sizes --------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("rows", [0, 1, 7, 1000])
@pytest.mark.parametrize("limits", [(None, 1), (2, 40), (3, 2000)])
@pytest.mark.parametrize("frames", [None, 3])
def test_static_form_holds_the_same_voxels(frames, limits, rows, grid, device):
    points = random_cloud(rows, grid, seed=rows).to(device)
    batch = None
    if frames is not None:
        batch = torch.randint(0, frames, (rows,), generator=torch.Generator().manual_seed(1))
        batch = batch.to(device)
    options = dict(batch=batch, batch_size=frames or 1)
    options |= dict(max_points=limits[0], max_voxels=limits[1], seed=7)
    expected = voxelize(points, grid, **options)
    actual = voxelize_static(points, grid, **options)
    assert_identical(raw(actual.trim()), raw(expected))
    capacity = (frames or 1) * limits[1]
    assert actual.capacity == capacity
    assert actual.coords.shape == (capacity, 4)
    assert actual.offsets.shape == (capacity + 1,)
    assert actual.point_index.shape == (rows,)
    assert actual.num_voxels.shape == ()
    assert (actual.coords[expected.num_voxels :] == -1).all()
    assert (actual.offsets[expected.num_voxels :] == expected.num_points).all()
    assert (actual.point_index[expected.num_points :] == 0).all()
    rows_of_points = actual.voxel_of_point()
    assert torch.equal(rows_of_points[: expected.num_points], expected.voxel_of_point())
    assert (rows_of_points[expected.num_points :] == capacity).all()


@settings(deadline=None, max_examples=80)
@given(
    rows=st.integers(0, 60),
    cloud=st.integers(0, 10**6),
    frames=st.integers(1, 4),
    max_points=st.none() | st.integers(1, 5),
    max_voxels=st.integers(1, 12),
    seed=st.integers(-(2**63), 2**63 - 1),
)
def test_any_cloud_in_static_form(rows, cloud, frames, max_points, max_voxels, seed):
    points = random_cloud(rows, COARSE, cloud)
    batch = torch.randint(-1, frames + 1, (rows,), generator=torch.Generator().manual_seed(cloud))
    options = dict(max_points=max_points, max_voxels=max_voxels, seed=seed)
    voxels = voxelize_static(points, COARSE, batch=batch, batch_size=frames, **options)
    valid = ((batch >= 0) & (batch < frames)).nonzero().flatten()
    coords, offsets, index = loop_voxelize(points[valid], COARSE, batch[valid], **options)
    trimmed = voxels.trim()
    assert (trimmed.coords.tolist(), trimmed.offsets.tolist()) == (coords, offsets)
    assert trimmed.point_index.tolist() == valid[index].tolist()
    limit = -1 if max_points is None else max_points
    slow = reference.voxelize_static(
        points,
        batch,
        frames,
        COARSE.range,
        COARSE.voxel_size,
        COARSE.shape,
        limit,
        max_voxels,
        seed,
    )
    assert_identical(raw_static(voxels), slow)


def test_a_buffer_need_not_be_full(device):
    points = random_cloud(300, COARSE, 4).to(device)
    options = dict(max_points=2, max_voxels=20, seed=9)
    expected = voxelize(points, COARSE, **options)
    buffer = torch.full((400, 4), math.nan, device=device)
    buffer[:300] = points
    assert_identical(raw(voxelize_static(buffer, COARSE, **options).trim()), raw(expected))
    batch = torch.full((400,), -1, device=device)
    batch[:300] = 0
    buffer[300:] = 0.1
    masked = voxelize_static(buffer, COARSE, batch=batch, **options)
    assert_identical(raw(masked.trim()), raw(expected))


@pytest.mark.parametrize(
    "device", [pytest.param(torch.device("cuda"), marks=pytest.mark.cuda, id="cuda")]
)
def test_static_form_in_a_cuda_graph(device):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    clouds = [random_cloud(500, COARSE, s).to(device) for s in range(3)]
    batch = torch.arange(500, device=device) % 2
    options = dict(batch=batch, batch_size=2, max_points=2, max_voxels=15, seed=1)
    buffer = clouds[0].clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        voxelize_static(buffer, COARSE, **options)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = voxelize_static(buffer, COARSE, **options)
    for cloud in clouds:
        buffer.copy_(cloud)
        graph.replay()
        assert_identical(raw(captured.trim()), raw(voxelize(cloud, COARSE, **options)))


# --- torch.library -------------------------------------------------------------------------------


def test_opcheck(device):
    points = random_cloud(50, COARSE, 0).to(device)
    batch = torch.zeros(50, dtype=torch.int64, device=device)
    for frames in (None, batch):
        torch.library.opcheck(
            torch.ops.voxelpool.voxelize.default,
            (points, frames, 1, COARSE.range, COARSE.voxel_size, COARSE.shape, 3, 7, 0),
        )


def test_opcheck_of_the_static_form(device):
    points = random_cloud(50, COARSE, 0).to(device)
    batch = torch.zeros(50, dtype=torch.int64, device=device)
    for frames in (None, batch):
        torch.library.opcheck(
            torch.ops.voxelpool.voxelize_static.default,
            (points, frames, 2, COARSE.range, COARSE.voxel_size, COARSE.shape, 3, 7, 0),
        )


def pooled(points, batch):
    voxels = voxelize(points, COARSE, batch=batch, batch_size=2, max_points=3, seed=4)
    features = points[voxels.point_index]
    return voxels.coords, segment_max(features * 2, voxels.offsets)[0]


def test_compiles_without_a_graph_break(device):
    torch._dynamo.reset()
    compiled = torch.compile(pooled, fullgraph=True, backend="aot_eager")
    for rows in (50, 80, 0):
        points = random_cloud(rows, COARSE, rows).to(device)
        batch = torch.arange(rows, device=device) % 2
        for actual, expected in zip(compiled(points, batch), pooled(points, batch), strict=True):
            assert torch.equal(actual, expected)


def test_static_form_compiles_to_static_shapes(device):
    def pool(points):
        voxels = voxelize_static(points, COARSE, max_points=3, max_voxels=30, seed=4)
        most = segment_max(points[voxels.point_index], voxels.closed_offsets())[0][:-1]
        return voxels.coords, voxels.num_voxels, most

    torch._dynamo.reset()
    compiled = torch.compile(pool, fullgraph=True, backend="aot_eager", dynamic=False)
    for seed in (1, 2):
        points = random_cloud(70, COARSE, seed).nan_to_num(-9.0, -9.0, -9.0).to(device)
        for actual, expected in zip(compiled(points), pool(points), strict=True):
            assert torch.equal(actual, expected)
        dynamic = voxelize(points, COARSE, max_points=3, max_voxels=30, seed=4)
        most = segment_max(points[dynamic.point_index], dynamic.offsets)[0]
        assert torch.equal(pool(points)[2][: dynamic.num_voxels], most)


def test_exports():
    class Pool(torch.nn.Module):
        def forward(self, points):
            voxels = voxelize(points, COARSE, max_points=3)
            return segment_max(points[voxels.point_index], voxels.offsets)[0]

    points = random_cloud(50, COARSE, 0)
    rows = torch.export.Dim("rows", min=2)
    program = torch.export.export(Pool(), (points,), dynamic_shapes=({0: rows},))
    other = random_cloud(80, COARSE, 1)
    assert torch.equal(program.module()(other), Pool()(other))


def test_works_on_data_loader_workers():
    loader = torch.utils.data.DataLoader(
        [random_cloud(20_000, GRID, s) for s in range(4)],
        batch_size=None,
        num_workers=2,
        collate_fn=_count_voxels,
    )
    voxelize(random_cloud(20_000, GRID, 9), GRID)  # the parent's threads are not the workers'
    expected = [voxelize(random_cloud(20_000, GRID, s), GRID).num_voxels for s in range(4)]
    assert list(loader) == expected


def _count_voxels(points):
    torch.set_num_threads(2)
    return voxelize(points, GRID).num_voxels


# --- errors --------------------------------------------------------------------------------------


def test_wrong_arguments_are_named():
    points = torch.zeros(4, 3)
    with pytest.raises(TypeError, match=r"points must be a torch.Tensor, got ndarray"):
        voxelize(points.numpy(), GRID)
    with pytest.raises(
        TypeError, match=r"points must be float32, got torch.float64: pass points.f"
    ):
        voxelize(points.double(), GRID)
    with pytest.raises(ValueError, match=r"points must have shape \(N, 3 or more\).*got \(4, 2\)"):
        voxelize(points[:, :2], GRID)
    with pytest.raises(ValueError, match=r"max_points must be at least 1, or None.*got 0"):
        voxelize(points, GRID, max_points=0)
    with pytest.raises(ValueError, match=r"max_voxels must be at least 1, or None.*got -2"):
        voxelize(points, GRID, max_voxels=-2)
    with pytest.raises(ValueError, match=r"batch_size must lie in \[1, 2\^31\), got 0"):
        voxelize(points, GRID, batch_size=0)
    with pytest.raises(ValueError, match=r"seed must fit into 64 bits, got 9223372036854775808"):
        voxelize(points, GRID, seed=1 << 63)
    with pytest.raises(TypeError, match=r"batch must hold integers, got torch.float32"):
        voxelize(points, GRID, batch=torch.zeros(4))
    with pytest.raises(ValueError, match=r"batch must be 1-D, got shape \(4, 1\)"):
        voxelize(points, GRID, batch=torch.zeros(4, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"one entry a point, got 3 for 4"):
        voxelize(points, GRID, batch=torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"batch is on meta and points on cpu"):
        voxelize(points, GRID, batch=torch.zeros(4, dtype=torch.int64, device="meta"))
    with pytest.raises(ValueError, match=r"are too many to number"):
        voxelize(points, VAST, batch_size=1 << 30)
    with pytest.raises(ValueError, match=r"max_voxels must be at least 1.*got 0"):
        voxelize_static(points, GRID, max_voxels=0)
    with pytest.raises(TypeError, match=r"max_voxels must be a number, got None"):
        voxelize_static(points, GRID, max_voxels=None)
    with pytest.raises(ValueError, match=r"max_voxels \* batch_size.*got 8589934592"):
        voxelize_static(points, GRID, max_voxels=1 << 32, batch_size=2)


@pytest.mark.parametrize("value", [-1, 2, 1 << 40])
def test_a_batch_out_of_range_is_named(value, device):
    points = torch.zeros(4, 3, device=device)
    batch = torch.tensor([0, 1, value, 5], device=device)
    with pytest.raises(ValueError, match=rf"batch\[2\] is {value}, expected 0 to 1 \(batch_size"):
        voxelize(points, GRID, batch=batch, batch_size=2)
    with pytest.raises(ValueError, match=rf"batch\[2\] is {value}, expected 0 to 1"):
        run_reference(points, GRID, batch, 2)
