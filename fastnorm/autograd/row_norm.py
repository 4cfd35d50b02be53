"""Layer, group, instance and RMS norm under autograd: saves x, mean and rstd, and (with an activation) the residual."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastnorm.autograd import double, recompute
from fastnorm.autograd.route import (
    CALLS,
    below_autograd,
    nodes_record,
    register_autograd,
    transforms_active,
    usual,
    wants_grad,
)
from fastnorm.eager import batch_norm as eager_batch
from fastnorm.eager import row_norm as eager
from fastnorm.ops import OPS

_TENSORS = 4  # arguments of row_norm_fwd that are tensors, all of them differentiable


class RowNormFunction(torch.autograd.Function):
    """The op row_norm_fwd with a gradient for y.

    The op's other arguments, the backend and `whole` come as one tuple: every single argument costs a Function time,
    and so does every result. Only with `whole` do mean and rstd come along, as in the op.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        options: tuple[Any, ...],
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        dims, groups, eps, rms, unbiased, act, leak, sub, maxv, max_leak, backend, whole = options
        y, mean, rstd = below_autograd(
            OPS[backend].row_norm_fwd, x, weight, bias, residual,
            dims, groups, eps, rms, unbiased, act, leak, sub, maxv, max_leak,
        )  # fmt: skip
        ctx.save_for_backward(x, weight, bias, residual if act else None, mean, rstd)
        ctx.options = options
        if not whole:
            return y
        ctx.mark_non_differentiable(mean, rstd)
        ctx.set_materialize_grads(False)
        return y, mean, rstd

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return None, None, None, None, None
        x, weight, bias, residual, mean, rstd = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, needs_residual, _ = ctx.needs_input_grad
        dims, groups, eps, rms, unbiased, *act, backend, _ = ctx.options
        # Without an activation the residual's gradient is dy itself, and the residual was not saved.
        through = act[0] and needs_residual
        dx = dweight = dbias = dresidual = None
        if torch.is_grad_enabled():
            needed = (needs_x, needs_weight, needs_bias, through)
            found = double.row_norm(needed, dy, x, weight, bias, residual, dims, groups, eps, rms, unbiased, *act)
            dx, dweight, dbias, dresidual = double.spread(found, needed)
        elif needs_x or needs_weight or needs_bias or through:
            # The op sums a gradient for every parameter it is given: it gets those that something depends on.
            dx, dweight, dbias, dresidual = below_autograd(
                OPS[backend].row_norm_bwd, dy, x,
                weight if needs_weight or needs_x or act[0] else None,
                bias if needs_bias or act[0] else None,
                residual, mean, rstd, dims, groups, rms, unbiased, needs_x, *act,
            )  # fmt: skip
        return (
            dx if needs_x else None,
            dweight if needs_weight else None,
            dbias if needs_bias else None,
            (dresidual if through else dy) if needs_residual else None,
            None,
        )


def usual_row_norm(
    x: Tensor,
    normalized_shape: Sequence[int] | None,
    num_groups: int | None,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float | None,
    rms: bool,
    unbiased: bool,
    act: tuple[bool, float | None, float | None, float | None, float | None],
    backend: str | None,
) -> Tensor | None:
    """y of unchecked arguments, if they are right and the call is a usual one; else None, and nothing was done.

    With neither a shape nor groups each position is normalised by itself. The checks are made in C++: in Python they
    take a tiny tensor longer than its kernel.
    """
    if not usual(backend):
        return None
    y: Tensor | None = CALLS.row_norm(  # type: ignore[union-attr]
        x, normalized_shape, num_groups, weight, bias, residual, eps, rms, unbiased, act
    )
    return y


def row_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    dims: int,
    groups: int,
    eps: float,
    rms: bool,
    unbiased: bool,
    backend: str,
    act: tuple[bool, float | None, float | None, float | None, float | None],
) -> Tensor:
    if transforms_active():
        return eager.row_norm(x, weight, bias, residual, dims, groups, eps, rms, unbiased, *act)
    options = (dims, groups, eps, rms, unbiased, *act)
    if nodes_record():
        y: Tensor = OPS[backend].row_norm_fwd(x, weight, bias, residual, *options)[0]
    elif wants_grad(x, weight, bias, residual):
        y = RowNormFunction.apply(x, weight, bias, residual, (*options, backend, False))
    else:
        y = below_autograd(OPS[backend].row_norm_fwd, x, weight, bias, residual, *options)[0]
    if residual is None and recompute.wanted() and y.requires_grad:
        again = (x, weight, bias, None, *options)
        recompute.remember(y, lambda: below_autograd(OPS[backend].row_norm_fwd, *again)[0], (x, weight, bias))
    return y


def move_running_instances(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    factor: Tensor | None,
) -> None:
    """Running statistics of instance norm: lerped to the average over the batch of each sample's own (R7)."""
    if x.numel() == 0:
        return
    mean, var = eager.instance_statistics(x.detach())
    n = x.numel() // mean.numel()
    eager_batch.move_running(running_mean, running_var, mean.mean(0), var.mean(0), n, momentum, factor)


def _apply(backend: str, *args: Any) -> Any:
    return RowNormFunction.apply(*args[:_TENSORS], (*args[_TENSORS:], backend, True))


register_autograd("row_norm_fwd", _apply, differentiable=_TENSORS)
