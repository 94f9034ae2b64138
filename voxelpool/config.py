"""The typed configuration and its YAML form."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeFloat,
    NonNegativeInt,
    PlainSerializer,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from voxelpool.errors import ConfigError
from voxelpool.files import atomic_write, shipped_folder
from voxelpool.structures import VoxelGrid

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
ObjectClass = Literal[
    "Car", "Van", "Truck", "Pedestrian", "Person_sitting", "Cyclist", "Tram", "Misc"
]
UNLABELLED_CLASSES = ("pole", "wall", "fence", "bush", "tree", "container", "bin", "sign")
"""Things of simulated scenes that KITTI does not label."""
CROP_CLASSES = ("Car", "Van", "Truck", "Pedestrian", "Cyclist", "pole", "wall", "bush", "tree")
MODELNET10_CLASSES = (
    "bathtub",
    "bed",
    "chair",
    "desk",
    "dresser",
    "monitor",
    "night_stand",
    "sofa",
    "table",
    "toilet",
)


class _Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class GridConfig(_Block):
    """The grid that sweeps are voxelized on, metres."""

    range: tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat]
    """(x0, y0, z0, x1, y1, z1)"""
    voxel_size: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    """(dx, dy, dz)"""
    open: bool = False
    """Points on the lower faces of the range are outside too, as those on the upper faces are."""

    @model_validator(mode="after")
    def _is_whole(self) -> GridConfig:
        self.to_grid()
        return self

    def to_grid(self) -> VoxelGrid:
        """The grid itself."""
        return VoxelGrid(self.range, self.voxel_size)


class _AugmentBlock(_Block):
    """A step of augmentation."""

    not_in_last_epochs: NonNegativeInt = 0
    """Left out in so many epochs at the end, so that training ends on what sweeps are like."""


class _RangeBlock(_AugmentBlock):
    """A step whose ``range`` is a lower and an upper bound."""

    range: tuple[FiniteFloat, FiniteFloat]

    @model_validator(mode="after")
    def _is_ordered(self) -> _RangeBlock:
        low, high = self.range
        if low > high:
            raise ValueError(f"the lower bound {low} lies above the upper bound {high}")
        return self


class FlipConfig(_AugmentBlock):
    """Mirrors the sweep at the x axis."""

    name: Literal["flip"]
    probability: Probability = 0.5


class ScaleConfig(_RangeBlock):
    """Scales points, centres and sizes by one factor (VoxelNet: 0.95 to 1.05)."""

    name: Literal["scale"]
    range: tuple[PositiveFloat, PositiveFloat] = (0.95, 1.05)


class RotateConfig(_RangeBlock):
    """Turns the sweep about the sensor, radians (VoxelNet: -pi/4 to pi/4)."""

    name: Literal["rotate"]
    range: tuple[FiniteFloat, FiniteFloat] = (-math.pi / 4, math.pi / 4)


class ObjectNoiseConfig(_AugmentBlock):
    """Turns and shifts each object with its points, unless boxes would collide (VoxelNet 3.2)."""

    name: Literal["object_noise"]
    rotation: NonNegativeFloat = math.pi / 10
    """Yaw is uniform within plus and minus this, radians."""
    translation_std: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat] = (1.0, 1.0, 1.0)
    """Standard deviation of the shift along x, y, z, metres."""


class TranslateConfig(_AugmentBlock):
    """Shifts the sweep by one normal vector."""

    name: Literal["translate"]
    std: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat] = (0.2, 0.2, 0.2)
    """Standard deviation along x, y, z, metres."""


class TiltConfig(_AugmentBlock):
    """Raises the sweep in proportion to where it stands; boxes stay upright."""

    name: Literal["tilt"]
    std: tuple[NonNegativeFloat, NonNegativeFloat] = (0.005, 0.005)
    """Standard deviation of the slope ahead and of that to the left, radians."""


class ObjectScaleConfig(_RangeBlock):
    """Scales each object with its points, on the ground, unless boxes would collide."""

    name: Literal["object_scale"]
    range: tuple[PositiveFloat, PositiveFloat] = (0.9, 1.1)


class ThinObjectsConfig(_RangeBlock):
    """Takes points away from objects: scattered ones, or those on the left, right or below."""

    name: Literal["thin_objects"]
    probability: Probability = 0.3
    """How often an object is thinned."""
    range: tuple[Probability, Probability] = (0.2, 0.9)
    """Of the share that goes."""
    min_points: PositiveInt = 5
    """So many stay of an object that has them."""


class FadeTopsConfig(_RangeBlock):
    """Takes the upper part of far objects away, as if nothing came back of windows and roofs."""

    name: Literal["fade_tops"]
    probability: Probability = 0.8
    """Of an object as far as the second of the distances, or farther."""
    distances: tuple[NonNegativeFloat, NonNegativeFloat] = (30.0, 45.0)
    """From the sensor, metres: at the first or nearer nothing goes, between them it is linear."""
    range: tuple[Probability, Probability] = (0.35, 0.95)
    """Of the height above which all goes, as a share of the box's height."""
    min_points: PositiveInt = 5
    """So many stay of an object that has them."""

    @model_validator(mode="after")
    def _distances_rise(self) -> FadeTopsConfig:
        if self.distances[0] >= self.distances[1]:
            raise ValueError(f"distances must rise, got {list(self.distances)}")
        return self


