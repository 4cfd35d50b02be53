"""Launch numbers of the row family as data: pure functions of the shape, as in launch.py, and as unmeasured."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, replace

import torch

from . import launch
from .launch import Pass, power_of_two_above
from .row_norm_programs import RowNormPlan, RowView


@dataclass(frozen=True)
class RowPass(Pass):
    """short: lines that are no longer share a program until they fill a tile of this many values.

    values_per_lane: of a tile of a set that is not held, at most.
    """

    short: int
    values_per_lane: int


# Held: 32 fp32 values a lane in 16 warps, which leaves a lane 128 registers. The backward holds x and dz and, with
# weights along the lines, two sums of their size: half as many values. Registers and programs as in launch.py.
# Short lines share a program, and with it the loads of weight and bias. Forward: 4 warps of 16 values, so that
# 32 rows of 768 still reach 16 SMs. Backward: 8 warps, as every program leaves a row of partial gradients.
FORWARD = RowPass(held=16384, registers=80, programs_per_sm=3, short=2048, values_per_lane=16)
BACKWARD_ALONG = RowPass(held=8192, registers=128, programs_per_sm=2, short=4096, values_per_lane=8)
BACKWARD_ACROSS = RowPass(held=8192, registers=128, programs_per_sm=2, short=4096, values_per_lane=16)
HELD_REGISTERS = 128
SHORT_CHANNELS_LAST = 4096  # so that a tile of a few hundred positions still takes pieces of 64 bytes

WAVES = 4  # of programs at most where long sets are split, to use up the last of them
MOST_SHARES = 65535  # the limit of a grid's second dim
LONGEST_SHARE = 256  # tiles: what a lane adds up one by one, in fp32
INVARIANT_TILES = 8  # of 4096 values for each split of a long set: 1M values give 32 programs
ALIGNED = 16  # bytes: the widest load, and what torch's allocations divide by
PARAMETER_BLOCK = 32  # at least so many values of a row of partial gradients: 128 bytes
PARAMETER_ROWS = 64  # at most so many rows at once
PARAMETER_TILE = 2048  # 8 warps of 8 values a lane, of each of two sums


@dataclass(frozen=True)
class ParameterPlan:
    """One program per block of a gradient, which walks through the rows of partial sums block by block."""

    grid: tuple[int]
    block: int
    block_rows: int

    @property
    def arguments(self) -> dict[str, int]:
        blocks = {"BLOCK": self.block, "BLOCK_ROWS": self.block_rows}
        return {**blocks, "num_warps": launch.WARPS, "enable_fp_fusion": False}


@functools.lru_cache(maxsize=1024)
def row_norm_plan(view: RowView, itemsize: int, n_sms: int, which: RowPass, batch_invariant: bool) -> RowNormPlan:
    """The plan for one pass (FORWARD, BACKWARD_*) over a non-empty RowView.

    batch_invariant: a sample's result has the same bits whatever batch it comes in, as a slice of a batch too.
    The blocks of held sets never depend on the batch. With this option, longer sets are cut by their length
    alone and not by how many SMs are free; and words are no wider than every sample's address allows, since
    their width decides which lane adds what. It holds for tensors whose first address divides by 16, which
    are all but odd views.
    """
    held = _held_blocks(view.sample, itemsize, which)
    if held is not None:
        plan = _plan(view, held, itemsize, n_sms, which, held=True)
    else:
        tile = launch.WARPS * 32 * min(which.values_per_lane, launch.lane_values(view, itemsize))
        if batch_invariant:
            blocks = launch.tile_blocks(view.sample, itemsize, tile)
        else:
            blocks = launch.spread_blocks(view, itemsize, tile, n_sms)
        plan = _plan(view, blocks, itemsize, n_sms, which, held=False)
    return _without_batch(plan, itemsize) if batch_invariant else plan


def _without_batch(plan: RowNormPlan, itemsize: int) -> RowNormPlan:
    """The plan with all that decides the order of a set's sums taken from the shape of one sample."""
    c_vec, s_vec = (vec if vec * itemsize % ALIGNED == 0 else 1 for vec in (plan.c_vec, plan.s_vec))
    splits = plan.splits if plan.held else -(-plan.s_blocks // INVARIANT_TILES)
    return replace(plan, splits=splits, c_vec=c_vec, s_vec=s_vec)


def _held_blocks(sample: RowView, itemsize: int, which: RowPass) -> tuple[int, int] | None:
    """[block_c, block_s] if a program can hold whole sets; nothing here depends on the batch."""
    smaller = launch.VALUES_PER_LANE // launch.lane_values(sample, itemsize)
    limit, most = which.held // smaller, which.short // smaller
    block_d, block_s = power_of_two_above(sample.d), power_of_two_above(sample.s)
    narrowest = 1
    if sample.channels_last:
        narrowest = min(launch.SECTOR // itemsize, power_of_two_above(sample.c))
        most = max(most, SHORT_CHANNELS_LAST // smaller)
        if block_s * sample.c > launch.MAX_STEP:
            return None
    block_c = max(block_d, narrowest)
    if block_c * block_s > limit:
        return None
    while block_c * 2 * block_s <= min(limit, most) and (sample.rows or block_c // block_d * sample.d < sample.c):
        block_c *= 2
    return block_c, block_s


def _plan(
    view: RowView, blocks: tuple[int, int], itemsize: int, n_sms: int, which: RowPass, *, held: bool
) -> RowNormPlan:
    block_c, block_s = blocks
    block_d = power_of_two_above(view.d) if held else 1
    c_blocks = -(-view.c // (block_c // block_d * view.d if held else block_c))
    s_blocks = -(-view.s // block_s)
    values_per_lane = launch.lane_values(view, itemsize)
    if not held:
        values_per_lane = min(which.values_per_lane, values_per_lane)
    num_warps = min(launch.MAX_WARPS, max(1, block_c * block_s // values_per_lane // 32))
    programs = which.programs_per_sm * n_sms
    if held:
        programs = max(n_sms, programs * launch.WARPS // num_warps)
    c_vec, s_vec = launch.dividing_powers(view)
    tiles, columns = (view.n, c_blocks) if held else (s_blocks, view.n * c_blocks)
    return RowNormPlan(
        view=view,
        held=held,
        block_c=block_c,
        block_s=block_s,
        block_d=block_d,
        c_blocks=c_blocks,
        s_blocks=s_blocks,
        splits=_shares(tiles, columns, programs, overhead=1),
        sweeps=_shares(view.n * c_blocks, s_blocks, programs, overhead=2) if view.along else view.n * c_blocks,
        num_warps=num_warps,
        c_vec=c_vec,
        s_vec=s_vec,
        registers=_registers(block_c * block_s, num_warps, which, held=held),
    )


def _registers(values: int, num_warps: int, which: RowPass, *, held: bool) -> int | None:
    """The most of a thread. ptxas left alone spills at 16 values a lane; told of 128 registers, at 32."""
    if held:
        return HELD_REGISTERS if values <= launch.MAX_WARPS * 32 * launch.VALUES_PER_LANE else None
    return min(255, which.registers * launch.WARPS // num_warps)


def _shares(tiles: int, columns: int, slots: int, overhead: int) -> int:
    """Into how many shares to deal the tiles of each column, so that programs in `slots` at a time end soonest.

    A program costs its tiles and an overhead, in tiles too. Of equals the fewest, which leave the fewest
    partial results; more than four waves would gain little. No share is longer than LONGEST_SHARE if the grid
    can have that many.
    """
    least = min(-(-tiles // LONGEST_SHARE), MOST_SHARES)
    most = max(least, min(tiles, (slots if columns == 1 else WAVES * slots) // columns))
    costs = {s: -(-columns * s // slots) * (-(-tiles // s) + overhead) for s in range(least, most + 1)}
    return min(costs, key=lambda s: (costs[s], s))


def forward_plan(x: torch.Tensor, view: RowView) -> RowNormPlan:
    """FASTNORM_BATCH_INVARIANT=1 asks for results that do not depend on the batch."""
    return _plan_for(x, view, FORWARD, os.environ.get("FASTNORM_BATCH_INVARIANT") == "1")


def backward_plan(x: torch.Tensor, view: RowView) -> RowNormPlan:
    return _plan_for(x, view, BACKWARD_ALONG if view.along else BACKWARD_ACROSS, False)


def _plan_for(x: torch.Tensor, view: RowView, which: RowPass, batch_invariant: bool) -> RowNormPlan:
    n_sms, which = launch.room(x, which)
    return row_norm_plan(view, x.element_size(), n_sms, which, batch_invariant)


def parameter_plan(rows: int, width: int) -> ParameterPlan:
    """The plan for partial sums [rows, width] of a gradient; the same for every number of SMs."""
    block_rows = min(PARAMETER_ROWS, power_of_two_above(rows))
    block = min(max(PARAMETER_BLOCK, PARAMETER_TILE // block_rows), power_of_two_above(width))
    return ParameterPlan((-(-width // block),), block, block_rows)
