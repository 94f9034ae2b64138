"""Registration of the ops with ``torch.library``: autograd, compilation and export know them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from voxelpool.ops import _native

_LIBRARY = torch.library.Library("voxelpool", "FRAGMENT")

Implementation = Callable[..., Any]


def register(
    schema: str,
    *,
    native: Implementation,
    reference: Implementation,
    fake: Implementation,
    backward: Implementation | None = None,
    setup_context: Implementation | None = None,
) -> torch._ops.OpOverload:
    """Defines ``voxelpool::<schema>`` and returns the op.

    Args:
        schema: name and signature; sizes are SymInt, and nothing is mutated. The first argument is
            a tensor, and its device decides which implementation runs.
        native: calls the compiled kernels; runs on CPU and CUDA where they can.
        reference: pure PyTorch; runs everywhere else.
        fake: shapes and dtypes of the results without data.
        backward: as ``torch.library.register_autograd`` takes it; None for an op without gradients.
        setup_context: what ``backward`` needs is saved here.
    """
    name = schema.split("(", 1)[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))

    def choose(first: Tensor, *arguments: Any) -> Any:
        run = native if _native.usable(first.device) else reference
        return run(first, *arguments)

    _LIBRARY.impl(name, choose, "CPU")
    _LIBRARY.impl(name, choose, "CUDA")
    _LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"voxelpool::{name}", fake, lib=_LIBRARY)
    if backward is not None:
        torch.library.register_autograd(
            f"voxelpool::{name}", backward, setup_context=setup_context, lib=_LIBRARY
        )
    return getattr(torch.ops.voxelpool, name).default
