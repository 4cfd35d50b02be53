"""A case's tensors through composed plain torch, in one dtype: what the oracles and their peers evaluate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnorm.testing.cases import ACTS, NormCase, ReluCase, RowCase
from fastnorm.testing.problems import Problem


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def composed_relu(
    z: Tensor, leak: float | None, sub: float | None, maxv: float | None, max_leak: float | None
) -> Tensor:
    """GeneralRelu as a user composes it."""
    y = torch.relu(z) if leak is None else F.leaky_relu(z, leak)
    y = y if sub is None else y.sub(sub)
    if maxv is None:
        return y
    return y.clamp(max=maxv) if max_leak is None else torch.where(y > maxv, (y - maxv) * max_leak + maxv, y)


@dataclass
class Composed:
    """One evaluation of the composed operations in one dtype: z before the activation, y behind it."""

    z: Tensor
    y: Tensor
    leaves: dict[str, Tensor]

    def gradients(self, dy: Tensor) -> dict[str, Tensor]:
        """By leaf name, and that of z as dz."""
        names, inputs = [*self.leaves, "z"], [*self.leaves.values(), self.z]
        # A contiguous copy: torch 2.13 misreads a dy whose strides suit both formats, as (1, 5, 13, 1)'s may.
        upstream = dy.to(self.y.dtype, copy=True, memory_format=torch.contiguous_format)
        grads = torch.autograd.grad(self.y, inputs, upstream, retain_graph=True)
        return {f"d{name}": grad for name, grad in zip(names, grads, strict=True)}


Norm = Callable[[Any, Tensor, Tensor | None, Tensor | None, Problem], Tensor]  # of a case, x, weight, bias


def compose_norm(case: NormCase | RowCase, p: Problem, dtype: torch.dtype, norm: Norm) -> Composed:
    inputs = {"x": p.x, "weight": p.weight, "bias": p.bias, "residual": p.residual}
    leaves = {
        name: t.to(dtype, copy=True, memory_format=torch.contiguous_format).requires_grad_()
        for name, t in inputs.items()
        if t is not None
    }
    z = norm(case, leaves["x"], leaves.get("weight"), leaves.get("bias"), p)
    if p.residual is not None:
        z = z + leaves["residual"]
    return Composed(z, z if case.act is None else composed_relu(z, *ACTS[case.act].numbers), leaves)


def compose_relu(case: ReluCase, p: Problem, dtype: torch.dtype) -> Composed:
    x = p.x.to(dtype, copy=True, memory_format=torch.contiguous_format).requires_grad_()
    z = x.view_as(x)
    return Composed(z, composed_relu(z, *ACTS[case.act].numbers), {"x": x})
