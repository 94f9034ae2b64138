"""BatchNorm by the statistics of all processes that train together.

torch's own needs CUDA and knows neither packed rows nor rows that stand for many cells.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
import torch.distributed
from torch import Tensor, nn

from voxelpool.nn.vfe import PackedBatchNorm

Norm: TypeAlias = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


def total(values: Tensor) -> Tensor:
    """The sum of what each process gives, the same in all of them."""
    values = values.clone()
    torch.distributed.all_reduce(values)
    return values


class _Synced(nn.Module):
    """What makes a BatchNorm a shared one; alone, or in evaluation, it is what it was."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise over all but the second dimension; same shape and dtype as the input."""
        if not is_shared(self):
            return super().forward(input)
        return _normalise(self, input)  # type: ignore[arg-type]


class SyncedBatchNorm1d(_Synced, nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d`, shared."""


class SyncedBatchNorm2d(_Synced, nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d`, shared."""


class SyncedBatchNorm3d(_Synced, nn.BatchNorm3d):
    """`torch.nn.BatchNorm3d`, shared."""


class SyncedPackedBatchNorm(_Synced, PackedBatchNorm):
    """`PackedBatchNorm`, shared: it wants two rows in all processes together."""


_SYNCED: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: SyncedBatchNorm1d,
    nn.BatchNorm2d: SyncedBatchNorm2d,
    nn.BatchNorm3d: SyncedBatchNorm3d,
    PackedBatchNorm: SyncedPackedBatchNorm,
}


def synchronise_norms(network: nn.Module) -> None:
    """Makes every BatchNorm of a network take the statistics of all processes, in training.

    The network, its weights and their names stay as they are. Where a process group of more than
    one process is there in training, each pass of a layer then waits for all processes, forward
    and backward: all must run the same layers in the same order.
    """
    for module in network.modules():
        module.__class__ = _SYNCED.get(type(module), type(module))


def is_shared(norm: nn.Module) -> bool:
    """Whether a layer takes the statistics of more processes than its own now."""
    return (
        isinstance(norm, _Synced)
        and norm.training
        and torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    )


def track(
    norm: Norm, mean: Tensor, variance: Tensor, count: Tensor, live: Tensor | None = None
) -> None:
    """Brings the running statistics up to date with a batch.

    Args:
        norm: the layer.
        mean: (C,).
        variance: (C,), biased.
        count: of what they are the statistics, a scalar.
        live: a scalar, 0 leaves them as they are.
    """
    if not norm.track_running_stats or norm.running_mean is None:
        return
    assert norm.running_var is not None and norm.num_batches_tracked is not None
    norm.num_batches_tracked += 1 if live is None else live.long()
    newest: Any = norm.momentum
    if newest is None:
        newest = 1 / float(norm.num_batches_tracked)
    if live is not None:
        newest = newest * live.to(norm.running_mean.dtype)
    unbiased = variance * (count / (count - 1).clamp(min=1)).to(variance.dtype)
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), newest)
    norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), newest)


def _normalise(norm: Norm, input: Tensor) -> Tensor:
    """BatchNorm of (N, C, ...) by the statistics of all processes.

    Fewer than two values a channel in all of them are normalised by the running statistics, which
    they leave unchanged.
    """
    values = input if input.dtype in (torch.float32, torch.float64) else input.float()
    out, mean, variance, count = _SharedNorm.apply(
        values, norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps
    )
    track(norm, mean, variance, count, live=count >= 2)
    return out.to(input.dtype)


class _SharedNorm(torch.autograd.Function):
    """`_normalise`; returns the mean, the (biased) variance and the count as well."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dims = [0, *range(2, input.ndim)]
        channels = input.shape[1]
        own = input.numel() // channels
        if own:
            variance, mean = torch.var_mean(input, dims, correction=0)
        else:
            variance = mean = input.new_zeros(channels)
        count, mean, variance = _merge(own, mean, variance)
        live = count >= 2
        mean = torch.where(live, mean, running_mean.to(mean))
        variance = torch.where(live, variance, running_var.to(variance))
        inverse = torch.rsqrt(variance + eps)
        scale = inverse * weight
        out = torch.addcmul(_along(bias - mean * scale, input), input, _along(scale, input))
        ctx.save_for_backward(input, weight, mean, inverse, count)
        ctx.mark_non_differentiable(mean, variance, count)
        return out, mean, variance, count

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, grad: Tensor, _mean: Tensor, _variance: Tensor, _count: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        input, weight, mean, inverse, count = ctx.saved_tensors
        dims = [0, *range(2, input.ndim)]
        normal = (input - _along(mean, input)) * _along(inverse, input)
        to_bias, to_weight = grad.sum(dims), (grad * normal).sum(dims)
        sums = total(torch.stack([to_bias, to_weight]))
        sums = torch.where(count >= 2, sums / count.clamp_min(1).to(sums), 0.0)
        inner = grad - _along(sums[0], input) - normal * _along(sums[1], input)
        return inner * _along(weight * inverse, input), to_weight, to_bias, None, None, None


def _merge(count: int, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and variance of the values of all processes, from each one's (Chan et al.)."""
    own = torch.cat([mean.new_tensor([count]), mean, variance]).double()
    parts = own.new_empty(torch.distributed.get_world_size(), len(own))
    torch.distributed.all_gather(list(parts.unbind()), own)
    counts, means, variances = parts.split([1, len(mean), len(mean)], dim=1)
    everywhere = counts.sum()
    share = counts / everywhere.clamp_min(1)
    merged = (share * means).sum(0)
    spread = (share * (variances + (means - merged).square())).sum(0)
    return everywhere, merged.to(mean), spread.to(variance)


def _along(channels: Tensor, like: Tensor) -> Tensor:
    return channels.view(-1, *[1] * (like.ndim - 2))
