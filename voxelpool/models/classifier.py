"""Classifiers of objects, each with the head of one's choice.

A network of dim 3 takes grids, (B, 1, D, H, W). One of dim 2 takes the same and reads a grid's
slices along z as the channels of one map, so that D must be ``grid_size``; or it takes images,
(B, ``in_channels``, H, W). All give logits, (B, K).

What they have in common, beside arguments of their own:

- classes: K.
- head: average, max, both, spp or flatten; `voxelpool.nn.ClassifierHead`. Only flatten needs the
  grids to be of ``grid_size``.
- width: channels of the first layers; the others follow.
- dropout: share of values that are zeroed before the fully connected layers' last.
- window_pool: how windows of a map are pooled: max, average, min or median.
- grid_size: cells along each side of a grid.
- turns: T; if not 0, the network also says by which of T equal turns about the vertical an object
  stands, for each class, which helps it to learn the classes (Sedaghat et al. 2017). The scores of
  the turns, K * T, come from the last layer too; `GridClassifier.forward_turns` gives them.
- in_channels: of the input; None: 1 in 3D, grid_size in 2D.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from voxelpool.models.pointnet2 import PointNet2
from voxelpool.nn.heads import ClassifierHead, HeadPool
from voxelpool.nn.pooling import WindowKind, WindowPool, check_dim

Stem: TypeAlias = Literal["imagenet", "strided", "small"]


class Conv3d(nn.Conv3d):
    """Convolution that computes maps of 2 cells a side in float32 whatever autocast says.

    On the CPU, the bfloat16 gradient of a 3 x 3 x 3 weight on 2 x 2 x 2 maps is memory that nothing
    was written to (torch 2.13, oneDNN 3.12).
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, before, D, H, W) -> (B, after, ...)."""
        if input.device.type == "cpu" and max(input.shape[2:]) <= 2:
            with torch.autocast("cpu", enabled=False):
                return super().forward(input.to(self.weight.dtype))
        return super().forward(input)


_CONVS = {2: nn.Conv2d, 3: Conv3d}
_NORMS = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class GridClassifier(nn.Module):
    """Layers that make a map of a grid or image, and a head that scores it."""

    def __init__(
        self, features: nn.Module, dim: int, in_channels: int | None, grid_size: int
    ) -> None:
        super().__init__()
        self.features = features
        self.dim = dim
        self.in_channels = _in_channels(dim, in_channels, grid_size)
        self.grid_size = grid_size

    def add_head(
        self, channels: int, classes: int, head: HeadPool, turns: int, **options: Any
    ) -> None:
        """Append a `ClassifierHead` for the features, with its ``options``."""
        if turns < 0:
            raise ValueError(f"turns must be at least 0, got {turns}")
        self.classes, self.turns = classes, turns
        map_size = None
        if head == "flatten":
            size = (self.grid_size,) * self.dim
            was_training = self.features.training
            with torch.no_grad():
                maps = self.features.eval()(torch.zeros(1, self.in_channels, *size))
            self.features.train(was_training)
            map_size = maps.shape[2:]
        outputs = classes * (1 + turns)
        self.head = ClassifierHead(channels, outputs, head, self.dim, map_size=map_size, **options)
        if self.dim == 3:  # a fifth to a third less time on a CPU
            self.to(memory_format=torch.channels_last_3d)

    def prepare(self, objects: Tensor) -> Tensor:
        """What the first layer takes, (B, in_channels, ...), of what `forward` takes."""
        if self.dim == 2 and objects.dim() == 5 and objects.shape[1] == 1:
            objects = objects.squeeze(1)
        if objects.dim() != self.dim + 2 or objects.shape[1] != self.in_channels:
            wanted = "(B, {}, D, H, W)" if self.dim == 3 else "(B, {0}, H, W) or (B, 1, {0}, H, W)"
            raise ValueError(
                f"objects must be {wanted.format(self.in_channels)}, got {tuple(objects.shape)}"
            )
        return objects

    def forward(self, objects: Tensor) -> Tensor:
        """Score objects.

        Args:
            objects: grids (B, 1, D, H, W), or in 2D images (B, in_channels, H, W); floating point.

        Returns:
            (B, K) logits.

        Raises:
            ValueError: another shape.
        """
        return self.head(self.features(self.prepare(objects)))[:, : self.classes]

    def forward_turns(self, objects: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward`, and (B, K, T) logits of the turns by which objects of each class stand."""
        outputs = self.head(self.features(self.prepare(objects)))
        turns = outputs[:, self.classes :].unflatten(1, (self.classes, self.turns))
        return outputs[:, : self.classes], turns


