"""Several processes that train together: what torchrun starts, and what they tell each other.

Everything here also works, and costs nothing, where there is one process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")
Numbered = TypeVar("Numbered", bound=tuple[Any, ...])


@contextmanager
def joined() -> Iterator[None]:
    """Brings together the processes that torchrun started, if it started any.

    They talk by NCCL about CUDA tensors, where there is CUDA, and by gloo about all else.
    """
    begins = dist.is_available() and dist.is_torchelastic_launched() and not dist.is_initialized()
    if not begins:
        yield
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend)
    try:
        yield
    finally:
        dist.destroy_process_group()


def size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if size() > 1 else 0


def local_size() -> int:
    """How many of the processes are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", size()))


def total(values: Tensor) -> Tensor:
    """The sum of what each process gives, the same in all of them."""
    if size() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def gathered(value: T) -> list[T]:
    """What each process gives, by its number, in all of them."""
    if size() == 1:
        return [value]
    values: list[Any] = [None] * size()
    dist.all_gather_object(values, value)
    return values


def in_order(parts: list[Numbered]) -> list[Numbered]:
    """The parts of all processes, each of which begins with its number."""
    return sorted((part for parts in gathered(parts) for part in parts), key=lambda part: part[0])


def on_first(function: Callable[[], T]) -> T:
    """Calls ``function`` in the first process alone; all get what it returns, or its error."""
    if size() == 1:
        return function()
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = function()
        except Exception as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def divisors(counts: Tensor) -> Tensor:
    """What each process divides its sums by, so that the mean over them is that of all counted."""
    whole = total(counts).clamp_min(1)
    return whole / size() if size() > 1 else whole


def average_statistics(network: nn.Module) -> None:
    """Makes the running statistics of BatchNorm their mean over the processes, in all of them."""
    if size() == 1:
        return
    buffers = [
        buffer
        for module in network.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for buffer in (module.running_mean, module.running_var)
        if buffer is not None
    ]
    if buffers:
        means = total(torch.cat([buffer.flatten() for buffer in buffers])) / size()
        for buffer, mean in zip(buffers, means.split([len(b) for b in buffers]), strict=True):
            buffer.copy_(mean)
