"""Activation statistics as a function."""

from __future__ import annotations

import torch
from torch import Tensor

from fastnorm.autograd.route import below_autograd
from fastnorm.checks import check_floating, checked_bins
from fastnorm.ops import OPS
from fastnorm.ops.backend import resolve


def activation_stats(
    x: Tensor, bins: int = 40, range: tuple[float, float] = (0.0, 10.0), *, backend: str | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and standard deviation of all of x, and the histogram of |x|, in one pass over memory.

    Formula:

        mean    = sum(x) / n
        std     = sqrt(sum((x - mean)^2) / (n - 1))
        hist[i] = number of |x| in the i-th of `bins` equal parts of range; both ends of the range count

    Args:
        x: any shape, fp64, fp32, bf16 or fp16; no gradient flows through.
        bins: from 1 to 255.
        range: the lowest and the highest |x| that is counted. Values outside, and NaN, are not, as in `torch.histc`.
        backend: "eager", "native", "triton", "auto"; None leaves the choice to `use_backend`.

    Returns:
        mean and std, 0-d, fp32 (fp64 for fp64), and hist `[bins]`, int64; all on x's device, nothing is waited for.
        Without values the mean is NaN, and with fewer than two the std, as in torch.

    Raises:
        ValueError: for another number of bins, or a range that is empty or not finite.
        NotImplementedError: for integer or complex x.

    Source: fast.ai's ActivationStats; docs/math.md, A1 and A2.
    """
    check_floating(x, "activation_stats")
    return measured(x, bins, *checked_bins(bins, range), backend=backend)


def measured(
    x: Tensor, bins: int, low: float, high: float, *, backend: str | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """activation_stats of arguments that were checked: for hooks, which pay for every microsecond at every layer."""
    if torch.compiler.is_compiling():
        x = x.detach()
    return below_autograd(OPS[resolve(x, backend, "activation_stats")].activation_stats_fwd, x, bins, low, high)
