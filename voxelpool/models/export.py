"""Detectors as files that run without this package: torch.export, ONNX, AOTInductor.

What is exported is the network of a `VoxelDetector` written once more, with its weights, in
operators that torch and ONNX have themselves: padded voxels instead of packed ones, BatchNorm
folded into the convolutions. The numbers are the same up to rounding.
"""

from __future__ import annotations

import copy
import errno
import importlib
import io
import json
import logging
import math
import os
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from voxelpool.config import dump_config
from voxelpool.detection import Predictions, decode, face, flatten_maps
from voxelpool.errors import VoxelpoolError
from voxelpool.files import atomic_write, refuse_existing
from voxelpool.models.detector import VoxelDetector
from voxelpool.nn import VFE, DenseMiddle, MeanVFE, ScatterMiddle, SparseMiddle, reach
from voxelpool.nn.reach import Triple
from voxelpool.ops.reference import voxelize as reference
from voxelpool.ops.reference.cells import (
    conv_shape,
    coords_of_cells,
    flat_cells,
    neighbour_rows,
    reached_cells,
)
from voxelpool.structures import Voxels

#: What is written: a program for `torch.export.load`, a model for ONNX runtimes, or a package of
#: machine code for `torch._inductor.aoti_load_package`.
Format: TypeAlias = Literal["torch-export", "onnx", "aoti"]
#: What goes in: the points of one sweep, or voxels.
Takes: TypeAlias = Literal["voxels", "points"]
#: What comes out: what `VoxelDetector.forward` gives, or boxes and their scores.
Gives: TypeAlias = Literal["maps", "boxes"]

SUFFIXES: dict[Format, str] = {"torch-export": ".pt2", "onnx": ".onnx", "aoti": ".pt2"}
METADATA_KEY = "voxelpool"
_OPSET = 18


