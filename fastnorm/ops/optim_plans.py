"""How an optimizer's step is cut into programs: pure functions of the parameters' sizes and the number of SMs.

No GPU has confirmed these numbers yet: each is unmeasured and carries the argument it was chosen by.
"""

from __future__ import annotations

import functools

import torch

CHUNK = 8192  # elements of a program at most: four or more tensors of 32 KB each
SHORTEST = 1024  # elements of a program at least, if a parameter has them: what 128 threads take at once


@functools.lru_cache(maxsize=64)
def chunk_length(sizes: tuple[int, ...], n_sms: int) -> int:
    """For parameters of so many elements each: shorter where SMs would idle."""
    chunk = CHUNK
    while chunk > SHORTEST and count(sizes, chunk) < 2 * n_sms:
        chunk //= 2
    return chunk


def count(sizes: tuple[int, ...], chunk: int) -> int:
    """Chunks, and with them programs or blocks of a launch: none crosses a parameter's end."""
    return sum(-(-size // chunk) for size in sizes)


def chunk_table(sizes: tuple[int, ...], chunk: int) -> torch.Tensor:
    """Of each chunk its row and its first element [chunks, 2], int64; the largest row's may lie past 2^31."""
    parts = [torch.arange(0, size, chunk) for size in sizes]
    rows = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor([len(part) for part in parts]))
    return torch.stack([rows, torch.cat(parts)], dim=1)
