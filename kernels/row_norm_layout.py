"""How the tensors of a row norm lie in memory, as the kernels take them (row_norm_programs.RowView).

| sets | x contiguous | x channels_last |
|---|---|---|
| trailing dims | rows of memory | all but the sample: rows of memory, weight and bias brought into their order |
| | | all positions of a channel: lines of length S that start next to each other |
| | | other dims: copied to contiguous, and y back |
| groups of channels | C / groups neighbouring lines of length S | the same, starting next to each other |
| channels of one position | lines of length C that start next to each other | rows of memory |
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from . import launch
from .row_norm_programs import RowView


@dataclass(frozen=True)
class Layout:
    """sets: how many there are. read, written: the memory formats of what kernels read and of results.

    channel: the dim of weight and bias that is the fastest in memory, if that is not their last one.
    """

    view: RowView
    sets: int
    read: torch.memory_format
    written: torch.memory_format
    channel: int | None = None

    def dense(self, t: Tensor) -> Tensor:
        return t.contiguous(memory_format=self.read)

    def parameter(self, p: Tensor | None) -> Tensor | None:
        """weight or bias in the order in which the kernels walk."""
        if p is None:
            return None
        return (p if self.channel is None else p.movedim(self.channel, -1)).contiguous()

    def parameter_grad(self, grad: Tensor) -> Tensor:
        """The gradient of what `parameter` returned, in the parameter's own order."""
        return grad if self.channel is None else grad.movedim(-1, self.channel).contiguous()

    def empty(self, x: Tensor) -> Tensor:
        """A tensor for results, as the kernels write them."""
        return torch.empty_like(x, memory_format=self.read)

    def result(self, t: Tensor) -> Tensor:
        return t.contiguous(memory_format=self.written)


def arrange(x: Tensor, dims: int, groups: int) -> Layout:
    return _arrange(tuple(x.shape), launch.memory_format(x), dims, groups)


def _rows(rows: int, length: int) -> RowView:
    return RowView(n=1, c=rows, s=length, channels_last=False, d=1, along=True)


@functools.lru_cache(maxsize=1024)
def _arrange(shape: tuple[int, ...], written: torch.memory_format, dims: int, groups: int) -> Layout:
    channels_last = written != torch.contiguous_format
    if dims:
        rows = math.prod(shape[: len(shape) - dims])
        view = _rows(rows, math.prod(shape[len(shape) - dims :]))
        if not channels_last:
            return Layout(view, rows, written, written)
        if dims >= len(shape) - 1:
            return Layout(view, rows, written, written, channel=dims + 1 - len(shape))
        if dims == len(shape) - 2:
            view = RowView(n=shape[0], c=shape[1], s=view.s, channels_last=True, d=1, along=True)
            return Layout(view, rows, written, written)
        return Layout(view, rows, torch.contiguous_format, written)
    n, c, s = shape[0], shape[1], math.prod(shape[2:])
    channels_last |= s == 1
    if groups == 0:
        view = _rows(n * s, c)
        if not channels_last:
            view = RowView(n=n, c=s, s=c, channels_last=True, d=1, along=True)
        return Layout(view, n * s, written, written)
    view = RowView(n=n, c=c, s=s, channels_last=channels_last, d=c // groups, along=False)
    if groups == 1 and s == 1:
        view = _rows(n, c)
    return Layout(view, n * groups, written, written)