class DentObjectsConfig(_AugmentBlock):
    """Makes the surfaces of objects less even, along the rays that hit them."""

    name: Literal["dent_objects"]
    rounding: Probability = 0.1
    """How far corners recede towards the middle at most, as a share of that way."""
    depth: NonNegativeFloat = 0.15
    """Of dents at most, metres: the standard deviation between places one metre apart."""
    noise: NonNegativeFloat = 0.06
    """Standard deviation at most of points 40 m off, metres; it grows with distance squared."""


ObjectCounts = Annotated[
    tuple[tuple[ObjectClass, NonNegativeInt], ...],
    BeforeValidator(lambda counts: tuple(counts.items()) if isinstance(counts, dict) else counts),
    PlainSerializer(dict),
]
"""How many of each class; a mapping in YAML, pairs here, so that blocks can be hashed."""


class SampleObjectsConfig(_AugmentBlock):
    """Pastes objects of other sweeps in, unless boxes would collide (SECOND 3.3)."""

    name: Literal["sample_objects"]
    counts: ObjectCounts = Field(min_length=1)
    """How many of each class a sweep is filled up to (SECOND: 15 cars)."""
    database: str | None = None
    """What tools/prepare_kitti.py --gt-database wrote; null: of the training split, where it
    writes it."""
    min_points: PositiveInt = 5
    """Objects with fewer are not pasted."""
    max_difficulty: Literal[0, 1, 2, 3] = 2
    """Nor are harder ones: 0 easy, 1 moderate, 2 hard, 3 none of them."""


class ShuffleConfig(_AugmentBlock):
    """Brings the points into random order, which decides what keep: first keeps."""

    name: Literal["shuffle"]


class DropPointsConfig(_RangeBlock):
    """Leaves out a uniform share of the points."""

    name: Literal["drop_points"]
    range: tuple[Probability, Probability] = (0.0, 0.3)
    """Of the share."""


class DropBeamsConfig(_RangeBlock):
    """Leaves out a uniform share of the sensor's beams; comes before what moves the sweep."""

    name: Literal["drop_beams"]
    range: tuple[Probability, Probability] = (0.0, 0.3)
    """Of the share."""
    spacing: PositiveFloat = math.radians(26.8 / 63)
    """Angle between beams, radians (HDL-64E: 64 over 26.8 degrees)."""


class JitterConfig(_AugmentBlock):
    """Moves each point by noise of its own."""

    name: Literal["jitter"]
    std: NonNegativeFloat = 0.01
    """Standard deviation along each axis, metres."""


class ReflectanceNoiseConfig(_RangeBlock):
    """Scales reflectances, adds noise to each, or sets all to zero."""

    name: Literal["reflectance_noise"]
    range: tuple[NonNegativeFloat, NonNegativeFloat] = (0.8, 1.2)
    """Of the factor."""
    std: NonNegativeFloat = 0.05
    """Standard deviation of the noise."""
    remove_probability: Probability = 0.0
    """How often all are set to zero."""


AugmentConfig = Annotated[
    FlipConfig
    | ScaleConfig
    | RotateConfig
    | TranslateConfig
    | TiltConfig
    | ObjectNoiseConfig
    | ObjectScaleConfig
    | ThinObjectsConfig
    | FadeTopsConfig
    | DentObjectsConfig
    | SampleObjectsConfig
    | ShuffleConfig
    | DropPointsConfig
    | DropBeamsConfig
    | JitterConfig
    | ReflectanceNoiseConfig,
    Field(discriminator="name"),
]


class DataConfig(_Block):
    """Where sweeps come from and what happens to them on the way."""

    root: str = "data/kitti"
    """A folder in KITTI's layout."""
    train_split: str = "train"
    """A list in ImageSets/, without .txt."""
    val_split: str = "val"
    train_limit: PositiveInt | None = None
    """Only so many frames of the split, spread evenly over it; null takes all."""
    val_limit: PositiveInt | None = None
    crop_to_image: bool = True
    """Drop points that do not project into the image: only those regions are labelled."""
    num_workers: NonNegativeInt = 2
    augment: tuple[AugmentConfig, ...] = ()
    """Applied to training sweeps in this order."""
    on_broken_frame: Literal["error", "skip"] = "error"
    """A frame that cannot be read, that holds NaN or a label that no object can have: end the
    training, or say which it is and go on without it."""


class AnchorConfig(_Block):
    """The anchors of one class and how they are matched (VoxelNet 3.1)."""

    class_name: ObjectClass
    size: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    """Length, width, height, metres."""
    z_center: FiniteFloat
    rotations: tuple[FiniteFloat, ...] = Field(default=(0.0, math.pi / 2), min_length=1)
    """Yaw of each anchor at a place, radians."""
    matched_threshold: Probability
    """Positive above this bird's-eye IoU."""
    unmatched_threshold: Probability
    """Negative below this bird's-eye IoU with every box."""

    @model_validator(mode="after")
    def _thresholds_are_ordered(self) -> AnchorConfig:
        if self.unmatched_threshold > self.matched_threshold:
            raise ValueError(
                f"unmatched_threshold {self.unmatched_threshold} lies above "
                f"matched_threshold {self.matched_threshold}"
            )
        return self


