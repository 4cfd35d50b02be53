"""What the Functions share: when to leave them for the differentiable reference, and double backward through it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad


def transforms_active() -> bool:
    """Whether a functorch transform (vmap, grad, jvp, ...) or forward-mode AD is running.

    These go through the eager reference, whose plain PyTorch operations carry every transform's rules. A compiler's
    trace takes the Functions: it has its own handling.
    """
    if torch.compiler.is_compiling():
        return False
    return peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def wants_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def differentiable_grads(
    reference: Callable[..., Tensor], inputs: Sequence[Tensor | None], needed: Sequence[bool], dy: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients of reference(*inputs), themselves differentiable with respect to inputs and dy: double backward.

    Each input enters through a view of its own, so that one tensor passed twice gets its two gradients apart.
    """
    with torch.enable_grad():
        leaves = [t.view_as(t) if t is not None and need else t for t, need in zip(inputs, needed, strict=True)]
        wanted = [t for t, need in zip(leaves, needed, strict=True) if t is not None and need]
        y = reference(*leaves)
        grads = iter(torch.autograd.grad(y, wanted, dy, create_graph=True, allow_unused=True))
    return tuple(
        next(grads) if t is not None and need else None for t, need in zip(leaves, needed, strict=True)
    )
