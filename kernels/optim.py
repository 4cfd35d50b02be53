"""Optimizer steps on a GPU: one launch over a table of pointers and its chunks, filled by fastnorm/ops/optim_table.py.

Table and chunks lie in device memory, and so do the numbers (learning rate, bias corrections, ...), the clipping factor
and found_inf: nothing is read back, and a captured graph replays with whatever they hold then.
Formulas: docs/math.md O1 to O4.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .general_relu import rounded_for

BLOCK = 1024  # elements at a time: 8 a lane in 4 warps, of up to six tensors; unmeasured
WARPS = 4
COLUMNS = tl.constexpr(8)  # of the table: parameter, gradient, three states, rounded copy, elements, set of numbers
TYPES = {torch.float32: tl.float32, torch.float64: tl.float64, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@triton.jit
def column(table_ptr, row, place: tl.constexpr, dtype: tl.constexpr, ALIGNED: tl.constexpr):
    """The pointer in one column of a row. ALIGNED: it divides by 16, as the compiler must know to load wide words."""
    ptr = tl.load(table_ptr + row * COLUMNS + place).to(tl.pointer_type(dtype))
    if ALIGNED:
        ptr = tl.multiple_of(ptr, 16)
    return ptr


@triton.jit
def averaged(average, value, fresh):
    """An average moved by `fresh` towards value, from whichever end is nearer."""
    way = value - average
    return tl.where(fresh < 0.5, average + fresh * way, value - (1 - fresh) * way)


@triton.jit
def decayed(p, g, factor_ptr, n, ACC: tl.constexpr):
    """O1: parameter and gradient; the first three numbers are the gradient's factor, the decay, and L2."""
    g = g * tl.load(n)
    if factor_ptr is not None:
        g = g * tl.load(factor_ptr).to(ACC)
    decay, l2 = tl.load(n + 1), tl.load(n + 2)
    g = tl.where(l2 != 0, g + l2 * p, g)
    return tl.where(decay != 1, p * decay, p), g


@triton.jit
def sgd_update(p, g, s0, s1, s2, n, STATES: tl.constexpr, CENTERED: tl.constexpr):
    momentum, fresh, lookahead, first = tl.load(n + 3), tl.load(n + 4), tl.load(n + 5), tl.load(n + 7)
    if STATES > 0:
        s0 = tl.where(first != 0, g, momentum * s0 + fresh * g)
        g = tl.where(lookahead != 0, g + lookahead * s0, s0)
    return p - tl.load(n + 6) * g, s0, s1, s2


@triton.jit
def rmsprop_update(p, g, s0, s1, s2, n, STATES: tl.constexpr, CENTERED: tl.constexpr):
    alpha, fresh, inside, outside = tl.load(n + 3), tl.load(n + 4), tl.load(n + 5), tl.load(n + 6)
    momentum, into, lr, first = tl.load(n + 7), tl.load(n + 8), tl.load(n + 9), tl.load(n + 10)
    s0 = tl.where(first != 0, (alpha * g) * g, alpha * s0) + (fresh * g) * g
    variance = s0
    if CENTERED:
        if STATES == 3:
            s2 = averaged(s2, g, fresh)
            variance = s0 - s2 * s2
        else:
            s1 = averaged(s1, g, fresh)
            variance = s0 - s1 * s1
        variance = tl.where(variance < 0, 0.0, variance)
    move = g / (tl.sqrt(variance + inside) + outside)
    if STATES - CENTERED == 2:
        s1 = momentum * s1 + into * move
        move = s1
    return p - lr * move, s0, s1, s2


@triton.jit
def adam_update(p, g, s0, s1, s2, n, STATES: tl.constexpr, CENTERED: tl.constexpr):
    fresh1, beta2, fresh2, size = tl.load(n + 3), tl.load(n + 4), tl.load(n + 5), tl.load(n + 6)
    unbias, inside, outside = tl.load(n + 7), tl.load(n + 8), tl.load(n + 9)
    s0 = averaged(s0, g, fresh1)
    s1 = beta2 * s1 + (fresh2 * g) * g
    second = s1
    if STATES == 3:
        second = tl.where((s1 <= s2) | (s2 != s2), s2, s1)
        s2 = second
    return p - size * (s0 / (tl.sqrt(second * unbias + inside) + outside)), s0, s1, s2


@triton.jit
def read(ptr, at, live, ACC: tl.constexpr):
    if live is None:
        value = tl.load(ptr + at)
    else:
        value = tl.load(ptr + at, mask=live, other=0.0)
    return value.to(ACC)


@triton.jit
def write(ptr, at, value, live):
    tl.store(ptr + at, rounded_for(value, ptr), mask=live)


