"""How far rounding alone can move each result: the floors of the comparison rule, in float64.

u is half the spacing at 1 of the arithmetic's dtype (fp32, or fp64 for fp64). Every intermediate may be off
by ROUNDINGS * u of its size. The rounding errors of a sum's partial sums add up like a random walk: allowed
is that of chains of 2 * WALK^2 terms (and of one chain where there are fewer),
    ROUNDINGS * u * WALK * sqrt(sum of the squared terms),
whatever the length of the sum: one long fp32 accumulator does not pass. One number per set, the mean, is
stored rounded; at a large offset its rounding dominates everything else, and no algorithm that stores it can
do without. Denormals are a rounding too: flushing them is not allowed.

All tensors here are in the shape of the view in which sets and weights are whole dims (sets.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastnorm.testing.sets import Sets, total

ROUNDINGS = 2.0
WALK = 16.0


def unit_of(dtype: torch.dtype) -> float:
    """ROUNDINGS * u of an arithmetic. fp64 gets four times that: it is judged in fp64, which rounds as well."""
    return 4 * ROUNDINGS * 2.0**-53 if dtype == torch.float64 else ROUNDINGS * 2.0**-24


def walk_length(n: int) -> float:
    return min(WALK, max(n, 1) ** 0.5)


@dataclass(frozen=True)
class Statistics:
    """Per set, shaped to broadcast over x: what the forward used, exactly; n values in each."""

    mean: Tensor
    var: Tensor  # as normalised with (biased or not)
    squares: Tensor  # the root of the sum of the fourth powers of the deviations: the size of var's walk
    eps: float
    n: int
    unit: float
    quantum: float  # the smallest denormal of the arithmetic
    centred: bool = True  # RMS norm has no mean, hence no rounding of one

    @property
    def rstd(self) -> Tensor:
        return (self.var + self.eps).rsqrt()

    @property
    def mean_error(self) -> Tensor:
        """Its own rounding; and off by u standard deviations, it moves x_hat no more than its rounding does.

        fp64 has no wider type to add in: there the sum of uncentred values may walk.
        """
        if not self.centred:
            return torch.zeros_like(self.mean)
        walk = walk_length(self.n) if self.unit < 2.0**-32 else 1.0
        return self.unit * (walk * self.mean.abs() + self.var.sqrt()) + self.quantum

    @property
    def var_error(self) -> Tensor:
        """Rounded deviations count twice in their squares; a mean that is off by e adds e^2."""
        walk = walk_length(self.n) * self.squares / max(self.n, 1)
        return self.unit * (2 * self.var + walk) + self.mean_error**2

    @property
    def rstd_error(self) -> Tensor:
        """Relative. Of an infinite variance none: x_hat is 0 or NaN there, and sums over other sets go on."""
        return self.unit + torch.nan_to_num(0.5 * self.var_error / (self.var + self.eps), 0.0, 0.0, 0.0)


def sum_floor(terms: Tensor, dims: tuple[int, ...], unit: float) -> Tensor:
    """Of the sum of terms over dims, which stay as 1.

    The partial sums are as large as a random walk of terms, or of samples (what has one index in the first of
    the dims) where those of one sample agree.
    """
    samples = total(terms, dims[1:])
    walk = torch.maximum(total(samples.square(), dims[:1]), total(terms.square(), dims)).sqrt()
    n = terms.numel() // max(walk.numel(), 1)
    return unit * (total(samples, dims[:1]).abs() + walk_length(n) * walk)


def across_sets(errors: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Of a sum over sets of which each is off by up to its error: they walk, unless all rounded the same way."""
    walk = torch.minimum(total(errors.abs(), dims), ROUNDINGS * total(errors.square(), dims).sqrt())
    return torch.maximum(total(errors, dims).abs(), walk)


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
    """Of each gradient; dz is exact, and so are the statistics."""

    x: Tensor
    dz: Tensor
    weight: Tensor  # shaped to broadcast over x; 1 where there is none
    dx: Tensor
    stats: Statistics
    sets: Sets
    divisor: int  # n, or n - 1 where the unbiased variance normalises; 0: no gradient through the statistics

    @property
    def x_hat(self) -> Tensor:
        return (self.x - self.stats.mean) * self.stats.rstd

    @property
    def x_hat_error(self) -> Tensor:
        relative = self.stats.rstd_error + self.stats.unit
        return self.stats.rstd * self.stats.mean_error + self.x_hat.abs() * relative

    def dbias(self) -> Tensor:
        return sum_floor(self.dz, self.sets.shared, self.stats.unit)

    def dweight(self) -> Tensor:
        """Within a set all x_hat are off together: by the mean's error and, relatively, by rstd's."""
        stats, sets, terms = self.stats, self.sets, self.dz * self.x_hat
        own = tuple(d for d in sets.shared if d in sets.inside)
        others = tuple(d for d in sets.shared if d not in sets.inside)
        shift = across_sets(stats.rstd * stats.mean_error * total(self.dz, own), others)
        scaled = across_sets(stats.rstd_error * total(terms, own), others)
        denormals = self._denormals(stats.rstd, sets.shared)
        return sum_floor(terms, sets.shared, stats.unit) + shift + scaled + denormals

    def dresidual(self) -> Tensor:
        return self.stats.unit * self.dz.abs()

    def input(self) -> Tensor:
        """dx = rstd * (g - sum(g) / n - x_hat * sum(g * x_hat) / n), g = dz * weight."""
        unit, stats, inside = self.stats.unit, self.stats, self.sets.inside
        common = self.dx.abs() * (stats.rstd_error + unit)
        if not self.divisor:
            return common
        g, x_hat = self.dz * self.weight, self.x_hat
        product = total(g * x_hat, inside).abs() / self.divisor
        own = unit * (g.abs() + x_hat.abs() * product)
        sums = self.x_hat_error * product + x_hat.abs() * self._product_floor(g) / self.divisor
        if stats.centred:
            own = own + unit * total(g, inside).abs() / stats.n
            sums = sums + sum_floor(g, inside, unit) / stats.n
        return stats.rstd * (own + sums) + common

    def _product_floor(self, g: Tensor) -> Tensor:
        """Of sum(g * x_hat) over a set."""
        stats, terms, inside = self.stats, g * self.x_hat, self.sets.inside
        shift = stats.rstd * stats.mean_error * total(g, inside).abs()
        scaled = total(terms, inside).abs() * stats.rstd_error
        return sum_floor(terms, inside, stats.unit) + shift + scaled + self._denormals(stats.rstd * self.weight, inside)

    def _denormals(self, scale: Tensor, dims: tuple[int, ...]) -> Tensor:
        """Of a sum whose terms hold scale * (x - mean), each difference rounded to a denormal."""
        return self.stats.quantum * total(scale.expand_as(self.x).square(), dims).sqrt()
