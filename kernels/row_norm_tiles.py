"""What the kernels of the row family share: which lines make a set, and the arithmetic of a set.

A tile is [BLOCK_C, BLOCK_S]: BLOCK_C lines of a tensor [N, C, S] (see row_norm_programs.RowView), over whose
positions sums run. A set is D neighbouring lines of one sample. Where a program holds whole sets, each is
padded to BLOCK_D lines, and per-set numbers are repeated for every line, [BLOCK_C]. Formulas: docs/math.md
R1-R6.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .batch_norm_tiles import (
    channel_numbers,
    finite_or_zero,
    inside,
    inverse_std,
    load_channels,
    quotient,
    steps_in_tile,
    steps_of,
    tile_start,
)
from .general_relu import activate_grad, rounded_for

# Not specialised on, as in batch_norm_tiles.
SIZES = ["tiles", "channels", "size", "samples", "lines", "sets", "c_blocks", "s_blocks", "splits", "sweeps", "rows"]


@triton.jit
def line_steps(D: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr):
    """[BLOCK_C] line numbers, counted from the first, of a tile that holds whole sets; padding repeats others."""
    c = tl.arange(0, BLOCK_C)
    if BLOCK_D == D:
        return c
    else:
        return c // BLOCK_D * D + c % BLOCK_D


@triton.jit
def held_tile(
    sample, block, C, S, D: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Of a block of whole sets: each line's number, its set's, whether it exists; where the tile lies."""
    first = block * (BLOCK_C // BLOCK_D * D)
    steps = line_steps(D, BLOCK_C, BLOCK_D)
    start = sample * C * S + (first if CHANNELS_LAST else first * S)
    line = tl.arange(0, BLOCK_C)
    sets = sample * (C // D) + block * (BLOCK_C // BLOCK_D) + line // BLOCK_D
    exists = (first + steps < C) & (line % BLOCK_D < D)
    return first + steps, sets, exists, start, steps_of(steps, C, S, BLOCK_S, CHANNELS_LAST)


@triton.jit
def sample_tile(
    sample, block, tile, s_blocks, C, S, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, CHANNELS_LAST: tl.constexpr
):
    """Of tile number `tile` of a block of a sample's lines: lines, positions, mask, and where it lies."""
    start, left = tile_start(block, tile, s_blocks, C, S, BLOCK_C, BLOCK_S, CHANNELS_LAST)
    steps = steps_in_tile(C, S, BLOCK_C, BLOCK_S, CHANNELS_LAST)
    c = channel_numbers(block, BLOCK_C)
    mask = inside(c < C, left, BLOCK_S)
    return c, S - left + tl.arange(0, BLOCK_S), mask, sample.to(tl.int64) * C * S + start, steps


@triton.jit
def load_tile(ptr, start, steps, mask, ACC: tl.constexpr):
    """A tile in the arithmetic's dtype, 0 where masked. 64 bits for its start, 32 for each step from there."""
    return tl.load(ptr + start + steps, mask=mask, other=0.0).to(ACC)


@triton.jit
def store_tile(ptr, start, steps, mask, value):
    tl.store(ptr + start + steps, rounded_for(value, ptr), mask=mask)


@triton.jit
def load_parameter(ptr, c, s, C, S, missing, ACC: tl.constexpr, ALONG: tl.constexpr):
    """weight or bias of a tile's positions if it runs along the lines, else of its lines."""
    if ALONG:
        return load_channels(ptr, s, S, missing, ACC)
    else:
        return load_channels(ptr, c, C, missing, ACC)


@triton.jit
def over_tile(parameter, ALONG: tl.constexpr):
    """What load_parameter gave, to be broadcast over [BLOCK_C, BLOCK_S]."""
    if ALONG:
        return parameter[None, :]
    else:
        return parameter[:, None]


@triton.jit
def load_mean(ptr, sets, exists, ACC: tl.constexpr):
    """The mean of every line's set; 0 where there is none (RMS norm)."""
    if ptr is None:
        return tl.zeros(sets.shape, ACC)
    else:
        return tl.load(ptr + sets, mask=exists, other=0.0)


@triton.jit
def set_sums(lines, BLOCK_D: tl.constexpr):
    """[BLOCK_C] for every line the sum over the BLOCK_D lines of its set."""
    if BLOCK_D == 1:
        return lines
    else:
        grouped = tl.reshape(lines, [lines.shape[0] // BLOCK_D, BLOCK_D])
        sums = tl.broadcast_to(tl.sum(grouped, axis=1)[:, None], grouped.shape)
        return tl.reshape(sums, lines.shape)


@triton.jit
def held_statistics(
    x, mask, count, eps, RMS: tl.constexpr, UNBIASED: tl.constexpr, BLOCK_D: tl.constexpr
):  # fmt: skip
    """mean and rstd of every line's set, [BLOCK_C], of a tile that holds whole sets."""
    number = tl.full([x.shape[0]], count, x.dtype)
    if RMS:
        mean = tl.zeros([x.shape[0]], x.dtype)
        deviation = x
    else:
        rough = finite_or_zero(quotient(set_sums(tl.sum(x, axis=1), BLOCK_D), number))
        # A sum of values far from 0 is off by ulps of the mean: the deviations from it are summed again.
        off = set_sums(tl.sum(tl.where(mask, x - rough[:, None], 0.0), axis=1), BLOCK_D)
        mean = rough + quotient(off, number)
        deviation = tl.where(mask, x - mean[:, None], 0.0)
    m2 = set_sums(tl.sum(deviation * deviation, axis=1), BLOCK_D)
    return mean, inverse_std(m2, count, eps, UNBIASED)


@triton.jit
def affine(centred, rstd, weight, bias, residual, ALONG: tl.constexpr):
    """z = (x - mean) * rstd * weight + bias (+ residual), the same arithmetic wherever z is needed."""
    if ALONG:
        z = tl.fma(centred * rstd[:, None], weight[None, :], bias[None, :])
    else:
        z = tl.fma(centred, (weight * rstd)[:, None], bias[:, None])
    if residual is not None:
        z = z + residual
    return z


@triton.jit
def load_dz(
    dy_ptr, residual_ptr, centred, rstd, weight, bias, start, steps, mask, leak, sub, maxv, max_leak,
    ACT: tl.constexpr, ALONG: tl.constexpr,
):  # fmt: skip
    """dy times the activation's slope at z, 0 in masked lanes."""
    dz = load_tile(dy_ptr, start, steps, mask, centred.dtype)
    if ACT:
        residual = None
        if residual_ptr is not None:
            residual = load_tile(residual_ptr, start, steps, mask, centred.dtype)
        dz = activate_grad(dz, affine(centred, rstd, weight, bias, residual, ALONG), leak, sub, maxv, max_leak)
    return dz


@triton.jit
def average(sums, S, D: tl.constexpr, UNBIASED: tl.constexpr):
    """Sums over sets of D lines, divided by their number of values or, for x_hat's part, by one less."""
    degrees = (S * D).to(sums.dtype)
    if UNBIASED:
        degrees -= 1.0
    return quotient(sums, tl.full(sums.shape, degrees, sums.dtype))


@triton.jit
def input_grad(g, x_hat, rstd, mean_g, mean_g_x_hat):
    """dx = rstd * (g - avg(g) - x_hat * avg(g * x_hat)), where g = dz * weight."""
    return rstd[:, None] * tl.fma(x_hat, -mean_g_x_hat[:, None], g - mean_g[:, None])
