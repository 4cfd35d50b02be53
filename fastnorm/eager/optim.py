"""What the reference steps of all optimizers share (docs/math.md, O1 and O5)."""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
from torch import Tensor

Number: TypeAlias = float | Tensor

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def arithmetic(*tensors: Tensor) -> tuple[Tensor, ...]:
    """All tensors in the dtype that the step computes in: the first one's, but fp32 for 16-bit parameters."""
    dtype = tensors[0].dtype
    if dtype in (torch.bfloat16, torch.float16):
        dtype = torch.float32
    return tuple(t.to(dtype) for t in tensors)


def root(v: Tensor) -> Tensor:
    """sqrt(v) whose derivatives at v = 0 are 0 instead of infinite."""
    zero = v == 0
    return torch.where(zero, v, torch.where(zero, 1, v).sqrt())


def moved(average: Tensor, value: Tensor, keep: Number) -> Tensor:
    """keep * average + (1 - keep) * value, written from whichever end is nearer, so that nothing cancels."""
    way = value - average
    if isinstance(keep, Tensor):
        return torch.where(keep > 0.5, average + (1 - keep) * way, value - keep * way)
    return average + (1 - keep) * way if keep > 0.5 else value - keep * way


def decayed(param: Tensor, grad: Tensor, *, lr: Number, weight_decay: Number, decoupled: bool) -> tuple[Tensor, Tensor]:
    """O1: parameter and gradient after weight decay, which enters one or the other."""
    if not isinstance(weight_decay, Tensor) and weight_decay == 0:
        return param, grad
    if decoupled:
        return param * (1 - lr * weight_decay), grad
    return param, grad + weight_decay * param


def _mixed(z: int) -> int:
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    return z ^ (z >> 31)


def random_key(seed: int, step: int, parameter: int) -> int:
    """O5: the key of a parameter's random bits in one step."""
    key = _mixed((seed & MASK) + GOLDEN & MASK)
    key = _mixed(key ^ (step + 2 * GOLDEN & MASK))
    return _mixed(key ^ (parameter + 3 * GOLDEN & MASK))


def random_bits(count: int, key: int) -> Tensor:
    """O5: 32 random bits for each element, as int64 in storage order."""
    low = (1 << 32) - 1
    element = torch.arange(count, dtype=torch.int64)
    h = ((element & low) * 0x9E3779B9 + (key & low)) & low
    h = h ^ (((element >> 32) * 0x85EBCA6B & low) ^ (key >> 32))
    h = ((h ^ (h >> 16)) * 0x7FEB352D) & low
    h = ((h ^ (h >> 15)) * 0x846CA68B) & low
    return h ^ (h >> 16)


def in_storage_order(values: Tensor, like: Tensor) -> Tensor:
    """values [numel], given in the order in which like's elements lie in memory, in like's shape."""
    order = sorted(range(like.dim()), key=lambda d: like.stride(d), reverse=True)
    back = [order.index(d) for d in range(like.dim())]
    return values.view([like.shape[d] for d in order]).permute(back)


def rounded_at_random(value: Tensor, like: Tensor, key: int) -> Tensor:
    """O5: fp32 values rounded to like's 16-bit dtype, up or down with the probability of the distance."""
    random = in_storage_order(random_bits(value.numel(), key), like).to(value.device)
    bits = value.contiguous().view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    dropped = 16 if like.dtype == torch.bfloat16 else 13
    step = 1 << dropped
    up = (bits + random % step) // step * step
    result = torch.where(up >= 1 << 31, up - (1 << 32), up).to(torch.int32).view(torch.float32)
    if like.dtype == torch.float16:
        quanta = value.abs() * 2.0**24 + (random % step).float() * 2.0**-dropped
        small = quanta.floor() * 2.0**-24 * torch.where(value.signbit(), -1.0, 1.0)
        result = torch.where(value.abs() < 2.0**-14, small, result)
    return torch.where(value.isfinite(), result, value).to(like.dtype)


def correction(beta: Number, step: Number) -> Number:
    """1 - beta^step, in double where both are numbers."""
    return 1 - beta**step


def square_root(value: Number) -> Number:
    return value.sqrt() if isinstance(value, Tensor) else math.sqrt(value)
