"""GeneralRelu as a function."""

from __future__ import annotations

import torch
from torch import Tensor

from fastnorm.activation import checked_activation
from fastnorm.autograd import general_relu as _general_relu
from fastnorm.checks import check_floating
from fastnorm.ops.backend import resolve


def general_relu(
    x: Tensor,
    leak: float | None = None,
    sub: float | None = None,
    maxv: float | None = None,
    max_leak: float | None = None,
    *,
    inplace: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Leaky ReLU, shifted down and clamped, in one pass: y = min(leaky_relu(x, leak) - sub, maxv).

    Each step is taken only if its number is given; leak=None is plain ReLU. max_leak, with maxv, is the slope above
    maxv instead of a flat line. Slope at x = 0 is leak (0 for ReLU), at y = maxv it is 1; NaN passes through.

    Args:
        x: any shape, fp64, fp32, bf16 or fp16; computed in fp32 (fp64 for fp64), rounded once.
        leak: the slope below 0; None for plain ReLU.
        sub: what is subtracted, or None.
        maxv: the upper bound, or None.
        max_leak: the slope above maxv, or None.
        inplace: write the result into x and return x; safe under autograd.
        backend: "eager", "native", "triton", "auto"; None leaves the choice to `use_backend`.

    Returns:
        A tensor like x; channels_last stays channels_last.

    Raises:
        ValueError: for a leak, sub, maxv or max_leak that is no number, and for a max_leak without maxv.
        NotImplementedError: for integer or complex x.

    Source: fast.ai's "GeneralRelu"; docs/math.md, G1-G4.
    """
    if not inplace:
        y = _general_relu.usual_general_relu(x, leak, sub, maxv, max_leak, backend)
        if y is not None:
            return y
    check_floating(x, "general_relu")
    numbers = checked_activation(leak, sub, maxv, max_leak)[1:]
    if inplace:
        source = x.clone() if torch.is_grad_enabled() and x.requires_grad else x
        return x.copy_(_general_relu.general_relu(source, *numbers, resolve(x, backend, "general_relu")))
    return _general_relu.general_relu(x, *numbers, resolve(x, backend, "general_relu"))