class _VFEConfig(_Block):
    max_points: PositiveInt = 35
    """T: of a voxel that holds more, so many points are kept."""
    max_voxels: PositiveInt | None = None
    """K: a sweep that fills more keeps a random choice; null keeps all."""
    keep: Literal["random", "first"] = "random"
    """Which points a full voxel keeps: a random sample as in the paper, or the first of the sweep,
    as packages do whose weights are imported."""


class StackedVFEConfig(_VFEConfig):
    """VoxelNet's stacked voxel feature encoding layers."""

    name: Literal["stacked"] = "stacked"
    channels: tuple[PositiveInt, ...] = Field(default=(32, 128), min_length=1)
    """Output channels of each layer; even, half of them are pooled."""
    out_channels: PositiveInt = 128
    """Output channels of the final fully connected layer."""
    pool: Literal["max", "average", "min", "median", "sum"] = "max"
    """How the points of a voxel become one feature; the paper's max is also the fastest."""
    center_offsets: bool = False
    """Give each point its offset to the middle of its voxel too, which the paper does not."""

    @field_validator("channels")
    @classmethod
    def _are_even(cls, channels: tuple[int, ...]) -> tuple[int, ...]:
        if any(count % 2 for count in channels):
            raise ValueError(f"channels must be even, got {list(channels)}")
        return channels


class MeanVFEConfig(_VFEConfig):
    """The mean of a voxel's points, as SECOND has it for small voxels: nothing to learn."""

    name: Literal["mean"] = "mean"
    max_points: PositiveInt = 5


class PillarVFEConfig(_VFEConfig):
    """PointPillars' encoder: a linear layer on each point, and the maximum over its pillar."""

    name: Literal["pillar"] = "pillar"
    max_points: PositiveInt = 100
    out_channels: PositiveInt = 64
    offsets: Literal["xy", "xyz"] = "xy"
    """Along which axes a point is given its offset to the middle of its pillar: two as in the
    paper (9 inputs in all) or three (10)."""
    pool: Literal["max", "average", "min", "median", "sum"] = "max"
    padded_max: bool = False
    """What a row of zeros gives takes part in the maximum of a pillar that is not full, as in
    networks that pad pillars to max_points: for their weights."""


VFEConfig = Annotated[
    StackedVFEConfig | MeanVFEConfig | PillarVFEConfig, Field(discriminator="name")
]


class DenseMiddleConfig(_Block):
    """VoxelNet's three 3D convolutions between voxels and bird's-eye view."""

    name: Literal["dense"] = "dense"
    channels: tuple[PositiveInt, PositiveInt, PositiveInt] = (64, 64, 64)


class SparseMiddleConfig(_Block):
    """SECOND's convolutions of occupied voxels alone."""

    name: Literal["sparse"] = "sparse"
    layout: Literal["second", "two_stage"] = "second"
    """second: four stages, three of them strided, for voxels of 5 cm; two_stage: no stride along x
    and y, for VoxelNet's voxels."""
    channels: tuple[PositiveInt, ...] | None = None
    """Of each stage; null: the layout's own."""
    backend: Literal["auto", "spconv", "native"] = "auto"
    """What computes: the package spconv, this one, or the better of those that are there."""

    @model_validator(mode="after")
    def _names_each_stage(self) -> SparseMiddleConfig:
        stages = {"second": 5, "two_stage": 3}[self.layout]
        if self.channels is not None and len(self.channels) != stages:
            raise ValueError(
                f"channels must be one for each of the {stages} stages of layout {self.layout}, "
                f"got {list(self.channels)}"
            )
        return self


class ScatterMiddleConfig(_Block):
    """PointPillars' none: each pillar's features go to its place on the map."""

    name: Literal["scatter"] = "scatter"


MiddleConfig = Annotated[
    DenseMiddleConfig | SparseMiddleConfig | ScatterMiddleConfig, Field(discriminator="name")
]


class NormConfig(_Block):
    """Batch normalization, all layers."""

    eps: PositiveFloat = 1e-5
    """Added to the variance."""
    momentum: Probability = 0.1
    """Weight of the newest batch in the running statistics."""


