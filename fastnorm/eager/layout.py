"""What an output looks like in memory and which dtype the arithmetic runs in: rules that all backends share."""

from __future__ import annotations

import torch
from torch import Tensor


def _strided_like_channels_last(x: Tensor) -> bool:
    """Whether the channel is the fastest dim and the rest follow in order (dense or not), as torch judges it."""
    sizes, strides = x.shape, x.stride()
    if strides[1] == 0:
        return False
    smallest = 0
    for dim in (1, *range(x.dim() - 1, 1, -1), 0):
        if sizes[dim] == 0 or strides[dim] < smallest:
            return False
        if dim == 0 and smallest == strides[1]:  # N x 1 x 1 ...: both formats fit, contiguous wins
            return False
        smallest = strides[dim] * max(sizes[dim], 1)
    return True


def memory_format_of(x: Tensor) -> torch.memory_format:
    """The memory format of a norm's output for the input x: channels_last stays, everything else is contiguous."""
    if x.dim() not in (4, 5) or x.is_contiguous():
        return torch.contiguous_format
    channels_last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    kept = x.is_contiguous(memory_format=channels_last) or _strided_like_channels_last(x)
    return channels_last if kept else torch.contiguous_format


def acc_dtype(x: Tensor) -> torch.dtype:
    """The dtype that statistics and arithmetic use: fp64 for fp64, else fp32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