def _in_channels(dim: int, in_channels: int | None, grid_size: int) -> int:
    check_dim(dim)
    if in_channels is None:
        return grid_size if dim == 2 else 1
    return in_channels


def _conv(
    dim: int, before: int, after: int, kernel: int, stride: int = 1, *, act: bool = True
) -> nn.Sequential:
    """Convolution that keeps the size at stride 1, BatchNorm and, if asked for, ReLU."""
    conv = _CONVS[dim](before, after, kernel, stride, kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    layers = [conv, _NORMS[dim](after)]
    return nn.Sequential(*layers, nn.ReLU(inplace=True)) if act else nn.Sequential(*layers)


class VoxNet(GridClassifier):
    """VoxNet (Maturana and Scherer 2015): two convolutions on a grid of 32 cells a side.

    With the flatten head at 40 classes it has the paper's 921,736 parameters. The other heads pool
    the map of 32 channels that is 6 cells a side.

    Args:
        classes: see the module, as for all arguments that are not here.
        head: see the module.
        dim: 3.
        width: channels of both convolutions.
        dropout: shares zeroed after the first convolution, the pooling and the hidden layer; one
            number: all of them.
        window_pool: kind of the one pooling, 2 x 2 x 2.
        grid_size: see the module.
        turns: see the module.
        hidden: width of the hidden layer.
        occupancy: what the grids hold. hit and density are moved from [0, 1] to [-1, 1], as the
            authors do; log_odds from [-4, 4].

    Raises:
        ValueError: a value out of its range.
    """

    def __init__(
        self,
        classes: int,
        *,
        head: HeadPool = "flatten",
        dim: int = 3,
        width: int = 32,
        dropout: float | Sequence[float] = (0.2, 0.3, 0.4),
        window_pool: WindowKind = "max",
        grid_size: int = 32,
        turns: int = 0,
        hidden: int = 128,
        occupancy: Literal["hit", "density", "log_odds"] = "hit",
    ) -> None:
        if dim != 3:
            raise ValueError(f"VoxNet's convolutions are 3D, got dim {dim}")
        shares = [dropout] * 3 if isinstance(dropout, int | float) else list(dropout)
        if len(shares) != 3:
            raise ValueError(f"dropout must be one or three numbers, got {dropout}")
        if occupancy not in ("hit", "density", "log_odds"):
            raise ValueError(f"occupancy must be hit, density or log_odds, got {occupancy!r}")
        features = nn.Sequential(
            nn.Conv3d(1, width, 5, 2),
            nn.LeakyReLU(0.1, inplace=True),
            nn.Dropout(shares[0]),
            nn.Conv3d(width, width, 3),
            nn.LeakyReLU(0.1, inplace=True),
            WindowPool(3, window_pool, 2),
            nn.Dropout(shares[1]),
        )
        for layer in features:
            if isinstance(layer, nn.Conv3d):
                nn.init.kaiming_normal_(layer.weight, a=0.1)
                nn.init.zeros_(layer.bias)
        super().__init__(features, 3, 1, grid_size)
        self.scale, self.shift = (0.25, 0.0) if occupancy == "log_odds" else (2.0, -1.0)
        self.add_head(width, classes, head, turns, hidden=(hidden,), dropout=shares[2])

    def prepare(self, objects: Tensor) -> Tensor:
        """The grids, about 0."""
        return super().prepare(objects) * self.scale + self.shift


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a way around them (He et al. 2015)."""

    def __init__(self, dim: int, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first = _conv(dim, before, after, 3, stride)
        self.second = _conv(dim, after, after, 3, act=False)
        self.around: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.around = _conv(dim, before, after, 1, stride, act=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, ...) -> (B, after, ...), at the stride."""
        return torch.relu(self.second(self.first(x)) + self.around(x))


class ResNet18(GridClassifier):
    """ResNet-18 (He et al. 2015) in 2D or 3D.

    With dim 2, the stem "imagenet", 1000 classes and 3 channels it has the published 11,689,512
    parameters.

    Args:
        classes: see the module, as for all arguments that are not here.
        head: see the module.
        dim: see the module.
        width: channels of the first stage; the others have 2, 4 and 8 times as many.
        dropout: see the module.
        window_pool: kind of the pooling in the stem "imagenet", 3 x 3 at stride 2.
        grid_size: see the module.
        turns: see the module.
        in_channels: see the module.
        stem: imagenet: a convolution of 7 at stride 2 and a pooling, 32 times smaller maps in all;
            strided: a convolution of 3 at stride 2, 16 times; small: one of 3 at stride 1, 8 times.

    Raises:
        ValueError: a value out of its range.
    """

    def __init__(
        self,
        classes: int,
        *,
        head: HeadPool = "average",
        dim: int = 3,
        width: int = 64,
        dropout: float = 0.0,
        window_pool: WindowKind = "max",
        grid_size: int = 32,
        turns: int = 0,
        in_channels: int | None = None,
        stem: Stem = "strided",
    ) -> None:
        channels = _in_channels(dim, in_channels, grid_size)
        if stem == "imagenet":
            layers: list[nn.Module] = [
                _conv(dim, channels, width, 7, 2),
                WindowPool(dim, window_pool, 3, 2, 1),
            ]
        elif stem in ("strided", "small"):
            layers = [_conv(dim, channels, width, 3, 2 if stem == "strided" else 1)]
        else:
            raise ValueError(f"stem must be imagenet, strided or small, got {stem!r}")
        before = width
        for stage in range(4):
            after = width << stage
            layers.append(ResidualBlock(dim, before, after, 1 if stage == 0 else 2))
            layers.append(ResidualBlock(dim, after, after, 1))
            before = after
        super().__init__(nn.Sequential(*layers), dim, channels, grid_size)
        self.add_head(before, classes, head, turns, dropout=dropout)


class NiN(GridClassifier):
    """Network in network (Lin et al. 2013): 1x1 convolutions behind each larger one.

    The heads average and max score one map for each class, without a fully connected layer; the
    others have one. In 3D the first convolution has stride 2. ReLU after BatchNorm, which the
    paper does not have, but not after the classes' maps.

    Args:
        classes: see the module, as for all arguments that are not here.
        head: see the module.
        dim: see the module.
        width: channels of each larger convolution; None: 192 as in the paper in 2D, 48 in 3D.
        dropout: also after each pooling.
        window_pool: kind of both poolings, 3 x 3 at stride 2.
        grid_size: see the module.
        turns: see the module.
        in_channels: see the module.

    Raises:
        ValueError: a value out of its range.
    """

    def __init__(
        self,
        classes: int,
        *,
        head: HeadPool = "average",
        dim: int = 3,
        width: int | None = None,
        dropout: float = 0.5,
        window_pool: WindowKind = "max",
        grid_size: int = 32,
        turns: int = 0,
        in_channels: int | None = None,
    ) -> None:
        channels = _in_channels(dim, in_channels, grid_size)
        if width is None:
            width = 192 if dim == 2 else 48

        def shrink() -> list[nn.Module]:
            return [WindowPool(dim, window_pool, 3, 2, 1), nn.Dropout(dropout)]

        narrow = max(width // 2, 1)
        features = nn.Sequential(
            _conv(dim, channels, width, 5, dim - 1),
            _conv(dim, width, max(width * 5 // 6, 1), 1),
            _conv(dim, max(width * 5 // 6, 1), narrow, 1),
            *shrink(),
            _conv(dim, narrow, width, 5),
            _conv(dim, width, width, 1),
            _conv(dim, width, width, 1),
            *shrink(),
            _conv(dim, width, width, 3),
            _conv(dim, width, width, 1),
        )
        super().__init__(features, dim, channels, grid_size)
        self.add_head(width, classes, head, turns, class_maps=head in ("average", "max"))


class SPPNet(GridClassifier):
    """Convolutions, then a spatial pyramid, then fully connected layers (He et al. 2014).

    A small one, for grids: five convolutions with BatchNorm that make the map 4 times smaller.

    Args:
        classes: see the module, as for all arguments that are not here.
        head: see the module.
        dim: see the module.
        width: see the module.
        dropout: see the module.
        window_pool: kind of the one pooling, 2 x 2.
        grid_size: see the module.
        turns: see the module.
        in_channels: see the module.
        levels: of the pyramid.
        hidden: width of the hidden layer.

    Raises:
        ValueError: a value out of its range.
    """

    def __init__(
        self,
        classes: int,
        *,
        head: HeadPool = "spp",
        dim: int = 3,
        width: int = 32,
        dropout: float = 0.5,
        window_pool: WindowKind = "max",
        grid_size: int = 32,
        turns: int = 0,
        in_channels: int | None = None,
        levels: Sequence[int] = (4, 2, 1),
        hidden: int = 256,
    ) -> None:
        channels = _in_channels(dim, in_channels, grid_size)
        features = nn.Sequential(
            _conv(dim, channels, width, 5, 2),
            _conv(dim, width, width, 3),
            WindowPool(dim, window_pool, 2),
            _conv(dim, width, 2 * width, 3),
            _conv(dim, 2 * width, 2 * width, 3),
            _conv(dim, 2 * width, 2 * width, 3),
        )
        super().__init__(features, dim, channels, grid_size)
        self.add_head(
            2 * width, classes, head, turns, hidden=(hidden,), dropout=dropout, levels=levels
        )


class SmallCNN(GridClassifier):
    """Three convolutions with BatchNorm, a pooling behind the first two, and one global one.

    Args:
        classes: see the module, as for all arguments that are not here.
        head: see the module.
        dim: see the module.
        width: channels of the first convolution; the others have 2 and 4 times as many.
        dropout: see the module.
        window_pool: kind of the poolings, 2 x 2.
        grid_size: see the module.
        turns: see the module.
        in_channels: see the module.

    Raises:
        ValueError: a value out of its range.
    """

    def __init__(
        self,
        classes: int,
        *,
        head: HeadPool = "average",
        dim: int = 3,
        width: int = 16,
        dropout: float = 0.0,
        window_pool: WindowKind = "max",
        grid_size: int = 32,
        turns: int = 0,
        in_channels: int | None = None,
    ) -> None:
        channels = _in_channels(dim, in_channels, grid_size)
        features = nn.Sequential(
            _conv(dim, channels, width, 3),
            WindowPool(dim, window_pool, 2),
            _conv(dim, width, 2 * width, 3),
            WindowPool(dim, window_pool, 2),
            _conv(dim, 2 * width, 4 * width, 3),
        )
        super().__init__(features, dim, channels, grid_size)
        self.add_head(4 * width, classes, head, turns, dropout=dropout)


#: Classifiers by the names that configurations use.
CLASSIFIERS: dict[str, type[nn.Module]] = {
    "voxnet": VoxNet,
    "resnet18": ResNet18,
    "nin": NiN,
    "spp_net": SPPNet,
    "small_cnn": SmallCNN,
    "pointnet2": PointNet2,
}

#: They describe the objects: every model takes them, and ignores those that it does not need.
_OBJECT_OPTIONS = ("grid_size", "points", "occupancy")


def build_classifier(model: str, classes: int, **options: Any) -> nn.Module:
    """Builds a classifier.

    Args:
        model: voxnet, resnet18, nin, spp_net, small_cnn or pointnet2.
        classes: K.
        options: arguments of the model's class; None: its own default. ``grid_size``, ``points``
            and ``occupancy`` may be given to all.

    Returns:
        A module from objects to (B, K) logits: from grids (B, 1, D, H, W), or from points
        (B, N, 3) for pointnet2.

    Raises:
        ValueError: an unknown model, an option that the model does not have, or a value out of its
            range.
    """
    if model not in CLASSIFIERS:
        raise ValueError(f"model must be one of {', '.join(CLASSIFIERS)}, got {model!r}")
    build = CLASSIFIERS[model]
    known = [name for name in inspect.signature(build).parameters if name != "classes"]
    given = {name: value for name, value in options.items() if value is not None}
    unknown = sorted(given.keys() - set(known) - set(_OBJECT_OPTIONS))
    if unknown:
        raise ValueError(
            f"{model} has no option {', '.join(unknown)}; it has {', '.join(sorted(known))}"
        )
    return build(classes, **{name: value for name, value in given.items() if name in known})