class RPNConfig(_Block):
    """The region proposal network."""

    layers: tuple[NonNegativeInt, ...] = Field(default=(3, 5, 5), min_length=1)
    """Convolutions after the strided first one of each block."""
    strides: tuple[PositiveInt, ...] = (2, 2, 2)
    channels: tuple[PositiveInt, ...] = (128, 128, 256)
    upsample_channels: tuple[PositiveInt, ...] = (256, 256, 256)
    unit_upsample_kernel: Literal[1, 3] = 3
    """Kernel of the transposed convolution of a block that is at the output's size already: 3 in
    VoxelNet, 1 in SECOND and PointPillars."""
    neck: Literal["none", "spp", "sppf"] = "none"
    """Max pooling at several scales after the last block, between two 1x1 convolutions: windows of
    5, 9 and 13 side by side (spp), or the same result by a chain of 5 (sppf, the faster)."""
    attention: Literal["none", "se", "cbam"] = "none"
    """A gate on what each block hands to its upsampling: over the channels (se), or over channels
    and then places (cbam)."""
    squeeze: Literal["average", "max", "masked"] = "average"
    """se: what the gate sees of the map: its average or maximum, or the average over the cells that
    hold points."""

    @model_validator(mode="after")
    def _fits_together(self) -> RPNConfig:
        if self.squeeze != "average" and self.attention != "se":
            raise ValueError(
                f"squeeze {self.squeeze} is for attention se, which is {self.attention} here"
            )
        blocks = {
            "layers": len(self.layers),
            "strides": len(self.strides),
            "channels": len(self.channels),
            "upsample_channels": len(self.upsample_channels),
        }
        if len(set(blocks.values())) > 1:
            counts = ", ".join(f"{name} {count}" for name, count in blocks.items())
            raise ValueError(f"all lists must name the same number of blocks, got {counts}")
        return self


class HeadConfig(_Block):
    """What is predicted at each anchor."""

    scores: Literal["own", "all"] = "own"
    """A score for the class that the anchor stands for, or one for each class."""
    direction: bool = False
    """Also tell which way round a box is (SECOND), where the loss leaves half turns open."""
    direction_offset: FiniteFloat = math.pi / 4
    """Yaws from here to half a turn further are one direction, the rest the other; radians."""
    anchor_placement: Literal["centers", "edges"] = "centers"
    """Anchors at the middles of the map's cells, or spread from edge to edge of the range."""
    min_voxels: NonNegativeInt = 0
    """Anchors over fewer occupied voxels than this, seen from above, take part neither in the loss
    nor in detection; SECOND has 2."""


class LossConfig(_Block):
    """VoxelNet's loss (section 2.2), or with focal classification SECOND's."""

    classification: Literal["balanced", "focal"] = "balanced"
    """Cross entropy as a mean over positives and one over negatives, or focal: a sum over both,
    where what is easy counts little, divided by the number of positives."""
    positive_weight: NonNegativeFloat = 1.5
    """balanced: alpha"""
    negative_weight: NonNegativeFloat = 1.0
    """balanced: beta"""
    focal_weight: NonNegativeFloat = 1.0
    focal_alpha: Probability = 0.25
    """focal: weight of the positives; negatives have 1 - alpha."""
    focal_gamma: NonNegativeFloat = 2.0
    """focal: power of the score's error that each anchor is weighed by."""
    residual_weight: NonNegativeFloat = 1.0
    code_weights: tuple[NonNegativeFloat, ...] = Field(
        default=(1.0,) * 7, min_length=7, max_length=7
    )
    """What the differences of x, y, z, length, width, height and yaw are multiplied by."""
    smooth_l1_beta: PositiveFloat = 1.0 / 9.0
    """Where SmoothL1 turns from square to linear; the paper is silent, this is SECOND's."""
    angle: Literal["difference", "sine"] = "difference"
    """What is compared of the yaw: the plain difference, or its sine (SECOND), which learns sooner
    and leaves the heading open by half a turn."""
    direction_weight: NonNegativeFloat = 0.2
    """Of the directions' cross entropy, with head.direction."""
    matching_iou: Literal["nearest", "rotated", "standup"] = "nearest"
    """IoU of anchors and boxes: of boxes turned to the nearest axis, exact, or of their hulls."""


class PostprocessConfig(_Block):
    """From scores and residuals to boxes; the paper is silent on all of these."""

    score_threshold: Probability = 0.1
    nms_iou: Probability = 0.01
    """Boxes that overlap a better one by more than this in bird's-eye view are dropped."""
    merge_iou: Probability = 1.0
    """Boxes that are kept become the mean of those that overlap them by more than this; 1 merges
    nothing."""
    nms: Literal["class", "agnostic"] = "class"
    """Boxes drop others of their class alone, or of any."""
    nms_pre: PositiveInt = 1000
    """Best anchors that enter the suppression."""
    nms_pre_of: Literal["class", "frame"] = "class"
    """So many of each class, or of all classes together, by an anchor's best score."""
    max_detections: PositiveInt = 100
    """Best boxes of a sweep that are kept."""
    votes: PositiveInt = 1
    """Looks at a sweep, mirrored, turned and scaled, whose boxes are averaged; validation during
    training looks once."""


class ScheduleConfig(_Block):
    """How the learning rate goes over the training."""

    name: Literal["step", "one_cycle", "polynomial", "constant"] = "step"
    milestones: tuple[PositiveInt, ...] = (150,)
    """step: epochs after which the rate is multiplied by gamma."""
    gamma: PositiveFloat = 0.1
    warmup: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.4
    """one_cycle: share of the training in which the rate rises."""
    power: PositiveFloat = 0.9
    """polynomial: the rate is lr * (1 - share of the training done) ** power."""


