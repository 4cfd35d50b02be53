"""Batch statistics of large tensors in two stages, and what is made of them: rstd and the running statistics.

Sums are taken of deviations from a value of the data, so that nothing cancels where the mean is far from 0,
and partial results are merged in a fixed order, without atomics. Formulas: docs/math.md N1, N2, N4.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .batch_norm_tiles import (
    SIZES,
    channel_numbers,
    finite_or_zero,
    inside,
    inverse_std,
    quotient,
    steps_in_tile,
    tile_start,
)
from .general_relu import rounded_for


@triton.jit
def lerp_in_place(ptr, stat, factor, c, C):
    """running = (1 - factor) * running + factor * stat, in the statistic's dtype, rounded to the buffer's."""
    running = tl.load(ptr + c, mask=c < C, other=0.0).to(stat.dtype)
    running = running * (1.0 - factor) + stat * factor
    tl.store(ptr + c, rounded_for(running, ptr), mask=c < C)


@triton.jit
def store_statistics(
    mean, m2, count, c, C, mean_ptr, rstd_ptr, running_mean_ptr, running_var_ptr, factor_ptr, momentum, eps,
    UNBIASED: tl.constexpr,
):  # fmt: skip
    """Writes mean, rstd and the running statistics of a block of channels; returns rstd. All [BLOCK_C]."""
    ACC: tl.constexpr = mean.dtype
    m2 = tl.where(m2 < 0, 0.0, m2)
    rstd = inverse_std(m2, count, eps, UNBIASED)
    tl.store(mean_ptr + c, mean, mask=c < C)
    tl.store(rstd_ptr + c, rstd, mask=c < C)
    if running_mean_ptr is not None or running_var_ptr is not None:
        if factor_ptr is None:
            factor = tl.full([], momentum, ACC)
        else:
            factor = tl.load(factor_ptr).to(ACC)
        if running_mean_ptr is not None:
            lerp_in_place(running_mean_ptr, mean, factor, c, C)
        if running_var_ptr is not None:
            unbiased = quotient(m2, tl.full(m2.shape, tl.where(count > 1.0, count - 1.0, 1.0), ACC))
            lerp_in_place(running_var_ptr, unbiased, factor, c, C)
    return rstd


@triton.jit
def tile_statistics(
    x_ptr, block, split, splits, tiles, s_blocks, C, S, CENTRED: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    EVEN_S: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Of every splits-th tile of a block of channels: shift, mean - shift, sum of squared deviations, count.

    The shift is the first tile's mean; without CENTRED it and the mean are 0 and the squares are x's own.
    """
    c = channel_numbers(block, BLOCK_C)
    steps = steps_in_tile(C, S, BLOCK_C, BLOCK_S, CHANNELS_LAST)
    start, left = tile_start(block, split, s_blocks, C, S, BLOCK_C, BLOCK_S, CHANNELS_LAST)
    x = tl.load(x_ptr + start + steps, mask=inside(c < C, left, BLOCK_S), other=0.0).to(ACC)
    count = tl.minimum(left, BLOCK_S)
    shift = tl.zeros([BLOCK_C], ACC)
    if CENTRED:
        shift = finite_or_zero(tl.sum(x, axis=1) / count.to(ACC))
    total = x - shift[:, None]
    if not EVEN_S:
        total = tl.where(tl.arange(0, BLOCK_S)[None, :] < left, total, 0.0)
    squares = total * total
    for tile in range(split + splits, tiles, splits):
        start, left = tile_start(block, tile, s_blocks, C, S, BLOCK_C, BLOCK_S, CHANNELS_LAST)
        x = tl.load(x_ptr + start + steps, mask=inside(c < C, left, BLOCK_S), other=0.0).to(ACC)
        deviation = x - shift[:, None]
        if not EVEN_S:
            deviation = tl.where(tl.arange(0, BLOCK_S)[None, :] < left, deviation, 0.0)
        count += tl.minimum(left, BLOCK_S)
        total += deviation
        squares = tl.fma(deviation, deviation, squares)

    mean = tl.zeros([BLOCK_C], ACC)
    m2 = tl.sum(squares, axis=1)
    if CENTRED:
        total_c = tl.sum(total, axis=1)
        mean = total_c / count.to(ACC)
        m2 -= total_c * mean
    return shift, mean, tl.where(m2 < 0, 0.0, m2), count


@triton.jit(do_not_specialize=SIZES)
def batch_norm_stats_kernel(
    x_ptr, partials_ptr, tiles, channels, size, s_blocks, CHANNELS_LAST: tl.constexpr, EVEN_S: tl.constexpr,
    C_VEC: tl.constexpr, S_VEC: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Program (block, split) sums every splits-th tile of its channels, relative to the first tile's mean.

    partials [4, splits, C]: shift, mean - shift, sum of squared deviations from the mean, number of values.
    """
    ACC: tl.constexpr = partials_ptr.dtype.element_ty
    C = channels.to(tl.int64) * C_VEC
    S = size.to(tl.int64) * S_VEC
    block = tl.program_id(0)
    split = tl.program_id(1)
    splits = tl.num_programs(1)
    c = channel_numbers(block, BLOCK_C)
    shift, mean, m2, count = tile_statistics(
        x_ptr, block, split, splits, tiles, s_blocks, C, S, True, CHANNELS_LAST, EVEN_S, BLOCK_C, BLOCK_S, ACC
    )
    out = partials_ptr + split * C + c
    plane = splits * C
    tl.store(out, shift, mask=c < C)
    tl.store(out + plane, mean, mask=c < C)
    tl.store(out + 2 * plane, m2, mask=c < C)
    tl.store(out + 3 * plane, tl.full([BLOCK_C], count.to(ACC), ACC), mask=c < C)


@triton.jit(do_not_specialize=SIZES)
def batch_norm_stats_finish_kernel(
    partials_ptr, mean_ptr, rstd_ptr, running_mean_ptr, running_var_ptr, factor_ptr, splits, channels, count,
    momentum, eps, UNBIASED: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_SPLITS: tl.constexpr,
):  # fmt: skip
    """Merges the partial statistics of a block of channels, in a fixed order."""
    ACC: tl.constexpr = partials_ptr.dtype.element_ty
    C = channels.to(tl.int64)
    c = channel_numbers(tl.program_id(0), BLOCK_C)
    k = tl.arange(0, BLOCK_SPLITS)[None, :]
    plane = splits.to(tl.int64) * C
    partial = partials_ptr + k * C + c[:, None]
    mask = (c < C)[:, None] & (k < splits)
    shift = tl.load(partial, mask=mask, other=0.0)
    mean_k = tl.load(partial + plane, mask=mask, other=0.0)
    m2_k = tl.load(partial + 2 * plane, mask=mask, other=0.0)
    count_k = tl.load(partial + 3 * plane, mask=mask, other=0.0)

    # Relative to one shift the differences are small and nearly exact, however far the channel lies from 0.
    base = tl.load(partials_ptr + c, mask=c < C, other=0.0)
    mean_k = (shift - base[:, None]) + mean_k
    delta = tl.sum(tl.where(k < splits, count_k * mean_k, 0.0), axis=1)
    delta = quotient(delta, tl.full([BLOCK_C], count.to(ACC), ACC))
    spread = mean_k - delta[:, None]
    m2 = tl.sum(tl.where(k < splits, m2_k + count_k * spread * spread, 0.0), axis=1)
    store_statistics(
        base + delta, m2, count.to(ACC), c, C, mean_ptr, rstd_ptr, running_mean_ptr, running_var_ptr,
        factor_ptr, momentum, eps, UNBIASED,
    )  # fmt: skip
