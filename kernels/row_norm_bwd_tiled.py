"""Backward of sets that no program can hold: sums of every set, their averages, then a sweep for dx.

Weights that run along the lines (layer norm) get their gradient from the sweep, where a program meets many
lines at the same positions; weights of one line each (group norm) get it from the sums of their lines.
Formulas: docs/math.md R5, R6.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .batch_norm_tiles import channel_numbers, program_tile
from .row_norm_stats import entry_offsets
from .row_norm_tiles import (
    SIZES,
    average,
    input_grad,
    load_dz,
    load_mean,
    load_parameter,
    load_tile,
    over_tile,
    sample_tile,
    store_tile,
)


@triton.jit(do_not_specialize=SIZES)
def row_norm_bwd_sums_kernel(
    dy_ptr, x_ptr, weight_ptr, bias_ptr, residual_ptr, mean_ptr, rstd_ptr, dresidual_ptr, partials_ptr,
    channels, size, samples, c_blocks, s_blocks, leak, sub, maxv, max_leak,
    ACT: tl.constexpr, CHANNELS_LAST: tl.constexpr, ALONG: tl.constexpr, D: tl.constexpr,
    C_VEC: tl.constexpr, S_VEC: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Program (block of one sample's lines, split) sums every splits-th of their tiles.

    partials [2, splits, N * C]: g, g * x_hat, where g = dz * weight if the weight runs along the line, else dz.
    """
    ACC: tl.constexpr = rstd_ptr.dtype.element_ty
    C = channels.to(tl.int64) * C_VEC
    S = size.to(tl.int64) * S_VEC
    sample = (tl.program_id(0) // c_blocks).to(tl.int64)
    block = tl.program_id(0) % c_blocks
    split = tl.program_id(1)
    splits = tl.num_programs(1)
    c = channel_numbers(block, BLOCK_C)
    sets = sample * (C // D) + c // D
    mean = load_mean(mean_ptr, sets, c < C, ACC)
    rstd = tl.load(rstd_ptr + sets, mask=c < C, other=0.0)

    sum_g = tl.zeros([BLOCK_C, BLOCK_S], ACC)
    sum_g_x_hat = tl.zeros([BLOCK_C, BLOCK_S], ACC)
    for tile in range(split, s_blocks, splits):
        _, s, mask, start, steps = sample_tile(sample, block, tile, s_blocks, C, S, BLOCK_C, BLOCK_S, CHANNELS_LAST)
        x = load_tile(x_ptr, start, steps, mask, ACC)
        weight = load_parameter(weight_ptr, c, s, C, S, 1.0, ACC, ALONG)
        bias = load_parameter(bias_ptr, c, s, C, S, 0.0, ACC, ALONG)
        centred = x - mean[:, None]
        g = load_dz(
            dy_ptr, residual_ptr, centred, rstd, weight, bias, start, steps, mask, leak, sub, maxv, max_leak, ACT, ALONG
        )
        if dresidual_ptr is not None:
            store_tile(dresidual_ptr, start, steps, mask, g)
        if ALONG:
            g = g * weight[None, :]
        sum_g += g
        sum_g_x_hat = tl.fma(g, centred * rstd[:, None], sum_g_x_hat)

    lines = samples * C
    out = partials_ptr + split * lines + sample * C + c
    tl.store(out, tl.sum(sum_g, axis=1), mask=c < C)
    tl.store(out + splits * lines, tl.sum(sum_g_x_hat, axis=1), mask=c < C)


@triton.jit(do_not_specialize=SIZES)
def row_norm_bwd_finish_kernel(
    partials_ptr, weight_ptr, averages_ptr, splits, lines, channels, size,
    RMS: tl.constexpr, UNBIASED: tl.constexpr, D: tl.constexpr,
    BLOCK_SETS: tl.constexpr, BLOCK_ENTRIES: tl.constexpr,
):  # fmt: skip
    """averages [2, sets]: avg(g) (0 for RMS norm), avg(g * x_hat). weight: one for each line, if still missing."""
    ACC: tl.constexpr = partials_ptr.dtype.element_ty
    lines = lines.to(tl.int64)
    entries = splits * D
    sets = channel_numbers(tl.program_id(0), BLOCK_SETS)
    sum_g = tl.zeros([BLOCK_SETS, BLOCK_ENTRIES], ACC)
    sum_g_x_hat = tl.zeros([BLOCK_SETS, BLOCK_ENTRIES], ACC)
    for start in range(0, entries, BLOCK_ENTRIES):
        offsets, mask = entry_offsets(sets, start, entries, lines, D, BLOCK_ENTRIES)
        g = tl.load(partials_ptr + offsets, mask=mask, other=0.0)
        g_x_hat = tl.load(partials_ptr + splits * lines + offsets, mask=mask, other=0.0)
        if weight_ptr is not None:
            weight = tl.load(weight_ptr + offsets % channels, mask=mask, other=0.0).to(ACC)
            g *= weight
            g_x_hat *= weight
        sum_g += g
        sum_g_x_hat += g_x_hat

    exists = sets * D < lines
    mean_g = tl.zeros([BLOCK_SETS], ACC)
    if not RMS:
        mean_g = average(tl.sum(sum_g, axis=1), size.to(tl.int64), D, False)
    tl.store(averages_ptr + sets, mean_g, mask=exists)
    mean_g_x_hat = average(tl.sum(sum_g_x_hat, axis=1), size.to(tl.int64), D, UNBIASED)
    tl.store(averages_ptr + lines // D + sets, mean_g_x_hat, mask=exists)


@triton.jit(do_not_specialize=SIZES)
def row_norm_bwd_sweep_kernel(
    dy_ptr, x_ptr, weight_ptr, bias_ptr, residual_ptr, mean_ptr, rstd_ptr, averages_ptr,
    dx_ptr, dresidual_ptr, partials_ptr, channels, size, samples, c_blocks, s_blocks, sweeps, leak, sub, maxv, max_leak,
    ACT: tl.constexpr, CHANNELS_LAST: tl.constexpr, ALONG: tl.constexpr, D: tl.constexpr,
    C_VEC: tl.constexpr, S_VEC: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """dx. Program (block of positions, sweep) walks down every sweeps-th block of lines; or it has one tile.

    It walks where weights run along the lines, and sums up: partials [2, sweeps, S]: dz, dz * x_hat. One tile
    is taken backwards through memory, to meet what the sums left in the cache.
    """
    ACC: tl.constexpr = rstd_ptr.dtype.element_ty
    C = channels.to(tl.int64) * C_VEC
    S = size.to(tl.int64) * S_VEC
    if ALONG:
        s_block = tl.program_id(0) % s_blocks
        first = tl.program_id(0) // s_blocks
    else:
        block, tile = program_tile(c_blocks, s_blocks, CHANNELS_LAST)
        s_block = tile % s_blocks
        first = tile // s_blocks * c_blocks + block

    s = s_block.to(tl.int64) * BLOCK_S + tl.arange(0, BLOCK_S)
    sum_dz = tl.zeros([BLOCK_C, BLOCK_S], ACC)
    sum_dz_x_hat = tl.zeros([BLOCK_C, BLOCK_S], ACC)
    for line_tile in range(first, samples * c_blocks, sweeps):
        line_tile = tl.full([], line_tile, tl.int32)
        sample = (line_tile // c_blocks).to(tl.int64)
        block = line_tile % c_blocks
        c, _, mask, start, steps = sample_tile(sample, block, s_block, s_blocks, C, S, BLOCK_C, BLOCK_S, CHANNELS_LAST)
        sets = sample * (C // D) + c // D
        mean = load_mean(mean_ptr, sets, c < C, ACC)
        rstd = tl.load(rstd_ptr + sets, mask=c < C, other=0.0)
        x = load_tile(x_ptr, start, steps, mask, ACC)
        weight = load_parameter(weight_ptr, c, s, C, S, 1.0, ACC, ALONG)
        bias = load_parameter(bias_ptr, c, s, C, S, 0.0, ACC, ALONG)
        centred = x - mean[:, None]
        dz = load_dz(
            dy_ptr, residual_ptr, centred, rstd, weight, bias, start, steps, mask, leak, sub, maxv, max_leak, ACT, ALONG
        )
        if dresidual_ptr is not None:
            store_tile(dresidual_ptr, start, steps, mask, dz)
        x_hat = centred * rstd[:, None]
        if partials_ptr is not None:
            sum_dz += dz
            sum_dz_x_hat = tl.fma(dz, x_hat, sum_dz_x_hat)
        if dx_ptr is not None:
            mean_g = tl.load(averages_ptr + sets, mask=c < C, other=0.0)
            mean_g_x_hat = tl.load(averages_ptr + samples * (C // D) + sets, mask=c < C, other=0.0)
            dx = input_grad(dz * over_tile(weight, ALONG), x_hat, rstd, mean_g, mean_g_x_hat)
            store_tile(dx_ptr, start, steps, mask, dx)

    if partials_ptr is not None:
        out = partials_ptr + first.to(tl.int64) * S + s
        tl.store(out, tl.sum(sum_dz, axis=0), mask=s < S)
        tl.store(out + sweeps * S, tl.sum(sum_dz_x_hat, axis=0), mask=s < S)
