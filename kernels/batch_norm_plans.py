"""Launch numbers of batch norm as data: pure functions of the shape, as in launch.py, and as unmeasured."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from . import launch
from .launch import Pass, View, power_of_two_above

HELD_TILE = 4096  # values of a program that holds several channels


@dataclass(frozen=True)
class BatchNormPlan:
    """How a View is cut into tiles of [block_c, block_s] and programs.

    held: one program owns block_c channels, and block_s covers all their n * s values at once.
    Otherwise a block of channels has `tiles` = n * s_blocks tiles, dealt in turn to `splits` programs.
    even_s: no tile sticks out along s. c_vec, s_vec: launch.dividing_powers. finish_*: the tile that combines the
    partial results. registers: the most of a reduction's thread.
    """

    c: int
    held: bool
    block_c: int
    block_s: int
    c_blocks: int
    s_blocks: int
    tiles: int
    splits: int
    even_s: bool
    num_warps: int
    c_vec: int
    s_vec: int
    finish_block_c: int
    finish_block_splits: int
    registers: int

    @property
    def tile_arguments(self) -> dict[str, int]:
        """The constexprs of every kernel that reads tiles, and its warps."""
        blocks = {"BLOCK_C": self.block_c, "BLOCK_S": self.block_s, "C_VEC": self.c_vec, "S_VEC": self.s_vec}
        return {**blocks, "num_warps": self.num_warps, "enable_fp_fusion": False}

    @property
    def reduce_arguments(self) -> dict[str, int | None]:
        return {**self.tile_arguments, **launch.register_limit(self.registers)}

    @property
    def finish_arguments(self) -> dict[str, int]:
        blocks = {"BLOCK_C": self.finish_block_c, "BLOCK_SPLITS": self.finish_block_splits}
        return {**blocks, "num_warps": launch.FINISH_WARPS, "enable_fp_fusion": False}

    @property
    def finish_grid(self) -> tuple[int]:
        return (-(-self.c // self.finish_block_c),)

    @property
    def reduce_grid(self) -> tuple[int, int]:
        return (self.c_blocks, self.splits)

    @property
    def apply_grid(self) -> tuple[int]:
        return (self.c_blocks * self.tiles,)


@functools.lru_cache(maxsize=1024)
def batch_norm_plan(view: View, itemsize: int, n_sms: int, which: Pass) -> BatchNormPlan:
    """The plan for one pass (FORWARD, BACKWARD, ELEMENTWISE) over a non-empty View."""
    held = _held_blocks(view, itemsize, n_sms, which.held // (2 if itemsize == 8 else 1))
    if held is not None:
        return _plan(view, held, 1, launch.VALUES_PER_LANE, which, held=True)
    values_per_lane = launch.lane_values(view, itemsize)
    blocks = launch.spread_blocks(view, itemsize, launch.WARPS * 32 * values_per_lane, n_sms)
    return _plan(view, blocks, which.programs_per_sm * n_sms, values_per_lane, which, held=False)


def _held_blocks(view: View, itemsize: int, n_sms: int, limit: int) -> tuple[int, int] | None:
    """[block_c, block_s] if a program can hold whole channels: as many as leave two programs for every SM."""
    block_s = power_of_two_above(view.n * view.s)
    narrowest = min(launch.SECTOR // itemsize, power_of_two_above(view.c)) if view.channels_last else 1
    if block_s * narrowest > limit:
        return None
    block_c = narrowest
    while block_c * 2 * block_s <= min(limit, HELD_TILE) and -(-view.c // (block_c * 2)) >= 2 * n_sms:
        block_c *= 2
    return block_c, block_s


def _plan(
    view: View, blocks: tuple[int, int], programs: int, values_per_lane: int, which: Pass, *, held: bool
) -> BatchNormPlan:
    block_c, block_s = blocks
    c_blocks = -(-view.c // block_c)
    s_blocks = 1 if held else -(-view.s // block_s)
    tiles = 1 if held else view.n * s_blocks
    splits = max(1, min(tiles, programs // c_blocks))
    warps = block_c * block_s // values_per_lane // 32
    finish_block_splits = power_of_two_above(splits)
    c_vec, s_vec = launch.dividing_powers(view)
    return BatchNormPlan(
        c=view.c,
        held=held,
        block_c=block_c,
        block_s=block_s,
        c_blocks=c_blocks,
        s_blocks=s_blocks,
        tiles=tiles,
        splits=splits,
        even_s=not held and view.s % block_s == 0,
        num_warps=min(launch.MAX_WARPS, max(1, warps)),
        c_vec=c_vec,
        s_vec=s_vec,
        finish_block_c=min(power_of_two_above(view.c), max(1, launch.FINISH_TILE // finish_block_splits), 64),
        finish_block_splits=finish_block_splits,
        registers=which.registers,
    )


def plan_for(x: torch.Tensor, view: View, which: Pass) -> BatchNormPlan:
    n_sms, which = launch.room(x, which)
    return batch_norm_plan(view, x.element_size(), n_sms, which)
