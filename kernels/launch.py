"""Launch numbers as data, what the plans of all ops share: pure functions of shape, dtype size, layout and SMs.

No GPU has confirmed these numbers yet: each is unmeasured and carries the argument it was chosen by.
"""

from __future__ import annotations

import functools
import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TypeAlias, TypeVar

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


AnyPass = TypeVar("AnyPass", bound=Pass)

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


def on_amd() -> bool:
    return torch.version.hip is not None


def register_limit(registers: int | None) -> dict[str, int | None]:
    """The option of a launch for the most registers of a thread, which Triton's AMD backend refuses."""
    return {} if on_amd() else {"maxnreg": registers}


def power_of_two_above(value: int) -> int:
    return 1 << (value - 1).bit_length()


def elementwise_plan(numel: int) -> ElementwisePlan:
    return ElementwisePlan(grid=(-(-numel // ELEMENTWISE_BLOCK),), block=ELEMENTWISE_BLOCK, num_warps=4)


def lane_values(view: View, itemsize: int) -> int:
    """How many values of a tile a lane holds."""
    if itemsize == 8:
        return VALUES_PER_LANE_FP64
    odd = (view.c if view.channels_last else view.s) % 2 == 1
    return VALUES_PER_LANE_ODD if odd else VALUES_PER_LANE


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


def spread_blocks(view: View, itemsize: int, tile: int, n_sms: int) -> tuple[int, int]:
    """tile_blocks, of smaller tiles where there would not be two for every SM."""
    blocks = tile_blocks(view, itemsize, tile)
    while tile > SMALLEST_TILE and -(-view.c // blocks[0]) * view.n * -(-view.s // blocks[1]) < 2 * n_sms:
        tile //= 2
        blocks = tile_blocks(view, itemsize, tile)
    return blocks


def dividing_powers(view: View) -> tuple[int, int]:
    """[c_vec, s_vec]: the power of two, at most 16, that divides the fast axis; 1 for the other.

    The compiler must know it to load wide words.
    """
    return (math.gcd(view.c, 16), 1) if view.channels_last else (1, math.gcd(view.s, 16))


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


def room(x: torch.Tensor, which: AnyPass) -> tuple[int, AnyPass]:
    """The SMs that x's device has, and what a pass leaves room for there."""
    n_sms = sm_count(x)
    if n_sms == INTERPRETER_SMS:
        which = replace(which, held=which.held // INTERPRETER_HELD_DIVISOR)
    return n_sms, which


def dense(vector: torch.Tensor | None) -> torch.Tensor | None:
    """A per-channel vector with stride 1; itself where it has that already."""
    return None if vector is None else vector.contiguous()


def device_guard(x: torch.Tensor) -> AbstractContextManager[object]:
    """Launches go to the current device, which need not be the tensors'."""
    return torch.cuda.device_of(x) if x.is_cuda else nullcontext()
