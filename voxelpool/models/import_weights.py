"""Weights that other packages trained, brought to the names, orders and codes of this one.

What differs between the packages, and so has to be brought over:

- the names of the layers, and how spconv lays out its weights: (z, y, x, in, out) before version
  2, (out, z, y, x, in) since, as here;
- the order of the classes, in which their anchors stand in the heads' channels;
- the code of boxes. OpenPCDet, and mmdetection3d since 1.0, have it as here: x, y, z, length,
  width, height, yaw. Before (``legacy``), mmdetection3d had x, y, z, width, length, height and an
  angle a for which yaw = -a - pi/2; github.com/zhulf0804/PointPillars still has. There, direction 0
  is a in [0, pi), which is the half turn of yaws that is direction 1 from an offset of -pi/2. (So
  mmdetection3d trains it and evaluates it; its boxes themselves are turned by pi before 1.0);
- the code of the points in a pillar. mmdetection3d overwrites x and y (and z, where it has an
  offset along z) with the offset to the middle of the pillar before they are read, so that its
  first layer sees that offset twice and no absolute place (``legacy``, its default; an oversight
  that weights are used to). Both weights of a column are one here, and absolute places have zero.

Names, shapes and published settings are those of OpenPCDet 0.6, mmdetection3d 0.x to 1.4 and
github.com/zhulf0804/PointPillars.
"""

from __future__ import annotations

import math
import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from voxelpool.config import Config, PillarVFEConfig, SparseMiddleConfig
from voxelpool.errors import CheckpointError, ConfigError
from voxelpool.models.checkpoint import CONFIG_KEY, load_data
from voxelpool.models.detector import build_detector

Format: TypeAlias = Literal["openpcdet", "mmdet3d", "pointpillars-zhulf0804"]
#: Of boxes, or of the points in a pillar; see the module.
Code: TypeAlias = Literal["auto", "current", "legacy"]

_COUNTER = "num_batches_tracked"
_POINT_WEIGHT = "vfe.points.linear.weight"
_CONVS = "middle.convs."
_HEADS = ("rpn.score_head.", "rpn.residual_head.", "rpn.direction_head.")
_HALF_PI = math.pi / 2


@dataclass(frozen=True)
class Source:
    """What a file of another package holds.

    Attributes:
        weights: its tensors by name.
        classes: names of its classes in their order, if it says so.
        version: of the package that wrote it, if it says so.
    """

    weights: dict[str, Tensor]
    classes: tuple[str, ...] | None = None
    version: str | None = None


@dataclass(frozen=True)
class ImportedWeights:
    """Weights for the detector of a configuration.

    Attributes:
        weights: all that the detector has, by its names.
        mapped: (name there, name here) of each tensor, in the detector's order.
        left: names there that have no place here.
        missing: names here that the source does not have, which begin anew: counters of batches,
            that no result depends on.
        warnings: what may make boxes differ from those of the source.
    """

    weights: dict[str, Tensor]
    mapped: tuple[tuple[str, str], ...]
    left: tuple[str, ...]
    missing: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Origin:
    """How a package names its layers, and what it publishes."""

    title: str
    classes: tuple[str, ...]
    point_linear: str
    point_norm: str
    blocks: str
    upsamples: str
    heads: Mapping[str, str]
    sparse: tuple[str, ...] = ()
    """Of each sparse convolution: .0 is the convolution, .1 its normalization."""
    layers_before: int = 0
    """In a block, before its first convolution."""
    direction_offset: float = -_HALF_PI
    legacy_boxes: bool | None = False
    """None: as the version was."""
    legacy_points: bool = False
    published: Mapping[str, Any] = field(default_factory=dict)
    """Settings of its configurations for KITTI that no weight's shape tells."""
    published_for: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Further ones, by encoder."""


def _sparse_layers(part: str, stage: str) -> tuple[str, ...]:
    """The names of SECOND's sparse layers, whose four stages are called ``stage`` and a number."""
    inner = [f"{stage}1.0", *(f"{stage}{k}.{layer}" for k in (2, 3, 4) for layer in range(3))]
    return tuple(f"{part}.{name}" for name in ("conv_input", *inner, "conv_out"))


