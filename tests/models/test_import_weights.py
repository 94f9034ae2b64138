"""Weights from elsewhere: a real checkpoint of another package, and plain networks of two more.

The plain networks are written here from what the other packages' code does, with padded pillars,
dense convolutions, their own anchors and box codes, and under the names that it gives to weights.
"""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from voxelpool.config import Config, load_detector_config
from voxelpool.datasets.kitti import KittiDataset, read_result, results_from_boxes, write_result
from voxelpool.detection.box_coder import decode, face
from voxelpool.errors import CheckpointError, ConfigError
from voxelpool.evaluation import evaluate
from voxelpool.models import VoxelDetector, build_detector, load_detector
from voxelpool.models.checkpoint import write_checkpoint
from voxelpool.models.import_weights import (
    ImportedWeights,
    Source,
    import_weights,
    read_source,
)
from voxelpool.ops import boxes_iou_bev

CONFIGS = Path(__file__).parents[2] / "configs"
HALF_PI = math.pi / 2
SIZES = {"Car": (3.9, 1.6, 1.56), "Pedestrian": (0.8, 0.6, 1.73), "Cyclist": (1.76, 0.6, 1.73)}
BOTTOMS = {"Car": -1.78, "Pedestrian": -0.6, "Cyclist": -0.6}
SMALL_PILLARS = ["grid.range=[0, -3.84, -3, 10.24, 3.84, 1]"]
SMALL_VOXELS = ["grid.range=[0, -0.8, -3, 2.4, 0.8, 1]"]


def detector_with(imported: ImportedWeights, config: Config) -> VoxelDetector:
    detector = build_detector(config)
    detector.load_state_dict(imported.weights)
    return detector.eval()


# --- the real checkpoint -------------------------------------------------------------------------

FRAMES = ("000008", "000025", "000134")


@pytest.fixture(scope="module")
def reference(reference_pointpillars: Path, tmp_path_factory: pytest.TempPathFactory):
    """The imported detector, through a file."""
    config = load_detector_config(CONFIGS / "pointpillars_zhulf0804.yaml")
    source = read_source(reference_pointpillars / "checkpoint.pth")
    imported = import_weights(source, "pointpillars-zhulf0804", config)
    assert imported.left == imported.missing == imported.warnings == ()
    assert len(imported.mapped) == len(source.weights)
    path = tmp_path_factory.mktemp("imported") / "reference.ckpt"
    write_checkpoint(path, config, imported.weights)
    return load_detector(path)


def frame_of(folder: Path, frame: str) -> dict[str, np.ndarray]:
    with np.load(folder / f"training_{frame}.npz") as arrays:
        return dict(arrays)


def as_ours(boxes: np.ndarray) -> np.ndarray:
    """Boxes x, y, z of the bottom, w, l, h, angle as KITTI's rotation_y, as ours."""
    x, y, z, width, length, height, angle = boxes.astype(np.float64).T
    return np.stack([x, y, z + height / 2, length, width, height, -angle - HALF_PI], 1)


def angle_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.abs((a - b + np.pi) % (2 * np.pi) - np.pi)


def test_reference_anchors(reference, reference_pointpillars):
    with np.load(reference_pointpillars / "anchors.npz") as arrays:
        (theirs,) = arrays.values()
    ours = reference.anchors.numpy()
    expected = as_ours(theirs.reshape(-1, 7)).reshape(ours.shape)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize("frame", FRAMES)
def test_reference_stages(reference, reference_pointpillars, frame):
    given = frame_of(reference_pointpillars, frame)
    points = torch.from_numpy(given["points"])
    voxels = reference.voxelize(points)
    coords = given["coors"][:, [0, 3, 2, 1]]  # batch, x, y, z there
    order = np.lexsort(coords.T[::-1])
    np.testing.assert_array_equal(voxels.coords.numpy(), coords[order])
    np.testing.assert_array_equal(voxels.counts().numpy(), given["npoints"][order])
    padded, _ = voxels.pad(points, 32)
    np.testing.assert_array_equal(padded.numpy(), given["pillars"][order])

    with torch.no_grad():
        features = reference.vfe.encode(points, voxels)
        predictions = reference.predict(points, voxels)
    np.testing.assert_allclose(features.numpy(), given["pillar_features"][order], atol=1e-4)

    def by_anchor(name: str, values: int) -> np.ndarray:
        maps = given[name].reshape(6, values, 248, 216)
        return maps.transpose(2, 3, 0, 1).reshape(-1, values)

    residuals = by_anchor("box_raw", 7)[:, [0, 1, 2, 4, 3, 5, 6]] * [1, 1, 1, 1, 1, 1, -1]
    directions = by_anchor("dir_raw", 2)[:, ::-1]
    for ours, theirs in zip(
        predictions, (by_anchor("cls_raw", 3), residuals, directions), strict=True
    ):
        np.testing.assert_allclose(ours[0].numpy(), theirs, atol=1e-4)

    found = reference.postprocess(predictions, reference.anchors, reference.anchor_classes)[0]
    ranked = np.argsort(-given["final_scores"], kind="stable")
    boxes = as_ours(given["final_boxes"])[ranked]
    assert len(found) == len(boxes)
    np.testing.assert_array_equal(found.class_ids.numpy(), given["final_labels"][ranked])
    np.testing.assert_allclose(found.scores.numpy(), given["final_scores"][ranked], atol=1e-3)
    np.testing.assert_allclose(found.boxes[:, :6].numpy(), boxes[:, :6], atol=1e-3)
    assert angle_between(found.boxes[:, 6].numpy(), boxes[:, 6]).max() < 1e-3


