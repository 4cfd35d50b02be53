"""Batch norm backward: the two sums of every channel in two stages, then one pass for dx.

Nothing is kept from the forward but mean and rstd: dz = dy * act'(z) recomputes z from x with the forward's
own arithmetic. Evaluation mode needs no sums for dx and takes one pass; a channel that fits in registers, one
launch. Formulas: docs/math.md N5, N6.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .batch_norm_plans import plan_for
from .batch_norm_tiles import (
    SIZES,
    channel_numbers,
    held_offsets,
    inside,
    load_channels,
    normalized,
    program_tile,
    steps_in_tile,
    tile_start,
)
from .general_relu import activate_grad, rounded_for


@triton.jit
def load_dz(
    dy_ptr, residual_ptr, x, mean, scale, bias, offsets, mask, leak, sub, maxv, max_leak,
    ACT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """dy times the activation's slope at z, 0 in masked lanes."""
    dz = tl.load(dy_ptr + offsets, mask=mask, other=0.0).to(ACC)
    if ACT:
        residual = None
        if residual_ptr is not None:
            residual = tl.load(residual_ptr + offsets, mask=mask, other=0.0).to(ACC)
        dz = activate_grad(dz, normalized(x, mean, scale, bias, residual), leak, sub, maxv, max_leak)
    return dz


@triton.jit
def input_grad(dz, x, mean, rstd, scale, mean_dz, mean_dz_x_hat):
    """dx = weight * rstd * (dz - avg(dz) - x_hat * avg(dz * x_hat))."""
    x_hat = (x - mean[:, None]) * rstd[:, None]
    return scale[:, None] * tl.fma(x_hat, -mean_dz_x_hat[:, None], dz - mean_dz[:, None])


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
    mean = load_channels(mean_ptr, c, C, 0.0, ACC)
    rstd = load_channels(rstd_ptr, c, C, 0.0, ACC)
    scale = load_channels(weight_ptr, c, C, 1.0, ACC) * rstd
    bias = load_channels(bias_ptr, c, C, 0.0, ACC)

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