class PlainNetwork(nn.Module):
    """A detector after voxelization, in operators that exporters know; for inference alone.

    Args:
        detector: whose weights are taken (copied), at what they are now.
        batch_size: B, sweeps that go through at once; coords name them.
        gives: see `Gives`.

    Raises:
        VoxelpoolError: the sparse middle's back end is spconv.
    """

    def __init__(
        self, detector: VoxelDetector, *, batch_size: int = 1, gives: Gives = "maps"
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.batch_size = batch_size
        self.gives: Gives = gives
        self.encoder = _encoder(detector)
        self.middle = _middle(detector, batch_size)
        self.rpn = _folded(copy.deepcopy(detector.rpn).eval())
        self.occupied = detector._occupied if detector.rpn.needs_occupied else None
        self.grid = detector.grid
        self.min_voxels = detector.config.head.min_voxels
        self.voxels_under_anchors = copy.deepcopy(detector.voxels_under_anchors)
        self.direction_offset = detector.postprocess.direction_offset
        self.register_buffer("anchors", detector.anchors.reshape(-1, 7), persistent=False)
        self.requires_grad_(False).eval()

    def forward(self, padded: Tensor, counts: Tensor, coords: Tensor) -> tuple[Tensor, ...]:
        """Predict.

        Args:
            padded: (K, T, C) float32, the points of each voxel, then zeros; T is the network's
                ``max_points``. As `Voxels.pad` makes it.
            counts: (K,) int64, points in each voxel, 1 to T.
            coords: (K, 4) int32, (batch, z, y, x) of each voxel, each at most once, and sorted
                lexicographically for SECOND.

        Returns:
            For the N anchors in their order, with ``maps``: scores (B, N) or (B, N, K), logits;
            residuals (B, N, 7); where the network has them, directions (B, N, 2). With ``boxes``:
            scores as before but in [0, 1], and 0 in a sweep without voxels and of anchors that
            ``head.min_voxels`` leaves out; boxes (B, N, 7).
        """
        bev = self.middle(self.encoder(padded, counts, coords), coords)
        occupied = None
        if self.occupied is not None:
            occupied = self.occupied(
                Voxels(coords, counts, counts, self.grid, self.batch_size)  # coords alone matter
            )
        return self.finish(flatten_maps(*self.rpn(bev, occupied)), coords)

    def finish(self, predictions: Predictions, coords: Tensor) -> tuple[Tensor, ...]:
        """What is given, of what the network predicts."""
        scores, residuals, directions = predictions
        if self.gives == "maps":
            return tuple(part for part in predictions if part is not None)
        boxes = decode(residuals, self.anchors)
        if directions is not None:
            way = (directions[..., 1] > directions[..., 0]).to(boxes.dtype)
            yaw = face(boxes[..., 6], way, self.direction_offset)
            boxes = torch.cat([boxes[..., :6], yaw[..., None]], dim=-1)
        frames = coords[:, 0].long()
        used = _put(scores.new_zeros(self.batch_size), frames, scores.new_ones(frames.shape))
        used = used[:, None]
        if self.min_voxels:
            under = self.voxels_under_anchors(coords, self.batch_size)
            used = used * (under >= self.min_voxels).to(used.dtype)
        return scores.sigmoid() * used.view(*used.shape, *[1] * (scores.dim() - 2)), boxes

    def example(self) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs to trace with: three voxels of a row, in the first sweep."""
        device = self.anchors.device
        coords = torch.zeros(3, 4, dtype=torch.int32, device=device)
        coords[:, 3] = torch.arange(3, device=device)
        counts = torch.ones(3, dtype=torch.int64, device=device)
        shape = (3, self.encoder.max_points, self.encoder.point_dims)
        return torch.ones(shape, device=device), counts, coords


class PlainDetector(nn.Module):
    """`PlainNetwork` from the points of one sweep on, voxelization included.

    Args:
        detector: see `PlainNetwork`.
        gives: see `Gives`.
    """

    def __init__(self, detector: VoxelDetector, *, gives: Gives = "maps") -> None:
        super().__init__()
        self.network = PlainNetwork(detector, gives=gives)
        self.config = detector.config
        self.point_dims = detector.point_dims
        self.grid = detector.grid

    def forward(self, points: Tensor) -> tuple[Tensor, ...]:
        """Predict from (N, C) float32; the rest as `PlainNetwork.forward`, with B = 1."""
        block, grid = self.config.vfe, self.grid
        if self.config.grid.open:
            low = torch.tensor(grid.range[:3], device=points.device)
            points = points.masked_fill((points[:, :3] <= low).any(dim=1, keepdim=True), torch.nan)
        keys = reference.point_keys(points, None, 1, grid.range, grid.voxel_size, grid.shape)
        cells, counts, rows = self._group(keys)
        starts = counts.cumsum(0) - counts
        counts = counts.clamp(max=block.max_points)
        slot = torch.arange(block.max_points, device=points.device)
        mask = slot < counts[:, None]
        # One row more, so that there is one to read where a slot is empty.
        rows = torch.cat([rows, rows.new_zeros(1)])
        packed = torch.where(mask, starts[:, None] + slot, rows.shape[0] - 1)
        points = torch.cat([points, points.new_zeros(1, self.point_dims)])
        padded = points[rows[packed]].masked_fill(~mask[..., None], 0)
        coords = coords_of_cells(cells, grid.shape)
        return self.network(padded, counts, coords)

    def _group(self, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `reference.group_points`, which waits for sizes: cells, counts and point rows."""
        block = self.config.vfe
        sorted_keys, rows = torch.sort(keys, stable=True)
        inside = sorted_keys < self.grid.num_cells
        sorted_keys, rows = sorted_keys[inside], rows[inside]
        cells, counts = torch.unique_consecutive(sorted_keys, return_counts=True)
        voxel = torch.repeat_interleave(counts)
        if block.max_voxels is not None:
            numbers = reference.random63(0, reference.VOXEL_SALT, cells)
            kept = reference.smallest(torch.zeros_like(cells), numbers, block.max_voxels)
            rows = rows[kept[voxel]]
            cells, counts = cells[kept], counts[kept]
            voxel = torch.repeat_interleave(counts)
        if block.keep == "random":
            numbers = reference.random63(0, reference.POINT_SALT, rows)
            rows = rows[reference.smallest(voxel, numbers, block.max_points)]
            counts = counts.clamp(max=block.max_points)
        return _bounded(cells), _bounded(counts), rows

    def example(self) -> tuple[Tensor]:
        """An input to trace with."""
        return (torch.zeros(3, self.point_dims, device=self.network.anchors.device),)


# --- encoders ------------------------------------------------------------------------------------


def _encoder(detector: VoxelDetector) -> nn.Module:
    block = detector.config.vfe
    if isinstance(detector.vfe, MeanVFE):
        return _Mean(detector.point_dims, block.max_points)
    return _Stacked(detector.vfe, detector, block.max_points)


class _Mean(nn.Module):
    """`MeanVFE` of padded voxels."""

    def __init__(self, point_dims: int, max_points: int) -> None:
        super().__init__()
        self.point_dims, self.max_points = point_dims, max_points

    def forward(self, padded: Tensor, counts: Tensor, coords: Tensor) -> Tensor:
        return padded.sum(dim=1) / counts[:, None].to(padded.dtype)


class _Stacked(nn.Module):
    """`VFE` of padded voxels."""

    def __init__(self, vfe: VFE, detector: VoxelDetector, max_points: int) -> None:
        super().__init__()
        self.point_dims, self.max_points = detector.point_dims, max_points
        self.pool, self.padded_to = vfe.pool, vfe.padded_to
        self.offsets = len(vfe.center_offsets)
        with torch.no_grad():
            layers = [layer.points.folded() for layer in vfe.layers] + [vfe.points.folded()]
        self.linears = nn.ModuleList()
        for weight, bias in layers:
            linear = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device)
            linear.weight.data, linear.bias.data = weight.detach(), bias.detach()
            self.linears.append(linear)
        grid = detector.grid
        size = torch.tensor(grid.voxel_size)
        first = torch.tensor(
            [low + edge / 2 for low, edge in zip(grid.range, grid.voxel_size, strict=False)]
        )
        device = detector.anchors.device
        self.register_buffer("voxel_size", size.to(device), persistent=False)
        self.register_buffer("first_center", first.to(device), persistent=False)

    def forward(self, padded: Tensor, counts: Tensor, coords: Tensor) -> Tensor:
        mask = torch.arange(self.max_points, device=padded.device) < counts[:, None]
        xyz = padded[..., :3]
        mean = xyz.sum(dim=1, keepdim=True) / counts[:, None, None].to(padded.dtype)
        columns = [padded, xyz - mean]
        if self.offsets:
            cell = torch.stack([coords[:, 3], coords[:, 2], coords[:, 1]], dim=1)
            centers = cell.to(padded.dtype) * self.voxel_size + self.first_center
            columns.append((xyz - centers[:, None])[..., : self.offsets])
        x = torch.cat(columns, dim=-1)
        for linear in self.linears[:-1]:
            own = F.relu(linear(x))
            pooled = self._pool(own, mask, counts)[:, None].expand_as(own)
            x = torch.cat([own, pooled], dim=-1)
        last = self.linears[-1]
        pooled = self._pool(F.relu(last(x)), mask, counts)
        if self.padded_to is None:
            return pooled
        full = (counts >= self.padded_to)[:, None]
        return torch.where(full, pooled, torch.maximum(pooled, F.relu(last.bias)))

    def _pool(self, rows: Tensor, mask: Tensor, counts: Tensor) -> Tensor:
        """(K, C) of rows (K, T, C), none of them negative."""
        missing = ~mask[..., None]
        if self.pool in ("min", "median"):
            rows = rows.masked_fill(missing, torch.inf)
            if self.pool == "min":
                return rows.amin(dim=1)
            middle = ((counts - 1) // 2)[:, None, None].expand(-1, 1, rows.shape[2])
            return rows.sort(dim=1).values.gather(1, middle).squeeze(1)
        rows = rows.masked_fill(missing, 0)
        if self.pool == "max":
            return rows.amax(dim=1)
        total = rows.sum(dim=1)
        return total if self.pool == "sum" else total / counts[:, None].to(rows.dtype)


# --- middle layers -------------------------------------------------------------------------------


def _middle(detector: VoxelDetector, batch_size: int) -> nn.Module:
    middle = detector.middle
    if isinstance(middle, ScatterMiddle):
        return _Scatter(middle, batch_size)
    if isinstance(middle, DenseMiddle):
        return _Dense(middle, batch_size)
    if middle.backend == "spconv":
        raise VoxelpoolError(
            "middle.backend is spconv, and no exporter knows spconv's operations: export with "
            "middle.backend=native, which takes the same weights"
        )
    return _Sparse(middle, batch_size)


class _Scatter(nn.Module):
    """`ScatterMiddle`."""

    def __init__(self, middle: ScatterMiddle, batch_size: int) -> None:
        super().__init__()
        self.batch_size, self.size = batch_size, middle.out_size

    def forward(self, features: Tensor, coords: Tensor) -> Tensor:
        height, width = self.size
        dense = features.new_zeros(self.batch_size * height * width, features.shape[1])
        dense = _put(dense, flat_cells(coords, (1, height, width)), features)
        return dense.view(self.batch_size, height, width, -1).permute(0, 3, 1, 2)


class _Dense(nn.Module):
    """`DenseMiddle`. The first layer adds up what each voxel gives to the cells around it.

    That needs a quarter of the memory of the dense input, and little of its work. With
    ``dense_input`` the input is made, for runtimes that cannot add where they scatter.
    """

    def __init__(self, middle: DenseMiddle, batch_size: int) -> None:
        super().__init__()
        self.batch_size, self.shape = batch_size, middle.grid_shape
        self.dense_input = middle.dense_input
        self.convs = nn.ModuleList()
        for conv, norm in zip(middle.convs, middle.norms, strict=True):
            plain = nn.Conv3d(
                conv.in_channels,
                conv.out_channels,
                conv.kernel_size,
                conv.stride,
                conv.padding,
                bias=False,
                device=conv.weight.device,
            )
            plain.weight = conv.weight
            self.convs.append(fuse_conv_bn_eval(plain.eval(), copy.deepcopy(norm).eval()))

    def forward(self, features: Tensor, coords: Tensor) -> Tensor:
        if self.dense_input:
            depth, height, width = self.shape
            x = features.new_zeros(self.batch_size * depth * height * width, features.shape[1])
            x = _put(x, flat_cells(coords, self.shape), features)
            x = x.view(self.batch_size, depth, height, width, -1).permute(0, 4, 1, 2, 3)
            x = self.convs[0](x)
        else:
            x = self._first(features, coords)
        x = F.relu(x)
        for conv in self.convs[1:]:
            x = F.relu(conv(x))
        return x.flatten(1, 2)

    def _first(self, features: Tensor, coords: Tensor) -> Tensor:
        """The first convolution, (B, C, D, H, W)."""
        conv = self.convs[0]
        kernel, stride, padding = map(reach.triple, (conv.kernel_size, conv.stride, conv.padding))
        shape = conv_shape(self.shape, kernel, stride, padding)
        taps = _taps(kernel, features.device)
        place, inside = coords[:, :1].long().expand(-1, len(taps)), None
        for axis in range(3):
            at = coords[:, axis + 1, None].long() + padding[axis] - taps[:, axis]
            cell = torch.div(at, stride[axis], rounding_mode="floor")
            fits = (cell >= 0) & (cell < shape[axis]) & (cell * stride[axis] == at)
            inside = fits if inside is None else inside & fits
            place = place * shape[axis] + cell
        cells = self.batch_size * math.prod(shape)
        place = torch.where(inside, place, cells)  # the last row takes what falls beside the map
        weight = conv.weight.flatten(2).permute(1, 2, 0).flatten(1)
        given = (features @ weight).view(-1, conv.out_channels)
        dense = features.new_zeros(cells + 1, conv.out_channels)
        dense = torch.index_put(dense, (place.flatten(),), given, accumulate=True)
        dense = dense[:cells] + conv.bias
        return dense.view(self.batch_size, *shape, -1).permute(0, 4, 1, 2, 3)


class _Sparse(nn.Module):
    """`SparseMiddle`: neighbours are found by halving in the sorted numbers of the cells."""

    def __init__(self, middle: SparseMiddle, batch_size: int) -> None:
        super().__init__()
        self.batch_size, self.shape = batch_size, middle.grid_shape
        self.layers = [(conv.subm, conv.kernel, conv.stride, conv.padding) for conv in middle.convs]
        self.linears = nn.ModuleList()
        for conv, norm in zip(middle.convs, middle.norms, strict=True):
            scale, shift = (part.detach() for part in reach.norm_affine(norm))
            weight = conv.weight.detach().flatten(1) * scale[:, None]
            linear = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device)
            linear.weight.data, linear.bias.data = weight, shift
            self.linears.append(linear)

    def forward(self, features: Tensor, coords: Tensor) -> Tensor:
        rows, shape = features, self.shape
        cells = flat_cells(coords, shape)
        table: Tensor | None = None
        kept: Triple | None = None
        for linear, (subm, kernel, stride, padding) in zip(self.linears, self.layers, strict=True):
            if not (subm and kernel == kept):
                geometry = (kernel, stride, padding)
                after, after_shape = cells, shape
                if not subm:
                    after_shape = conv_shape(shape, *geometry)
                    after = _bounded(reached_cells(cells, shape, after_shape, *geometry))
                table = neighbour_rows(cells, shape, after, after_shape, *geometry)
                cells, shape, kept = after, after_shape, kernel if subm else None
            rows = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])  # the row -1, of no cell
            rows = F.relu(linear(rows[table].flatten(1)))
        depth, height, width = shape
        dense = rows.new_zeros(self.batch_size * depth * height * width, rows.shape[1])
        dense = _put(dense, cells, rows).view(self.batch_size, depth, height, width, -1)
        return dense.permute(0, 4, 1, 2, 3).flatten(1, 2)