def test_reference_average_precision(reference, reference_pointpillars, kitti_sample, tmp_path):
    truth, ours, theirs = [], [], []
    frames = KittiDataset(kitti_sample, "sample", classes=reference.config.classes)
    classes = reference.config.classes
    for name in [name for name in FRAMES if name in frames.frame_ids]:
        given = frame_of(reference_pointpillars, name)
        frame = frames[frames.frame_ids.index(name)]
        found = reference.detect(torch.from_numpy(frame.points))[0]
        kept = as_ours(given["kept_lidar_bboxes"])
        for boxes, scores, labels, into in (
            (found.boxes, found.scores, found.class_ids, ours),
            (kept, given["kept_scores"], given["kept_labels"], theirs),
        ):
            names = [classes[int(label)] for label in labels]
            path = tmp_path / f"{len(into)}.txt"
            results = results_from_boxes(boxes, scores, names, frame.calibration, frame.image_size)
            write_result(path, results)
            into.append(read_result(path))
        truth.append(frame.objects)
    assert sum(len(results.type) for results in theirs) > 10
    assert {"Car"} <= evaluate(truth, theirs, classes).curves.keys()
    # The detector is a mediocre one: few of its boxes overlap by the usual 0.7.
    for overlaps in (None, dict.fromkeys(classes, 0.3)):
        expected, result = (
            evaluate(truth, found, classes, overlaps).to_dict() for found in (theirs, ours)
        )
        assert result.keys() == expected.keys()
        for name, metrics in expected.items():
            for metric, values in metrics.items():
                for recall, precision in values.items():
                    assert result[name][metric][recall] == pytest.approx(precision, abs=1e-4)
    assert max(expected["Car"]["bev"]["R40"]) > 10


# --- plain networks of the other packages --------------------------------------------------------


def nest(root: nn.Module, name: str, module: nn.Module) -> None:
    """Makes ``module`` the part of ``root`` that a dotted name tells."""
    *parents, last = name.split(".")
    for parent in parents:
        if not hasattr(root, parent):
            root.add_module(parent, nn.Module())
        root = getattr(root, parent)
    root.add_module(last, module)


def part(root: nn.Module, name: str) -> nn.Module:
    return root.get_submodule(name)


def norm(kind: type[nn.Module], channels: int) -> nn.Module:
    return kind(channels, eps=1e-3, momentum=0.01)


STYLES = {
    # linear and norm of the pillars, blocks, upsamples, heads, classes in their order
    "openpcdet": (
        ("vfe.pfn_layers.0.linear", "vfe.pfn_layers.0.norm"),
        ("backbone_2d.blocks", "backbone_2d.deblocks"),
        ("dense_head.conv_cls", "dense_head.conv_box", "dense_head.conv_dir_cls"),
        ("Car", "Pedestrian", "Cyclist"),
    ),
    "mmdet3d": (
        ("voxel_encoder.pfn_layers.0.linear", "voxel_encoder.pfn_layers.0.norm"),
        ("backbone.blocks", "neck.deblocks"),
        ("bbox_head.conv_cls", "bbox_head.conv_reg", "bbox_head.conv_dir_cls"),
        ("Pedestrian", "Cyclist", "Car"),
    ),
    "pointpillars-zhulf0804": (
        ("pillar_encoder.conv", "pillar_encoder.bn"),
        ("backbone.multi_blocks", "neck.decoder_blocks"),
        ("head.conv_cls", "head.conv_reg", "head.conv_dir_cls"),
        ("Pedestrian", "Cyclist", "Car"),
    ),
}
SPARSE = {  # input, output, kernel, stride, padding; None: submanifold
    "conv_input": (4, 16, 3, None, 1),
    "1.0": (16, 16, 3, None, 1),
    "2.0": (16, 32, 3, 2, 1),
    "2.1": (32, 32, 3, None, 1),
    "2.2": (32, 32, 3, None, 1),
    "3.0": (32, 64, 3, 2, 1),
    "3.1": (64, 64, 3, None, 1),
    "3.2": (64, 64, 3, None, 1),
    "4.0": (64, 64, 3, 2, (0, 1, 1)),
    "4.1": (64, 64, 3, None, 1),
    "4.2": (64, 64, 3, None, 1),
    "conv_out": (64, 128, (3, 1, 1), (2, 1, 1), 0),
}


