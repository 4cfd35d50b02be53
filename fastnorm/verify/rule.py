"""How far a converted model's results may be from the exact ones.

A result passes if its distance from the float64 answer (the Euclidean norm of the difference) is at most
    so many times the original's distance (2, unless the caller allows another factor)
  + a floor: how far the float64 answer moves when every module's result, and its gradient, is rounded so many times
    as coarsely as the model's dtype rounds (ROUNDINGS), in the largest of several samples; and what rounding the
    answer itself so coarsely may do.
The floor knows what one number cannot: how well the model is conditioned, that the gradient of a bias in front of a
norm is zero but for rounding, and that an activation within rounding of a corner may take the other slope. Such
corners are the reason for a coarse rounding: what one run in a hundred meets, a sample must meet.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fastnorm.verify.question import Answers, Key

ROUNDINGS = {torch.float16: 4.0, torch.bfloat16: 4.0}  # 16 bits meet every corner anyway
FINE_ROUNDINGS = 16.0


@dataclass(frozen=True)
class Comparison:
    """One result of the converted model. Distances, from the exact result, are Euclidean norms.

    Attributes:
        mode: "training" or "eval", with ", float64" for the pair in float64.
        kind: outputs, gradients or statistics.
        name: of the output, parameter or buffer.
        converted: the converted model's distance.
        original: the original's.
        allowed: the most that the converted model's may be.
        size: the norm of the exact result.
        problem: what no distance expresses: a result is missing, or has another shape.
    """

    mode: str
    kind: str
    name: str
    converted: float
    original: float
    allowed: float
    size: float
    problem: str = ""

    @property
    def ok(self) -> bool:
        """Whether it is within what is allowed."""
        return not self.problem and self.converted <= self.allowed

    @property
    def vanishes(self) -> bool:
        """Whether the exact result is zero, as far as this dtype can tell: such as of a bias in front of a norm."""
        return self.size <= self.allowed

    @property
    def excess(self) -> float:
        """The distance as a multiple of what is allowed."""
        if self.problem:
            return math.inf
        return self.converted / self.allowed if self.allowed else (math.inf if self.converted else 0.0)

    def sentence(self) -> str:
        where = f"{self.mode}: {self.kind}, {self.name}"
        if self.problem:
            return f"{where} {self.problem}"
        return (
            f"{where} is {self.converted:.3g} from the exact result of size {self.size:.3g}, "
            f"{self.excess:.3g} times what is allowed (the original: {self.original:.3g})"
        )


def noise_of(dtype: torch.dtype) -> float:
    """The floor's relative rounding, as a fraction of a number."""
    return ROUNDINGS.get(dtype, FINE_ROUNDINGS) * torch.finfo(dtype).eps / 2


def distance(a: Tensor, b: Tensor) -> float:
    """The norm of a - b in float64; equal infinities are no distance, a NaN or another infinity is infinitely far."""
    if not a.numel():
        return 0.0
    wide = torch.complex128 if a.is_complex() or b.is_complex() else torch.float64
    a, b = a.to(wide), b.to(wide)
    off = torch.where(a == b, torch.zeros_like(a), a - b)
    return float(torch.nan_to_num(torch.linalg.vector_norm(off), torch.inf))


def size_of(t: Tensor) -> float:
    """The norm of what is finite."""
    wide = torch.complex128 if t.is_complex() else torch.float64
    return float(torch.linalg.vector_norm(torch.nan_to_num(t.to(wide), 0.0, 0.0, 0.0)))


def compare(
    converted: Answers, original: Answers, exact: Answers, floor: dict[Key, float], *, mode: str, factor: float
) -> Iterator[Comparison]:
    """The rule, for every result that the original has and any that only the converted one has."""
    for kind, name in (*original, *(key for key in converted if key not in original)):
        key = (kind, name)
        problem = _mismatch(converted.get(key), original.get(key))
        if problem:
            yield Comparison(mode, kind, name, math.inf, 0.0, 0.0, 0.0, problem)
            continue
        theirs = distance(original[key], exact[key])
        ours, allowed = distance(converted[key], exact[key]), factor * theirs + floor[key]
        yield Comparison(mode, kind, name, ours, theirs, allowed, size_of(exact[key]))


def _mismatch(ours: Tensor | None, theirs: Tensor | None) -> str:
    if ours is None:
        return "is missing in the converted model"
    if theirs is None:
        return "is there only in the converted model"
    for what, mine, wanted in (("shape", tuple(ours.shape), tuple(theirs.shape)), ("dtype", ours.dtype, theirs.dtype)):
        if mine != wanted:
            return f"has {what} {mine}, in the original {wanted}"
    return ""