_PILLARS = {
    "grid.range": (0.0, -39.68, -3.0, 69.12, 39.68, 1.0),
    "grid.voxel_size": (0.16, 0.16, 4.0),
    "vfe.max_points": 32,
    "rpn.strides": (2, 2, 2),
}
_VOXELS = {
    "grid.range": (0.0, -40.0, -3.0, 70.4, 40.0, 1.0),
    "grid.voxel_size": (0.05, 0.05, 0.1),
    "vfe.max_points": 5,
    "rpn.strides": (1, 2),
}
_POSTPROCESS = {
    "score_threshold": 0.1,
    "nms_iou": 0.01,
    "nms": "class",
    "nms_pre": 100,
    "nms_pre_of": "frame",
    "max_detections": 50,
}
_CLASS_NMS = {f"postprocess.{key}": value for key, value in _POSTPROCESS.items()}
_AGNOSTIC_NMS = _CLASS_NMS | {
    "postprocess.nms": "agnostic",
    "postprocess.nms_pre": 4096,
    "postprocess.max_detections": 500,
}
#: Length, width, height and height of the centre: those of all three packages.
_ANCHORS = {
    "Car": ((3.9, 1.6, 1.56), -1.0),
    "Pedestrian": ((0.8, 0.6, 1.73), 0.265),
    "Cyclist": ((1.76, 0.6, 1.73), 0.265),
}
_ANGLES = (0.0, 1.57)

_ORIGINS: dict[str, _Origin] = {
    "openpcdet": _Origin(
        "OpenPCDet",
        ("Car", "Pedestrian", "Cyclist"),
        point_linear="vfe.pfn_layers.0.linear",
        point_norm="vfe.pfn_layers.0.norm",
        blocks="backbone_2d.blocks",
        upsamples="backbone_2d.deblocks",
        heads={
            "score_head": "dense_head.conv_cls",
            "residual_head": "dense_head.conv_box",
            "direction_head": "dense_head.conv_dir_cls",
        },
        sparse=_sparse_layers("backbone_3d", "conv"),
        layers_before=1,
        direction_offset=0.78539,
        published={"grid.open": False, "head.anchor_placement": "edges", **_AGNOSTIC_NMS},
        published_for={"pillar": _PILLARS, "mean": _VOXELS},
    ),
    "mmdet3d": _Origin(
        "mmdetection3d",
        ("Pedestrian", "Cyclist", "Car"),
        point_linear="voxel_encoder.pfn_layers.0.linear",
        point_norm="voxel_encoder.pfn_layers.0.norm",
        blocks="backbone.blocks",
        upsamples="neck.deblocks",
        heads={
            "score_head": "bbox_head.conv_cls",
            "residual_head": "bbox_head.conv_reg",
            "direction_head": "bbox_head.conv_dir_cls",
        },
        sparse=_sparse_layers("middle_encoder", "encoder_layers.encoder_layer"),
        legacy_boxes=None,
        legacy_points=True,
        published={"grid.open": True, **_CLASS_NMS},
        published_for={
            "pillar": _PILLARS | {"head.anchor_placement": "centers"},
            "mean": _VOXELS | {"head.anchor_placement": "edges"},
        },
    ),
    "pointpillars-zhulf0804": _Origin(
        "zhulf0804/PointPillars",
        ("Pedestrian", "Cyclist", "Car"),
        point_linear="pillar_encoder.conv",
        point_norm="pillar_encoder.bn",
        blocks="backbone.multi_blocks",
        upsamples="neck.decoder_blocks",
        heads={
            "score_head": "head.conv_cls",
            "residual_head": "head.conv_reg",
            "direction_head": "head.conv_dir_cls",
        },
        legacy_boxes=True,
        legacy_points=True,
        published={"grid.open": True, "head.anchor_placement": "centers", **_CLASS_NMS},
        published_for={"pillar": _PILLARS},
    ),
}


