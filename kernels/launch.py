"""Launch numbers as data: pure functions of a tensor's shape, dtype size, layout and the number of SMs.

No GPU has confirmed these numbers yet: each is unmeasured and carries the argument it was chosen by.
"""

from __future__ import annotations

import functools
import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
import triton.language as tl

Scalar: TypeAlias = float | tl.constexpr | None

# 16 values a lane: 64 (fp32) or 32 (bf16) bytes in flight a thread and tensor. With 24 warps resident that is
# 24 KB a SM or more, about what 4.3 TB/s x 700 ns needs, and leaves room for the accumulators.
VALUES_PER_LANE = 16
VALUES_PER_LANE_ODD = 8  # rows of odd length: an address for every value
VALUES_PER_LANE_FP64 = 4  # 32 bytes; two registers for every value, and at 8 the backward spills
WARPS = 8
LANES = 32
SMALLEST_TILE = 512  # below it, the partial results would be as large as the tensor

SECTOR = 32  # bytes: the least that DRAM delivers
MIN_SEGMENT = 64  # bytes of one row or plane that a tile reads in one piece, so that a warp touches few lines
HELD_TILE = 4096  # values of a program that holds several channels
ELEMENTWISE_BLOCK = 2048  # 4 warps of 16 values a lane
FINISH_TILE = 2048  # partials of one kind that a finishing program holds
FINISH_WARPS = 8  # at 4, sm_80 spills
MAX_WARPS = 16
MAX_STEP = 2**31 - 1  # elements within a tile are addressed by 32-bit steps

INTERPRETER_SMS = 1  # a program costs 3 ms there, whatever its width
INTERPRETER_HELD_DIVISOR = 32  # so that the small tensors of tests reach the tiled kernels too


@dataclass(frozen=True)
class Pass:
    """What a pass over the tensor leaves room for.

    held: the most values of one program that keeps its channels in registers, reads them once, needs one
    launch. registers: of a thread, at most; programs_per_sm: how many programs of 8 warps are resident then.
    The grid of a reduction is one such wave, so that it has no tail.
    """

    held: int
    registers: int
    programs_per_sm: int


# Held: 32 fp32 values a lane in 16 warps; the backward holds x and dz. Registers: what sm_90 needs for a tile
# with little to spare (sm_80 takes 95 for the forward if left alone, and would lose a third of its warps).
FORWARD = Pass(held=16384, registers=80, programs_per_sm=3)
BACKWARD = Pass(held=8192, registers=128, programs_per_sm=2)
ELEMENTWISE = Pass(held=0, registers=80, programs_per_sm=3)  # nothing is reduced


@dataclass(frozen=True)
class ElementwisePlan:
    """One program per block of the storage."""

    grid: tuple[int]
    block: int
    num_warps: int


@dataclass(frozen=True)
class View:
    """A dense tensor as the kernels see it: [n, c, s]; if channels_last, n = 1 and s counts rows of c."""

    n: int
    c: int
    s: int
    channels_last: bool


@dataclass(frozen=True)
class BatchNormPlan:
    """How a View is cut into tiles of [block_c, block_s] and programs.

    held: one program owns block_c channels, and block_s covers all their n * s values at once.
    Otherwise a block of channels has `tiles` = n * s_blocks tiles, dealt in turn to `splits` programs.
    even_s: no tile sticks out along s. c_vec, s_vec: the power of two (at most 16) that divides c or s,
    whichever is the fast axis: the compiler must know it to load wide words. finish_*: the tile that combines
    the partial results. registers: the most of a reduction's thread.
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
        return {**self.tile_arguments, **register_limit(self.registers)}

    @property
    def finish_arguments(self) -> dict[str, int]:
        blocks = {"BLOCK_C": self.finish_block_c, "BLOCK_SPLITS": self.finish_block_splits}
        return {**blocks, "num_warps": FINISH_WARPS, "enable_fp_fusion": False}

    @property
    def finish_grid(self) -> tuple[int]:
        return (-(-self.c // self.finish_block_c),)

    @property
    def reduce_grid(self) -> tuple[int, int]:
        return (self.c_blocks, self.splits)

    @property
    def apply_grid(self) -> tuple[int]:
        return (self.c_blocks * self.tiles,)


def on_amd() -> bool:
    return torch.version.hip is not None


def register_limit(registers: int | None) -> dict[str, int | None]:
    """The option of a launch for the most registers of a thread, which Triton's AMD backend refuses."""
    return {} if on_amd() else {"maxnreg": registers}


