"""Mean, standard deviation and histogram of |x| over all of a tensor: partial results of one wave, then their merge.

Formulas: docs/math.md A1 (the sums are taken and merged as in N1) and A2. Counts are integers, added without atomics.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .activation_stats_plans import activation_stats_plan
from .batch_norm_tiles import finite_or_zero

LARGE = tl.constexpr(2.0**32)
SMALL_UNIT = tl.constexpr(2.0**-80)


@triton.jit
def slots_of(x, low, high, scale, bins):
    """The bin of each |x|, int32; `bins` for what lies outside of [low, high], and for NaN."""
    ACC: tl.constexpr = x.dtype
    size = tl.abs(x)
    place = (size - tl.full([], low, ACC)) * tl.full([], scale, ACC)
    last = tl.full([], bins, tl.int32).to(ACC) - 1.0
    place = tl.where(place < last, place, last)
    inside = (size >= tl.full([], low, ACC)) & (size <= tl.full([], high, ACC))
    return tl.where(inside, tl.where(inside, place, 0.0).to(tl.int32), bins)


@triton.jit(do_not_specialize=["blocks", "bins"])
def activation_stats_kernel(
    x_ptr, partials_ptr, counts_ptr, numel, blocks, low, high, scale, bins, BLOCK: tl.constexpr, BINS: tl.constexpr
):
    """Each program takes every so-manyth block, around the mean of its first one.

    partials [4, programs], fp64: shift, mean - shift, sum of squared deviations from the mean, number of values.
    counts [programs, BINS]: the histogram, with what lies outside in bin `bins`.
    """
    ACC: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    steps = tl.arange(0, BLOCK)
    start = program.to(tl.int64) * BLOCK
    exists = start + steps < numel
    first = tl.load(x_ptr + start + steps, mask=exists, other=0.0).to(ACC)
    count = tl.minimum(numel - start, BLOCK)
    shift = finite_or_zero(tl.sum(first, axis=0) / count.to(ACC))
    # Large values are made small, so that their squares do not overflow fp32.
    unit = tl.where(tl.max(tl.abs(first), axis=0) > LARGE, SMALL_UNIT, 1.0).to(ACC)
    deviation = tl.where(exists, (first - shift) * unit, 0.0)
    total = deviation
    squares = deviation * deviation
    hist = tl.histogram(tl.where(exists, slots_of(first, low, high, scale, bins), bins), BINS)
    for index in range(program + programs, blocks, programs):
        start = tl.full([], index, tl.int32).to(tl.int64) * BLOCK
        # Only the last block needs a mask: one of a length that 16 does not divide would cost all their wide loads.
        if start + BLOCK <= numel:
            x = tl.load(x_ptr + start + steps).to(ACC)
            deviation = (x - shift) * unit
            slots = slots_of(x, low, high, scale, bins)
        else:
            exists = start + steps < numel
            x = tl.load(x_ptr + start + steps, mask=exists, other=0.0).to(ACC)
            deviation = tl.where(exists, (x - shift) * unit, 0.0)
            slots = tl.where(exists, slots_of(x, low, high, scale, bins), bins)
        count += tl.minimum(numel - start, BLOCK)
        total += deviation
        squares = tl.fma(deviation, deviation, squares)
        hist += tl.histogram(slots, BINS)

    n = count.to(tl.float64)
    scale_back = unit.to(tl.float64)
    summed = tl.sum(total, axis=0).to(tl.float64)
    mean = summed / n
    m2 = tl.sum(squares, axis=0).to(tl.float64) - summed * mean
    out = partials_ptr + program.to(tl.int64)
    plane = programs.to(tl.int64)
    tl.store(out, shift.to(tl.float64))
    tl.store(out + plane, mean / scale_back)
    tl.store(out + 2 * plane, tl.where(m2 < 0, 0.0, m2) / (scale_back * scale_back))
    tl.store(out + 3 * plane, n)
    tl.store(counts_ptr + program.to(tl.int64) * BINS + tl.arange(0, BINS), hist)


@triton.jit(do_not_specialize=["programs", "numel", "bins"])
def activation_stats_finish_kernel(
    partials_ptr, counts_ptr, mean_ptr, std_ptr, hist_ptr, programs, numel, bins,
    BLOCK_PROGRAMS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BINS: tl.constexpr,
):  # fmt: skip
    """Merges the partial results in a fixed order: one program."""
    k = tl.arange(0, BLOCK_PROGRAMS).to(tl.int64)
    mask = k < programs
    plane = tl.full([], programs, tl.int64)
    shift = tl.load(partials_ptr + k, mask=mask, other=0.0)
    mean_k = tl.load(partials_ptr + plane + k, mask=mask, other=0.0)
    m2_k = tl.load(partials_ptr + 2 * plane + k, mask=mask, other=0.0)
    count_k = tl.load(partials_ptr + 3 * plane + k, mask=mask, other=0.0)
    n = tl.full([], numel, tl.int64).to(tl.float64)

    # Relative to one shift the differences are small and nearly exact, however far the values lie from 0.
    base = tl.load(partials_ptr)
    mean_k = (shift - base) + mean_k
    delta = tl.sum(tl.where(mask, count_k * mean_k, 0.0), axis=0) / n
    spread = mean_k - delta
    m2 = tl.sum(tl.where(mask, m2_k + count_k * spread * spread, 0.0), axis=0)
    tl.store(mean_ptr, (base + delta).to(mean_ptr.dtype.element_ty))
    tl.store(std_ptr, tl.sqrt(m2 / (n - 1.0)).to(std_ptr.dtype.element_ty))

    bin = tl.arange(0, BINS).to(tl.int64)
    rows = tl.arange(0, BLOCK_ROWS)
    hist = tl.zeros([BINS], tl.int64)
    for row in range(0, programs, BLOCK_ROWS):
        at = (row + rows).to(tl.int64)[:, None] * BINS + bin[None, :]
        counts = tl.load(counts_ptr + at, mask=(row + rows < programs)[:, None], other=0)
        hist += tl.sum(counts.to(tl.int64), axis=0)
    tl.store(hist_ptr + bin, hist, mask=bin < bins)


def activation_stats_fwd(x: Tensor, bins: int, low: float, high: float) -> tuple[Tensor, Tensor, Tensor]:
    """Statistics of all of x, in x's own storage order.

    Args:
        x: any shape, fp64, fp32, bf16 or fp16. A contiguous or dense channels_last tensor is read as it lies; other
            strides are copied first.
        bins, low, high: how many equal bins |x| is counted in, and over which range.

    Returns:
        mean and std, 0-d, in fp32 (fp64 for fp64 x); hist [bins], int64.
    """
    x = x.contiguous(memory_format=launch.memory_format(x))
    mean = x.new_empty((), dtype=launch.acc_dtype(x))
    std, hist = torch.empty_like(mean), x.new_empty(bins, dtype=torch.int64)
    if x.numel() == 0:
        return mean.fill_(torch.nan), std.fill_(torch.nan), hist.zero_()
    plan = activation_stats_plan(x.numel(), bins, x.element_size(), launch.sm_count(x))
    partials = mean.new_empty((4, plan.programs), dtype=torch.float64)
    counts = hist.new_empty((plan.programs, plan.bins), dtype=torch.int32)
    with launch.device_guard(x):
        activation_stats_kernel[plan.grid](
            x, partials, counts, x.numel(), plan.blocks, *launch.scalars(x.dtype, low, high, bins / (high - low)), bins,
            **plan.arguments,
        )  # fmt: skip
        activation_stats_finish_kernel[(1,)](
            partials, counts, mean, std, hist, plan.programs, x.numel(), bins, **plan.finish_arguments
        )
    return mean, std, hist