def read_source(path: str | os.PathLike[str]) -> Source:
    """Reads the weights of another package's checkpoint as data alone: no code in it is ever run.

    Args:
        path: what ``torch.save`` wrote: a state dict, or a dict that has one as ``model_state``,
            ``state_dict`` or ``model``.

    Raises:
        CheckpointError: no such file, damaged, more than data, or no state dict in it.
    """
    try:
        contents = load_data(path)
    except CheckpointError as error:
        if not isinstance(error.__cause__, pickle.UnpicklingError):
            raise
        raise CheckpointError(
            f"{path}: is no checkpoint, or holds objects beside weights, which are not read as "
            "they may run code; where it was trained, save its state dict alone"
        ) from error
    if isinstance(contents, dict) and CONFIG_KEY in contents:
        raise CheckpointError(f"{path}: is a checkpoint of this package already")
    weights = _state_dict(contents)
    if not weights:
        raise CheckpointError(f"{path}: holds no state dict (a dict of tensors by name)")
    if all(name.startswith("module.") for name in weights):
        weights = {name.removeprefix("module."): value for name, value in weights.items()}
    meta = contents.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    dataset = meta.get("dataset_meta")
    classes = (dataset if isinstance(dataset, dict) else {}).get("classes", meta.get("CLASSES"))
    names = isinstance(classes, list | tuple) and all(isinstance(name, str) for name in classes)
    version = meta.get("mmdet3d_version")
    if version is None and "mmengine_version" in meta:
        version = "1.1"
    return Source(
        weights,
        tuple(classes) if names and classes else None,
        version if isinstance(version, str) else None,
    )


def _state_dict(contents: Any) -> dict[str, Tensor]:
    """The tensors of a state dict, wherever in the file it is; empty if there is none."""
    if not isinstance(contents, dict):
        return {}
    for key in ("model_state", "state_dict", "model"):
        if isinstance(contents.get(key), dict):
            return _state_dict(contents[key])
    return {
        name: value
        for name, value in contents.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }


def import_weights(
    source: Source | Mapping[str, Tensor],
    format: Format,
    config: Config,
    *,
    classes: Sequence[str] | None = None,
    boxes: Code = "auto",
    points: Code = "auto",
    allow_differences: bool = False,
) -> ImportedWeights:
    """Brings weights of another package to the detector of a configuration.

    Args:
        source: what `read_source` gives, or a state dict.
        format: the package that made it.
        config: of the detector. It must say what the package's code does, and is compared with
            what the package publishes for KITTI.
        classes: names in the order of the source's training; None takes the source's word for it,
            or the order that the package publishes.
        boxes: how they are coded; auto is as the format has it, and for mmdet3d by its version:
            legacy before 1.0, current where the source does not say.
        points: how the points in a pillar are coded; auto is legacy but for OpenPCDet.
        allow_differences: warn where the detector could not give the boxes of the source, instead
            of refusing.

    Returns:
        All weights of the detector, and what became of those of the source.

    Raises:
        CheckpointError: a weight is missing, of another shape or not finite; names it.
        ConfigError: the configuration is of another network, of other classes, or contradicts the
            package's code; names the key.
        ValueError: an unknown format or option.
    """
    for name, chosen, options in (
        ("format", format, Format),
        ("boxes", boxes, Code),
        ("points", points, Code),
    ):
        if chosen not in get_args(options):
            known = ", ".join(get_args(options))
            raise ValueError(f"{name} must be one of {known}, got {chosen!r}")
    if not isinstance(source, Source):
        source = Source(dict(source))
    origin = _ORIGINS[format]
    warnings: list[str] = []
    legacy_boxes = _has_legacy_boxes(origin, source, boxes, warnings)
    legacy_points = origin.legacy_points if points == "auto" else points == "legacy"
    _require_network(origin, config)
    order = _class_order(origin, source, classes, config)
    for must, difference in _differences(origin, source, config, legacy_boxes):
        if must and not allow_differences:
            raise ConfigError(difference)
        warnings.append(difference)

    wanted = build_detector(config).state_dict()
    names = {ours: _their_name(ours, origin) for ours in wanted}
    given = source.weights
    missing = [ours for ours, theirs in names.items() if theirs not in given]
    _require_all([ours for ours in missing if not ours.endswith(_COUNTER)], names, source, format)
    spconv1 = _is_of_spconv1(names, wanted, given)
    weights: dict[str, Tensor] = {}
    for ours, theirs in names.items():
        if ours in missing:
            weights[ours] = torch.zeros_like(wanted[ours])
            continue
        value = given[theirs].detach()
        expected = _expected_shape(ours, wanted[ours], format, spconv1)
        if tuple(value.shape) != expected:
            raise CheckpointError(
                f"{theirs} has shape {_text(value.shape)}, but {ours}, which it should become, "
                f"needs {_text(expected)}{_hint(ours, value, config)}"
            )
        if not value.isfinite().all():
            raise CheckpointError(f"{theirs} holds values that are not finite")
        value = value.to(wanted[ours].dtype)
        if ours == _POINT_WEIGHT:
            value = _point_columns(value.flatten(1), legacy_points)
        elif ours.startswith(_CONVS) and spconv1:
            value = value.permute(4, 0, 1, 2, 3)
        elif ours.startswith(_HEADS):
            value = _head_channels(ours.split(".")[1], value, order, legacy_boxes)
        weights[ours] = value.contiguous().clone()
    used = set(names.values())
    left = tuple(name for name in given if name not in used)
    further = [name for name in left if given[name].is_floating_point()]  # no counter
    if further:
        warnings.append(
            f"{_some(further)} of the source have no place here: it is more than this detector, "
            "or another one"
        )
    mapped = tuple((names[ours], ours) for ours in names if ours not in missing)
    return ImportedWeights(weights, mapped, left, tuple(missing), tuple(warnings))


def _their_name(ours: str, origin: _Origin) -> str:
    """What the origin calls a tensor of a detector."""
    part, *path = ours.split(".")
    *inner, tensor = path
    if part == "vfe":
        return f"{origin.point_linear if inner[-1] == 'linear' else origin.point_norm}.{tensor}"
    if part == "middle":
        kind, row = inner
        return f"{origin.sparse[int(row)]}.{0 if kind == 'convs' else 1}.{tensor}"
    if inner[0] == "blocks":
        return f"{origin.blocks}.{inner[1]}.{int(inner[2]) + origin.layers_before}.{tensor}"
    if inner[0] == "upsamples":
        return f"{origin.upsamples}.{inner[1]}.{inner[2]}.{tensor}"
    return f"{origin.heads[inner[0]]}.{tensor}"


def _require_network(origin: _Origin, config: Config) -> None:
    """Raises ConfigError unless the origin has the configuration's layers at all."""
    vfe, middle = config.vfe.name, config.middle.name
    if vfe not in origin.published_for or (vfe, middle) == ("mean", "dense"):
        raise ConfigError(
            f"{config.name}: {origin.title} has no network with vfe {vfe} and middle {middle}"
        )
    if isinstance(config.middle, SparseMiddleConfig) and config.middle.layout != "second":
        raise ConfigError(
            f"{config.name}: middle.layout is {config.middle.layout}, {origin.title} has second"
        )
    for key in ("neck", "attention"):
        if getattr(config.rpn, key) != "none":
            raise ConfigError(
                f"{config.name}: rpn.{key} is {getattr(config.rpn, key)}, {origin.title} has none"
            )
    if len({len(anchor.rotations) for anchor in config.anchors}) > 1:
        raise ConfigError(f"{config.name}: anchors: all classes must have as many rotations")