class TrainConfig(_Block):
    """The training; defaults are the paper's (section 3.1) where it states one."""

    weights: str | None = None
    """What the network begins with: a checkpoint, or a name of shipped weights; null begins with
    random ones. A detector may have other anchors there: those that it has not begin anew."""
    epochs: PositiveInt = 160
    batch_size: PositiveInt = 16
    """Of all processes together."""
    accumulate_batches: PositiveInt = 1
    """Batches whose gradients are added before a step."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: PositiveFloat = 0.01
    momentum: Probability = 0.9
    """sgd: momentum; the paper is silent."""
    weight_decay: NonNegativeFloat = 1e-4
    schedule: ScheduleConfig = ScheduleConfig()
    gradient_clip: PositiveFloat | None = 35.0
    """Largest norm of the gradient; null clips nothing."""
    precision: Literal["32", "bf16", "16"] = "32"
    """Automatic mixed precision: bf16 on CPU and CUDA, 16 on CUDA."""
    ema: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Also keep a moving average of the weights, each step this part of the old one and the rest of
    the new weights; it is what is validated, and what detects from checkpoints. null keeps none."""
    sync_batchnorm: bool = False
    """With several processes, normalise by the statistics of all their batches together."""
    val_every: PositiveInt = 5
    """Epochs between validations."""
    val_batch_size: PositiveInt = 1
    drawn_frames: NonNegativeInt = 3
    """Validation frames that are drawn for TensorBoard after each validation, for detectors."""
    checkpoint_every_steps: PositiveInt | None = None
    """Steps between checkpoints within an epoch; null writes one after each epoch alone."""


class Config(_Block):
    """Everything that a run depends on."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    """Names the run's folder."""
    model: Literal["voxelnet", "second", "pointpillars"] = "voxelnet"
    """Which encoder and middle layers are meant where vfe and middle do not name theirs: stacked
    and dense, mean and sparse, or pillar and scatter."""
    seed: NonNegativeInt = 0
    grid: GridConfig
    data: DataConfig = DataConfig()
    anchors: tuple[AnchorConfig, ...] = Field(min_length=1)
    """One block a class."""
    vfe: VFEConfig
    middle: MiddleConfig
    norm: NormConfig = NormConfig()
    rpn: RPNConfig = RPNConfig()
    head: HeadConfig = HeadConfig()
    loss: LossConfig = LossConfig()
    postprocess: PostprocessConfig = PostprocessConfig()
    train: TrainConfig = TrainConfig()

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their anchors."""
        return tuple(anchor.class_name for anchor in self.anchors)

    @model_validator(mode="before")
    @classmethod
    def _names_its_blocks(cls, values: Any) -> Any:
        """Says in vfe and middle which they are, by the model, where they do not say it."""
        if not isinstance(values, dict):
            return values
        names = _BLOCKS_OF_MODELS.get(values.get("model", "voxelnet"))
        named = dict(values)
        for key, name in zip(("vfe", "middle"), names or (), strict=bool(names)):
            block = values.get(key, {})
            if isinstance(block, dict):
                named[key] = {"name": name, **block}
        return named

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"anchors name a class twice: {', '.join(self.classes)}")
        for step in self.data.augment:
            if not isinstance(step, SampleObjectsConfig):
                continue
            unknown = {name for name, _ in step.counts} - set(self.classes)
            if unknown:
                raise ValueError(
                    f"data.augment: {step.name} names {min(unknown)}, which has no anchors"
                )
        depth, height, width = self.grid.to_grid().shape
        middle = self.middle.name
        if (middle == "scatter") != (self.vfe.name == "pillar"):
            raise ValueError(f"vfe {self.vfe.name} and middle {middle} do not go together")
        if middle == "scatter" and depth != 1:
            raise ValueError(f"grid is {depth} voxels high; pillars are 1")
        if middle == "dense" and depth < 5:
            raise ValueError(f"grid is {depth} voxels high; the middle layers need at least 5")
        if self.loss.direction_weight and self.head.direction and self.loss.angle != "sine":
            raise ValueError(
                "head.direction is for loss.angle sine; with difference the yaw is whole already"
            )
        before = (
            8
            if isinstance(self.middle, SparseMiddleConfig) and (self.middle.layout == "second")
            else 1
        )
        stride = before * math.prod(self.rpn.strides)
        if height % stride or width % stride:
            raise ValueError(
                f"grid is {height} x {width} voxels (y, x), which middle and rpn.strides, in all "
                f"{stride}, do not divide"
            )
        return self


_BLOCKS_OF_MODELS = {
    "voxelnet": ("stacked", "dense"),
    "second": ("mean", "sparse"),
    "pointpillars": ("pillar", "scatter"),
}


class ObjectAugmentConfig(_Block):
    """Random changes to training objects: the first three are VoxNet's."""

    rotations: PositiveInt = 12
    """One of so many equal turns about the vertical; 1 turns nothing."""
    mirror: Probability = 0.2
    """How likely each of the two level axes is reversed."""
    jitter: NonNegativeInt = 2
    """Shifts along each axis by up to so many cells."""
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Before the turn each axis is stretched by a factor of its own, 1 - scale to 1 + scale."""
    drop: Probability = 0.0
    """Up to this share of the cells or points is left out, a share of its own for each object."""


class ObjectsConfig(_Block):
    """Where labelled objects come from and how they are seen."""

    source: Literal["modelnet_archive", "modelnet_off", "crops"]
    """ModelNet as an archive of grids or as folders of OFF meshes, or what lies inside the boxes of
    a data set in KITTI's layout; simulated sets also give things that KITTI does not label."""
    root: str
    """The archive (or the folder that holds modelnet10.npz), ModelNet's folder, or the data set."""
    classes: tuple[str, ...] = ()
    """Names in the order of the scores; empty takes ModelNet10's, or for crops CROP_CLASSES."""
    train_split: str = "train"
    val_split: str = ""
    """Empty: test of ModelNet, val of a data set."""
    train_limit: PositiveInt | None = None
    """Only so many objects of the split, spread evenly over it; null takes all."""
    val_limit: PositiveInt | None = None
    extent: PositiveFloat = 6.4
    """crops: edge of the cube about the middle of a box that a network sees, metres."""
    margin: NonNegativeFloat = 0.1
    """crops: how far a box is grown on all sides before its points are taken, metres."""
    min_points: PositiveInt = 10
    """crops: objects of fewer points are left out."""
    things: NonNegativeInt = 3
    """crops: at most so many of each unlabelled class are taken from one sweep."""
    cache: str | None = None
    """A folder to keep what was read in; null reads anew each time."""
    num_workers: NonNegativeInt = 2
    """Processes that read sweeps or meshes; objects in memory need none."""
    augment: ObjectAugmentConfig = ObjectAugmentConfig()
    turning: Literal["nearest", "linear"] = "nearest"
    """ModelNet: a cell of a turned grid holds what its nearest one did, or a blend of four."""
    votes: PositiveInt = 12
    """Equal turns about the vertical whose probabilities are averaged in an evaluation."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes, given or implied."""
        return self.classes or (CROP_CLASSES if self.source == "crops" else MODELNET10_CLASSES)

    @property
    def val_split_name(self) -> str:
        """The validation split, given or implied."""
        return self.val_split or ("val" if self.source == "crops" else "test")

    @model_validator(mode="after")
    def _names_its_classes(self) -> ObjectsConfig:
        names = self.class_names
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"classes name {min(twice)} twice")
        if self.source == "crops":
            known = (*get_args(ObjectClass), *UNLABELLED_CLASSES)
            for name in names:
                if name not in known:
                    close = difflib.get_close_matches(name, known, n=1)
                    hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
                    raise ValueError(f"classes: no box or thing is called {name}; {hint}")
        if self.source == "modelnet_archive" and len(names) != len(MODELNET10_CLASSES):
            raise ValueError(
                f"classes: the archive has {len(MODELNET10_CLASSES)} classes, got {len(names)}"
            )
        return self