@triton.jit(do_not_specialize=SIZES)
def batch_norm_bwd_reduce_kernel(
    dy_ptr, x_ptr, weight_ptr, bias_ptr, residual_ptr, mean_ptr, rstd_ptr,
    partials_ptr, dx_ptr, dresidual_ptr, tiles, channels, size, s_blocks, leak, sub, maxv, max_leak,
    ACT: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    C_VEC: tl.constexpr, S_VEC: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Program (block, split) sums every splits-th tile of its channels.

    partials [2, splits, C]: dz, dz * x_hat. dz itself is stored where there is a residual, and
    dx = dz * weight * rstd where the statistics are constants.
    """
    ACC: tl.constexpr = partials_ptr.dtype.element_ty
    C = channels.to(tl.int64) * C_VEC
    S = size.to(tl.int64) * S_VEC
    block = tl.program_id(0)
    split = tl.program_id(1)
    splits = tl.num_programs(1)
    c = channel_numbers(block, BLOCK_C)
    steps = steps_in_tile(C, S, BLOCK_C, BLOCK_S, CHANNELS_LAST)
    mean = load_channels(mean_ptr, c, C, 0.0, ACC)
    rstd = load_channels(rstd_ptr, c, C, 0.0, ACC)
    scale = load_channels(weight_ptr, c, C, 1.0, ACC) * rstd
    bias = load_channels(bias_ptr, c, C, 0.0, ACC)

    sum_dz = tl.zeros([BLOCK_C, BLOCK_S], ACC)
    sum_dz_x_hat = tl.zeros([BLOCK_C, BLOCK_S], ACC)
    for tile in range(split, tiles, splits):
        start, left = tile_start(block, tile, s_blocks, C, S, BLOCK_C, BLOCK_S, CHANNELS_LAST)
        offsets = start + steps
        mask = inside(c < C, left, BLOCK_S)
        x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(ACC)
        dz = load_dz(dy_ptr, residual_ptr, x, mean, scale, bias, offsets, mask, leak, sub, maxv, max_leak, ACT, ACC)
        if dresidual_ptr is not None:
            tl.store(dresidual_ptr + offsets, rounded_for(dz, dresidual_ptr), mask=mask)
        if dx_ptr is not None:
            tl.store(dx_ptr + offsets, rounded_for(dz * scale[:, None], dx_ptr), mask=mask)
        sum_dz += dz
        sum_dz_x_hat = tl.fma(dz, (x - mean[:, None]) * rstd[:, None], sum_dz_x_hat)

    out = partials_ptr + split * C + c
    tl.store(out, tl.sum(sum_dz, axis=1), mask=c < C)
    tl.store(out + splits * C, tl.sum(sum_dz_x_hat, axis=1), mask=c < C)


@triton.jit(do_not_specialize=SIZES)
def batch_norm_bwd_finish_kernel(
    partials_ptr, dweight_ptr, dbias_ptr, averages_ptr, splits, channels, count,
    UNBIASED: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_SPLITS: tl.constexpr,
):  # fmt: skip
    """dweight, dbias and, if dx is wanted, averages [2, C]: avg(dz), avg(dz * x_hat); in a fixed order."""
    ACC: tl.constexpr = partials_ptr.dtype.element_ty
    C = channels.to(tl.int64)
    c = channel_numbers(tl.program_id(0), BLOCK_C)
    k = tl.arange(0, BLOCK_SPLITS)[None, :]
    partial = partials_ptr + k * C + c[:, None]
    mask = (c < C)[:, None] & (k < splits)
    dbias = tl.sum(tl.load(partial, mask=mask, other=0.0), axis=1)
    dweight = tl.sum(tl.load(partial + splits.to(tl.int64) * C, mask=mask, other=0.0), axis=1)
    tl.store(dweight_ptr + c, rounded_for(dweight, dweight_ptr), mask=c < C)
    tl.store(dbias_ptr + c, rounded_for(dbias, dbias_ptr), mask=c < C)
    if averages_ptr is not None:
        number = count.to(ACC)
        degrees = number - 1.0 if UNBIASED else number
        tl.store(averages_ptr + c, dbias / number, mask=c < C)
        tl.store(averages_ptr + C + c, dweight / degrees, mask=c < C)


@triton.jit(do_not_specialize=SIZES)
def batch_norm_dx_kernel(
    dy_ptr, x_ptr, weight_ptr, bias_ptr, residual_ptr, mean_ptr, rstd_ptr, averages_ptr, dx_ptr,
    channels, size, c_blocks, s_blocks, leak, sub, maxv, max_leak,
    ACT: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    C_VEC: tl.constexpr, S_VEC: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """One program per tile of dx, backwards through memory to meet what the sums left in the cache."""
    ACC: tl.constexpr = mean_ptr.dtype.element_ty
    C = channels.to(tl.int64) * C_VEC
    S = size.to(tl.int64) * S_VEC
    block, tile = program_tile(c_blocks, s_blocks, CHANNELS_LAST)
    c = channel_numbers(block, BLOCK_C)
    start, left = tile_start(block, tile, s_blocks, C, S, BLOCK_C, BLOCK_S, CHANNELS_LAST)
    offsets = start + steps_in_tile(C, S, BLOCK_C, BLOCK_S, CHANNELS_LAST)
    mask = inside(c < C, left, BLOCK_S)
    mean = load_channels(mean_ptr, c, C, 0.0, ACC)
    rstd = load_channels(rstd_ptr, c, C, 0.0, ACC)
    scale = load_channels(weight_ptr, c, C, 1.0, ACC) * rstd
    bias = load_channels(bias_ptr, c, C, 0.0, ACC)
    mean_dz = load_channels(averages_ptr, c, C, 0.0, ACC)
    mean_dz_x_hat = load_channels(averages_ptr + C, c, C, 0.0, ACC)

    x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(ACC)
    dz = load_dz(dy_ptr, residual_ptr, x, mean, scale, bias, offsets, mask, leak, sub, maxv, max_leak, ACT, ACC)
    dx = input_grad(dz, x, mean, rstd, scale, mean_dz, mean_dz_x_hat)
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