def _has_legacy_boxes(origin: _Origin, source: Source, boxes: Code, warnings: list[str]) -> bool:
    if boxes != "auto":
        return boxes == "legacy"
    if origin.legacy_boxes is not None:
        return origin.legacy_boxes
    if source.version is None:
        warnings.append(
            f"the source does not say which version of {origin.title} made it; its boxes are taken "
            "to be coded as since 1.0 (current, not legacy)"
        )
        return False
    return source.version.startswith("0.")


def _class_order(
    origin: _Origin, source: Source, classes: Sequence[str] | None, config: Config
) -> list[int]:
    """For each class of the configuration, its row in the source."""
    if classes is not None:
        names = tuple(classes)
    elif source.classes is not None:
        names = source.classes
    else:
        names = origin.classes if len(config.classes) == len(origin.classes) else config.classes
        if len(config.classes) not in (1, len(origin.classes)):
            raise ConfigError(
                f"{config.name}: in which order the source has {', '.join(config.classes)} is not "
                "known: name its classes in their order"
            )
    if sorted(names) != sorted(config.classes):
        raise ConfigError(
            f"{config.name}: its anchors are of {', '.join(config.classes)}, the source's of "
            f"{', '.join(names)}"
        )
    return [names.index(name) for name in config.classes]


def _differences(
    origin: _Origin, source: Source, config: Config, legacy_boxes: bool
) -> Iterator[tuple[bool, str]]:
    """Where the detector would not give the boxes of the source.

    Yields:
        Whether that is certain (or depends on how the source was trained), and what it is.
    """
    must: dict[str, Any] = {"norm.eps": 1e-3, "vfe.keep": "first"}
    if isinstance(config.vfe, PillarVFEConfig):
        must |= {"vfe.pool": "max", "vfe.padded_max": True}
    if len(config.classes) > 1:
        must["head.scores"] = "all"
    if f"{origin.heads['direction_head']}.weight" in source.weights:
        must["head.direction"] = True
    offset = -_HALF_PI if legacy_boxes else origin.direction_offset
    angles = tuple(-angle - _HALF_PI for angle in _ANGLES) if legacy_boxes else _ANGLES
    if config.head.direction:
        must["head.direction_offset"] = offset
    for key, value in must.items():
        has = _setting(config, key)
        if not _equal(has, value, 1e-3):
            text = f"{config.name}: {key} is {_plain(has)}, but {origin.title} has {_plain(value)}"
            yield True, f"{text}: boxes would differ"
    for row, anchor in enumerate(config.anchors):
        if not _equal(anchor.rotations, angles, 0.01):
            text = f"{config.name}: anchors.{row}.rotations are {_plain(anchor.rotations)}, but"
            yield True, f"{text} {origin.title} has {_plain(angles)} (as yaws): boxes would differ"

    published = dict(origin.published) | dict(origin.published_for[config.vfe.name])
    doubts = [(key, _setting(config, key), value) for key, value in published.items()]
    for row, anchor in enumerate(config.anchors):
        doubts.append((f"anchors.{row}.rotations", anchor.rotations, angles))
        if anchor.class_name in _ANCHORS:
            size, z_center = _ANCHORS[anchor.class_name]
            doubts.append((f"anchors.{row}.size", anchor.size, size))
            doubts.append((f"anchors.{row}.z_center", anchor.z_center, z_center))
    for key, has, value in doubts:
        turned = key.endswith("rotations") and not _equal(has, value, 0.01)
        if not turned and not _equal(has, value, 1e-5):
            text = f"{config.name}: {key} is {_plain(has)}; as {origin.title} publishes it, it is"
            yield False, f"{text} {_plain(value)}: boxes differ unless the source has that too"