class ClassifierBlock(_Block):
    """The network of a classifier; null leaves it to the network."""

    head: Literal["average", "max", "both", "spp", "flatten"] | None = None
    """What makes a vector of the last map: a global pooling, a pyramid, or all of its cells."""
    dim: Literal[2, 3] = 3
    """Convolutions over the grid, or over its level slices as channels."""
    width: PositiveInt | None = None
    """Channels of the first stage."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    window_pool: Literal["max", "average", "min", "median"] | None = None
    """What makes one cell of the window of a map."""
    stem: Literal["imagenet", "strided", "small"] | None = None
    """resnet18: how much its first layers shrink the grid: 4 times, twice or not at all."""
    normalise: bool | None = None
    """pointnet2: scale each object into the unit sphere; otherwise its size can be told."""
    turns: Annotated[int, Field(ge=2)] | None = None
    """Also learn by which of so many turns an object stands (Sedaghat et al. 2017): for objects
    that come aligned, with as many objects.augment.rotations."""
    occupancy: Literal["hit", "density", "log_odds"] = "hit"
    """What a cell holds (VoxNet): whether a point lies in it, or what the rays through it say."""
    grid_size: Annotated[int, Field(ge=8)] = 32
    """Cells along each edge of the grid."""
    points: PositiveInt = 1024
    """pointnet2: points of an object, drawn anew each time."""


class TeachersConfig(_Block):
    """Trained classifiers whose answers are learned beside the labels (Hinton et al. 2015)."""

    checkpoints: tuple[str, ...] = Field(min_length=1)
    """Of classifiers of the same classes that take the same inputs; the mean of what they say."""
    weight: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """Of their answers; the labels have what is left of 1."""
    temperature: PositiveFloat = 2.0
    """What logits are divided by; the higher, the more the less likely classes count."""


class ClassifierLossConfig(_Block):
    """Cross entropy."""

    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: each class counts alike, however many objects it has."""
    turn_weight: NonNegativeFloat = 0.5
    """With classifier.turns: of the cross entropy of the turns of objects that are not mirrored."""
    teachers: TeachersConfig | None = None


