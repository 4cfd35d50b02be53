"""Batch norm under autograd: saves x, the per-channel vectors and (with an activation) the residual, nothing else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastnorm.autograd.route import differentiable_grads, transforms_active, wants_grad
from fastnorm.eager import batch_norm as eager
from fastnorm.ops import OPS


class BatchNormFunction(torch.autograd.Function):
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
        training: bool,
        momentum: float,
        eps: float,
        unbiased: bool,
        detach_stats: bool,
        backend: str,
        act: bool,
        *activation: float | None,
    ) -> Tensor:
        y, mean, rstd = OPS[backend].batch_norm_fwd(
            x, weight, bias, residual, running_mean, running_var, factor,
            training, momentum, eps, unbiased, act, *activation,
        )  # fmt: skip
        ctx.save_for_backward(x, weight, bias, residual if act else None, mean, rstd)
        ctx.training = training
        ctx.options = (eps, unbiased, detach_stats)
        ctx.act = (act, *activation)
        ctx.backend = backend
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, residual, mean, rstd = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, needs_residual = ctx.needs_input_grad[:4]
        (eps, unbiased, detach_stats), act = ctx.options, ctx.act
        # Without an activation the residual's gradient is dy itself, and the residual was not saved.
        through = act[0] and needs_residual
        if torch.is_grad_enabled():
            fixed = None if ctx.training else (mean, rstd)
            dx, dweight, dbias, dresidual = differentiable_grads(
                lambda *inputs: eager.batch_norm(*inputs, fixed, eps, unbiased, detach_stats, *act),
                [x, weight, bias, residual],
                [needs_x, needs_weight, needs_bias, through],
                dy,
            )
        else:
            dx, dweight, dbias, dresidual = OPS[ctx.backend].batch_norm_bwd(
                dy, x, weight, bias, residual, mean, rstd,
                ctx.training and not detach_stats, unbiased, needs_x, *act,
            )  # fmt: skip
        if needs_residual and not through:
            dresidual = dy
        needed = zip((dx, dweight, dbias, dresidual), ctx.needs_input_grad[:4], strict=True)
        return *(grad if need else None for grad, need in needed), *([None] * 15)


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
    state = (running_mean, running_var, factor, training, momentum, eps, unbiased)
    if transforms_active():
        return _through_reference(x, weight, bias, residual, *state, detach_stats, act)
    if wants_grad(x, weight, bias, residual):
        y = BatchNormFunction.apply(x, weight, bias, residual, *state, detach_stats, backend, *act)
    else:
        y, _, _ = OPS[backend].batch_norm_fwd(x, weight, bias, residual, *state, *act)
    if training and running_mean is not None and not torch.compiler.is_compiling():
        # The op wrote the buffers behind autograd's back: whoever saved them for a backward must be told.
        torch.autograd.graph.increment_version([t for t in (running_mean, running_var) if t is not None])
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
    act: tuple[bool, float | None, float | None, float | None, float | None],
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
            lerp = momentum if factor is None else factor.to(mean.dtype)
            eager.update_running(running_mean, mean, lerp)
            eager.update_running(running_var, var * (n / max(n - 1, 1)), lerp)
    return eager.batch_norm(x, weight, bias, residual, fixed, eps, unbiased, detach_stats, *act)
