"""Batch norm forward: statistics, then one pass that normalises, adds the residual and activates.

Large tensors take three launches: partial statistics from a grid sized by the number of SMs, their merge per
channel, the apply pass. A channel that fits in one program's registers is read once, in one launch; so is
evaluation mode. Formulas: docs/math.md N1-N4.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .batch_norm_plans import BatchNormPlan, plan_for
from .batch_norm_stats import batch_norm_stats_finish_kernel, batch_norm_stats_kernel, store_statistics
from .batch_norm_tiles import (
    SIZES,
    channel_numbers,
    finite_or_zero,
    held_offsets,
    inside,
    inverse_sqrt,
    load_channels,
    normalized,
    program_tile,
    steps_in_tile,
    tile_start,
)
from .general_relu import activate, rounded_for


@triton.jit
def store_output(
    x, mean, rstd, weight_ptr, bias_ptr, residual_ptr, y_ptr, c, C, offsets, mask, leak, sub, maxv, max_leak,
    ACT: tl.constexpr,
):  # fmt: skip
    """y of a tile x of the channels c."""
    ACC: tl.constexpr = x.dtype
    scale = load_channels(weight_ptr, c, C, 1.0, ACC) * rstd
    bias = load_channels(bias_ptr, c, C, 0.0, ACC)
    residual = None
    if residual_ptr is not None:
        residual = tl.load(residual_ptr + offsets, mask=mask, other=0.0).to(ACC)
    y = normalized(x, mean, scale, bias, residual)
    if ACT:
        y = activate(y, leak, sub, maxv, max_leak)
    tl.store(y_ptr + offsets, rounded_for(y, y_ptr), mask=mask)


@triton.jit(do_not_specialize=SIZES)
def batch_norm_fwd_held_kernel(
    x_ptr, weight_ptr, bias_ptr, residual_ptr, y_ptr, mean_ptr, rstd_ptr,
    running_mean_ptr, running_var_ptr, factor_ptr,
    N, channels, size, momentum, eps, leak, sub, maxv, max_leak,
    UNBIASED: tl.constexpr, ACT: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    C_VEC: tl.constexpr, S_VEC: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """One program per block of channels, which it holds in registers from statistics to output."""
    ACC: tl.constexpr = mean_ptr.dtype.element_ty
    C = channels.to(tl.int64) * C_VEC
    S = size.to(tl.int64) * S_VEC
    c = channel_numbers(tl.program_id(0), BLOCK_C)
    offsets = held_offsets(c, C, S, BLOCK_S, CHANNELS_LAST)
    values = N * S
    count = values.to(ACC)
    valid = tl.arange(0, BLOCK_S)[None, :] < values
    mask = (c < C)[:, None] & valid
    x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(ACC)

    rough = finite_or_zero(tl.sum(x, axis=1) / count)
    # A sum of values far from 0 is off by ulps of the mean: the deviations from it are summed again.
    mean = rough + tl.sum(tl.where(valid, x - rough[:, None], 0.0), axis=1) / count
    deviation = tl.where(valid, x - mean[:, None], 0.0)
    m2 = tl.sum(deviation * deviation, axis=1)
    rstd = store_statistics(
        mean, m2, count, c, C, mean_ptr, rstd_ptr, running_mean_ptr, running_var_ptr, factor_ptr,
        momentum, eps, UNBIASED,
    )  # fmt: skip

    store_output(
        x, mean, rstd, weight_ptr, bias_ptr, residual_ptr, y_ptr, c, C, offsets, mask, leak, sub, maxv, max_leak, ACT
    )


@triton.jit(do_not_specialize=SIZES)
def batch_norm_apply_kernel(
    x_ptr, weight_ptr, bias_ptr, residual_ptr, y_ptr, mean_ptr, rstd_ptr, running_mean_ptr, running_var_ptr,
    channels, size, c_blocks, s_blocks, eps, leak, sub, maxv, max_leak,
    ACT: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    C_VEC: tl.constexpr, S_VEC: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """One program per tile. Given running statistics (evaluation mode), it takes mean and rstd from them."""
    ACC: tl.constexpr = mean_ptr.dtype.element_ty
    C = channels.to(tl.int64) * C_VEC
    S = size.to(tl.int64) * S_VEC
    block, tile = program_tile(c_blocks, s_blocks, CHANNELS_LAST)
    c = channel_numbers(block, BLOCK_C)
    start, left = tile_start(block, tile, s_blocks, C, S, BLOCK_C, BLOCK_S, CHANNELS_LAST)
    offsets = start + steps_in_tile(C, S, BLOCK_C, BLOCK_S, CHANNELS_LAST)
    mask = inside(c < C, left, BLOCK_S)
    x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(ACC)

    if running_mean_ptr is None:
        mean = load_channels(mean_ptr, c, C, 0.0, ACC)
        rstd = load_channels(rstd_ptr, c, C, 0.0, ACC)
    else:
        mean = load_channels(running_mean_ptr, c, C, 0.0, ACC)
        rstd = inverse_sqrt(load_channels(running_var_ptr, c, C, 0.0, ACC) + tl.full([], eps, ACC))
        if tile == 0:
            tl.store(mean_ptr + c, mean, mask=c < C)
            tl.store(rstd_ptr + c, rstd, mask=c < C)
    store_output(
        x, mean, rstd, weight_ptr, bias_ptr, residual_ptr, y_ptr, c, C, offsets, mask, leak, sub, maxv, max_leak, ACT
    )


def batch_norm_fwd(
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
    act: bool,
    leak: float | None,
    sub: float | None,
    maxv: float | None,
    max_leak: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """y = act((x - mean) * rstd * weight + bias + residual), with the batch's or the running statistics.

    Args:
        x, residual: [N, C, *], fp64, fp32, bf16 or fp16. Contiguous and dense channels_last are read as
            they lie; other strides, and a residual in another layout, are copied first.
        weight, bias, running_mean, running_var: [C] of any of these dtypes and any stride.
        factor: 0-d tensor on x's device that replaces momentum, read by the kernel.
        training: take the batch's statistics and move the running ones in place.
        unbiased: normalise with the variance over n - 1.

    Returns:
        y, like x (channels_last stays); mean and rstd [C] in fp32 (fp64 for fp64 x).
    """
    layout = launch.memory_format(x)
    x = x.contiguous(memory_format=layout)
    residual = None if residual is None else residual.contiguous(memory_format=layout)
    y = torch.empty_like(x, memory_format=layout)
    mean = x.new_empty(x.shape[1], dtype=launch.acc_dtype(x))
    rstd = torch.empty_like(mean)
    if x.numel() == 0:
        return y, mean.zero_(), rstd.zero_()
    view = launch.view_of(x, layout)
    tensors = x, launch.dense(weight), launch.dense(bias), residual, y, mean, rstd
    activation = launch.scalars(x.dtype, *((leak, sub, maxv, max_leak) if act else [None] * 4))
    running = launch.dense(running_mean), launch.dense(running_var)
    with launch.device_guard(x):
        if training:
            normalize_by_batch(tensors, (*running, factor), view, momentum, eps, unbiased, act, activation)
            for buffer, moved in zip((running_mean, running_var), running, strict=True):
                if buffer is not None and moved is not None and not buffer.is_contiguous():
                    buffer.copy_(moved)
        else:
            plan = plan_for(x, view, launch.ELEMENTWISE)
            apply(tensors, running, view, plan, eps, act, activation)
    return y, mean, rstd


def normalize_by_batch(
    tensors: tuple[Tensor | None, ...],
    running: tuple[Tensor | None, ...],
    view: launch.View,
    momentum: float,
    eps: float,
    unbiased: bool,
    act: bool,
    activation: list[launch.Scalar],
) -> None:
    """Training: one launch where a program holds its channels, else partial statistics, their merge, y."""
    x, _, _, _, _, mean, rstd = tensors
    assert x is not None and mean is not None
    plan = plan_for(x, view, launch.FORWARD)
    channels, size = view.c // plan.c_vec, view.s // plan.s_vec
    momentum_eps = launch.scalars(x.dtype, momentum, eps)
    if plan.held:
        batch_norm_fwd_held_kernel[(plan.c_blocks,)](
            *tensors, *running, view.n, channels, size, *momentum_eps, *activation,
            UNBIASED=unbiased, ACT=act, CHANNELS_LAST=view.channels_last, **plan.tile_arguments,
        )  # fmt: skip
        return
    partials = mean.new_empty((4, plan.splits, view.c))
    batch_norm_stats_kernel[plan.reduce_grid](
        x, partials, plan.tiles, channels, size, plan.s_blocks,
        CHANNELS_LAST=view.channels_last, EVEN_S=plan.even_s, **plan.reduce_arguments,
    )  # fmt: skip
    batch_norm_stats_finish_kernel[plan.finish_grid](
        partials, mean, rstd, *running, plan.splits, view.c, view.n * view.s, *momentum_eps,
        UNBIASED=unbiased, **plan.finish_arguments,
    )  # fmt: skip
    apply(tensors, (None, None), view, plan, eps, act, activation)


def apply(
    tensors: tuple[Tensor | None, ...],
    running: tuple[Tensor | None, ...],
    view: launch.View,
    plan: BatchNormPlan,
    eps: float,
    act: bool,
    activation: list[launch.Scalar],
) -> None:
    x = tensors[0]
    assert x is not None
    batch_norm_apply_kernel[plan.apply_grid](
        *tensors, *running, view.c // plan.c_vec, view.s // plan.s_vec, plan.c_blocks, plan.s_blocks,
        *launch.scalars(x.dtype, eps), *activation,
        ACT=act, CHANNELS_LAST=view.channels_last, **plan.tile_arguments,
    )  # fmt: skip
