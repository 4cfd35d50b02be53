"""RMS norms of language models: whether a class computes weight * x_hat, and in which dtype its result is.

Many models carry their own copy of the same six lines, and some of them differ (Gemma's multiplies by 1 + weight). The
forward is traced: one straight line of operations that reads the weight and eps and nothing else. Then it is run
against the formula on random numbers, in all dtypes, with a random weight and rows on which eps counts.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from fastnorm.activation import IDENTITY
from fastnorm.convert.kernels import KERNELS
from fastnorm.convert.pairs import Unprovable
from fastnorm.convert.trace import signature_of, trace

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_WIDTH = 32
_known: dict[tuple[type[nn.Module], str], str | Unprovable] = {}


def eps_name(module: nn.Module) -> str | None:
    """The name of eps in a module that is built like an RMS norm: one weight [C], one eps, nothing else; or None."""
    if module._buffers or module._modules or set(module._parameters) != {"weight"}:
        return None
    weight = module._parameters["weight"]
    found = [name for name in ("variance_epsilon", "eps") if type(module.__dict__.get(name)) is float]
    if weight is None or weight.dim() != 1 or len(found) != 1 or "norm" not in type(module).__name__.lower():
        return None
    return found[0]


def proven_form(module: nn.Module) -> str:
    """The name of the kernel that computes what the module's class does; Unprovable where there is none.

    Found out once for a class: nothing but the weight and eps is read, and the kernel reads those as they are.
    """
    cls, eps = type(module), eps_name(module)
    assert eps is not None
    if (cls, eps) not in _known:
        try:
            _known[cls, eps] = f"{_form(module, eps)}_{eps}"
        except Unprovable as reason:
            _known[cls, eps] = reason
    found = _known[cls, eps]
    if isinstance(found, Unprovable):
        raise found
    return found


def _form(module: nn.Module, eps: str) -> str:
    signature = signature_of(type(module))
    if signature.required != 1:
        raise Unprovable("an RMS norm that takes more than its input")
    traced = trace(module, True, {signature.parameters[0]: Tensor})
    reads = {node.target for node in traced.graph.nodes if node.op == "get_attr"}
    values = {name for _, name, _ in traced.checks.values}
    if traced.mode_read or reads != {"weight"} or not values <= {"weight", eps}:
        raise Unprovable("an RMS norm whose forward reads more than its weight and eps")
    for form in ("llama", "olmo"):
        if all(_agrees(module, f"{form}_{eps}", *dtypes) for dtypes in itertools.product(_DTYPES, _DTYPES)):
            return form
    raise Unprovable("an RMS norm whose forward computes something else than weight * x / rms(x)")


@torch.no_grad()
def _agrees(module: nn.Module, kernel: str, dtype: torch.dtype, weight_dtype: torch.dtype) -> bool:
    """Whether the kernel gives the module's own result and its dtype, up to a few roundings of that."""
    generator = torch.Generator().manual_seed(0)
    weight = (torch.rand(_WIDTH, generator=generator) + 0.5).to(weight_dtype)
    probe = type(module).__new__(type(module))
    probe.__dict__.update(module.__dict__, _parameters={"weight": nn.Parameter(weight)})
    x = torch.randn(6, _WIDTH, generator=generator) * torch.tensor([1e-4, 1e-3, 1e-2, 1.0, 4.0, 30.0])[:, None]
    x = x.to(dtype)
    try:
        own = type(module).forward(probe, x)
    except RuntimeError:
        return False
    ours = KERNELS[kernel].run(probe, x, None, IDENTITY)
    coarse = max(torch.finfo(dtype).eps, torch.finfo(weight_dtype).eps)
    return own.dtype == ours.dtype and torch.allclose(own.double(), ours.double(), rtol=4 * coarse, atol=1e-7)
