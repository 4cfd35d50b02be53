"""The one comparison rule. No test writes a tolerance of its own.

A result passes if, element by element, its distance from the float64 answer is at most
    PyTorch's own error in the same arithmetic, the largest of the slice (not rounded to storage)
  + one unit in the last place of the result's dtype, at the exact answer
  + a floor: what rounding every intermediate once or twice can do (rounding.py), which for a sum grows like
    the root of the number of its terms, because it is proportional to the root of the sum of their squares.
Infinities and NaN must be where float64 (rounded to the dtype) or PyTorch has them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastnorm.testing.sets import Sets


@dataclass(frozen=True)
class Expectation:
    """What a result should be. Tensors are float64, of the result's shape (floor: broadcastable to it)."""

    exact: Tensor
    peer: Tensor
    floor: Tensor
    dtype: torch.dtype
    sets: Sets | None = None  # the slices: what shares statistics, or else single elements

    def bound(self) -> Tensor:
        """The largest error allowed for each element."""
        error = torch.nan_to_num((self.peer - self.exact).abs(), 0.0, 0.0, 0.0)
        if self.sets is not None and error.numel():
            slices = self.sets.view(error)
            error = slices.amax(self.sets.inside, keepdim=True).expand_as(slices).reshape(error.shape)
        floor = torch.nan_to_num(self.floor, 0.0, 0.0, 0.0)
        return (error + ulp(self.exact, self.dtype) + floor).expand(self.exact.shape)


def ulp(value: Tensor, dtype: torch.dtype) -> Tensor:
    """The spacing of the dtype's numbers at each value (float64), down to its denormals."""
    info = torch.finfo(dtype)
    size = torch.nan_to_num(value.abs(), 0.0, info.max, info.max).clamp(info.tiny, info.max)
    _, exponent = torch.frexp(size)
    return torch.ldexp(torch.full_like(size, info.eps), exponent - 1)


def _same(a: Tensor, b: Tensor) -> Tensor:
    return (a == b) | (a.isnan() & b.isnan())


def passes(actual: Tensor, want: Expectation) -> Tensor:
    """Which elements obey the rule."""
    got = actual.detach().cpu().to(torch.float64)
    close = (got - want.exact).abs() <= want.bound()
    agrees = _same(got, _rounded(want.exact, want.dtype)) | _same(got, _rounded(want.peer, want.dtype))
    return torch.where(got.isfinite() & want.exact.isfinite(), close, agrees)


def _rounded(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype).to(torch.float64)


def check(actual: Tensor | None, want: Expectation, label: str) -> None:
    """AssertionError, naming the worst element, unless actual is what was expected."""
    assert actual is not None, f"{label}: missing"
    assert actual.shape == want.exact.shape, f"{label}: shape {tuple(actual.shape)}, not {tuple(want.exact.shape)}"
    assert actual.dtype == want.dtype, f"{label}: dtype {actual.dtype}, not {want.dtype}"
    good = passes(actual, want)
    if bool(good.all()):
        return
    got, bound = actual.detach().cpu().to(torch.float64), want.bound()
    excess = torch.nan_to_num((got - want.exact).abs() / bound, torch.inf, torch.inf, torch.inf)
    excess = torch.where(good, -1.0, excess)
    at = tuple(int(i) for i in torch.unravel_index(excess.argmax(), excess.shape))
    raise AssertionError(
        f"{label}: {int((~good).sum())} of {good.numel()} elements are wrong; the worst, at {list(at)}, is "
        f"{float(got[at])!r}, float64 has {float(want.exact[at])!r}, PyTorch {float(want.peer[at])!r}: "
        f"{float(excess[at]):.3g} times the error allowed, {float(bound[at]):.3g}"
    )
