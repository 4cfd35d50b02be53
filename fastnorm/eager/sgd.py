"""SGD in plain PyTorch: the specification of the fused step (docs/math.md, O2)."""

from __future__ import annotations

from torch import Tensor

from fastnorm.eager.optim import Number, arithmetic, decayed


def sgd_step(
    param: Tensor,
    grad: Tensor,
    momentum_buffer: Tensor | None,
    *,
    lr: Number,
    momentum: Number,
    dampening: Number,
    weight_decay: Number,
    decoupled: bool,
    nesterov: bool,
    lerp: bool,
    maximize: bool,
    first: bool,
) -> tuple[Tensor, ...]:
    """The new parameter and, with a buffer, the new buffer. Differentiable in every tensor.

    first: the buffer holds nothing yet and becomes the gradient (not with lerp, where it starts at zero).
    """
    p, g = arithmetic(param, -grad if maximize else grad)
    p, g = decayed(p, g, lr=lr, weight_decay=weight_decay, decoupled=decoupled)
    if momentum_buffer is None:
        return ((p - lr * g).to(param.dtype),)
    (_, buf) = arithmetic(param, momentum_buffer)
    if first and not lerp:
        buf = g
    else:
        buf = momentum * buf + (1 - (momentum if lerp else dampening)) * g
    move = g + momentum * buf if nesterov else buf
    return (p - lr * move).to(param.dtype), buf.to(momentum_buffer.dtype)
