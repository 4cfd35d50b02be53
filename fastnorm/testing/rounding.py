"""How far rounding alone can move each result: the floors of the comparison rule, in float64.

u is half the spacing at 1 of the arithmetic's dtype (fp32, or fp64 for fp64). Every intermediate may be off
by ROUNDINGS * u of its size. The rounding errors of a sum's partial sums add up like a random walk: allowed
is that of chains of 2 * WALK^2 terms (and of one chain where there are fewer),
    ROUNDINGS * u * WALK * sqrt(sum of the squared terms),
whatever the length of the sum: one long fp32 accumulator does not pass. One number per channel, the mean, is
stored rounded; at a large offset its rounding dominates everything else, and no algorithm that stores it can
do without. Denormals are a rounding too: flushing them is not allowed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ROUNDINGS = 2.0
WALK = 16.0


def unit_of(dtype: torch.dtype) -> float:
    """ROUNDINGS * u of an arithmetic. fp64 gets four times that: it is judged in fp64, which rounds as well."""
    return 4 * ROUNDINGS * 2.0**-53 if dtype == torch.float64 else ROUNDINGS * 2.0**-24


def walk_length(n: int) -> float:
    return min(WALK, max(n, 1) ** 0.5)


@dataclass(frozen=True)
class Statistics:
    """Per channel, shaped to broadcast over x: what the forward used, exactly; n values in each."""

    mean: Tensor
    var: Tensor  # as normalised with (biased or not)
    squares: Tensor  # the root of the sum of the fourth powers of the deviations: the size of var's walk
    eps: float
    n: int
    unit: float
    quantum: float  # the smallest denormal of the arithmetic

    @property
    def rstd(self) -> Tensor:
        return (self.var + self.eps).rsqrt()

    @property
    def mean_error(self) -> Tensor:
        """Its own rounding; and off by u standard deviations, it moves x_hat no more than its rounding does.

        fp64 has no wider type to add in: there the sum of uncentred values may walk.
        """
        walk = walk_length(self.n) if self.unit < 2.0**-32 else 1.0
        return self.unit * (walk * self.mean.abs() + self.var.sqrt()) + self.quantum

    @property
    def var_error(self) -> Tensor:
        """Rounded deviations count twice in their squares; a mean that is off by e adds e^2."""
        walk = walk_length(self.n) * self.squares / max(self.n, 1)
        return self.unit * (2 * self.var + walk) + self.mean_error**2

    @property
    def rstd_error(self) -> Tensor:
        """Relative."""
        return self.unit + 0.5 * self.var_error / (self.var + self.eps)


def sum_floor(terms: Tensor, unit: float) -> Tensor:
    """Of the sum of terms [N, C, *] over all but the channels.

    The partial sums are as large as a random walk of terms, or of samples where those of one sample agree.
    """
    samples = terms.flatten(2).sum(2, keepdim=True) if terms.dim() > 2 else terms[..., None]  # [N, C, 1]
    walk = torch.maximum(samples.square().sum((0, 2)), terms.square().transpose(0, 1).flatten(1).sum(1)).sqrt()
    n = terms.numel() // max(terms.shape[1], 1)
    floor = unit * (samples.sum((0, 2)).abs() + walk_length(n) * walk)  # [C]
    return floor.reshape(1, -1, *([1] * (terms.dim() - 2)))


def normalized_floor(x: Tensor, stats: Statistics, scale: Tensor, added: Tensor, z: Tensor) -> Tensor:
    """Of z = (x - mean) * scale + bias + residual; added is |bias| + |residual|."""
    deviation = (x - stats.mean).abs()
    relative = stats.rstd_error + stats.unit
    return scale.abs() * (stats.mean_error + deviation * relative) + stats.unit * (added + z.abs())


def activation_floor(z: Tensor, z_floor: Tensor, numbers: tuple[float | None, ...], unit: float) -> Tensor:
    """Of act(z): the slopes magnify, the subtraction and the bound each round once more."""
    leak, sub, maxv, max_leak = (0.0 if number is None else abs(number) for number in numbers)
    slope = max(1.0, leak) * max(1.0, max_leak)
    return slope * (z_floor + unit * z.abs()) + unit * (sub + maxv) * (1 + max_leak)


@dataclass(frozen=True)
class BackwardFloors:
    """Of each gradient; dz [N, C, *] is exact, and so are the statistics."""

    x: Tensor
    dz: Tensor
    scale: Tensor  # rstd * weight, per channel
    dx: Tensor
    stats: Statistics
    divisor: int  # n, or n - 1 where the unbiased variance normalises; 0: no gradient through the statistics

    @property
    def dims(self) -> list[int]:
        return [d for d in range(self.dz.dim()) if d != 1]

    @property
    def x_hat(self) -> Tensor:
        return (self.x - self.stats.mean) * self.stats.rstd

    @property
    def x_hat_error(self) -> Tensor:
        relative = self.stats.rstd_error + self.stats.unit
        return self.stats.rstd * self.stats.mean_error + self.x_hat.abs() * relative

    def dbias(self) -> Tensor:
        return sum_floor(self.dz, self.stats.unit)

    def dweight(self) -> Tensor:
        terms, stats = self.dz * self.x_hat, self.stats
        total = terms.sum(self.dims, keepdim=True).abs()
        shift = stats.rstd * stats.mean_error * self.dz.sum(self.dims, keepdim=True).abs()
        denormals = stats.rstd * stats.quantum * stats.n**0.5
        return sum_floor(terms, stats.unit) + shift + total * stats.rstd_error + denormals

    def dresidual(self) -> Tensor:
        return self.stats.unit * self.dz.abs()

    def input(self) -> Tensor:
        """dx = scale * (dz - sum(dz) / n - x_hat * sum(dz * x_hat) / n)."""
        unit = self.stats.unit
        common = self.dx.abs() * (self.stats.rstd_error + unit)
        if not self.divisor:
            return common
        n, x_hat = self.stats.n, self.x_hat
        average = self.dz.sum(self.dims, keepdim=True).abs() / n
        product = (self.dz * x_hat).sum(self.dims, keepdim=True).abs() / self.divisor
        own = unit * (self.dz.abs() + average + x_hat.abs() * product)
        sums = self.dbias() / n + self.x_hat_error * product + x_hat.abs() * self.dweight() / self.divisor
        return self.scale.abs() * (own + sums) + common
