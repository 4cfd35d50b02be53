"""Which elements of a tensor share a mean and a variance, and which share a weight: for every norm alike."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from fastnorm.testing.cases import NormCase, RowCase


def total(t: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The sum over dims, which stay as 1. torch's own takes no dims for all of them."""
    return t.sum(dims, keepdim=True) if dims else t


@dataclass(frozen=True)
class Sets:
    """A shape to view the tensor in, where sets and weights are whole dims."""

    shape: tuple[int, ...]
    inside: tuple[int, ...]  # the dims of the elements of one set
    shared: tuple[int, ...]  # the dims over which a weight is the same

    def view(self, t: Tensor) -> Tensor:
        """t, of the case's shape, in the shape of the view; a copy where strides want one."""
        return t.reshape(self.shape)

    def parameter(self, t: Tensor) -> Tensor:
        """A weight or bias shaped to broadcast over the view."""
        return t.reshape([1 if d in self.shared else size for d, size in enumerate(self.shape)])

    @property
    def n(self) -> int:
        """The number of elements in a set."""
        return self.count(self.inside)

    def count(self, dims: tuple[int, ...]) -> int:
        return math.prod(self.shape[d] for d in dims)


def sets_of(case: NormCase | RowCase) -> Sets:
    shape = case.shape
    if isinstance(case, NormCase):
        others = tuple(d for d in range(len(shape)) if d != 1)
        return Sets(shape, others, others)
    if case.dims:
        rank, leading = len(shape) + 1, len(shape) + 1 - case.dims
        return Sets((1, *shape), tuple(range(leading, rank)), tuple(range(leading)))
    if case.groups:
        split = (shape[0], case.groups, shape[1] // case.groups, *shape[2:])
        return Sets(split, tuple(range(2, len(split))), (0, *range(3, len(split))))
    return Sets(shape, (1,), (0, *range(2, len(shape))))
