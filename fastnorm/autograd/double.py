"""Gradients that can themselves be differentiated: what backward does where a graph is built of it.

Plain functions for the Functions of this package, and ops of the same names for the compiled nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastnorm.eager import batch_norm as eager_batch
from fastnorm.eager import general_relu as eager_relu
from fastnorm.eager import row_norm as eager_row
from fastnorm.ops.schemas import ACTIVATION

_libraries: list[torch.library.Library] = []  # a Library unregisters its ops when it is collected


def _grads(
    reference: Callable[..., Tensor], inputs: Sequence[Tensor | None], needed: Sequence[bool], dy: Tensor
) -> list[Tensor]:
    """Gradients of reference(*inputs) with respect to the inputs that are needed, differentiable in inputs and dy.

    Each input enters through a view of its own, so that one tensor passed twice gets its two gradients apart.
    """
    with torch.enable_grad():
        leaves = [t.view_as(t) if t is not None and need else t for t, need in zip(inputs, needed, strict=True)]
        wanted = [t for t, need in zip(leaves, needed, strict=True) if t is not None and need]
        if not wanted:
            return []
        return list(torch.autograd.grad(reference(*leaves), wanted, dy, create_graph=True, materialize_grads=True))


def spread(found: Sequence[Tensor], needed: Sequence[bool]) -> list[Tensor | None]:
    """The gradients found in the places of those needed, None in the others."""
    grads = iter(found)
    return [next(grads) if need else None for need in needed]


def general_relu(dy: Tensor, x: Tensor, *act: Any) -> Tensor:
    return _grads(lambda x: eager_relu.general_relu(x, *act), [x], [True], dy)[0]


def batch_norm(
    needed: Sequence[bool],
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    training: bool,
    eps: float,
    unbiased: bool,
    detach_stats: bool,
    *act: Any,
) -> list[Tensor]:
    """Those of dx, dweight, dbias, dresidual that are needed. mean, rstd: constants where statistics are fixed."""
    fixed = None if training else (mean, rstd)
    return _grads(
        lambda x, w, b, r: eager_batch.batch_norm(x, w, b, r, fixed, eps, unbiased, detach_stats, *act),
        [x, weight, bias, residual],
        needed,
        dy,
    )


def row_norm(
    needed: Sequence[bool],
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    dims: int,
    groups: int,
    eps: float,
    rms: bool,
    unbiased: bool,
    *act: Any,
) -> list[Tensor]:
    """Those of dx, dweight, dbias, dresidual that are needed."""
    return _grads(
        lambda x, w, b, r: eager_row.row_norm(x, w, b, r, dims, groups, eps, rms, unbiased, *act),
        [x, weight, bias, residual],
        needed,
        dy,
    )


_NORM = "bool[4] needed, Tensor dy, Tensor x, Tensor? weight, Tensor? bias, Tensor? residual"
_SCHEMAS = {
    f"general_relu(Tensor dy, Tensor x, {ACTIVATION}) -> Tensor": general_relu,
    f"batch_norm({_NORM}, Tensor mean, Tensor rstd, bool training, float eps, bool unbiased, bool detach_stats, "
    f"bool act, {ACTIVATION}) -> Tensor[]": batch_norm,
    f"row_norm({_NORM}, int dims, int groups, float eps, bool rms, bool unbiased, "
    f"bool act, {ACTIVATION}) -> Tensor[]": row_norm,
}


def _register() -> None:
    library = torch.library.Library("fastnorm_double", "DEF")
    _libraries.append(library)
    for schema, function in _SCHEMAS.items():
        name = library.define(schema)
        library.impl(name or schema.partition("(")[0], function, "CompositeImplicitAutograd")


_register()
