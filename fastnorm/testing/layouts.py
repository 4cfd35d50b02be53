"""Tensors of a wanted memory layout, always in NaN-filled storage: a read astray poisons the result."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

MOAT = 64  # NaN elements before and after: a whole number of cache lines in every dtype
EXPANDED = {"expanded": 0, "expanded_channel": 1}  # layout -> the dim whose stride is 0


def _dense(sizes: Sequence[int], order: Sequence[int]) -> list[int]:
    """Strides of a dense tensor whose dims lie in memory in this order, slowest first."""
    strides, step = [0] * len(sizes), 1
    for dim in reversed(order):
        strides[dim] = step
        step *= max(sizes[dim], 1)
    return strides


def _grown(sizes: Sequence[int], dim: int, size: int) -> list[int]:
    return [size if d == dim else s for d, s in enumerate(sizes)]


def _contiguous(sizes: Sequence[int]) -> list[int]:
    return _dense(sizes, range(len(sizes)))


def _channels_last(sizes: Sequence[int]) -> list[int]:
    return _dense(sizes, [0, *range(2, len(sizes)), 1])


def _every_second(sizes: Sequence[int]) -> list[int]:
    return [2 * s for s in _contiguous(sizes)]


def _channel_slice(sizes: Sequence[int]) -> list[int]:
    return _contiguous(_grown(sizes, 1, sizes[1] + 3))


def _padded_rows(sizes: Sequence[int]) -> list[int]:
    return _contiguous(_grown(sizes, len(sizes) - 1, sizes[-1] + 1))


def _channels_last_slice(sizes: Sequence[int]) -> list[int]:
    return _channels_last(_grown(sizes, 1, sizes[1] + 5))


def _batch_slice(sizes: Sequence[int]) -> list[int]:
    strides = _contiguous(sizes)
    return [2 * strides[0], *strides[1:]]


def _transposed(sizes: Sequence[int]) -> list[int]:
    return _dense(sizes, range(len(sizes) - 1, -1, -1))


def _channel_first(sizes: Sequence[int]) -> list[int]:
    return _dense(sizes, [1, 0, *range(2, len(sizes))])


def _expanded(sizes: Sequence[int]) -> list[int]:
    return [0, *_contiguous(sizes)[1:]]


def _expanded_channel(sizes: Sequence[int]) -> list[int]:
    strides = _contiguous(_grown(sizes, 1, 1))
    strides[1] = 0
    return strides


STRIDES: dict[str, Callable[[Sequence[int]], list[int]]] = {
    "contiguous": _contiguous,
    "offset": _contiguous,
    "channels_last": _channels_last,
    "channels_last_offset": _channels_last,
    "every_second": _every_second,
    "channel_slice": _channel_slice,
    "padded_rows": _padded_rows,
    "channels_last_slice": _channels_last_slice,
    "batch_slice": _batch_slice,
    "transposed": _transposed,
    "channel_first": _channel_first,
    "expanded": _expanded,
    "expanded_channel": _expanded_channel,
}
CHANNELS_LAST = ("channels_last", "channels_last_offset", "channels_last_slice")


def strides_of(shape: Sequence[int], layout: str) -> list[int]:
    return STRIDES[layout](list(shape))


def extent(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Elements from the first to the last one, both included."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


def place(values: Tensor, strides: Sequence[int], *, offset: int = 0) -> Tensor:
    """A copy of values with these strides, surrounded (and, where strided, interleaved) by NaN.

    offset moves it off its alignment by that many elements. Along a dim of stride 0 the last value wins.
    """
    room = extent(values.shape, strides) + offset + 2 * MOAT
    storage = torch.full((room,), math.nan, dtype=values.dtype, device=values.device)
    placed = storage.as_strided(values.shape, strides, MOAT + offset)
    if 0 in strides and values.numel():
        narrow = [slice(-1, None) if stride == 0 else slice(None) for stride in strides]
        placed[tuple(narrow)].copy_(values[tuple(narrow)])
    else:
        placed.copy_(values)
    return placed


def lay_out(values: Tensor, layout: str) -> Tensor:
    """A copy of values in one of the layouts of STRIDES."""
    return place(values, strides_of(values.shape, layout), offset=layout.endswith("offset"))


def to_device(t: Tensor, device: str) -> Tensor:
    """A copy with the same strides, storage offset and surroundings."""
    storage = storage_of(t).to(device, copy=True)
    return storage.as_strided(t.shape, t.stride(), t.storage_offset())


def storage_of(t: Tensor) -> Tensor:
    """The whole storage of t as a 1-d tensor of its dtype, sharing memory."""
    return torch.empty(0, dtype=t.dtype, device=t.device).set_(t.untyped_storage())


def storage_bits(t: Tensor) -> Tensor:
    """A snapshot of every byte of t's storage."""
    return storage_of(t).view(torch.uint8).clone()


def bits_outside(t: Tensor) -> Tensor:
    """A snapshot of the storage with t's own elements zeroed: what nobody who is given t may touch."""
    copy = storage_of(t).clone()
    copy.as_strided(t.shape, t.stride(), t.storage_offset()).zero_()
    return copy.view(torch.uint8)


def norm_format(x: Tensor) -> torch.memory_format:
    """The memory format that torch gives a norm of x: asked of torch's own, on a tensor of these strides."""
    if x.dim() not in (4, 5) or not x.numel():
        return torch.contiguous_format
    channel = torch.ones(x.shape[1], dtype=x.dtype)
    y = F.batch_norm(to_device(x.detach(), "cpu"), channel, channel)
    if y.is_contiguous():
        return torch.contiguous_format
    return torch.channels_last if x.dim() == 4 else torch.channels_last_3d
