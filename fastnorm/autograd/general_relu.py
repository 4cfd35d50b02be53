"""GeneralRelu under autograd: one saved tensor, the input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastnorm.autograd import double, recompute
from fastnorm.autograd.route import (
    CALLS,
    below_autograd,
    nodes_record,
    register_autograd,
    transforms_active,
    usual,
    wants_grad,
)
from fastnorm.eager import general_relu as eager
from fastnorm.ops import OPS


class GeneralReluFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        leak: float | None,
        sub: float | None,
        maxv: float | None,
        max_leak: float | None,
        backend: str,
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.activation = (leak, sub, maxv, max_leak)
        ctx.backend = backend
        return below_autograd(OPS[backend].general_relu_fwd, x, leak, sub, maxv, max_leak)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            dx = double.general_relu(dy, x, *ctx.activation)
        else:
            dx = below_autograd(OPS[ctx.backend].general_relu_bwd, dy, x, *ctx.activation)
        return dx, None, None, None, None, None


def usual_general_relu(
    x: Tensor, leak: float | None, sub: float | None, maxv: float | None, max_leak: float | None, backend: str | None
) -> Tensor | None:
    """y of unchecked arguments, if they are right and the call is a usual one; else None, and nothing was done."""
    if not usual(backend):
        return None
    y: Tensor | None = CALLS.general_relu(x, leak, sub, maxv, max_leak)  # type: ignore[union-attr]
    return y


def general_relu(
    x: Tensor, leak: float | None, sub: float | None, maxv: float | None, max_leak: float | None, backend: str
) -> Tensor:
    if transforms_active():
        return eager.general_relu(x, leak, sub, maxv, max_leak)
    if nodes_record():
        y: Tensor = OPS[backend].general_relu_fwd(x, leak, sub, maxv, max_leak)
    elif wants_grad(x):
        y = GeneralReluFunction.apply(x, leak, sub, maxv, max_leak, backend)
    else:
        y = below_autograd(OPS[backend].general_relu_fwd, x, leak, sub, maxv, max_leak)
    if recompute.wanted() and y.requires_grad:
        again = (x, leak, sub, maxv, max_leak)
        recompute.remember(y, lambda: below_autograd(OPS[backend].general_relu_fwd, *again), (x,))
    return y


def _apply(backend: str, *args: Any) -> Any:
    return GeneralReluFunction.apply(*args, backend)


register_autograd("general_relu_fwd", _apply, differentiable=1)
