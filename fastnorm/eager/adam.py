"""Adam and AdamW in plain PyTorch: the specification of the fused step (docs/math.md, O4)."""

from __future__ import annotations

import torch
from torch import Tensor

from fastnorm.eager.optim import Number, arithmetic, correction, decayed, moved, root, square_root


def adam_step(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    max_exp_avg_sq: Tensor | None,
    *,
    step: Number,
    lr: Number,
    beta1: Number,
    beta2: Number,
    eps: Number,
    weight_decay: Number,
    decoupled: bool,
    eps_inside: bool,
    maximize: bool,
) -> tuple[Tensor, ...]:
    """The new parameter and averages; max_exp_avg_sq is given for amsgrad. Differentiable in every tensor.

    step: of this parameter, counted from 1.
    """
    p, g = arithmetic(param, -grad if maximize else grad)
    p, g = decayed(p, g, lr=lr, weight_decay=weight_decay, decoupled=decoupled)
    _, m, v = arithmetic(param, exp_avg, exp_avg_sq)
    m = moved(m, g, beta1)
    v = beta2 * v + (1 - beta2) * g * g
    second, states = v, [m.to(exp_avg.dtype), v.to(exp_avg_sq.dtype)]
    if max_exp_avg_sq is not None:
        (_, largest) = arithmetic(param, max_exp_avg_sq)
        second = torch.maximum(largest, v)
        states.append(second.to(max_exp_avg_sq.dtype))
    unbias = correction(beta2, step)
    denominator = root(second / unbias + eps) if eps_inside else root(second) / square_root(unbias) + eps
    p = p - lr / correction(beta1, step) * (m / denominator)
    return p.to(param.dtype), *states
