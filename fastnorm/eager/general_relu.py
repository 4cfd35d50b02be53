"""GeneralRelu in plain PyTorch: the specification (docs/math.md, G1-G4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnorm.eager.layout import acc_dtype, memory_format_of


def activate(z: Tensor, leak: float | None, sub: float | None, maxv: float | None, max_leak: float | None) -> Tensor:
    """The activation in z's own dtype, differentiable to any order: leaky relu, minus sub, at most maxv (G1)."""
    y = F.relu(z) if leak is None else F.leaky_relu(z, leak)
    if sub is not None:
        y = y - sub
    if maxv is None:
        return y
    if max_leak is None:
        return y.clamp_max(maxv)
    return torch.where(y > maxv, maxv + max_leak * (y - maxv), y)


def activation_grad(
    dy: Tensor, z: Tensor, leak: float | None, sub: float | None, maxv: float | None, max_leak: float | None
) -> Tensor:
    """dy * act'(z), with the conventions of composed PyTorch at ties and for NaN (G2)."""
    if leak is None:
        g = torch.where(z <= 0, 0.0, dy)
        y = F.relu(z)
    else:
        g = torch.where(z > 0, dy, dy * leak)
        y = F.leaky_relu(z, leak)
    if maxv is None:
        return g
    if sub is not None:
        y = y - sub
    if max_leak is None:
        return torch.where(y <= maxv, g, 0.0)
    return torch.where(y > maxv, g * max_leak, g)


def general_relu(
    x: Tensor, leak: float | None, sub: float | None, maxv: float | None, max_leak: float | None
) -> Tensor:
    """GeneralRelu computed in fp32 (fp64 for fp64) and rounded once; differentiable to any order."""
    return activate(x.to(acc_dtype(x)), leak, sub, maxv, max_leak).to(x.dtype)


def general_relu_fwd(
    x: Tensor, leak: float | None, sub: float | None, maxv: float | None, max_leak: float | None
) -> Tensor:
    y = general_relu(x, leak, sub, maxv, max_leak)
    return y.contiguous(memory_format=memory_format_of(x))


def general_relu_bwd(
    dy: Tensor, x: Tensor, leak: float | None, sub: float | None, maxv: float | None, max_leak: float | None
) -> Tensor:
    acc = acc_dtype(x)
    dx = activation_grad(dy.to(acc), x.to(acc), leak, sub, maxv, max_leak).to(x.dtype)
    return dx.contiguous(memory_format=memory_format_of(x))