class ClassifierConfig(_Block):
    """Everything that the training of a classifier depends on."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    """Names the run's folder."""
    model: Literal["voxnet", "resnet18", "nin", "spp_net", "small_cnn", "pointnet2"]
    seed: NonNegativeInt = 0
    objects: ObjectsConfig
    classifier: ClassifierBlock = ClassifierBlock()
    loss: ClassifierLossConfig = ClassifierLossConfig()
    train: TrainConfig = TrainConfig()

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the scores."""
        return self.objects.class_names

    @property
    def takes_points(self) -> bool:
        """Whether the network is given points, not a grid."""
        return self.model == "pointnet2"

    @model_validator(mode="after")
    def _fits_together(self) -> ClassifierConfig:
        block = self.classifier
        if block.occupancy != "hit" and (self.takes_points or self.objects.source != "crops"):
            raise ValueError(
                f"classifier.occupancy {block.occupancy} follows rays, which need a grid and "
                f"objects.source crops (here {self.model} and {self.objects.source})"
            )
        if block.turns not in (None, self.objects.augment.rotations):
            raise ValueError(
                f"classifier.turns is {block.turns} and objects.augment.rotations "
                f"{self.objects.augment.rotations}; they must be the same"
            )
        useless = {
            "dim": block.dim == 2 and self.model in ("voxnet", "pointnet2"),
            "window_pool": block.window_pool is not None and self.takes_points,
            "head": block.head in ("spp", "flatten") and self.takes_points,
            "stem": block.stem is not None and self.model != "resnet18",
            "normalise": block.normalise is not None and not self.takes_points,
            "turns": block.turns is not None and self.takes_points,
        }
        for key, is_useless in useless.items():
            if is_useless:
                raise ValueError(
                    f"classifier.{key} {getattr(block, key)} is of no use to {self.model}"
                )
        return self


class ShortConfig(_Block):
    """What the short mode of an experiment changes, to see in minutes that all of it runs."""

    overrides: tuple[str, ...] = ()
    """"key=value" each, after the experiment's own."""
    seeds: tuple[NonNegativeInt, ...] = Field(default=(0,), min_length=1)


