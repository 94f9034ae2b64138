"""Region proposal network: VoxelNet (arXiv 1711.06396, section 2.1.3 and figure 4), and its kin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from voxelpool.nn import reach
from voxelpool.nn.attention import CBAM, Squeeze, SqueezeExcite
from voxelpool.nn.pyramid import PyramidNeck
from voxelpool.nn.reach import Reach

BOX_PARAMETERS = 7
DIRECTIONS = 2


class HeadMaps(NamedTuple):
    """What the heads say at each cell of the output (H', W'), for its A anchors.

    Attributes:
        scores: (B, A * K, H', W') logits, channel ``a * K + k`` is class k of anchor a.
        residuals: (B, A * 7, H', W'), channel ``a * 7 + i`` is parameter i of anchor a.
        directions: (B, A * 2, H', W') logits, channel ``a * 2 + i`` is direction i of anchor a; or
            None.
    """

    scores: Tensor
    residuals: Tensor
    directions: Tensor | None = None


class RPN(nn.Module):
    """2D convolutions at falling resolutions, brought back to one size and read by 1x1 heads.

    Block i is one 3x3 convolution with stride ``strides[i]`` and ``layers[i]`` more with stride 1,
    each with BatchNorm and ReLU. A transposed convolution (also with BatchNorm and ReLU) brings
    each block's output to the resolution of the first block; they are concatenated. Its kernel
    equals its stride, save at stride 1, where the paper takes a kernel of 3. The paper's padding
    of 0 there would give 202 x 178 instead of 200 x 176; padding 1 keeps the size.

    The defaults are the paper's car network; pedestrians and cyclists have ``strides=(1, 2, 2)``.
    SECOND and PointPillars have the same, with a kernel of 1 there, scores of all classes at each
    anchor and a direction.

    What the paper does not have: a neck, which pools the last block's output at several scales, and
    attention on what each block hands to its upsampling (after the neck). The next block reads the
    map without either.

    Args:
        in_channels: channels of the map that comes in.
        layers: stride-1 convolutions in each block, after the first one.
        strides: stride of each block's first convolution.
        channels: channels of each block.
        upsample_channels: channels that each block is brought to before the concatenation.
        anchors_per_location: A, anchors at each cell of the output.
        classes_per_anchor: K, scores of each anchor.
        directions: also predict the direction of each anchor's box.
        unit_upsample_kernel: 3 or 1, the kernel of an upsampling by 1.
        score_prior: the score that each anchor begins with, in (0, 1): sets the bias of the score
            head to its logit. The paper does not say. None leaves torch's default, near 0.5: the
            paper's loss weighs positives and negatives as two means, so that a blind network
            would settle at 0.6 and a low prior only costs steps. It serves losses that add up
            over all anchors (focal: 0.01).
        neck: "none", or the pyramid of a `PyramidNeck`: "spp" or "sppf".
        attention: "none", "se" (`SqueezeExcite`) or "cbam" (`CBAM`), with a sixteenth of the
            channels between the linear layers, but at least 8.
        squeeze: of "se"; "masked" takes the average over the cells that hold voxels, or in whose
            square of input cells one does.
        norm_eps: added to the variance.
        norm_momentum: weight of the newest batch in the running statistics.
        input_size: (H, W) of the map that will come in, if known, to be checked at once.

    Attributes:
        needs_occupied: whether calls must name the occupied cells.
        total_stride: H and W of the input must be multiples of this.
        output_stride: cells of the input along each side of a cell of the output.

    Raises:
        ValueError: if the lists differ in length, a value is out of its range, or ``input_size``
            is no multiple of the total stride.
    """

    def __init__(
        self,
        in_channels: int = 128,
        *,
        layers: Sequence[int] = (3, 5, 5),
        strides: Sequence[int] = (2, 2, 2),
        channels: Sequence[int] = (128, 128, 256),
        upsample_channels: Sequence[int] = (256, 256, 256),
        anchors_per_location: int = 2,
        classes_per_anchor: int = 1,
        directions: bool = False,
        unit_upsample_kernel: Literal[1, 3] = 3,
        score_prior: float | None = None,
        neck: Literal["none", "spp", "sppf"] = "none",
        attention: Literal["none", "se", "cbam"] = "none",
        squeeze: Squeeze = "average",
        norm_eps: float = 1e-5,
        norm_momentum: float = 0.1,
        input_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        lengths = [len(layers), len(strides), len(channels), len(upsample_channels)]
        if not layers or len(set(lengths)) > 1:
            raise ValueError(
                "layers, strides, channels and upsample_channels must name the same number of "
                f"blocks, got {lengths}"
            )
        if min(strides) < 1 or min(layers) < 0 or anchors_per_location < 1:
            raise ValueError(
                "strides and anchors_per_location must be at least 1 and layers at least 0, got "
                f"{list(strides)}, {anchors_per_location} and {list(layers)}"
            )
        if classes_per_anchor < 1 or unit_upsample_kernel not in (1, 3):
            raise ValueError(
                "classes_per_anchor must be at least 1 and unit_upsample_kernel 1 or 3, got "
                f"{classes_per_anchor} and {unit_upsample_kernel}"
            )
        if score_prior is not None and not 0 < score_prior < 1:
            raise ValueError(f"score_prior must be in (0, 1), got {score_prior}")
        if neck not in ("none", "spp", "sppf") or attention not in ("none", "se", "cbam"):
            raise ValueError(
                "neck must be none, spp or sppf and attention none, se or cbam, got "
                f"{neck!r} and {attention!r}"
            )
        self.in_channels = in_channels
        self.anchors_per_location = anchors_per_location
        self.output_stride = int(strides[0])
        self.total_stride = math.prod(int(s) for s in strides)
        if input_size is not None:
            self.check_size(*input_size)

        def normalised(conv: nn.Module, width: int) -> list[nn.Module]:
            norm = nn.BatchNorm2d(width, eps=norm_eps, momentum=norm_momentum)
            return [conv, norm, nn.ReLU(inplace=True)]

        self.blocks = nn.ModuleList()
        self.upsamples = nn.ModuleList()
        before, scale = in_channels, 1
        for index, (count, stride, width, up) in enumerate(
            zip(layers, strides, channels, upsample_channels, strict=True)
        ):
            block = normalised(nn.Conv2d(before, width, 3, stride, 1, bias=False), width)
            for _ in range(count):
                block += normalised(nn.Conv2d(width, width, 3, 1, 1, bias=False), width)
            self.blocks.append(nn.Sequential(*block))
            scale *= 1 if index == 0 else int(stride)
            unit = unit_upsample_kernel
            kernel, padding = (unit, unit // 2) if scale == 1 else (scale, 0)
            self.upsamples.append(
                nn.Sequential(
                    *normalised(
                        nn.ConvTranspose2d(width, up, kernel, scale, padding, bias=False), up
                    )
                )
            )
            before = width
        total = sum(upsample_channels)
        self.score_head = nn.Conv2d(total, anchors_per_location * classes_per_anchor, 1)
        self.residual_head = nn.Conv2d(total, anchors_per_location * BOX_PARAMETERS, 1)
        self.direction_head: nn.Conv2d | None = None
        if directions:
            self.direction_head = nn.Conv2d(total, anchors_per_location * DIRECTIONS, 1)
        if score_prior is not None and self.score_head.bias is not None:
            nn.init.constant_(self.score_head.bias, math.log(score_prior / (1 - score_prior)))
        # Last, so that a seed gives all other weights the same values with and without them.
        self.neck: PyramidNeck | None = None
        if neck != "none":
            self.neck = PyramidNeck(
                channels[-1], neck, norm_eps=norm_eps, norm_momentum=norm_momentum
            )
        self.attentions = nn.ModuleList()
        for width in channels if attention != "none" else ():
            reduction = max(min(16, width // 8), 1)  # a few ReLUs between might all be dead
            self.attentions.append(
                CBAM(width, reduction)
                if attention == "cbam"
                else SqueezeExcite(width, reduction, squeeze)
            )
        self.needs_occupied = attention == "se" and squeeze == "masked"

    def check_size(self, height: int, width: int) -> None:
        """Raise ValueError if a map of this size does not come back to one size in all blocks."""
        if height < 1 or width < 1 or height % self.total_stride or width % self.total_stride:
            raise ValueError(
                f"the map's height and width must be multiples of {self.total_stride} (the product "
                f"of the RPN's strides), got {height} x {width}; change the grid's range or voxel "
                "size, or the strides"
            )

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """(H, W) of the outputs for an input of (height, width)."""
        self.check_size(height, width)
        return height // self.output_stride, width // self.output_stride

    def forward(self, x: Tensor, occupied: Tensor | None = None) -> HeadMaps:
        """Predict scores, a residual and perhaps a direction for each anchor.

        Args:
            x: (B, in_channels, H, W).
            occupied: (B, H, W) bool, the cells that hold voxels; see `needs_occupied`.

        Returns:
            The maps.

        Raises:
            ValueError: if H or W is no multiple of the total stride, or ``occupied`` is missing or
                of another shape.
        """
        self.check_size(x.shape[2], x.shape[3])
        masks = self._masks(occupied)
        maps = []
        for index, (block, upsample) in enumerate(zip(self.blocks, self.upsamples, strict=True)):
            x = block(x)
            maps.append(upsample(self._refine(index, x, masks[index])))
        joined = torch.cat(maps, dim=1)
        return HeadMaps(*(head(joined) for head in self._heads()))

    def _heads(self) -> list[nn.Conv2d]:
        heads = [self.score_head, self.residual_head]
        return heads if self.direction_head is None else [*heads, self.direction_head]

    def _masks(self, occupied: Tensor | None) -> list[Tensor | None]:
        """The occupied cells at each block's resolution, where they are needed."""
        if not self.needs_occupied:
            return [None] * len(self.blocks)
        if occupied is None:
            raise ValueError("the masked squeeze needs the cells that are occupied")
        masks: list[Tensor | None] = []
        cells = occupied[:, None].float()
        for block in self.blocks:
            cells = F.max_pool2d(cells, block[0].stride)
            masks.append(cells[:, 0] > 0)
        return masks

    def _refines(self, index: int) -> bool:
        """Whether block ``index`` has a neck or attention."""
        last = index == len(self.blocks) - 1
        return len(self.attentions) > 0 or (self.neck is not None and last)

    def _refine(self, index: int, x: Tensor, mask: Tensor | None) -> Tensor:
        """What block ``index`` hands to its upsampling."""
        if self.neck is not None and index == len(self.blocks) - 1:
            x = self.neck(x)
        if len(self.attentions) == 0:
            return x
        attention = self.attentions[index]
        return attention(x) if mask is None else attention(x, mask)

    def forward_rows(
        self, rows: Tensor, reached: Reach, occupied: Tensor | None = None
    ) -> HeadMaps:
        """As `forward`, for a map that is given as the list of its distinct cells.

        A block with a neck or attention is expanded to its dense map for them and what follows.

        Args:
            rows: (R, in_channels / D), as `DenseMiddle.forward_rows` makes them.
            reached: the map (B, D, H, W); its depth belongs to the channels: channel c at depth d
                is channel ``c * D + d`` of the dense map.
            occupied: as `forward`.

        Returns:
            As `forward`, in float32 where the rows are of a half type.

        Raises:
            ValueError: as `forward`.
        """
        _, depth, height, width = reached.index.shape
        self.check_size(height, width)
        masks = self._masks(occupied)
        heads = self._heads()
        weight = torch.cat([part.weight for part in heads])[:, :, 0, 0]
        parts = list(weight.split([int(up[0].out_channels) for up in self.upsamples], dim=1))
        total: Tensor | None = None
        for index, (block, upsample, part) in enumerate(
            zip(self.blocks, self.upsamples, parts, strict=True)
        ):
            for conv, norm in zip(block[::3], block[1::3], strict=True):
                taps = reach.conv_taps(conv.weight.unflatten(1, (-1, depth)))
                stride, padding = (1, *conv.stride), (0, *conv.padding)
                kernel, depth = (depth, *conv.kernel_size), 1
                rows, reached = reach.conv_norm_relu(
                    rows, reached, taps, kernel, stride, padding, norm
                )
            if self._refines(index):
                dense = reached.expand(rows)[:, 0].permute(0, 3, 1, 2)
                dense = upsample(self._refine(index, dense, masks[index]))
                cells = _read_dense(dense, part)
            else:
                cells = _read_upsampled(rows, reached, upsample, part)
            total = cells if total is None else total + cells
        assert total is not None
        bias = torch.cat([part.bias for part in heads if part.bias is not None])
        maps = (total + bias).permute(0, 3, 1, 2)
        return HeadMaps(*maps.split([part.out_channels for part in heads], dim=1))


