"""Statistics of sets that no program can hold, in two stages: docs/math.md R1-R3.

The partial results are batch norm's, one for every line and split, and are merged per set in a fixed order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .batch_norm_stats import tile_statistics
from .batch_norm_tiles import channel_numbers, inverse_std, quotient
from .row_norm_tiles import SIZES


@triton.jit(do_not_specialize=SIZES)
def row_norm_stats_kernel(
    x_ptr, partials_ptr, channels, size, samples, c_blocks, s_blocks,
    RMS: tl.constexpr, EVEN_S: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    C_VEC: tl.constexpr, S_VEC: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Program (block of one sample's lines, split) sums every splits-th of their tiles.

    partials [4, splits, N * C]: shift, mean - shift, sum of squared deviations, number of values.
    """
    ACC: tl.constexpr = partials_ptr.dtype.element_ty
    C = channels.to(tl.int64) * C_VEC
    S = size.to(tl.int64) * S_VEC
    sample = (tl.program_id(0) // c_blocks).to(tl.int64)
    block = tl.program_id(0) % c_blocks
    split = tl.program_id(1)
    splits = tl.num_programs(1)
    shift, mean, m2, count = tile_statistics(
        x_ptr + sample * C * S, block, split, splits, s_blocks, s_blocks, C, S,
        not RMS, CHANNELS_LAST, EVEN_S, BLOCK_C, BLOCK_S, ACC,
    )  # fmt: skip
    c = channel_numbers(block, BLOCK_C)
    lines = samples * C
    out = partials_ptr + split * lines + sample * C + c
    plane = splits * lines
    tl.store(out, shift, mask=c < C)
    tl.store(out + plane, mean, mask=c < C)
    tl.store(out + 2 * plane, m2, mask=c < C)
    tl.store(out + 3 * plane, tl.full([BLOCK_C], count.to(ACC), ACC), mask=c < C)


@triton.jit
def entry_offsets(sets, start, entries, lines, D: tl.constexpr, BLOCK_ENTRIES: tl.constexpr):
    """[BLOCK_SETS, BLOCK_ENTRIES] where partial results `start` and on of each set lie, and which exist.

    A set has one for each split of each of its D lines.
    """
    e = start + tl.arange(0, BLOCK_ENTRIES)
    offsets = (e // D).to(tl.int64) * lines + e % D
    mask = (sets * D < lines)[:, None] & (e < entries)[None, :]
    return (sets * D)[:, None] + offsets[None, :], mask


@triton.jit
def load_means(partials_ptr, base, plane, offsets, mask):
    """Partial means, relative to one shift for each set."""
    shift = tl.load(partials_ptr + offsets, mask=mask, other=0.0)
    return (shift - base[:, None]) + tl.load(partials_ptr + plane + offsets, mask=mask, other=0.0)


@triton.jit(do_not_specialize=SIZES)
def row_norm_stats_finish_kernel(
    partials_ptr, mean_ptr, rstd_ptr, splits, lines, size, eps, UNBIASED: tl.constexpr, D: tl.constexpr,
    BLOCK_SETS: tl.constexpr, BLOCK_ENTRIES: tl.constexpr,
):  # fmt: skip
    """Merges the partial statistics of a block of sets: first their mean, then the squares around it."""
    ACC: tl.constexpr = partials_ptr.dtype.element_ty
    lines = lines.to(tl.int64)
    plane = splits * lines
    entries = splits * D
    sets = channel_numbers(tl.program_id(0), BLOCK_SETS)
    count = size.to(tl.int64) * D

    # Relative to one shift the differences are small and nearly exact, however far the set lies from 0.
    base = tl.load(partials_ptr + sets * D, mask=sets * D < lines, other=0.0)
    total = tl.zeros([BLOCK_SETS, BLOCK_ENTRIES], ACC)
    for start in range(0, entries, BLOCK_ENTRIES):
        offsets, mask = entry_offsets(sets, start, entries, lines, D, BLOCK_ENTRIES)
        mean = load_means(partials_ptr, base, plane, offsets, mask)
        number = tl.load(partials_ptr + 3 * plane + offsets, mask=mask, other=0.0)
        total += tl.where(mask, number * mean, 0.0)
    delta = quotient(tl.sum(total, axis=1), tl.full([BLOCK_SETS], count.to(ACC), ACC))

    squares = tl.zeros([BLOCK_SETS, BLOCK_ENTRIES], ACC)
    for start in range(0, entries, BLOCK_ENTRIES):
        offsets, mask = entry_offsets(sets, start, entries, lines, D, BLOCK_ENTRIES)
        mean = load_means(partials_ptr, base, plane, offsets, mask)
        m2 = tl.load(partials_ptr + 2 * plane + offsets, mask=mask, other=0.0)
        number = tl.load(partials_ptr + 3 * plane + offsets, mask=mask, other=0.0)
        spread = mean - delta[:, None]
        squares += tl.where(mask, m2 + number * spread * spread, 0.0)

    exists = sets * D < lines
    if mean_ptr is not None:
        tl.store(mean_ptr + sets, base + delta, mask=exists)
    tl.store(rstd_ptr + sets, inverse_std(tl.sum(squares, axis=1), count, eps, UNBIASED), mask=exists)