def sparse_name(style: str, name: str) -> str:
    if style == "openpcdet":
        return f"backbone_3d.{name if name.startswith('conv') else 'conv' + name}"
    inner = name if name.startswith("conv") else f"encoder_layers.encoder_layer{name}"
    return f"middle_encoder.{inner}"


class TheirDetector(nn.Module):
    """A detector as the other package has it.

    Args:
        style: the package.
        config: for the grid and what makes the network; nothing else is read.
        columns: of a pillar's points: 9, or 10 with an offset along z; 0: SECOND.
        legacy_points: whether offsets overwrite places.
        legacy_boxes: whether boxes are x, y, z of the bottom, w, l, h, angle.
        edges: whether anchors lie on the range's edges.
        classes: in their order.
    """

    def __init__(
        self,
        style: str,
        config: Config,
        *,
        columns: int,
        legacy_points: bool,
        legacy_boxes: bool = False,
        edges: bool = False,
        classes: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__()
        (linear, point_norm), self.trunk, self.heads, known = STYLES[style]
        self.style, self.columns, self.edges = style, columns, edges
        self.legacy_points, self.legacy_boxes = legacy_points, legacy_boxes
        self.classes = classes or known
        self.range, self.size = config.grid.range, config.grid.voxel_size
        self.shape = config.grid.to_grid().shape
        self.point_names = (linear, point_norm)
        if columns:
            zhulf = style.startswith("pointpillars")
            layer = nn.Conv1d(columns, 64, 1, bias=False) if zhulf else None
            nest(self, linear, layer or nn.Linear(columns, 64, bias=False))
            nest(self, point_norm, norm(nn.BatchNorm1d, 64))
            before, layers, strides = 64, (3, 5, 5), (2, 2, 2)
            channels, up = (64, 128, 256), (128, 128, 128)
        else:
            for name, (inputs, outputs, kernel, _, _) in SPARSE.items():
                conv = nn.Conv3d(inputs, outputs, kernel, bias=False)
                nest(self, sparse_name(style, name) + ".0", conv)
                nest(self, sparse_name(style, name) + ".1", norm(nn.BatchNorm1d, outputs))
            before, layers, strides, channels, up = 256, (5, 5), (1, 2), (128, 256), (256, 256)
        self.levels, scale = len(layers), 1
        for level, (count, stride, width, ups) in enumerate(
            zip(layers, strides, channels, up, strict=True)
        ):
            block: list[nn.Module] = []
            if style == "openpcdet":
                block.append(nn.ZeroPad2d(1))
            pad = 0 if style == "openpcdet" else 1
            block.append(nn.Conv2d(before, width, 3, stride, pad, bias=False))
            block += [norm(nn.BatchNorm2d, width), nn.ReLU()]
            for _ in range(count):
                block.append(nn.Conv2d(width, width, 3, padding=1, bias=False))
                block += [norm(nn.BatchNorm2d, width), nn.ReLU()]
            nest(self, f"{self.trunk[0]}.{level}", nn.Sequential(*block))
            scale *= stride if level else 1
            upsample = nn.ConvTranspose2d(width, ups, scale, scale, bias=False)
            layers_up = (upsample, norm(nn.BatchNorm2d, ups), nn.ReLU())
            nest(self, f"{self.trunk[1]}.{level}", nn.Sequential(*layers_up))
            before = width
        count = len(self.classes)
        for name, values in zip(self.heads, (count, 7, 2), strict=True):
            nest(self, name, nn.Conv2d(sum(up), 2 * count * values, 1))
        generator = torch.Generator().manual_seed(0)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                for tensor, low, high in (
                    (module.weight, 0.5, 1.5),
                    (module.bias, -0.2, 0.6),
                    (module.running_mean, -0.2, 0.2),
                    (module.running_var, 0.5, 1.5),
                ):
                    tensor.data.uniform_(low, high, generator=generator)
            elif isinstance(
                module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d | nn.Conv3d
            ):
                fan = module.weight[0].numel()
                if isinstance(module, nn.ConvTranspose2d):
                    fan = module.weight.shape[0]
                bound = math.sqrt(3 / fan)
                module.weight.data.uniform_(-bound, bound, generator=generator)
                if module.bias is not None:
                    module.bias.data.uniform_(-1, 1, generator=generator)
        self.eval()

    def saved(self, spconv: int = 2) -> dict[str, Tensor]:
        """Its state dict, as the package would write it."""
        weights = {}
        for name, value in self.state_dict().items():
            if value.dim() == 5:  # (out, in, z, y, x)
                value = value.permute((0, 2, 3, 4, 1) if spconv == 2 else (2, 3, 4, 1, 0))
            weights[name] = value.contiguous()
        return weights

    def voxels(self, points: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
        """First come, padded: (K, T, 4), how many, and z, y, x."""
        kept: dict[tuple[int, ...], list[Tensor]] = {}
        low, size = torch.tensor(self.range[:3]), torch.tensor(self.size)
        for point in points:
            cell = torch.floor((point[:3] - low) / size).long().tolist()
            if all(0 <= c < n for c, n in zip(cell, self.shape[::-1], strict=True)):
                found = kept.setdefault(tuple(cell[::-1]), [])
                if len(found) < most:
                    found.append(point)
        padded = torch.zeros(len(kept), most, 4)
        for row, found in enumerate(kept.values()):
            padded[row, : len(found)] = torch.stack(found)
        return padded, torch.tensor([len(v) for v in kept.values()]), torch.tensor(list(kept))

    def pillars(self, points: Tensor) -> Tensor:
        padded, counts, cells = self.voxels(points, 32)
        xyz = padded[:, :, :3]
        from_mean = xyz - xyz.sum(1, keepdim=True) / counts[:, None, None]
        low, size = torch.tensor(self.range[:3]), torch.tensor(self.size)
        axes = self.columns - 7
        centers = (cells.flip(1) + 0.5) * size + low
        from_center = (xyz - centers[:, None])[:, :, :axes]
        code = torch.cat([padded, from_mean, from_center], 2)
        if self.legacy_points:
            code[:, :, :axes] = from_center
        code = code * (torch.arange(32) < counts[:, None])[:, :, None]
        linear, normalised = (part(self, name) for name in self.point_names)
        weight = linear.weight.flatten(1)
        values = normalised((code @ weight.T).transpose(1, 2)).relu()
        canvas = torch.zeros(64, *self.shape[1:])
        canvas[:, cells[:, 1], cells[:, 2]] = values.amax(2).T
        return canvas[None]

    def sparse(self, points: Tensor) -> Tensor:
        padded, counts, (z, y, x) = (lambda p, n, c: (p, n, c.T))(*self.voxels(points, 5))
        dense = torch.zeros(1, 4, self.shape[0] + 1, *self.shape[1:])
        occupied = torch.zeros_like(dense[:, :1])
        dense[0, :, z, y, x] = (padded.sum(1) / counts[:, None]).T
        occupied[0, 0, z, y, x] = 1
        for name, (_, _, _, stride, padding) in SPARSE.items():
            root = sparse_name(self.style, name)
            conv, normalised = part(self, root + ".0"), part(self, root + ".1")
            dense = F.conv3d(dense, conv.weight, None, stride or 1, padding)
            if stride is not None:
                ones = torch.ones(1, 1, *conv.kernel_size)
                occupied = (F.conv3d(occupied, ones, None, stride, padding) > 0).float()
            flat = normalised(dense.flatten(2)).view_as(dense)
            dense = flat.relu() * occupied
        return dense.flatten(1, 2)

    @torch.no_grad()
    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, classes) and boxes (N, 7) in the LiDAR frame, of every anchor."""
        x = self.pillars(points) if self.columns else self.sparse(points)
        ups = []
        for level in range(self.levels):
            x = part(self, f"{self.trunk[0]}.{level}")(x)
            ups.append(part(self, f"{self.trunk[1]}.{level}")(x))
        joined = torch.cat(ups, 1)
        scores, deltas, ways = (part(self, name)(joined)[0].permute(1, 2, 0) for name in self.heads)
        height, width = scores.shape[:2]
        deltas = deltas.reshape(-1, 7)
        way = ways.reshape(-1, 2).argmax(1)
        return scores.reshape(-1, len(self.classes)), self.decoded(height, width, deltas, way)

    def decoded(self, height: int, width: int, deltas: Tensor, way: Tensor) -> Tensor:
        def places(low: float, high: float, count: int) -> Tensor:
            if self.edges:
                return low + torch.arange(count) * ((high - low) / (count - 1))
            return low + (torch.arange(count) + 0.5) * ((high - low) / count)

        rows = []
        for y in places(self.range[1], self.range[4], height).tolist():
            for x in places(self.range[0], self.range[3], width).tolist():
                for name in self.classes:
                    length, wide, high = SIZES[name]
                    sizes = (wide, length, high) if self.legacy_boxes else SIZES[name]
                    for angle in (0.0, 1.57):
                        rows.append((x, y, BOTTOMS[name], *sizes, angle))
        x, y, bottom, a, b, high, angle = torch.tensor(rows).T
        diagonal = torch.sqrt(a**2 + b**2)
        tall = high * deltas[:, 5].exp()
        middle = deltas[:, 2] * high + bottom + high / 2
        one, other = a * deltas[:, 3].exp(), b * deltas[:, 4].exp()
        angle = angle + deltas[:, 6]
        if self.legacy_boxes:  # 0: the angle, KITTI's rotation_y, lies in [0, pi)
            angle = angle - torch.floor(angle / math.pi) * math.pi + way * math.pi
            one, other, yaw = other, one, -angle - HALF_PI
        else:
            offset = 0.78539 if self.style == "openpcdet" else -HALF_PI
            yaw = angle - offset
            yaw = yaw - torch.floor(yaw / math.pi) * math.pi + offset + math.pi * way
        centers = (deltas[:, 0] * diagonal + x, deltas[:, 1] * diagonal + y, middle)
        return torch.stack([*centers, one, other, tall, yaw], 1)


def some_points(config: Config, count: int, spread: float) -> Tensor:
    """Points in and around the grid, many to a voxel in places."""
    generator = torch.Generator().manual_seed(1)
    low, high = torch.tensor(config.grid.range[:3]), torch.tensor(config.grid.range[3:])
    xyz = low + torch.rand(count, 3, generator=generator) * (high - low) * 1.1
    near = (low + high) / 2 + spread * torch.randn(count // 3, 3, generator=generator)
    points = torch.cat([xyz, near])
    reflectance = torch.rand(len(points), 1, generator=generator)
    return torch.cat([points, reflectance], 1)


def assert_same(theirs: TheirDetector, detector: VoxelDetector, points: Tensor) -> None:
    """All scores and boxes of all anchors agree."""
    logits, boxes = theirs(points)
    with torch.no_grad():
        scores, residuals, directions = (values[0] for values in detector(points))
    assert directions is not None
    anchors = detector.anchors.view(-1, 7)
    ours = decode(residuals, anchors)
    offset = detector.postprocess.direction_offset
    ours[:, 6] = face(ours[:, 6], directions.argmax(1), offset)
    classes = detector.config.classes
    order = [theirs.classes.index(name) for name in classes]
    count = len(classes)
    boxes = boxes.view(-1, count, 2, 7)[:, order].reshape(-1, 7)
    logits = logits.view(-1, count, 2, count)[:, order][..., order].reshape(-1, count)
    assert logits.std() > 0.1 and residuals.std() > 0.1 and directions.std() > 0.1
    torch.testing.assert_close(scores.view(-1, count), logits, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(ours[:, :6], boxes[:, :6], atol=1e-3, rtol=1e-4)
    turned = angle_between(ours[:, 6].numpy(), boxes[:, 6].numpy())
    # A yaw at the end of its half turn may round into the other one.
    assert (turned > 1e-3).sum() <= len(turned) // 5000


def small(name: str, *overrides: str) -> Config:
    size = SMALL_PILLARS if name.startswith("pointpillars") else SMALL_VOXELS
    return load_detector_config(CONFIGS / f"{name}.yaml", [*size, *overrides])


@pytest.mark.parametrize(
    ("style", "config", "theirs", "options"),
    [
        (
            "openpcdet",
            small("pointpillars_openpcdet"),
            {"columns": 10, "legacy_points": False, "edges": True},
            {},
        ),
        (
            "mmdet3d",
            small("pointpillars_mmdet3d"),
            {"columns": 10, "legacy_points": True},
            {},
        ),
        (
            "mmdet3d",
            small("pointpillars_mmdet3d", "vfe.offsets=xy"),
            {"columns": 9, "legacy_points": False},
            {"points": "current"},
        ),
        (
            "mmdet3d",
            small("pointpillars_zhulf0804"),
            {"columns": 9, "legacy_points": True, "legacy_boxes": True},
            {"boxes": "legacy"},
        ),
        (
            "pointpillars-zhulf0804",
            small("pointpillars_zhulf0804"),
            {"columns": 9, "legacy_points": True, "legacy_boxes": True},
            {},
        ),
    ],
    ids=["openpcdet", "mmdet3d", "mmdet3d-not-legacy", "mmdet3d-0.x", "zhulf0804"],
)
def test_pillars_of_another_package(style, config, theirs, options):
    network = TheirDetector(style, config, **theirs)
    points = some_points(config, 1500, 0.15)
    imported = import_weights(network.saved(), style, config, **options)
    assert imported.left == imported.missing == ()
    detector = detector_with(imported, config)
    assert detector.voxelize(points).counts().max() == 32
    assert_same(network, detector, points)


@pytest.mark.parametrize("spconv", [1, 2])
@pytest.mark.parametrize("style", ["openpcdet", "mmdet3d"])
def test_second_of_another_package(style, spconv):
    config = small(f"second_{style}")
    network = TheirDetector(style, config, columns=0, legacy_points=False, edges=True)
    points = some_points(config, 600, 0.1)
    imported = import_weights(network.saved(spconv), style, config)
    assert imported.left == imported.missing == ()
    detector = detector_with(imported, config)
    assert detector.voxelize(points).counts().max() == 5
    assert_same(network, detector, points)


def test_sparse_shapes_vote():
    """A weight whose shape is of both layouts has that of the others."""
    config = small("second_openpcdet", "middle.channels=[3, 3, 3, 3, 3]")
    names = [name for name in build_detector(config).state_dict() if "convs" in name]
    network = TheirDetector("openpcdet", config, columns=0, legacy_points=False)
    saved = {
        name: value[:3, ..., :3] if value.dim() == 5 else value[:3]
        for name, value in network.saved(2).items()
        if name.startswith("backbone_3d") and value.dim()
    }
    first = "backbone_3d.conv_input.0.weight"
    saved[first] = network.saved(2)[first][:3]
    rest = {name: value for name, value in network.saved(2).items() if "backbone_3d" not in name}
    first_block = "backbone_2d.blocks.0.1.weight"
    rest[first_block] = rest[first_block][:, :6]
    earlier = {
        name: value.permute(1, 2, 3, 4, 0) if value.dim() == 5 else value
        for name, value in saved.items()
    }
    now, then = (import_weights({**kind, **rest}, "openpcdet", config) for kind in (saved, earlier))
    for name in names:
        assert torch.equal(now.weights[name], then.weights[name])


@pytest.mark.parametrize(
    "order", [("Car", "Pedestrian", "Cyclist"), ("Cyclist", "Car", "Pedestrian")]
)
def test_configuration_may_order_classes_otherwise(order):
    """The heads' channels move with their classes, the scores' twice."""
    config = small("pointpillars_mmdet3d")
    anchors = {anchor.class_name: anchor for anchor in config.anchors}
    turned = config.model_copy(update={"anchors": tuple(anchors[name] for name in order)})
    network = TheirDetector("mmdet3d", config, columns=10, legacy_points=True)
    detector = detector_with(import_weights(network.saved(), "mmdet3d", turned), turned)
    assert_same(network, detector, some_points(config, 800, 0.3))


def test_source_in_another_order():
    """By an option, or as the checkpoint says."""
    config = small("pointpillars_openpcdet")
    names = ("Cyclist", "Pedestrian", "Car")
    options = {"columns": 10, "legacy_points": False, "edges": True, "classes": names}
    network = TheirDetector("openpcdet", config, **options)
    points = some_points(config, 800, 0.3)
    named = import_weights(network.saved(), "openpcdet", config, classes=names)
    said = import_weights(Source(network.saved(), classes=names), "openpcdet", config)
    for imported in (named, said):
        assert_same(network, detector_with(imported, config), points)


def test_one_class():
    one = (
        "anchors=[{class_name: Car, size: [3.9, 1.6, 1.56], z_center: -1.0, rotations: [0, 1.57],"
        + (" matched_threshold: 0.6, unmatched_threshold: 0.45}]")
    )
    config = small("pointpillars_openpcdet", one)
    network = TheirDetector(
        "openpcdet", config, columns=10, legacy_points=False, edges=True, classes=("Car",)
    )
    imported = import_weights(network.saved(), "openpcdet", config)
    assert_same(network, detector_with(imported, config), some_points(config, 800, 0.3))


def greedy(boxes: Tensor, scores: Tensor, most: int) -> list[int]:
    """What a suppression at an overlap of 0.01 keeps, best first."""
    overlaps = boxes_iou_bev(boxes, boxes)
    kept: list[int] = []
    for row in scores.argsort(descending=True).tolist():
        if len(kept) < most and not (overlaps[row, kept] > 0.01).any():
            kept.append(row)
    return kept


@pytest.mark.parametrize("style", ["openpcdet", "mmdet3d"])
def test_final_boxes_of_another_package(style):
    """With the configuration's post-processing, as each package has it by default."""
    config = small(f"pointpillars_{style}")
    network = TheirDetector(
        style, config, columns=10, legacy_points=style == "mmdet3d", edges=style == "openpcdet"
    )
    part(network, network.heads[0]).bias.data -= 2.5
    points = some_points(config, 800, 0.3)
    logits, boxes = network(points)
    scores = logits.sigmoid()
    if style == "openpcdet":
        best, labels = scores.max(1)
        rows = (best >= 0.1).nonzero()[:, 0]
        rows = rows[best[rows].argsort(descending=True)][:4096]
        kept = rows[greedy(boxes[rows], best[rows], 500)]
        expected = [(best[row], labels[row], boxes[row]) for row in kept]
    else:
        rows = scores.amax(1).topk(100).indices
        expected = []
        for label in range(3):
            own = rows[scores[rows, label] > 0.1]
            kept = own[greedy(boxes[own], scores[own, label], len(own))]
            expected += [(scores[row, label], torch.tensor(label), boxes[row]) for row in kept]
        expected = sorted(expected, key=lambda found: -found[0])[:50]
    detector = detector_with(import_weights(network.saved(), style, config), config)
    found = detector.detect(points)[0]
    assert len(found) == len(expected) > 10
    names = [detector.config.classes[row] for row in found.class_ids.tolist()]
    assert names == [network.classes[int(label)] for _, label, _ in expected]
    torch.testing.assert_close(
        found.scores, torch.stack([score for score, _, _ in expected]), atol=1e-4, rtol=0
    )
    theirs = torch.stack([box for _, _, box in expected])
    torch.testing.assert_close(found.boxes[:, :6], theirs[:, :6], atol=1e-3, rtol=1e-4)
    assert angle_between(found.boxes[:, 6].numpy(), theirs[:, 6].numpy()).max() < 1e-3


# --- what is refused, and what is said -----------------------------------------------------------


@pytest.fixture(scope="module")
def openpcdet() -> tuple[Config, dict[str, Tensor]]:
    """A configuration and weights that go with it."""
    config = small("pointpillars_openpcdet")
    network = TheirDetector("openpcdet", config, columns=10, legacy_points=False)
    return config, network.saved()


def test_mapping_is_told(openpcdet):
    config, weights = openpcdet
    counters = [name for name in weights if name.endswith("num_batches_tracked")]
    given = {name: value for name, value in weights.items() if name not in counters}
    given["global_step"] = torch.tensor([7])
    imported = import_weights(given, "openpcdet", config)
    assert ("dense_head.conv_box.bias", "rpn.residual_head.bias") in imported.mapped
    assert {theirs for theirs, _ in imported.mapped} | {"global_step"} == given.keys()
    assert imported.left == ("global_step",)
    assert len(imported.missing) == len(counters)
    assert all(imported.weights[name] == 0 for name in imported.missing)
    # The grid is smaller than the published one; else there is nothing to say.
    (warning,) = imported.warnings
    assert "grid.range" in warning and "69.12" in warning


def test_a_greater_network_is_told(openpcdet):
    config, weights = openpcdet
    further = {"roi_head.shared_fc_layer.0.weight": torch.zeros(4, 4)}
    imported = import_weights({**weights, **further}, "openpcdet", config)
    assert imported.left == tuple(further)
    assert "roi_head" in imported.warnings[-1]


@pytest.mark.parametrize(
    ("theirs", "ours", "shape"),
    [
        ("backbone_2d.blocks.1.1.weight", "rpn.blocks.1.0.weight", (128, 64, 3, 1)),
        ("vfe.pfn_layers.0.norm.weight", "vfe.points.norm.weight", (32,)),
        ("dense_head.conv_cls.bias", "rpn.score_head.bias", (12,)),
        ("dense_head.conv_dir_cls.weight", "rpn.direction_head.weight", (24, 384, 1, 1)),
    ],
)
def test_another_shape_is_refused(openpcdet, theirs, ours, shape):
    config, weights = openpcdet
    with pytest.raises(CheckpointError) as error:
        import_weights({**weights, theirs: torch.zeros(shape)}, "openpcdet", config)
    assert theirs in str(error.value) and ours in str(error.value)
    assert str(shape).replace(",)", ")") in str(error.value)


def test_another_pillar_code_is_refused(openpcdet):
    config, weights = openpcdet
    name = "vfe.pfn_layers.0.linear.weight"
    with pytest.raises(CheckpointError, match=r"vfe.offsets: xy"):
        import_weights({**weights, name: torch.zeros(64, 9)}, "openpcdet", config)
    with pytest.raises(CheckpointError, match=r"\(64, 11\)"):
        import_weights({**weights, name: torch.zeros(64, 11)}, "openpcdet", config)


def test_another_sparse_layout_is_refused():
    config = small("second_openpcdet")
    weights = TheirDetector("openpcdet", config, columns=0, legacy_points=False).saved(2)
    for name, value in weights.items():
        if value.dim() == 5:
            weights[name] = value.permute(1, 2, 3, 0, 4)
    with pytest.raises(
        CheckpointError, match=r"backbone_3d\.conv_input\.0\.weight .*middle\.convs"
    ):
        import_weights(weights, "openpcdet", config)


def test_values_that_are_not_finite_are_refused(openpcdet):
    config, weights = openpcdet
    name = "backbone_2d.blocks.0.2.running_var"
    bad = weights[name].clone()
    bad[3] = torch.nan
    with pytest.raises(CheckpointError, match=name):
        import_weights({**weights, name: bad}, "openpcdet", config)


def test_missing_weights_are_named(openpcdet):
    config, weights = openpcdet
    some = {name: value for name, value in weights.items() if "conv_box" not in name}
    with pytest.raises(CheckpointError, match=r"dense_head.conv_box.weight, dense_head.conv_box.b"):
        import_weights(some, "openpcdet", config)
    mmdet3d = small("pointpillars_mmdet3d")
    with pytest.raises(CheckpointError, match="look like those of openpcdet"):
        import_weights(weights, "mmdet3d", mmdet3d)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("norm.eps=1e-5", "norm.eps is 1e-05"),
        ("vfe.keep=random", "vfe.keep is random"),
        ("vfe.padded_max=false", "vfe.padded_max is false"),
        ("head.direction_offset=-1.57", "head.direction_offset"),
        ("anchors.1.rotations=[-1.57, -3.14]", "anchors.1.rotations"),
    ],
)
def test_other_boxes_are_refused(openpcdet, override, message):
    _, weights = openpcdet
    config = small("pointpillars_openpcdet", override)
    with pytest.raises(ConfigError, match=message):
        import_weights(weights, "openpcdet", config)
    imported = import_weights(weights, "openpcdet", config, allow_differences=True)
    assert any(message in warning for warning in imported.warnings)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("head.scores=own", "head.scores is own"),
        ("head.direction=false", "head.direction is false"),
    ],
)
def test_other_heads_are_refused(openpcdet, override, message):
    with pytest.raises(ConfigError, match=message):
        import_weights(openpcdet[1], "openpcdet", small("pointpillars_openpcdet", override))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("head.anchor_placement=centers", "edges"),
        ("anchors.0.rotations=[0, 1.5707963]", "1.57"),
        ("anchors.2.z_center=-0.6", "0.265"),
        ("postprocess.nms=class", "agnostic"),
        ("vfe.max_points=100", "32"),
        ("grid.open=true", "false"),
    ],
)
def test_doubts_are_told(openpcdet, override, message):
    config = small("pointpillars_openpcdet", override)
    warnings = import_weights(openpcdet[1], "openpcdet", config).warnings
    key = override.partition("=")[0]
    (warning,) = [text for text in warnings if key in text]
    assert message in warning


