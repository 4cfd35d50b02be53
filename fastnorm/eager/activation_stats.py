"""Mean, standard deviation and histogram of |x| in plain PyTorch: the specification (docs/math.md, A1 and A2)."""

from __future__ import annotations

import torch
from torch import Tensor

from fastnorm.eager.layout import acc_dtype


def mean_and_std(x: Tensor) -> tuple[Tensor, Tensor]:
    """Of all values of x, in the arithmetic's dtype, sums in fp64; the std of fewer than two values is NaN (A1)."""
    acc = acc_dtype(x)
    mean = x.mean(dtype=torch.float64)
    total = (x.to(torch.float64) - mean).square().sum()
    n = x.numel()
    std = (total / (n - 1)).sqrt() if n > 1 else torch.full_like(total, torch.nan)
    return mean.to(acc), std.to(acc)


def size_histogram(x: Tensor, bins: int, low: float, high: float) -> Tensor:
    """How many |x| lie in each of `bins` equal parts of [low, high]: [bins], int64 (A2)."""
    size = x.to(acc_dtype(x)).abs().flatten()
    scale = torch.tensor(bins / (high - low), dtype=size.dtype)
    inside = (size >= low) & (size <= high)
    place = torch.where(inside, ((size - low) * scale).clamp_max(bins - 1), bins).to(torch.int64)
    return place.new_zeros(bins + 1).scatter_add_(0, place, torch.ones_like(place))[:bins].clone()


def activation_stats_fwd(x: Tensor, bins: int, low: float, high: float) -> tuple[Tensor, Tensor, Tensor]:
    return *mean_and_std(x), size_histogram(x, bins, low, high)
