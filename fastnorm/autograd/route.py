"""What the Functions share: how ops are called, when the differentiable reference serves instead, double backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad

from fastnorm.ops import BACKENDS, OPS

_libraries: list[torch.library.Library] = []  # a Library unregisters its kernels when it is collected


def transforms_active() -> bool:
    """Whether a functorch transform (vmap, grad, jvp, ...) or forward-mode AD is running.

    These go through the eager reference, whose plain PyTorch operations carry every transform's rules. A compiler's
    trace takes the Functions: it has its own handling.
    """
    if torch.compiler.is_compiling():
        return False
    return peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def wants_grad(*tensors: Tensor | None) -> bool:
    if not torch.is_grad_enabled():
        return False
    for t in tensors:
        if t is not None and t.requires_grad:
            return True
    return False


def below_autograd(op: Callable[..., Any], *args: Any) -> Any:
    """op(*args) past its autograd kernel, for callers that have taken care of gradients."""
    if torch.compiler.is_compiling():  # the guard cannot be traced; the kernel finds gradients switched off
        return op(*args)
    with torch._C._AutoDispatchBelowAutograd():
        return op(*args)


def register_autograd(name: str, apply: Callable[..., Any], differentiable: int) -> None:
    """Give a forward op its gradient in every backend's namespace, for graphs that call the op itself (torch.export).

    apply(backend, *args) runs the Function; the first `differentiable` arguments may require gradients.
    """
    for backend in BACKENDS:

        def kernel(*args: Any, backend: str = backend) -> Any:
            if wants_grad(*args[:differentiable]):
                return apply(backend, *args)
            with torch._C._AutoDispatchBelowAutograd():
                return getattr(OPS[backend], name)(*args)

        library = torch.library.Library(f"fastnorm_{backend}", "IMPL")
        library.impl(name, kernel, "Autograd")
        _libraries.append(library)


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
    return tuple(next(grads) if t is not None and need else None for t, need in zip(leaves, needed, strict=True))
