"""Encoding of voxels against the paper's concatenations, voxel by voxel in float64."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from voxelpool.ops import encode_points, encode_voxels
from voxelpool.ops.reference import encode as reference


def make_layers(generator, code_columns, widths, device="cpu"):
    """Weights and biases as float32 tensors; sums of spread about 1."""
    weights, biases, columns = [], [], code_columns
    for width in widths:
        weights.append(generator.normal(0, columns**-0.5, (width, columns)))
        biases.append(generator.normal(0, 0.5, width))
        columns = 2 * width
    return tuple(
        [torch.tensor(part, dtype=torch.float32, device=device) for part in parts]
        for parts in (weights, biases)
    )


def make_offsets(counts):
    return torch.tensor([0, *np.cumsum(counts, dtype=np.int64)], dtype=torch.int64)


def encode_slowly(features, offsets, weights, biases):
    """Concatenates each point's feature and its voxel's maximum, in float64."""
    features = features.double().cpu().numpy()
    out = np.zeros((len(offsets) - 1, weights[-1].shape[0]))
    for k, (begin, end) in enumerate(pairwise(offsets.tolist())):
        if begin == end:
            continue
        x = features[begin:end]
        for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            if layer > 0:
                x = np.concatenate([x, np.broadcast_to(x.max(axis=0), x.shape)], axis=1)
            with np.errstate(invalid="ignore"):
                x = x @ weight.double().cpu().numpy().T + bias.double().cpu().numpy()
            x = np.where(x < 0, 0, x)
        out[k] = x.max(axis=0)
    return torch.from_numpy(out)


def code_slowly(points, point_index, offsets, centers):
    """The point code of each row, in float64."""
    packed = points.double()[point_index.long()]
    columns = [packed, torch.zeros(len(packed), 3, dtype=torch.float64)]
    if centers is not None:
        columns.append(torch.zeros(len(packed), 3, dtype=torch.float64))
    for k, (begin, end) in enumerate(pairwise(offsets.tolist())):
        xyz = packed[begin:end, :3]
        columns[1][begin:end] = xyz - xyz.mean(dim=0)
        if centers is not None:
            columns[2][begin:end] = xyz - centers[k].double()
    return torch.cat(columns, dim=1)


def close(actual, expected):
    torch.testing.assert_close(
        actual.cpu().double(), expected, rtol=1e-5, atol=1e-5, equal_nan=True
    )


SHAPES = [
    ([], 7, [8]),
    ([1], 1, [1]),
    ([0], 3, [5, 4]),
    ([0, 0, 3, 0], 4, [3, 6]),
    ([1, 2, 3, 200, 4], 7, [16, 64, 128]),
    ([5] * 100, 7, [16, 64, 128]),
    ([1000, 1], 7, [16, 64, 128]),
    ([0] * 500, 2, [4]),
    ([3, 1, 7] * 60, 10, [17, 33, 47, 100]),
    ([2, 9] * 20, 9, [130, 260]),
    ([4] * 50, 300, [65]),
]


@pytest.mark.parametrize(("counts", "columns", "widths"), SHAPES)
@pytest.mark.parametrize("with_code", [False, True])
def test_equals_concatenation_voxel_by_voxel(counts, columns, widths, with_code, device):
    generator = np.random.default_rng(sum(counts) + columns)
    offsets = make_offsets(counts)
    rows = int(offsets[-1])
    if with_code:
        columns = max(columns, 3)
        points = torch.tensor(generator.normal(0, 2, (rows + 5, columns)), dtype=torch.float32)
        index = torch.tensor(generator.permutation(rows + 5)[:rows])
        for centers in (None, torch.tensor(generator.normal(size=(len(counts), 3))).float()):
            features = code_slowly(points, index, offsets, centers)
            weights, biases = make_layers(generator, features.shape[1], widths, device)
            expected = encode_slowly(features, offsets, weights, biases)
            centers = None if centers is None else centers.to(device)
            arguments = (points.to(device), index.to(device), offsets.to(device))
            out = encode_points(*arguments, weights, biases, centers=centers)
            assert out.dtype == torch.float32
            close(out, expected)
            close(reference.encode_points(*arguments, centers, weights, biases), expected)
    else:
        features = torch.tensor(generator.normal(size=(rows, columns)), dtype=torch.float32)
        weights, biases = make_layers(generator, columns, widths, device)
        expected = encode_slowly(features, offsets, weights, biases)
        arguments = (features.to(device), offsets.to(device), weights, biases)
        out = encode_voxels(*arguments)
        assert out.dtype == torch.float32
        close(out, expected)
        close(reference.encode_voxels(*arguments), expected)


@settings(deadline=None, max_examples=80)
@given(
    counts=st.lists(st.integers(0, 30), max_size=40),
    columns=st.integers(1, 20),
    widths=st.lists(st.integers(1, 90), min_size=1, max_size=4),
    seed=st.integers(0, 2**31),
)
def test_any_shape(counts, columns, widths, seed):
    generator = np.random.default_rng(seed)
    offsets = make_offsets(counts)
    features = torch.tensor(generator.normal(size=(int(offsets[-1]), columns))).float()
    weights, biases = make_layers(generator, columns, widths)
    out = encode_voxels(features, offsets, weights, biases)
    close(out, encode_slowly(features, offsets, weights, biases))


def random_points(device="cpu", voxels=700, widths=(16, 64, 128)):
    generator = np.random.default_rng(5)
    counts = generator.geometric(0.25, voxels) * (generator.random(voxels) < 0.95)
    counts[voxels // 2] = 900
    offsets = make_offsets(counts)
    points = torch.tensor(generator.normal(0, 3, (int(offsets[-1]), 4)), dtype=torch.float32)
    weights, biases = make_layers(generator, 7, widths, device)
    index = torch.tensor(generator.permutation(len(points)))
    return points.to(device), index.to(device), offsets.to(device), weights, biases


def test_threads_do_not_change_a_bit():
    arguments = random_points()
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            results.append(encode_points(*arguments))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_a_voxel_is_the_same_alone_and_among_others(device):
    points, index, offsets, weights, biases = random_points(device)
    together = encode_points(points, index, offsets, weights, biases)
    bounds = offsets.tolist()
    for k in (0, 1, 17, 350, 698, 699):
        own = index[bounds[k] : bounds[k + 1]]
        alone = encode_points(
            points, own, torch.tensor([0, len(own)], device=device), weights, biases
        )
        assert torch.equal(alone[0], together[k])


def test_a_code_made_inside_gives_the_bits_of_one_handed_in(device):
    points, index, offsets, weights, biases = random_points(device)
    centers = torch.randn(len(offsets) - 1, 3, device=device)
    weights[0] = torch.randn(16, 10, device=device)
    voxel = torch.repeat_interleave(torch.arange(len(centers), device=device), offsets.diff())
    packed = points[index]
    mean = torch.ops.voxelpool.segment_mean(packed[:, :3], offsets)
    code = [packed, packed[:, :3] - mean[voxel], packed[:, :3] - centers[voxel]]
    expected = encode_voxels(torch.cat(code, dim=1), offsets, weights, biases)
    actual = encode_points(points, index, offsets, weights, biases, centers=centers)
    assert torch.equal(actual, expected)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_the_bits_of_the_cpu():
    on_cpu, on_cuda = encode_points(*random_points()), encode_points(*random_points("cuda"))
    assert torch.equal(on_cpu, on_cuda.cpu())


def test_nan_and_infinity_go_where_concatenation_lets_them(device):
    generator = np.random.default_rng(2)
    offsets = make_offsets([3, 1, 4, 2])
    features = torch.tensor(generator.normal(size=(10, 5)), dtype=torch.float32)
    features[1, 2] = torch.nan
    features[5, 0] = torch.inf
    features[9, 1] = -torch.nan
    weights, biases = make_layers(generator, 5, [20, 24])
    expected = encode_slowly(features, offsets, weights, biases)
    assert expected[0].isnan().all() and expected[3].isnan().all()
    assert expected[2].isnan().any() and not expected[1].isnan().any()
    features, offsets = features.to(device), offsets.to(device)
    weights, biases = [w.to(device) for w in weights], [b.to(device) for b in biases]
    close(encode_voxels(features, offsets, weights, biases), expected)
    close(reference.encode_voxels(features, offsets, weights, biases), expected)
    # A parameter that is NaN reaches its channel, whatever the points are.
    biases[1][3] = torch.nan
    out = encode_voxels(features, offsets, weights, biases)
    assert out[:, 3].isnan().all() and not out[1, :3].isnan().any()


def test_layout_of_the_input_does_not_matter(device):
    points, index, offsets, weights, biases = random_points(device)
    expected = encode_points(points, index, offsets, weights, biases)
    wide = torch.randn(len(points), 9, device=device)
    wide[:, 2:6] = points
    twice = torch.stack([offsets, offsets], dim=1)[:, 0]
    actual = encode_points(
        wide[:, 2:6],
        index.to(torch.int32),
        twice.to(torch.int32),
        [weight.t().contiguous().t() for weight in weights],
        [torch.stack([bias, bias], dim=1)[:, 0] for bias in biases],
    )
    assert torch.equal(actual, expected)


def test_inputs_are_left_alone(device):
    arguments = random_points(device)
    before = [arguments[0].clone(), [weight.clone() for weight in arguments[3]]]
    encode_points(*arguments)
    assert torch.equal(arguments[0], before[0])
    assert all(torch.equal(a, b) for a, b in zip(arguments[3], before[1], strict=True))


# --- torch.library -------------------------------------------------------------------------------


def test_opcheck(device):
    points, index, offsets, weights, biases = random_points(device, 30, (6, 5))
    packed = torch.cat([points, points[:, :3]], dim=1)
    ops = torch.ops.voxelpool
    torch.library.opcheck(ops.encode_voxels.default, (packed, offsets, weights, biases))
    torch.library.opcheck(
        ops.encode_points.default, (points, index, offsets, None, weights, biases)
    )
    centers = torch.randn(30, 3, device=device)
    weights[0] = torch.randn(6, 10, device=device)
    torch.library.opcheck(
        ops.encode_points.default, (points, index, offsets, centers, weights, biases)
    )


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_graph_break(dynamic, device):
    def network(points, index, offsets, weights, biases):
        return encode_points(points, index, offsets, weights, biases) * 2

    torch._dynamo.reset()
    compiled = torch.compile(network, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for voxels in (20, 31):
        arguments = random_points(device, voxels, (6, 5))
        assert torch.equal(compiled(*arguments), network(*arguments))


def test_a_gradient_takes_the_reference(device):
    points, index, offsets, weights, biases = random_points(device, 30, (6, 5))
    weights = [weight.requires_grad_() for weight in weights]
    out = encode_points(points, index, offsets, weights, biases)
    out.sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in weights)
    with torch.no_grad():
        fused = encode_points(points, index, offsets, weights, biases)
    torch.testing.assert_close(out, fused, rtol=1e-5, atol=1e-5)
    raw = torch.ops.voxelpool.encode_points(points, index, offsets, None, weights, biases)
    with pytest.raises(NotImplementedError, match="have no gradient"):
        raw.sum().backward()


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([1, 4], r"offsets\[0\] is 1, expected 0"),
        ([0, 3, 2, 4], r"offsets\[2\] is 2, expected at least the offset before it, 3"),
        ([0, 5], r"offsets\[1\] is 5, expected 4, the number of rows"),
    ],
)
def test_wrong_offsets_are_named(offsets, message):
    layers = make_layers(np.random.default_rng(0), 2, [3])
    for run in (encode_voxels, reference.encode_voxels):
        with pytest.raises(ValueError, match=message):
            run(torch.zeros(4, 2), torch.tensor(offsets), *layers)


def test_an_index_out_of_range_is_named():
    layers = make_layers(np.random.default_rng(0), 7, [3])
    for value in (-1, 4, 2**40):
        index = torch.tensor([0, value])
        with pytest.raises(ValueError, match=rf"point_index\[1\] is {value}, expected a row of 4"):
            encode_points(torch.zeros(4, 4), index, torch.tensor([0, 2]), *layers)


def test_wrong_arguments_are_named():
    features, offsets = torch.zeros(4, 2), torch.tensor([0, 4])
    (w0, w1), (b0, b1) = make_layers(np.random.default_rng(0), 2, [3, 5])

    def refuses(error, message, *arguments):
        with pytest.raises(error, match=message):
            encode_voxels(*arguments)

    refuses(TypeError, r"features must be a torch.Tensor, got list", [1], offsets, [w0], [b0])
    refuses(TypeError, r"features must be float32", features.double(), offsets, [w0], [b0])
    refuses(ValueError, r"features must be 2-D", features[0], offsets, [w0], [b0])
    refuses(TypeError, r"offsets must hold integers", features, offsets.float(), [w0], [b0])
    refuses(ValueError, r"offsets must have shape \(K \+ 1,\)", features, offsets[:0], [w0], [b0])
    refuses(ValueError, r"as many, at least one, got 2 and 1", features, offsets, [w0, w1], [b0])
    refuses(ValueError, r"as many, at least one, got 0 and 0", features, offsets, [], [])
    refuses(ValueError, r"weights\[0\] must be \(>=1, 2\)", features, offsets, [w1], [b1])
    refuses(
        ValueError, r"weights\[1\] must be \(>=1, 6\), got \(3, 2\)", features, offsets,
        [w0, w0], [b0, b0],
    )  # fmt: skip
    refuses(
        ValueError, r"biases\[1\] must be \(5,\), got \(3,\)", features, offsets,
        [w0, w1], [b0, b0],
    )  # fmt: skip
    refuses(TypeError, r"biases\[0\] must be float32", features, offsets, [w0], [b0.double()])
    refuses(
        ValueError, r"features is on cpu and weights\[0\] on meta", features, offsets,
        [w0.to("meta")], [b0],
    )  # fmt: skip
    points, index = torch.zeros(4, 4), torch.arange(4)
    with pytest.raises(ValueError, match=r"points must be \(N, >=3\), got \(4, 2\)"):
        encode_points(features, index, offsets, [w0], [b0])
    with pytest.raises(TypeError, match="point_index must hold integers"):
        encode_points(points, index.float(), offsets, [w0], [b0])
    with pytest.raises(ValueError, match=r"centers must be \(1, 3\), got \(2, 3\)"):
        encode_points(points, index, offsets, [w0], [b0], centers=torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"weights\[0\] must be \(>=1, 10\)"):
        encode_points(points, index, offsets, [w0], [b0], centers=torch.zeros(1, 3))
