"""Batch norm under autograd: saves x, the per-channel vectors and (with an activation) the residual, nothing else."""

from __future__ import annotations

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
from fastnorm.eager import batch_norm as eager
from fastnorm.ops import OPS

_NO_GRADS = (None,) * 4  # of the arguments behind x, weight, bias and residual
_TENSORS = 7  # arguments of batch_norm_fwd that are tensors


class BatchNormFunction(torch.autograd.Function):
    """The op batch_norm_fwd with a gradient for y.

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
        running_mean: Tensor | None,
        running_var: Tensor | None,
        factor: Tensor | None,
        options: tuple[Any, ...],
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        training, momentum, eps, unbiased, detach_stats, act, leak, sub, maxv, max_leak, backend, whole = options
        y, mean, rstd = below_autograd(
            OPS[backend].batch_norm_fwd, x, weight, bias, residual, running_mean, running_var, factor,
            training, momentum, eps, unbiased, detach_stats, act, leak, sub, maxv, max_leak,
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
            return (None,) * 4 + _NO_GRADS
        x, weight, bias, residual, mean, rstd = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, needs_residual = ctx.needs_input_grad[:4]
        training, _, eps, unbiased, detach_stats, *act, backend, _ = ctx.options
        # Without an activation the residual's gradient is dy itself, and the residual was not saved.
        through = act[0] and needs_residual
        if torch.is_grad_enabled():
            needed = (needs_x, needs_weight, needs_bias, through)
            found = double.batch_norm(
                needed, dy, x, weight, bias, residual, mean, rstd, training, eps, unbiased, detach_stats, *act
            )
            dx, dweight, dbias, dresidual = double.spread(found, needed)
        else:
            dx, dweight, dbias, dresidual = below_autograd(
                OPS[backend].batch_norm_bwd, dy, x, weight, bias, residual, mean, rstd,
                training and not detach_stats, unbiased, needs_x, *act,
            )  # fmt: skip
        return (
            dx if needs_x else None,
            dweight if needs_weight else None,
            dbias if needs_bias else None,
            (dresidual if through else dy) if needs_residual else None,
            *_NO_GRADS,
        )


def usual_batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    training: bool,
    momentum: float | Tensor,
    eps: float,
    unbiased: bool,
    detach_stats: bool,
    act: tuple[bool, float | None, float | None, float | None, float | None],
    backend: str | None,
) -> Tensor | None:
    """y of unchecked arguments, if they are right and the call is a usual one; else None, and nothing was done."""
    if not usual(backend):
        return None
    y: Tensor | None = CALLS.batch_norm(  # type: ignore[union-attr]
        x, running_mean, running_var, weight, bias, residual, training, momentum, eps, unbiased, detach_stats, act
    )
    return y


def batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    factor: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    unbiased: bool,
    detach_stats: bool,
    backend: str,
    act: tuple[bool, float | None, float | None, float | None, float | None],
) -> Tensor:
    tensors = (x, weight, bias, residual, running_mean, running_var, factor)
    options: tuple[Any, ...] = (training, momentum, eps, unbiased, detach_stats, *act)
    if transforms_active():
        return _through_reference(*tensors, *options)
    if nodes_record():
        y: Tensor = OPS[backend].batch_norm_fwd(*tensors, *options)[0]
    else:
        y = _recorded_here(tensors, options, backend)
    if recompute.wanted() and training and residual is None and y.requires_grad:
        again = (x, weight, bias, None, None, None, None, *options)  # the running statistics have moved already
        recompute.remember(y, lambda: below_autograd(OPS[backend].batch_norm_fwd, *again)[0], (x, weight, bias))
    return y


def _recorded_here(tensors: tuple[Tensor | None, ...], options: tuple[Any, ...], backend: str) -> Tensor:
    x, weight, bias, residual, running_mean, running_var, _ = tensors
    if wants_grad(x, weight, bias, residual):
        y: Tensor = BatchNormFunction.apply(*tensors, (*options, backend, False))
    else:
        y = below_autograd(OPS[backend].batch_norm_fwd, *tensors, *options)[0]
    training = options[0]
    if training and running_mean is not None and not torch.compiler.is_compiling():
        # The op wrote the buffers behind autograd's back: whoever saved them for a backward must be told.
        torch.autograd.graph.increment_version([running_mean, running_var])  # type: ignore[list-item]
    return y


def _through_reference(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    factor: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    unbiased: bool,
    detach_stats: bool,
    *act: Any,
) -> Tensor:
    fixed = None
    if not training:
        assert running_mean is not None and running_var is not None
        acc = eager.acc_dtype(x)
        fixed = running_mean.to(acc), torch.rsqrt(running_var.to(acc) + eps)
    elif running_mean is not None or running_var is not None:
        with torch.no_grad():
            mean, var = eager.batch_statistics(x.detach())
            n = eager.elements_per_channel(x)
            eager.move_running(running_mean, running_var, mean, var, n, momentum, factor)
    return eager.batch_norm(x, weight, bias, residual, fixed, eps, unbiased, detach_stats, *act)


def _apply(backend: str, *args: Any) -> Any:
    return BatchNormFunction.apply(*args[:_TENSORS], (*args[_TENSORS:], backend, True))


register_autograd("batch_norm_fwd", _apply, differentiable=4)