@triton.jit
def update_block(
    p_ptr, g_ptr, s0_ptr, s1_ptr, s2_ptr, copy_ptr, at, live, n, factor_ptr,
    KIND: tl.constexpr, STATES: tl.constexpr, CENTERED: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One step of the elements `at`, of those that `live` says where it is not None."""
    p, g = read(p_ptr, at, live, ACC), read(g_ptr, at, live, ACC)
    s0, s1, s2 = p, p, p
    if STATES > 0:
        s0 = read(s0_ptr, at, live, ACC)
    if STATES > 1:
        s1 = read(s1_ptr, at, live, ACC)
    if STATES > 2:
        s2 = read(s2_ptr, at, live, ACC)
    p, g = decayed(p, g, factor_ptr, n, ACC)
    if KIND == 0:
        p, s0, s1, s2 = sgd_update(p, g, s0, s1, s2, n, STATES, CENTERED)
    elif KIND == 1:
        p, s0, s1, s2 = rmsprop_update(p, g, s0, s1, s2, n, STATES, CENTERED)
    else:
        p, s0, s1, s2 = adam_update(p, g, s0, s1, s2, n, STATES, CENTERED)
    write(p_ptr, at, p, live)
    if copy_ptr is not None:
        write(copy_ptr, at, p, live)
    if STATES > 0:
        write(s0_ptr, at, s0, live)
    if STATES > 1:
        write(s1_ptr, at, s1, live)
    if STATES > 2:
        write(s2_ptr, at, s2, live)


@triton.jit
def optim_step_kernel(
    table_ptr, chunk_ptr, numbers_ptr, factor_ptr, found_inf_ptr,
    PARAM: tl.constexpr, GRAD: tl.constexpr, STATE: tl.constexpr, ROUNDED: tl.constexpr, ALIGNED: tl.constexpr,
    KIND: tl.constexpr, STATES: tl.constexpr, CENTERED: tl.constexpr, NUMBERS: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    ACC: tl.constexpr = tl.float64 if PARAM.primitive_bitwidth == 64 else tl.float32
    chunk = tl.program_id(0).to(tl.int64)
    row, begin = tl.load(chunk_ptr + 2 * chunk), tl.load(chunk_ptr + 2 * chunk + 1)
    begin = tl.multiple_of(begin, CHUNK)
    p_ptr, g_ptr = column(table_ptr, row, 0, PARAM, ALIGNED), column(table_ptr, row, 1, GRAD, ALIGNED)
    s0_ptr, s1_ptr = column(table_ptr, row, 2, STATE, ALIGNED), column(table_ptr, row, 3, STATE, ALIGNED)
    s2_ptr = column(table_ptr, row, 4, STATE, ALIGNED)
    copy_ptr = None
    if ROUNDED is not None:
        copy_ptr = column(table_ptr, row, 5, ROUNDED, ALIGNED)
    numel = tl.load(table_ptr + row * COLUMNS + 6)
    n = numbers_ptr + tl.load(table_ptr + row * COLUMNS + 7) * NUMBERS
    if found_inf_ptr is not None:
        numel = tl.where(tl.load(found_inf_ptr) != 0, 0, numel)  # then nothing is written
    for start in range(0, CHUNK, BLOCK):
        at = begin + start + tl.arange(0, BLOCK)
        # Only a last block needs a mask, which would cost the others their wide loads.
        if begin + start + BLOCK <= numel:
            update_block(
                p_ptr, g_ptr, s0_ptr, s1_ptr, s2_ptr, copy_ptr, at, None, n, factor_ptr, KIND, STATES, CENTERED, ACC
            )
        elif begin + start < numel:
            update_block(
                p_ptr, g_ptr, s0_ptr, s1_ptr, s2_ptr, copy_ptr, at, at < numel, n, factor_ptr, KIND, STATES,
                CENTERED, ACC,
            )  # fmt: skip


def optim_step(
    table: Tensor,
    chunks: Tensor,
    numbers: Tensor,
    factor: Tensor | None,
    found_inf: Tensor | None,
    *,
    kind: int,
    states: int,
    centered: bool,
    dtypes: tuple[torch.dtype, torch.dtype, torch.dtype, torch.dtype | None],
    aligned: bool,
    chunk: int,
) -> None:
    """Updates all rows of a table [rows, 8] of addresses, one program a chunk [chunks, 2].

    numbers: [sets, N] of the arithmetic's dtype, as the fields of SgdNumbers, RmspropNumbers, AdamNumbers in csrc/math
    stand. factor multiplies every gradient; where found_inf is not 0, nothing is written. dtypes: of parameter,
    gradient, states and rounded copy. aligned: all addresses divide by 16.
    """
    param, grad, state, rounded = dtypes
    with launch.device_guard(table):
        optim_step_kernel[(len(chunks),)](
            table, chunks, numbers, factor, found_inf, PARAM=TYPES[param], GRAD=TYPES[grad], STATE=TYPES[state],
            ROUNDED=None if rounded is None else TYPES[rounded], ALIGNED=aligned, KIND=kind, STATES=states,
            CENTERED=int(centered), NUMBERS=numbers.shape[1], CHUNK=chunk, BLOCK=BLOCK, num_warps=WARPS,
            enable_fp_fusion=False,
        )  # fmt: skip
