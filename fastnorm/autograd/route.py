"""What the columns share: how ops are called, who records them, when the differentiable reference serves instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad

from fastnorm.autograd import recompute
from fastnorm.ops import BACKENDS, OPS, native
from fastnorm.ops.backend import chosen as chosen_for_all

_NODES = native.nodes_missing() is None
CALLS = native.nodes()  # its functions take a whole call, checks included
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


def nodes_record() -> bool:
    """Whether a plain call of a forward op records itself: the compiled nodes are there, and no compiler is tracing.

    Else the Functions of this package do. A trace takes them in any case: it can look into them.
    """
    return _NODES and not torch.compiler.is_compiling()


def usual(chosen: str | None) -> bool:
    """Whether `CALLS` may be asked to take a call: no compiler is tracing, and nothing of this library is to be heeded.

    They take plain CPU tensors in a thread without modes, transforms and profilers, and answer None to the rest.

    chosen: the call's own choice of a backend.
    """
    return (
        not torch.compiler.is_compiling()
        and CALLS is not None
        and _NODES
        and chosen is None
        and chosen_for_all() is None
        and not recompute.is_open()
    )


def below_autograd(op: Callable[..., Any], *args: Any) -> Any:
    """op(*args) past its autograd kernel, for callers that have taken care of gradients."""
    if torch.compiler.is_compiling():  # the guard cannot be traced; the kernel finds gradients switched off
        return op(*args)
    with torch._C._AutoDispatchBelowAutograd():
        return op(*args)


def register_autograd(name: str, apply: Callable[..., Any], differentiable: int) -> None:
    """Give a forward op its gradient in every backend's namespace, for graphs that call the op itself (torch.export).

    apply(backend, *args) runs the Function; the first `differentiable` arguments may require gradients. The compiled
    nodes, where they are, have done this already.
    """
    if _NODES:
        return
    for backend in BACKENDS:

        def kernel(*args: Any, backend: str = backend) -> Any:
            if wants_grad(*args[:differentiable]):
                return apply(backend, *args)
            with torch._C._AutoDispatchBelowAutograd():
                return getattr(OPS[backend], name)(*args)

        library = torch.library.Library(f"fastnorm_{backend}", "IMPL")
        library.impl(name, kernel, "Autograd")
        _libraries.append(library)
