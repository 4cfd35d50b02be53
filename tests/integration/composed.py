"""Batch norm, an activation and a residual, by this library and composed of torch's own parts."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import fastnorm
from fastnorm.functional import batch_norm

ACT = fastnorm.GeneralRelu(0.1, 0.4, 1.0)
SHAPE = (4, 3, 5, 2)


def leaf(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, dtype=dtype).requires_grad_()


def composed_act(z: Tensor) -> Tensor:
    return (F.leaky_relu(z, 0.1) - 0.4).clamp_max(1.0)


# Gradients that come down in every kind of strides.
UPSTREAM: dict[str, Callable[[tuple[int, ...]], Tensor]] = {
    "expanded": lambda shape: torch.randn(1).expand(shape),
    "expanded-batch": lambda shape: torch.randn(1, *shape[1:]).expand(shape),
    "transposed": lambda shape: torch.randn(shape[3], *shape[1:3], shape[0]).transpose(0, 3),
    "sliced": lambda shape: torch.randn(2 * shape[0], *shape[1:3], 2 * shape[3])[::2, :, :, 1::2],
    "channels_last": lambda shape: torch.randn(shape).to(memory_format=torch.channels_last),
    "offset": lambda shape: torch.randn(math.prod(shape) + 1)[1:].view(shape),
}


def both(
    x: Tensor, w: Tensor | None, b: Tensor | None, r: Tensor | None, training: bool = True, fused: bool = True
) -> tuple[Tensor, Tensor]:
    """Ours and composed torch, on the same tensors, without running statistics unless evaluating."""
    stats = (None, None) if training else (torch.linspace(-1, 1, 3).to(x.dtype), torch.linspace(0.5, 2, 3).to(x.dtype))
    y = batch_norm(x, *stats, w, b, training, act=ACT if fused else None, residual=r)
    z = F.batch_norm(x, *stats, w, b, training)
    z = z if r is None else z + r
    return y, composed_act(z) if fused else z