def test_other_networks_are_refused(openpcdet):
    _, weights = openpcdet
    with pytest.raises(ConfigError, match="stacked"):
        import_weights(weights, "openpcdet", load_detector_config(CONFIGS / "voxelnet_car.yaml"))
    with pytest.raises(ConfigError, match="zhulf0804/PointPillars has no network with vfe mean"):
        import_weights(weights, "pointpillars-zhulf0804", small("second_openpcdet"))
    with pytest.raises(ConfigError, match="attention"):
        attentive = small("pointpillars_openpcdet", "rpn.attention=se")
        import_weights(weights, "openpcdet", attentive)
    with pytest.raises(ConfigError, match="Van"):
        config = small("pointpillars_openpcdet")
        import_weights(weights, "openpcdet", config, classes=("Car", "Van", "Cyclist"))
    with pytest.raises(ValueError, match="openpcdet, mmdet3d"):
        import_weights(weights, "second.pytorch", small("pointpillars_openpcdet"))


def test_version_decides_the_box_code():
    config = small("pointpillars_mmdet3d")
    network = TheirDetector("mmdet3d", config, columns=10, legacy_points=True)
    weights = network.saved()
    for version in ("1.0.0rc1", "1.4.0"):
        source = Source(weights, version=version)
        assert not any("version" in w for w in import_weights(source, "mmdet3d", config).warnings)
    assert any("version" in w for w in import_weights(weights, "mmdet3d", config).warnings)
    with pytest.raises(ConfigError, match="rotations"):
        import_weights(Source(weights, version="0.17.1"), "mmdet3d", config)