def _setting(config: Config, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


def _equal(one: Any, other: Any, tolerance: float) -> bool:
    if isinstance(one, tuple):
        return len(one) == len(other) and all(
            _equal(a, b, tolerance) for a, b in zip(one, other, strict=True)
        )
    if isinstance(one, float):
        return math.isclose(one, other, rel_tol=0.0, abs_tol=min(tolerance, abs(other) / 10 or 1))
    return bool(one == other)


def _plain(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_plain, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _require_all(
    missing: list[str], names: Mapping[str, str], source: Source, format: Format
) -> None:
    """Raises CheckpointError, naming what is missing, and perhaps the format that it is of."""
    if not missing:
        return
    text = f"{len(missing)} of the detector's {len(names)} tensors are missing in the source: "
    text += _some([names[ours] for ours in missing])
    starts = {
        name: {origin.blocks, origin.upsamples, *origin.heads.values()}
        for name, origin in _ORIGINS.items()
    }
    found = {
        name: sum(any(key.startswith(f"{start}.") for key in source.weights) for start in each)
        for name, each in starts.items()
    }
    likely = max(found, key=lambda name: found[name])
    if found[likely] > found[format]:
        text += f"; its names look like those of {likely}"
    raise CheckpointError(text)


def _some(names: Sequence[str]) -> str:
    """The first names of a list."""
    rest = len(names) - 4
    return ", ".join(names[:4]) + (f" and {rest} more" if rest > 0 else "")


def _is_of_spconv1(
    names: Mapping[str, str], wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]
) -> bool:
    """Whether the shapes of most sparse weights are those of spconv 1.

    One shape may be of both, (3, 3, 3, 3, 3); all together cannot: the first layer reads the four
    columns of a point, and the last one's kernel has different edges.
    """
    convs = [ours for ours in names if ours.startswith(_CONVS)]
    shapes = [(tuple(given[names[ours]].shape), wanted[ours]) for ours in convs]
    first, second = (
        sum(shape == _sparse_shape(weight, spconv1) for shape, weight in shapes)
        for spconv1 in (True, False)
    )
    return first > second


def _sparse_shape(wanted: Tensor, spconv1: bool) -> tuple[int, ...]:
    out, *kernel, inputs = wanted.shape
    return (*kernel, inputs, out) if spconv1 else (out, *kernel, inputs)


def _expected_shape(ours: str, wanted: Tensor, format: Format, spconv1: bool) -> tuple[int, ...]:
    if ours.startswith(_CONVS):
        return _sparse_shape(wanted, spconv1)
    if ours == _POINT_WEIGHT and format == "pointpillars-zhulf0804":
        return (*wanted.shape, 1)  # a convolution of kernel 1
    return tuple(wanted.shape)


def _hint(ours: str, value: Tensor, config: Config) -> str:
    """What may be done about a shape that does not fit."""
    if ours == _POINT_WEIGHT and isinstance(config.vfe, PillarVFEConfig):
        offsets = {9: "xy", 10: "xyz"}.get(value.shape[1] if value.dim() > 1 else 0)
        if offsets is not None and offsets != config.vfe.offsets:
            return f" (it goes with vfe.offsets: {offsets})"
    if ours.startswith(_HEADS):
        return " (another number of classes or anchors?)"
    return ""


def _text(shape: Sequence[int]) -> str:
    return f"({', '.join(map(str, shape))})"


def _point_columns(weight: Tensor, legacy: bool) -> Tensor:
    """Weights (out, in) of point codes x, y, z, r, offsets to the mean, offsets to the middle."""
    if not legacy:
        return weight
    weight = weight.clone()
    axes = weight.shape[1] - 7
    weight[:, 7:] += weight[:, :axes]
    weight[:, :axes] = 0
    return weight


def _head_channels(head: str, value: Tensor, order: Sequence[int], legacy_boxes: bool) -> Tensor:
    """A head's weight or bias with its channels in the configuration's order and code."""
    classes = len(order)
    kind = {"score_head": classes, "residual_head": 7, "direction_head": 2}[head]
    channels = value.view(classes, -1, kind, *value.shape[1:])[list(order)]
    if head == "score_head":
        channels = channels[:, :, list(order)]
    elif legacy_boxes and head == "residual_head":
        channels = channels[:, :, [0, 1, 2, 4, 3, 5, 6]]
        channels[:, :, 6] *= -1
    elif legacy_boxes:
        channels = channels.flip(2)
    return channels.flatten(0, 2)
