"""Batch norm backward: the two sums of every channel in two stages, then one pass for dx.

Nothing is kept from the forward but mean and rstd: dz = dy * act'(z) recomputes z from x with the forward's
own arithmetic. Evaluation mode needs no sums for dx and takes one pass; a channel that fits in registers, one
launch. Larger tensors: batch_norm_bwd_tiled.py. Formulas: docs/math.md N5, N6.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .batch_norm_bwd_tiled import batch_norm_bwd_finish_kernel, batch_norm_bwd_reduce_kernel, batch_norm_dx_kernel
from .batch_norm_plans import plan_for
from .batch_norm_tiles import SIZES, channel_numbers, held_offsets, input_grad, load_dz, load_numbers
from .general_relu import rounded_for


@triton.jit(do_not_specialize=SIZES)
def batch_norm_bwd_held_kernel(
    dy_ptr, x_ptr, weight_ptr, bias_ptr, residual_ptr, mean_ptr, rstd_ptr,
    dx_ptr, dweight_ptr, dbias_ptr, dresidual_ptr, N, channels, size, leak, sub, maxv, max_leak,
    BATCH_STATS: tl.constexpr, UNBIASED: tl.constexpr, ACT: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    C_VEC: tl.constexpr, S_VEC: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """One program per block of channels, which it holds in registers from sums to dx."""
    ACC: tl.constexpr = mean_ptr.dtype.element_ty
    C = channels.to(tl.int64) * C_VEC
    S = size.to(tl.int64) * S_VEC
    c = channel_numbers(tl.program_id(0), BLOCK_C)
    offsets = held_offsets(c, C, S, BLOCK_S, CHANNELS_LAST)
    values = N * S
    mask = (c < C)[:, None] & (tl.arange(0, BLOCK_S)[None, :] < values)
    mean, rstd, scale, bias = load_numbers(mean_ptr, rstd_ptr, weight_ptr, bias_ptr, c, C, ACC)

    x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(ACC)
    dz = load_dz(dy_ptr, residual_ptr, x, mean, scale, bias, offsets, mask, leak, sub, maxv, max_leak, ACT, ACC)
    if dresidual_ptr is not None:
        tl.store(dresidual_ptr + offsets, rounded_for(dz, dresidual_ptr), mask=mask)
    dbias = tl.sum(dz, axis=1)
    dweight = tl.sum(dz * ((x - mean[:, None]) * rstd[:, None]), axis=1)
    tl.store(dweight_ptr + c, rounded_for(dweight, dweight_ptr), mask=c < C)
    tl.store(dbias_ptr + c, rounded_for(dbias, dbias_ptr), mask=c < C)
    if dx_ptr is not None:
        if BATCH_STATS:
            count = values.to(ACC)
            degrees = count - 1.0 if UNBIASED else count
            dx = input_grad(dz, x, mean, rstd, scale, dbias / count, dweight / degrees)
        else:
            dx = dz * scale[:, None]
        tl.store(dx_ptr + offsets, rounded_for(dx, dx_ptr), mask=mask)


def batch_norm_bwd(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    batch_stats: bool,
    unbiased: bool,
    need_dx: bool,
    act: bool,
    leak: float | None,
    sub: float | None,
    maxv: float | None,
    max_leak: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of batch_norm_fwd. dy and residual may have any strides; neither is written.

    Args:
        dy, x, residual: [N, C, *]; mean, rstd: [C] as the forward returned them.
        weight, bias: [C], fp64, fp32, bf16 or fp16, any stride.
        batch_stats: mean and rstd depend on x (training) or are constants.
        need_dx: False leaves the last pass out.

    Returns:
        dx, in x's layout (shape [0] if not needed); dweight and dbias in the parameters' dtypes; dresidual:
        dz where there are a residual and an activation, else shape [0].
    """
    layout = launch.memory_format(x)
    x, dy = x.contiguous(memory_format=layout), dy.contiguous(memory_format=layout)
    residual = residual.contiguous(memory_format=layout) if act and residual is not None else None
    dx = torch.empty_like(x, memory_format=layout) if need_dx else x.new_empty(0)
    dresidual = x.new_empty(0) if residual is None else torch.empty_like(x, memory_format=layout)
    dweight = mean.new_empty(mean.shape, dtype=mean.dtype if weight is None else weight.dtype)
    dbias = mean.new_empty(mean.shape, dtype=mean.dtype if bias is None else bias.dtype)
    if x.numel() == 0:
        return dx, dweight.zero_(), dbias.zero_(), dresidual
    inputs = dy, x, launch.dense(weight), launch.dense(bias), residual, mean.contiguous(), rstd.contiguous()
    outputs = dx if need_dx else None, dweight, dbias, None if residual is None else dresidual
    activation = (leak, sub, maxv, max_leak) if act else (None, None, None, None)
    with launch.device_guard(x):
        differentiate(inputs, outputs, launch.view_of(x, layout), batch_stats, unbiased, act, activation)
    return dx, dweight, dbias, dresidual


def differentiate(
    inputs: tuple[Tensor | None, ...],
    outputs: tuple[Tensor | None, ...],
    view: launch.View,
    batch_stats: bool,
    unbiased: bool,
    act: bool,
    activation: tuple[float | None, ...],
) -> None:
    """One launch where a program holds its channels, else partial sums, their sum and, in training, dx."""
    dy, x, weight, bias, residual, mean, rstd = inputs
    dx, dweight, dbias, dresidual = outputs
    assert x is not None and mean is not None
    plan = plan_for(x, view, launch.BACKWARD)
    channels, size = view.c // plan.c_vec, view.s // plan.s_vec
    numbers = launch.scalars(x.dtype, *activation)
    if plan.held:
        batch_norm_bwd_held_kernel[(plan.c_blocks,)](
            *inputs, *outputs, view.n, channels, size, *numbers, BATCH_STATS=batch_stats, UNBIASED=unbiased,
            ACT=act, CHANNELS_LAST=view.channels_last, **plan.tile_arguments,
        )  # fmt: skip
        return
    partials = mean.new_empty((2, plan.splits, view.c))
    dx_by_averages = dx is not None and batch_stats
    averages = mean.new_empty((2, view.c)) if dx_by_averages else None
    batch_norm_bwd_reduce_kernel[plan.reduce_grid](
        *inputs, partials, None if batch_stats else dx, dresidual,
        plan.tiles, channels, size, plan.s_blocks, *numbers,
        ACT=act, CHANNELS_LAST=view.channels_last, **plan.reduce_arguments,
    )  # fmt: skip
    batch_norm_bwd_finish_kernel[plan.finish_grid](
        partials, dweight, dbias, averages, plan.splits, view.c, view.n * view.s,
        UNBIASED=unbiased, **plan.finish_arguments,
    )  # fmt: skip
    if not dx_by_averages:
        return
    leak, _, _, max_leak = activation
    if dresidual is not None and (x.dtype == mean.dtype or (leak is None and max_leak is None)):
        # dz was stored and lost nothing by it: read it instead of dy and the residual.
        dy, residual, act, numbers = dresidual, None, False, [None] * 4
    batch_norm_dx_kernel[plan.apply_grid](
        dy, x, weight, bias, residual, mean, rstd, averages, dx,
        channels, size, plan.c_blocks, plan.s_blocks, *numbers,
        ACT=act, CHANNELS_LAST=view.channels_last, **plan.tile_arguments,
    )  # fmt: skip
