"""How an optimizer's step is cut into programs: pure functions of the parameters' sizes and the number of SMs.

No GPU has confirmed these numbers yet: each is unmeasured and carries the argument it was chosen by.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

CHUNK = 8192  # elements of a program at most: four or more tensors of 32 KB each
BLOCK = 1024  # elements at a time: 8 a lane in 4 warps, of up to six tensors
WARPS = 4
COLUMNS = 8  # of a row of the table: parameter, gradient, three states, rounded copy, elements, set of numbers


@dataclass(frozen=True)
class OptimPlan:
    """One launch: one program a chunk of one parameter, `block` elements at a time."""

    chunk: int
    chunks: int
    block: int = BLOCK
    num_warps: int = WARPS

    @property
    def grid(self) -> tuple[int]:
        return (self.chunks,)


@functools.lru_cache(maxsize=64)
def optim_plan(sizes: tuple[int, ...], n_sms: int) -> OptimPlan:
    """The plan for parameters of so many elements each, none of them empty: shorter chunks where SMs would idle."""
    chunk = CHUNK
    while chunk > BLOCK and count(sizes, chunk) < 2 * n_sms:
        chunk //= 2
    return OptimPlan(chunk, count(sizes, chunk))


def count(sizes: tuple[int, ...], chunk: int) -> int:
    return sum(-(-size // chunk) for size in sizes)


def chunk_table(sizes: tuple[int, ...], chunk: int) -> torch.Tensor:
    """Of each chunk its row and its first element [chunks, 2], int64; the largest row's may lie past 2^31."""
    parts = [torch.arange(0, size, chunk) for size in sizes]
    rows = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor([len(part) for part in parts]))
    return torch.stack([rows, torch.cat(parts)], dim=1)