# --- files ---------------------------------------------------------------------------------------


class Harmful:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code was run')",))


def test_read_source(tmp_path):
    tensors = {"a.weight": torch.ones(2), "b": torch.zeros(())}
    path = tmp_path / "source.pth"
    for contents in (
        tensors,
        {"model_state": tensors, "epoch": 80, "version": "pcdet+0.6.0"},
        {"state_dict": {f"module.{name}": value for name, value in tensors.items()}},
    ):
        torch.save(contents, path)
        source = read_source(path)
        assert source.weights.keys() == tensors.keys()
        assert source.classes is source.version is None
    meta = {"mmdet3d_version": "0.18.0", "CLASSES": ("Car",)}
    torch.save({"state_dict": tensors, "meta": meta}, path)
    assert (read_source(path).version, read_source(path).classes) == ("0.18.0", ("Car",))
    meta = {"mmengine_version": "0.10", "dataset_meta": {"classes": ["Car", "Van"]}}
    torch.save({"state_dict": tensors, "meta": meta}, path)
    assert read_source(path).classes == ("Car", "Van")


def test_code_is_not_run(tmp_path):
    path = tmp_path / "harmful.pth"
    torch.save({"state_dict": {"a": torch.ones(1)}, "optimizer": Harmful()}, path)
    with pytest.raises(CheckpointError, match="save its state dict alone"):
        read_source(path)
    path.write_bytes(pickle.dumps(Harmful(), protocol=2))
    with pytest.raises(CheckpointError, match=r"harmful.pth"):
        read_source(path)


