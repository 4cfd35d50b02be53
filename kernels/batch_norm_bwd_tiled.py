"""The kernels of batch norm's backward where channels do not fit in one program: sums, their merge, dx."""

from __future__ import annotations

import triton
import triton.language as tl

from .batch_norm_tiles import (
    SIZES,
    channel_numbers,
    input_grad,
    inside,
    load_channels,
    load_dz,
    load_numbers,
    program_tile,
    steps_in_tile,
    tile_start,
)
from .general_relu import rounded_for


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
    mean, rstd, scale, bias = load_numbers(mean_ptr, rstd_ptr, weight_ptr, bias_ptr, c, C, ACC)

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
    mean, rstd, scale, bias = load_numbers(mean_ptr, rstd_ptr, weight_ptr, bias_ptr, c, C, ACC)
    mean_dz = load_channels(averages_ptr, c, C, 0.0, ACC)
    mean_dz_x_hat = load_channels(averages_ptr + C, c, C, 0.0, ACC)

    x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(ACC)
    dz = load_dz(dy_ptr, residual_ptr, x, mean, scale, bias, offsets, mask, leak, sub, maxv, max_leak, ACT, ACC)
    dx = input_grad(dz, x, mean, rstd, scale, mean_dz, mean_dz_x_hat)
    tl.store(dx_ptr + offsets, rounded_for(dx, dx_ptr), mask=mask)