def _read_dense(x: Tensor, head: Tensor) -> Tensor:
    """``head`` (O, C) of a map (B, C, H, W): (B, H, W, O), in float32 for half types."""
    with torch.autocast(x.device.type, enabled=False):
        values = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        return F.conv2d(values, head[:, :, None, None]).permute(0, 2, 3, 1)


def _read_upsampled(rows: Tensor, reached: Reach, upsample: nn.Sequential, head: Tensor) -> Tensor:
    """What a block adds to the heads' output (B, H, W, O): its rows upsampled, then ``head``."""
    conv, norm = upsample[0], upsample[1]
    assert isinstance(conv, nn.ConvTranspose2d) and isinstance(norm, nn.BatchNorm2d)
    scale = int(conv.stride[0])
    if conv.kernel_size[0] != scale:  # a convolution with the kernel turned round
        taps = reach.conv_taps(conv.weight.flip(2, 3).transpose(0, 1))
        kernel = (1, *conv.kernel_size)
        rows, reached = reach.conv_norm_relu(
            rows, reached, taps, kernel, (1, 1, 1), (0, 1, 1), norm
        )
    else:  # every cell makes a square of its own
        weight = conv.weight.permute(0, 2, 3, 1).flatten(1)
        rows = reach.pointwise_norm_relu(rows, reached, weight, norm)
    values = reach.pointwise(rows.float() if rows.dtype == torch.bfloat16 else rows, head.T)
    dense = reached.expand(values.view(reached.rows, -1))[:, 0]
    batch_size, height, width, _ = dense.shape
    squares = dense.view(batch_size, height, width, scale, scale, -1).transpose(2, 3)
    return squares.reshape(batch_size, height * scale, width * scale, -1)