class ExperimentConfig(_Block):
    """Variants of one network that are trained alike, with several seeds, and compared."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    """Names its folder."""
    title: str = ""
    """What is compared, for tables and pictures."""
    config: str
    """The configuration of all variants, relative to this file."""
    overrides: tuple[str, ...] = ()
    """"key=value" each, for all variants."""
    short: ShortConfig = ShortConfig()
    variants: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]+$")], tuple[str, ...]] = Field(
        min_length=1
    )
    """What each changes: "key=value"."""
    baseline: str
    """The variant that the others are compared with."""
    seeds: tuple[NonNegativeInt, ...] = Field(default=(0, 1, 2), min_length=1)

    @model_validator(mode="after")
    def _fits_together(self) -> ExperimentConfig:
        if self.baseline not in self.variants:
            raise ValueError(
                f"baseline {self.baseline} is none of the variants {', '.join(self.variants)}"
            )
        for seeds in (self.seeds, self.short.seeds):
            if len(set(seeds)) != len(seeds):
                raise ValueError(f"seeds name one twice: {list(seeds)}")
        return self


AnyConfig = Config | ClassifierConfig
_ROOTS: dict[str, type[AnyConfig]] = {
    name: root
    for root in (Config, ClassifierConfig)
    for name in get_args(root.model_fields["model"].annotation)
}


def load_config(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> AnyConfig:
    """Reads a configuration; its key ``model`` decides whether of a detector or a classifier.

    Args:
        path: a YAML file; where there is none, one that comes along: "configs/demo.yaml" or "demo".
        overrides: "a.b=value" each; values are YAML, list items are addressed by their number
            ("anchors.0.matched_threshold=0.5").

    Returns:
        The checked configuration.

    Raises:
        ConfigError: no such file, no YAML, an unknown key, a wrong type or an impossible value;
            names the file and the key.
    """
    return parse_config(_read_text(_find(Path(path))), overrides, source=str(path))


def _find(path: Path) -> Path:
    """The file itself, or that of a configuration that comes along."""
    if not path.exists() and path.parent in (Path(), Path("configs")):
        shipped = shipped_folder("configs") / path.name
        shipped = shipped if path.suffix else shipped.with_suffix(".yaml")
        if shipped.is_file():
            return shipped
    return path


def load_experiment(path: str | os.PathLike[str]) -> ExperimentConfig:
    """Reads an experiment; its ``config`` then is a path from here.

    Raises:
        ConfigError: as `load_config`.
    """
    path = Path(path)
    values = _parse_yaml(_read_text(path), str(path))
    try:
        experiment = ExperimentConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error, str(path), ExperimentConfig)) from error
    return experiment.model_copy(update={"config": str(path.parent / experiment.config)})


def save_experiment(experiment: ExperimentConfig, path: str | os.PathLike[str]) -> None:
    """Writes an experiment as YAML that `load_experiment` reads to an equal one from anywhere."""
    values = experiment.model_dump(mode="json") | {"config": str(Path(experiment.config).resolve())}
    with atomic_write(path) as file:
        yaml.safe_dump(values, file, sort_keys=False, default_flow_style=None, width=100)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text") from error


def _parse_yaml(text: str, source: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: must hold keys and values, got {type(values).__name__}")
    return values


def load_detector_config(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Config:
    """Like `load_config`, for detectors alone.

    Raises:
        ConfigError: as there, or it is a classifier's.
    """
    config = load_config(path, overrides)
    if not isinstance(config, Config):
        raise ConfigError(f"{path}: {config.model} is a classifier; this takes a detector")
    return config


def parse_config(text: str, overrides: Sequence[str] = (), source: str = "config") -> AnyConfig:
    """Like `load_config`, from YAML text; ``source`` is what errors call it."""
    values = _parse_yaml(text, source)
    for override in overrides:
        _apply_override(values, override)
    model = values.get("model", "voxnet" if "objects" in values else "voxelnet")
    if not isinstance(model, str) or model not in _ROOTS:
        raise ConfigError(f"{source}: model: must be one of {', '.join(_ROOTS)} (got {model!r})")
    root = _ROOTS[model]
    try:
        return root.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error, source, root)) from error


def save_config(config: AnyConfig, path: str | os.PathLike[str]) -> None:
    """Writes a configuration as YAML that `load_config` reads to an equal one."""
    with atomic_write(path) as file:
        file.write(dump_config(config))


def dump_config(config: AnyConfig) -> str:
    """The configuration as YAML text."""
    values = config.model_dump(mode="json")
    return yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=100)


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r}: must look like key.subkey=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not YAML") from error
    if isinstance(value, str):
        value = _number_or(value)
    *parents, last = key.split(".")
    place: Any = values
    for depth, name in enumerate(parents):
        place = _step_into(place, name, override, ".".join(parents[: depth + 1]))
    if isinstance(place, list):
        place[_list_index(place, last, override)] = value
    else:
        place[last] = value


def _number_or(text: str) -> str | float:
    """YAML 1.1 reads 1e-3 as text; people mean the number."""
    try:
        return float(text)
    except ValueError:
        return text


def _step_into(place: Any, name: str, override: str, so_far: str) -> Any:
    if isinstance(place, list):
        child = place[_list_index(place, name, override)]
    else:
        child = place.setdefault(name, {})
    if child is None:
        child = place[name] = {}
    if not isinstance(child, dict | list):
        raise ConfigError(f"override {override!r}: {so_far} is a single value, it has no keys")
    return child


def _list_index(place: list[Any], name: str, override: str) -> int:
    if not name.isdigit() or int(name) >= len(place):
        raise ConfigError(f"override {override!r}: {name} is no item of a list of {len(place)}")
    return int(name)


def _explain(error: ValidationError, source: str, root: type[_Block]) -> str:
    lines = []
    problems = error.errors()
    for problem in problems:
        place = problem["loc"]
        if any(len(o["loc"]) > len(place) and o["loc"][: len(place)] == place for o in problems):
            continue  # said better further down
        parts, blocks = _walk(place, root)
        if problem["type"] == "extra_forbidden":
            text = f"unknown key{_suggestion(parts[-1], blocks)}"
        elif problem["type"] == "missing":
            text = "is missing"
        else:
            text = problem["msg"].removeprefix("Value error, ")
            if isinstance(problem["input"], str | int | float | bool | list):
                text += f" (got {problem['input']!r})"
        key = ".".join(parts)
        lines.append(f"{key}: {text}" if key else text)
    return f"{source}: " + "; ".join(lines)


def _walk(
    location: tuple[int | str, ...], root: type[_Block]
) -> tuple[list[str], list[type[_Block]]]:
    """The keys of a location, less union tags, and the blocks that its last key may belong to."""
    parts: list[str] = []
    here: list[type[_Block]] = []
    below: list[type[_Block]] = [root]
    for part in location:
        tagged = [block for block in below if part in _names_of(block)]
        if isinstance(part, str) and tagged and len(below) > 1:
            below = tagged
            continue
        parts.append(str(part))
        if isinstance(part, int):
            continue
        here = below
        fields = [block.model_fields[part] for block in here if part in block.model_fields]
        below = [block for field in fields for block in _blocks_in(field.annotation)]
    return parts, here


def _names_of(block: type[_Block]) -> tuple[Any, ...]:
    field = block.model_fields.get("name")
    return get_args(field.annotation) if field else ()


def _blocks_in(annotation: Any) -> list[type[_Block]]:
    if isinstance(annotation, type) and issubclass(annotation, _Block):
        return [annotation]
    return [block for inner in get_args(annotation) for block in _blocks_in(inner)]


def _suggestion(key: str, blocks: Sequence[type[_Block]]) -> str:
    known = [name for block in blocks for name in block.model_fields]
    close = difflib.get_close_matches(key, known, n=1)
    return f", did you mean {close[0]}?" if close else ""