def _taps(kernel: Triple, device: torch.device) -> Tensor:
    """(T, 3) int64 z, y, x of a kernel's taps."""
    axes = (torch.arange(size, device=device) for size in kernel)
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 2)


def _bounded(rows: Tensor) -> Tensor:
    """``rows``; tells exporters, which reckon with up to 2^63 of them, that they are fewer."""
    torch._check(rows.shape[0] < 1 << 31)
    return rows


def _put(target: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    """``target`` with ``rows`` at ``index`` of its first axis."""
    return torch.index_put(target, (index,), rows)


def _folded(module: nn.Module) -> nn.Module:
    """A network with every BatchNorm that follows a convolution in a list folded into it."""
    for child in module.modules():
        if not isinstance(child, nn.Sequential):
            continue
        for place in range(len(child) - 1):
            conv, norm = child[place], child[place + 1]
            if isinstance(norm, nn.BatchNorm2d) and isinstance(
                conv, nn.Conv2d | nn.ConvTranspose2d
            ):
                transposed = isinstance(conv, nn.ConvTranspose2d)
                child[place] = fuse_conv_bn_eval(conv, norm, transpose=transposed)
                child[place + 1] = nn.Identity()
    return module


# --- programs and files --------------------------------------------------------------------------


def plain_module(
    detector: VoxelDetector, *, takes: Takes = "voxels", gives: Gives = "maps", batch_size: int = 1
) -> PlainNetwork | PlainDetector:
    """What is exported, as a module.

    Raises:
        VoxelpoolError: it cannot be exported so; says why.
    """
    if takes == "voxels":
        return PlainNetwork(detector, gives=gives, batch_size=batch_size)
    if batch_size != 1:
        raise VoxelpoolError(
            f"a batch of {batch_size} sweeps goes in as voxels: points are those of one sweep"
        )
    return PlainDetector(detector, gives=gives)


def export_program(
    detector: VoxelDetector, *, takes: Takes = "voxels", gives: Gives = "maps", batch_size: int = 1
) -> ExportedProgram:
    """The detector as a program of torch's own operators, for any number of voxels or points.

    Args:
        detector: on the device that the program is for.
        takes: ``voxels``: the arguments of `PlainNetwork.forward`; ``points``: (N, C) of a sweep.
        gives: ``maps`` or ``boxes``: see `PlainNetwork.forward`.
        batch_size: sweeps that go in at once.

    Raises:
        VoxelpoolError: it cannot be exported; says why.
    """
    return _traced(plain_module(detector, takes=takes, gives=gives, batch_size=batch_size))


def export_detector(
    detector: VoxelDetector,
    path: str | os.PathLike[str],
    format: Format,
    *,
    takes: Takes = "voxels",
    gives: Gives = "maps",
    batch_size: int = 1,
    check: bool = True,
    overwrite: bool = False,
) -> float | None:
    """Writes the detector as a file that runs without this package.

    With it goes a description for whoever runs it, in JSON: see `describe`. It is the extra file
    ``voxelpool.json`` of a torch.export program, and the entry ``voxelpool`` of the metadata
    of an ONNX model or an AOTInductor package.

    Args:
        detector: on the device that the file is for; ONNX has none.
        path: ends in .onnx for ONNX, in .pt2 otherwise; written whole or not at all.
        format: see `Format`. ``onnx`` takes voxels alone and knows no SECOND; ``aoti`` needs a C++
            compiler, and what it makes fits this kind of machine alone.
        takes: see `export_program`.
        gives: see `export_program`.
        batch_size: see `export_program`.
        check: run what was written on random sweeps, one of them empty, and compare.
        overwrite: replace ``path``.

    Returns:
        The largest difference that the check found, relative to the largest number; None without
        check.

    Raises:
        VoxelpoolError: it cannot be exported or is not the same; says why.
        FileExistsError: ``path`` exists.
        FileNotFoundError: its folder does not.
    """
    path = Path(path)
    if path.suffix != SUFFIXES[format]:
        raise VoxelpoolError(f"{path}: {format} is written to a file *{SUFFIXES[format]}")
    if not overwrite:
        refuse_existing(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder", str(path.parent))
    if format == "onnx":
        _require_onnx(detector, takes)
    module = plain_module(detector, takes=takes, gives=gives, batch_size=batch_size)
    about = json.dumps(describe(detector, takes=takes, gives=gives, batch_size=batch_size))
    program = _traced(module)
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / f"exported{path.suffix}"
        with _quietly(f"{format}: writing it failed"):
            _WRITERS[format](program, written, about)
        difference = _difference(detector, module, open_exported(written)) if check else None
        if difference is not None and not difference < 1e-3:
            raise VoxelpoolError(
                f"{format}: the exported detector differs from the detector by {difference:.1e} of "
                "the largest number; nothing was written"
            )
        with atomic_write(path, "wb") as file, open(written, "rb") as source:
            shutil.copyfileobj(source, file)
    return difference


def open_exported(path: str | os.PathLike[str]) -> Callable[..., tuple[Tensor, ...]]:
    """What `export_detector` wrote, as a function of tensors on the device that it is for.

    Raises:
        VoxelpoolError: onnxruntime is needed and not installed.
    """
    path = Path(path)
    if path.suffix == ".onnx":
        runtime = _import_for("onnxruntime")
        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        names = [given.name for given in session.get_inputs()]

        def run(*inputs: Tensor) -> tuple[Tensor, ...]:
            arrays = (value.cpu().numpy() for value in inputs)
            found = session.run(None, dict(zip(names, arrays, strict=True)))
            return tuple(map(torch.from_numpy, found))

        return run
    with zipfile.ZipFile(path) as archive:
        machine_code = any("/aotinductor/" in name for name in archive.namelist())
    if machine_code:
        package = torch._inductor.aoti_load_package(str(path))
        return lambda *inputs: tuple(package(*inputs))
    return torch.export.load(path).module()


def describe(
    detector: VoxelDetector, *, takes: Takes = "voxels", gives: Gives = "maps", batch_size: int = 1
) -> dict[str, Any]:
    """What must be known to run an exported detector, as plain data.

    Returns:
        name, takes, gives, batch_size; classes; anchor_classes, the class of each anchor of a cell
        (where an anchor scores all classes, that says nothing); point_dims, max_points; range,
        voxel_size and grid (D, H, W); score_threshold, nms_iou; config, the whole as YAML.
    """
    config, grid = detector.config, detector.grid
    return {
        "name": config.name,
        "takes": takes,
        "gives": gives,
        "batch_size": batch_size,
        "classes": list(config.classes),
        "anchor_classes": detector.anchor_classes.tolist(),
        "point_dims": detector.point_dims,
        "max_points": config.vfe.max_points,
        "range": list(grid.range),
        "voxel_size": list(grid.voxel_size),
        "grid": list(grid.shape),
        "score_threshold": config.postprocess.score_threshold,
        "nms_iou": config.postprocess.nms_iou,
        "config": dump_config(config),
    }


def _traced(module: PlainNetwork | PlainDetector) -> ExportedProgram:
    inputs = module.example()
    rows = Dim("rows", min=0)
    with torch.no_grad(), _quietly("torch.export failed"):
        return torch.export.export(module, inputs, dynamic_shapes=({0: rows},) * len(inputs))


def _write_program(program: ExportedProgram, path: Path, about: str) -> None:
    torch.export.save(program, path, extra_files={f"{METADATA_KEY}.json": about})


def _write_package(program: ExportedProgram, path: Path, about: str) -> None:
    torch._inductor.aoti_compile_and_package(
        program,
        package_path=str(path),
        inductor_configs={"aot_inductor.metadata": {METADATA_KEY: about}},
    )


def _write_onnx(program: ExportedProgram, path: Path, about: str) -> None:
    exported = torch.onnx.export(program, dynamo=True, verbose=False, opset_version=_OPSET)
    assert exported is not None
    model = exported.model_proto
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, about
    gives_boxes = json.loads(about)["gives"] == "boxes"
    names = ("scores", "boxes") if gives_boxes else Predictions._fields
    renamed = {value.name: name for value, name in zip(model.graph.output, names, strict=False)}
    for node in model.graph.node:
        for values in (node.input, node.output):
            values[:] = [renamed.get(value, value) for value in values]
    for value in model.graph.output:
        value.name = renamed[value.name]
    del model.graph.value_info[:]  # names of sizes that nobody knows
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[0].dim_param = "voxels"
    path.write_bytes(model.SerializeToString())


_WRITERS: dict[Format, Callable[[ExportedProgram, Path, str], None]] = {
    "torch-export": _write_program,
    "onnx": _write_onnx,
    "aoti": _write_package,
}


def _require_onnx(detector: VoxelDetector, takes: Takes) -> None:
    if isinstance(detector.middle, SparseMiddle):
        raise VoxelpoolError(
            "onnx has no sparse convolutions, and a dense map of a sparse middle's grid would not "
            "fit into memory: export SECOND as torch-export or aoti"
        )
    if takes == "points":
        raise VoxelpoolError(
            "onnx takes voxels: group the points outside of it, as docs/deploy.md shows, or export "
            "as torch-export or aoti"
        )
    for name in ("onnx", "onnxscript"):
        _import_for(name)


def _import_for(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise VoxelpoolError(
            f"onnx: {name} is not installed: pip install 'voxelpool[export]'"
        ) from error


@contextmanager
def _quietly(failure: str) -> Iterator[None]:
    """Keeps back what exporters tell of themselves; their errors become a VoxelpoolError."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    except VoxelpoolError:
        raise
    except Exception as error:
        text = next(iter(str(error).strip().splitlines()), "")
        raise VoxelpoolError(f"{failure}: {type(error).__name__}: {text}") from error
    finally:
        logging.disable(before)


@torch.no_grad()
def _difference(
    detector: VoxelDetector,
    module: PlainNetwork | PlainDetector,
    run: Callable[..., tuple[Tensor, ...]],
) -> float:
    """How far ``run`` is from the detector, relative to the largest number."""
    network = module.network if isinstance(module, PlainDetector) else module
    device, grid = detector.anchors.device, detector.grid
    low, high = (torch.tensor(bound) for bound in (grid.range[:3], grid.range[3:]))
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for count in (0, 1, 2000):
        points = torch.rand(count, detector.point_dims, generator=generator)
        points[:, :3] = low + (high - low) * points[:, :3]
        points = points.to(device)
        voxels = detector.voxelize(points, batch_size=network.batch_size)
        expected = network.finish(detector.predict(points, voxels), voxels.coords)
        if isinstance(module, PlainDetector):
            found = run(points)
        else:
            padded, _ = voxels.pad(points, detector.config.vfe.max_points)
            found = run(padded, voxels.counts(), voxels.coords)
        for one, other in zip(expected, found, strict=True):
            scale = one.abs().max().clamp(min=1)
            difference = (one - other.to(device)).abs() / scale
            worst = max(worst, float(difference.nan_to_num(torch.inf).max()))
    return worst