def test_no_state_dict(tmp_path, openpcdet):
    with pytest.raises(CheckpointError, match=r"absent\.pth: No such file"):
        read_source(tmp_path / "absent.pth")
    path = tmp_path / "list.pth"
    torch.save([torch.ones(1)], path)
    with pytest.raises(CheckpointError, match="no state dict"):
        read_source(path)
    path.write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(CheckpointError, match=r"list\.pth"):
        read_source(path)
    config, weights = openpcdet
    write_checkpoint(path, config, import_weights(weights, "openpcdet", config).weights)
    with pytest.raises(CheckpointError, match="of this package already"):
        read_source(path)


def test_checkpoint_is_one(tmp_path, openpcdet):
    config, weights = openpcdet
    imported = import_weights(weights, "openpcdet", config)
    path = tmp_path / "imported.ckpt"
    write_checkpoint(path, config, imported.weights)
    detector = load_detector(path, config)
    for name, value in detector.state_dict().items():
        assert torch.equal(value, imported.weights[name])
    with pytest.raises(CheckpointError, match=r"vfe.keep"):
        load_detector(path, small("pointpillars_openpcdet", "vfe.keep=random"))
    with pytest.raises(OSError, match="cannot write"):
        write_checkpoint(tmp_path / "nowhere" / "x.ckpt", config, imported.weights)