def power_of_two_above(value: int) -> int:
    return 1 << (value - 1).bit_length()


def elementwise_plan(numel: int) -> ElementwisePlan:
    return ElementwisePlan(grid=(-(-numel // ELEMENTWISE_BLOCK),), block=ELEMENTWISE_BLOCK, num_warps=4)


@dataclass(frozen=True)
class ActivationStatsPlan:
    """One wave of programs over the storage. bins: a power of two with room for what lies outside."""

    programs: int
    blocks: int
    block: int
    bins: int

    @property
    def grid(self) -> tuple[int]:
        return (self.programs,)

    @property
    def arguments(self) -> dict[str, int | None]:
        blocks = {"BLOCK": self.block, "BINS": self.bins, "num_warps": WARPS, "enable_fp_fusion": False}
        return {**blocks, **register_limit(FORWARD.registers)}

    @property
    def finish_arguments(self) -> dict[str, int]:
        rows = max(1, FINISH_TILE // self.bins)
        blocks = {"BLOCK_PROGRAMS": power_of_two_above(self.programs), "BLOCK_ROWS": rows, "BINS": self.bins}
        return {**blocks, "num_warps": FINISH_WARPS, "enable_fp_fusion": False}


def activation_stats_plan(numel: int, bins: int, itemsize: int, n_sms: int) -> ActivationStatsPlan:
    """32 bytes a lane, which leave registers for two accumulators a value and the histogram."""
    block = WARPS * LANES * (32 // itemsize)
    blocks = -(-numel // block)
    return ActivationStatsPlan(
        programs=min(blocks, FORWARD.programs_per_sm * n_sms),
        blocks=blocks,
        block=block,
        bins=max(2 * LANES, power_of_two_above(bins + 1)),  # with 32 one register is spilled on sm_100
    )


@functools.lru_cache(maxsize=1024)
def batch_norm_plan(view: View, itemsize: int, n_sms: int, which: Pass) -> BatchNormPlan:
    """The plan for one pass (FORWARD, BACKWARD, ELEMENTWISE) over a non-empty View."""
    held = _held_blocks(view, itemsize, n_sms, which.held // (2 if itemsize == 8 else 1))
    if held is not None:
        return _plan(view, held, 1, VALUES_PER_LANE, which, held=True)
    values_per_lane = lane_values(view, itemsize)
    tile = WARPS * 32 * values_per_lane
    blocks = tile_blocks(view, itemsize, tile)
    while tile > SMALLEST_TILE and _tiles(view, blocks) < 2 * n_sms:
        tile //= 2
        blocks = tile_blocks(view, itemsize, tile)
    return _plan(view, blocks, which.programs_per_sm * n_sms, values_per_lane, which, held=False)


def lane_values(view: View, itemsize: int) -> int:
    """How many values of a tile a lane holds."""
    if itemsize == 8:
        return VALUES_PER_LANE_FP64
    odd = (view.c if view.channels_last else view.s) % 2 == 1
    return VALUES_PER_LANE_ODD if odd else VALUES_PER_LANE


def _tiles(view: View, blocks: tuple[int, int]) -> int:
    return -(-view.c // blocks[0]) * view.n * -(-view.s // blocks[1])


def _held_blocks(view: View, itemsize: int, n_sms: int, limit: int) -> tuple[int, int] | None:
    """[block_c, block_s] if a program can hold whole channels: as many as leave two programs for every SM."""
    block_s = power_of_two_above(view.n * view.s)
    narrowest = min(SECTOR // itemsize, power_of_two_above(view.c)) if view.channels_last else 1
    if block_s * narrowest > limit:
        return None
    block_c = narrowest
    while block_c * 2 * block_s <= min(limit, HELD_TILE) and -(-view.c // (block_c * 2)) >= 2 * n_sms:
        block_c *= 2
    return block_c, block_s


def tile_blocks(view: View, itemsize: int, tile: int) -> tuple[int, int]:
    """[block_c, block_s] of about `tile` values: the longest fast axis of those with few idle lanes."""
    fast, slow = (view.c, view.s) if view.channels_last else (view.s, view.c)
    longest = min(tile, power_of_two_above(fast))
    if view.channels_last:
        longest = min(longest, 2 * MIN_SEGMENT)
    shortest = min(longest, MIN_SEGMENT // itemsize * (1 if view.channels_last else 4))
    choices = []
    length = longest
    while length >= shortest:
        other = min(tile // length, power_of_two_above(slow))
        while other > 1 and other * fast > MAX_STEP:
            other //= 2
        used = fast * slow / (-(-fast // length) * length * -(-slow // other) * other)
        choices.append((used, length, other))
        length //= 2
    best = max(used for used, _, _ in choices)
    _, length, other = next(choice for choice in choices if choice[0] >= 0.9 * best)
    return (length, other) if view.channels_last else (other, length)


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
        num_warps=min(MAX_WARPS, max(1, warps)),
        c_vec=math.gcd(view.c, 16) if view.channels_last else 1,
        s_vec=1 if view.channels_last else math.gcd(view.s, 16),
        finish_block_c=min(power_of_two_above(view.c), max(1, FINISH_TILE // finish_block_splits), 64),
        finish_block_splits=finish_block_splits,
        registers=which.registers,
    )


def memory_format(x: torch.Tensor) -> torch.memory_format:
    """The layout of an output for x: channels_last if x is strided like it, dense or not; else contiguous."""
    if x.dim() not in (4, 5) or x.is_contiguous():
        return torch.contiguous_format
    channels_last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    if x.is_contiguous(memory_format=channels_last):
        return channels_last
    least = 0
    for dim in (1, *range(x.dim() - 1, 1, -1), 0):
        if x.shape[dim] == 0 or x.stride(dim) < least or x.stride(1) == 0:
            return torch.contiguous_format
        if dim == 0 and least == x.stride(1):  # [N, 1, 1, 1] fits both, and contiguous wins
            return torch.contiguous_format
        least = x.stride(dim) * x.shape[dim]
    return channels_last


def view_of(x: torch.Tensor, layout: torch.memory_format) -> View:
    """x [N, C, *], dense in this layout, as the kernels see it: rows of channels if s would be 1."""
    n, c = x.shape[0], x.shape[1]
    s = math.prod(x.shape[2:])
    if layout != torch.contiguous_format or s == 1:
        return View(n=1, c=c, s=n * s, channels_last=True)
    return View(n=n, c=c, s=s, channels_last=False)


def acc_dtype(x: torch.Tensor) -> torch.dtype:
    """The dtype of statistics, partial results and arithmetic."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def scalars(dtype: torch.dtype, *values: float | None) -> list[Scalar]:
    """Numbers as kernel arguments. Floats arrive as fp32; for fp64 tensors they are compiled in, exact."""
    if dtype != torch.float64:
        return list(values)
    return [None if value is None else tl.constexpr(value) for value in values]


@functools.cache
def _cuda_sm_count(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def sm_count(x: torch.Tensor) -> int:
    return _cuda_sm_count(x.get_device()) if x.is_cuda else INTERPRETER_SMS


def plan_for(x: torch.Tensor, view: View, which: Pass) -> BatchNormPlan:
    n_sms = sm_count(x)
    if n_sms == INTERPRETER_SMS:
        which = replace(which, held=which.held // INTERPRETER_HELD_DIVISOR)
    return batch_norm_plan(view, x.element_size(), n_sms, which)


def dense(vector: torch.Tensor | None) -> torch.Tensor | None:
    """A per-channel vector with stride 1; itself where it has that already."""
    return None if vector is None else vector.contiguous()


def device_guard(x: torch.Tensor) -> AbstractContextManager[object]:
    """Launches go to the current device, which need not be the tensors'."""
    return torch.cuda.device_of(x) if x.is_cuda else nullcontext()
