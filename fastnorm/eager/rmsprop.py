"""RMSprop in plain PyTorch: the specification of the fused step (docs/math.md, O3)."""

from __future__ import annotations

import torch
from torch import Tensor

from fastnorm.eager.optim import Number, arithmetic, decayed, moved, root


def rmsprop_step(
    param: Tensor,
    grad: Tensor,
    square_avg: Tensor,
    momentum_buffer: Tensor | None,
    grad_avg: Tensor | None,
    *,
    lr: Number,
    alpha: Number,
    eps: Number,
    weight_decay: Number,
    momentum: Number,
    eps_inside: bool,
    decoupled: bool,
    lr_in_momentum: bool,
    first_grad: bool,
    maximize: bool,
) -> tuple[Tensor, ...]:
    """The new parameter, squared average and, where given, buffer and average. Differentiable in every tensor.

    momentum_buffer is given with momentum, grad_avg with centering. first_grad: this is the first step of an average
    that starts at the first gradient squared.
    """
    p, g = arithmetic(param, -grad if maximize else grad)
    p, g = decayed(p, g, lr=lr, weight_decay=weight_decay, decoupled=decoupled)
    (_, v) = arithmetic(param, square_avg)
    v = (alpha * g * g if first_grad else alpha * v) + (1 - alpha) * g * g
    variance, states = v, [v.to(square_avg.dtype)]
    if grad_avg is not None:
        (_, average) = arithmetic(param, grad_avg)
        average = moved(average, g, alpha)
        variance = v - average * average
        variance = torch.where(variance < 0, 0, variance)
    move = g / (root(variance + eps) if eps_inside else root(variance) + eps)
    if momentum_buffer is None:
        p = p - lr * move
    else:
        (_, buf) = arithmetic(param, momentum_buffer)
        buf = momentum * buf + (lr * move if lr_in_momentum else move)
        p = p - (buf if lr_in_momentum else lr * buf)
        states.append(buf.to(momentum_buffer.dtype))
    if grad_avg is not None:
        states.append(average.to(grad_avg.dtype))
    return p.to(param.dtype), *states
